//! Compares messages of RabbitMQ through a `handler` guest with the client library alone on the same broker: consuming
//! with acknowledgements, round trips of an RPC, and publishing with confirms by many callers.
//!
//! `AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F cargo bench -p wasmcage-benches --bench amqp` after `tests/run
//! guests`. Messages have 200 bytes and are transient; the figures are medians of interleaved rounds. Queues `bench-*`
//! of that broker are deleted.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first thing that is wrong, and prints"
)]

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use wasmcage_benches::{BenchCage, median};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MESSAGES: u32 = 40_000;
const CALLS: usize = 3_000;
const PUBLISHERS: usize = 64;
const PREFETCH: u16 = 256;
const ACKED_TOGETHER: u64 = 16;
const ROUNDS: usize = 3;
const BODY: [u8; 200] = [b'x'; 200];

fn main() {
    let Ok(url) = std::env::var("AMQP_URL") else {
        println!("not run: AMQP_URL names no broker");
        return;
    };
    let runtime = Runtime::new().unwrap();
    let connection = runtime.block_on(Connection::connect(&url, ConnectionProperties::default())).unwrap();
    let (mut consumed, mut asked, mut published) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        consumed.push((runtime.block_on(bare_consume(&connection)), cage_consume(&runtime, &connection, &url)));
        asked.push((runtime.block_on(bare_rpc(&connection)), cage_rpc(&runtime, &connection, &url)));
        published.push((runtime.block_on(bare_publish(&connection)), cage_publish(&runtime, &connection, &url)));
    }
    println!("| | client library | cage |\n|---|---|---|");
    let rate = |count: f64, times: Vec<Duration>| format!("{:.0}", count / median(times).as_secs_f64());
    let row = |name: &str, bare: String, cage: String| println!("| {name} | {bare} | {cage} |");
    let (bare, cage) = consumed.into_iter().unzip();
    let count = f64::from(MESSAGES);
    row("consume and acknowledge, prefetch 256, messages/s", rate(count, bare), rate(count, cage));
    let (bare, cage): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
    let micros = |times| format!("{}", median(times).as_micros());
    row("rpc, one after another, p50 us", micros(bare), micros(cage));
    let (bare, cage) = published.into_iter().unzip();
    row("publish with confirms, 64 at once, messages/s", rate(count, bare), rate(count, cage));
}

async fn channel(connection: &Connection) -> Channel {
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

async fn declare(channel: &Channel, queue: &str) {
    channel.queue_declare(queue.into(), QueueDeclareOptions::default(), FieldTable::default()).await.unwrap();
}

async fn delete(channel: &Channel, queue: &str) {
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

async fn waiting(channel: &Channel, queue: &str) -> u32 {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count()
}

async fn fill(connection: &Connection, queue: &str) -> Channel {
    let channel = channel(connection).await;
    declare(&channel, queue).await;
    for _ in 0..MESSAGES {
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue.into(), options, &BODY, BasicProperties::default()).await.unwrap();
    }
    channel.wait_for_confirms().await.unwrap();
    channel
}

async fn bare_consume(connection: &Connection) -> Duration {
    let channel = fill(connection, "bench-bare").await;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.unwrap();
    let begun = Instant::now();
    let options = BasicConsumeOptions::default();
    let mut deliveries =
        channel.basic_consume("bench-bare".into(), "".into(), options, FieldTable::default()).await.unwrap();
    for number in 1..=u64::from(MESSAGES) {
        let delivery = deliveries.next().await.unwrap().unwrap();
        if number % ACKED_TOGETHER == 0 {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await.unwrap();
        }
    }
    let elapsed = begun.elapsed();
    delete(&channel, "bench-bare").await;
    elapsed
}

fn cage(url: &str, queue: &str) -> BenchCage {
    let toml = format!(
        "concurrency = 10_000\n[interfaces.in]\nprotocol = 'amqp'\nformat = 'raw'\nurl = '{url}'\nprefetch = {PREFETCH}\n\
         queues.{queue} = {{}}"
    );
    BenchCage::start(&[("hello", "interface_in")], &toml).expect("the guests are built")
}

/// The time from the first message to the last, when the queue is empty and the cage idle.
fn cage_consume(runtime: &Runtime, connection: &Connection, url: &str) -> Duration {
    let channel = runtime.block_on(fill(connection, "bench-cage"));
    let cage = cage(url, "bench-cage");
    let done = || {
        let snapshot = cage.host().snapshot();
        snapshot.cages[0].interfaces.iter().find(|one| one.interface == "in").map_or(0, |one| one.readings.requests)
    };
    while done() == 0 {
        std::thread::sleep(Duration::from_micros(200));
    }
    let (begun, before) = (Instant::now(), done());
    while done() < MESSAGES.into() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let elapsed = begun.elapsed().mul_f64(f64::from(MESSAGES) / (f64::from(MESSAGES) - before as f64));
    drop(cage);
    runtime.block_on(async {
        assert_eq!(waiting(&channel, "bench-cage").await, 0);
        delete(&channel, "bench-cage").await;
    });
    elapsed
}

/// The median of requests over direct reply-to, one after the other.
async fn ask(connection: &Connection, queue: &str) -> Duration {
    let channel = connection.create_channel().await.unwrap();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let direct = "amq.rabbitmq.reply-to";
    let mut replies = channel.basic_consume(direct.into(), "".into(), options, FieldTable::default()).await.unwrap();
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begun = Instant::now();
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let properties = properties.with_reply_to(direct.into());
        channel.basic_publish("".into(), queue.into(), options, &BODY, properties).await.unwrap();
        replies.next().await.unwrap().unwrap();
        times.push(begun.elapsed());
    }
    median(times)
}

async fn bare_rpc(connection: &Connection) -> Duration {
    let server = connection.create_channel().await.unwrap();
    declare(&server, "bench-rpc").await;
    let options = BasicConsumeOptions::default();
    let mut requests =
        server.basic_consume("bench-rpc".into(), "".into(), options, FieldTable::default()).await.unwrap();
    let answering = tokio::spawn({
        let server = server.clone();
        async move {
            while let Some(Ok(request)) = requests.next().await {
                let reply_to = request.properties.reply_to().clone().unwrap();
                let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
                server.basic_publish("".into(), reply_to, options, &request.data, properties).await.unwrap();
                request.ack(BasicAckOptions::default()).await.unwrap();
            }
        }
    });
    let time = ask(connection, "bench-rpc").await;
    answering.abort();
    delete(&server, "bench-rpc").await;
    time
}

fn cage_rpc(runtime: &Runtime, connection: &Connection, url: &str) -> Duration {
    let channel = runtime.block_on(channel(connection));
    runtime.block_on(declare(&channel, "bench-cage-rpc"));
    let cage = cage(url, "bench-cage-rpc");
    let time = runtime.block_on(ask(connection, "bench-cage-rpc"));
    drop(cage);
    runtime.block_on(delete(&channel, "bench-cage-rpc"));
    time
}

async fn bare_publish(connection: &Connection) -> Duration {
    let channel = channel(connection).await;
    declare(&channel, "bench-publish").await;
    let begun = Instant::now();
    join_all((0..PUBLISHERS).map(|_| async {
        for _ in 0..MESSAGES as usize / PUBLISHERS {
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            let sent = channel.basic_publish("".into(), "bench-publish".into(), options, &BODY, properties).await;
            sent.unwrap().await.unwrap();
        }
    }))
    .await;
    let elapsed = begun.elapsed();
    delete(&channel, "bench-publish").await;
    elapsed
}

/// Measures concurrent requests that each publish one message after the other over the channels of the resource's pool.
fn cage_publish(runtime: &Runtime, connection: &Connection, url: &str) -> Duration {
    let own = runtime.block_on(channel(connection));
    runtime.block_on(declare(&own, "bench-publish"));
    let toml = format!(
        "request_timeout_ms = 60_000\n[interfaces.web]\nprotocol = 'http'\nlisten = '127.0.0.1:0'\nmodule = 'sender'\n\
         [modules.sender]\ntimeout_ms = 60_000\nallow = {{ resources = ['out'] }}\n\
         [resources.out]\nprotocol = 'amqp'\nurl = '{url}'\npersistent = false\n\
         pool = {{ size = {PUBLISHERS} }}\n\
         eks = [{{ exchange = '', key = 'bench-publish' }}]"
    );
    let cage = BenchCage::start(&[("amqp_sender", "sender")], &toml).expect("the guests are built");
    let address = cage.address();
    let ask = async |count: usize| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /many?count={count} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    };
    // The warm-up makes instances and channels.
    runtime.block_on(join_all((0..PUBLISHERS).map(|_| ask(10))));
    let begun = Instant::now();
    runtime.block_on(join_all((0..PUBLISHERS).map(|_| ask(MESSAGES as usize / PUBLISHERS))));
    let elapsed = begun.elapsed();
    drop(cage);
    runtime.block_on(delete(&own, "bench-publish"));
    elapsed
}
