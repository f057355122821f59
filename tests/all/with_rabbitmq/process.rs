//! Cages in processes of their own, between queues `work` and `results` of a broker: killed in the middle of their work, and
//! watched for the memory that they take.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use wasmcage_tests::{Peer, RabbitMq, Root, cache, eventually, guest, program};

use super::life::{broker, restarted};

/// Messages of the tests that kill; `AMQP_MESSAGES` may say more.
const MESSAGES: usize = 2_000;
/// Messages of the test that lets them wait; `AMQP_WAITING` may say more.
const WAITING: usize = 50_000;
const PREFETCH: usize = 64;

/// A cage that answers raw requests of queue `work`.
struct HandlerProcess {
    root: TempDir,
    child: Option<Child>,
}

impl HandlerProcess {
    fn new(broker: &RabbitMq, keys: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let cage = root.path().join("killed");
        fs::create_dir_all(&cage).unwrap();
        fs::copy(guest("amqp_handler"), cage.join("interface_in.wasm")).unwrap();
        std::os::unix::fs::symlink(cache(), root.path().join(".cache")).unwrap();
        let url = broker.url();
        let toml =
            format!("[interfaces.in]\nprotocol = 'amqp'\nformat = 'raw'\nurl = '{url}'\nprefetch = {PREFETCH}\n{keys}");
        fs::write(cage.join("cage.toml"), toml).unwrap();
        let mut process = Self { root, child: None };
        process.start();
        process
    }

    fn start(&mut self) {
        let mut command = Command::new(program());
        command.args(["secondary", "--root"]).arg(self.root.path()).args(["--lanes", "2", "--", "killed"]);
        command.env("WASMCAGE_RUNTIME_DIR", self.root.path().join(".run")).kill_on_drop(true);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.child = Some(child.unwrap());
    }

    /// A value of the kernel's status of the process, in bytes.
    fn memory(&self, key: &str) -> u64 {
        let pid = self.child.as_ref().unwrap().id().unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
        kib * 1024
    }

    fn log(&self) -> String {
        let logs = fs::read_dir(self.root.path().join("killed/logs")).into_iter().flatten().flatten();
        logs.map(|file| String::from_utf8_lossy(&fs::read(file.path()).unwrap_or_default()).into_owned()).collect()
    }

    async fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().await.unwrap();
    }

    /// Drains it, as its monitor would.
    async fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        drop(child.stdin.take());
        assert!(child.wait().await.unwrap().success());
    }
}

/// Requests in queue `work`, their answers from queue `results`.
struct Requests {
    messages: usize,
    peer: Peer,
    /// By a request's number: all answers, and those to a delivery that the broker called a repeated one.
    answers: BTreeMap<String, (usize, usize)>,
}

impl Requests {
    async fn publish(broker: &RabbitMq, queues: FieldTable) -> Self {
        let messages = std::env::var("AMQP_MESSAGES").map_or(MESSAGES, |text| text.parse().unwrap());
        let peer = Peer::of(broker).await;
        peer.queue("work", queues.clone()).await;
        peer.queue("results", queues).await;
        for number in 0..messages {
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_reply_to("results".into())
                .with_correlation_id(number.to_string().into());
            let options = BasicPublishOptions::default();
            peer.channel.basic_publish("".into(), "work".into(), options, b"headers", properties).await.unwrap();
        }
        peer.channel.wait_for_confirms().await.unwrap();
        Self { messages, peer, answers: BTreeMap::new() }
    }

    /// Waits until no more than so many requests are left in their queue.
    async fn left(&self, most: usize) {
        while self.peer.waiting("work").await.unwrap() as usize > most {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Takes one answer; says whether there was one.
    async fn take(&mut self) -> bool {
        let Some(answer) = self.peer.take("results").await else { return false };
        let id = answer.properties.correlation_id().as_ref().unwrap().to_string();
        let repeated = String::from_utf8_lossy(&answer.data).contains("redelivered: true");
        let (all, of_repeated) = self.answers.entry(id).or_default();
        *all += 1;
        *of_repeated += usize::from(repeated);
        true
    }
}

/// Every request is answered, and again only those whose delivery was not acknowledged: the broker has sent no more than
/// the prefetch beyond what it has seen acknowledged.
async fn check_kills(mut broker: RabbitMq, queues: FieldTable, keys: &str, broker_too: bool) {
    const KILLS: usize = 4;
    let mut requests = Requests::publish(&broker, queues).await;
    if broker_too {
        on_disk(&broker).await;
    }
    let mut process = HandlerProcess::new(&broker, keys);
    for kill in 0..KILLS {
        requests.left(requests.messages * (2 * KILLS - kill - 1) / (2 * KILLS)).await;
        if broker_too && kill % 2 == 1 {
            broker = restarted(broker).await;
            requests.peer = Peer::of(&broker).await;
            // A queue that has no leader yet says that nothing waits.
            while requests.peer.waiting("work").await == Some(0) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        } else {
            process.kill().await;
            process.start();
        }
    }
    while requests.answers.len() < requests.messages {
        if !requests.take().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // A request in work may be answered once more.
    process.stop().await;
    while requests.take().await {}
    let duplicates: usize = requests.answers.values().map(|(all, _)| all - 1).sum();
    println!("{} messages, all answered, {KILLS} kills, {duplicates} answers more than messages", requests.messages);
    assert!(duplicates <= KILLS * PREFETCH, "{duplicates}");
    let unexplained = requests.answers.iter().filter(|(_, (all, repeated))| all - 1 > *repeated).count();
    assert_eq!(unexplained, 0, "answered again although the broker had not sent them again");
}

/// The broker writes down which quorum queues it has some seconds after their declaration; killed before that, it would begin
/// them anew, empty.
async fn on_disk(broker: &RabbitMq) {
    let node = format!("t{}@localhost", broker.port());
    let names = broker.directory().join(format!("mnesia/{node}/quorum/{node}/names.dets"));
    let holds = |bytes: &[u8], name: &str| bytes.windows(name.len()).any(|part| part == name.as_bytes());
    eventually("the queues on disk", || {
        let bytes = fs::read(&names).unwrap_or_default();
        (holds(&bytes, "%2F_work") && holds(&bytes, "%2F_results")).then_some(())
    })
    .await;
}

fn arguments(texts: &[(&str, &str)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, text) in texts {
        table.insert((*name).into(), AMQPValue::LongString((*text).into()));
    }
    table
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_that_is_killed_repeats_only_what_it_had_not_acknowledged() {
    let broker = broker("").await;
    check_kills(broker, FieldTable::default(), "queues.work = { durable = true }", false).await;
}

/// With quorum queues, which have acknowledgements in their log. A classic queue of a broker that is killed has forgotten the
/// latest ones, and sends acknowledged messages again: nothing is lost, but no bound holds.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_cage_and_broker_are_killed() {
    let broker = broker("").await;
    let queues = arguments(&[("x-queue-type", "quorum")]);
    check_kills(broker, queues, "queues.work = { type = 'quorum' }", true).await;
}

/// Messages wait at the broker: a cage holds its prefetch and no more.
#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_the_number_of_messages_that_wait() {
    const PADDING: usize = 1_000;
    let broker = broker("").await;
    let waiting = std::env::var("AMQP_WAITING").map_or(WAITING, |text| text.parse().unwrap());
    let peer = Peer::of(&broker).await;
    // Kept on disk by the broker.
    peer.queue("work", arguments(&[("x-queue-mode", "lazy")])).await;
    let padding = "x".repeat(PADDING);
    let publish = async |count: usize| {
        let properties = BasicProperties::default().with_headers(arguments(&[("padding", &padding)]));
        for _ in 0..count {
            let (options, properties) = (BasicPublishOptions::default(), properties.clone());
            peer.channel.basic_publish("".into(), "work".into(), options, b"slow", properties).await.unwrap();
        }
        peer.channel.wait_for_confirms().await.unwrap();
    };
    publish(4 * PREFETCH).await;
    let process =
        HandlerProcess::new(&broker, "queues.work = { durable = true, arguments = { x-queue-mode = 'lazy' } }");
    let handled = || process.log().matches("message work: slow").count();
    // As many at once as ever, with all the instances that they need.
    eventually("work", || (handled() >= 2 * PREFETCH).then_some(())).await;
    let before = process.memory("RssAnon");
    publish(waiting).await;
    let seen = handled();
    eventually("more work", || (handled() >= seen + PREFETCH).then_some(())).await;
    let grown = process.memory("RssAnon").saturating_sub(before);
    let left = peer.waiting("work").await.unwrap() as usize;
    println!("{left} messages wait, memory {} KiB, grown by {} KiB", before / 1024, grown / 1024);
    assert!(left > waiting / 2, "{left}");
    // Each message in work with its buffers and the guest's copies; the rest is for the allocator's moods.
    assert!(grown < (PREFETCH * 64 * 1024 + (16 << 20)) as u64, "{grown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_a_hundred_megabytes_is_refused_without_being_held() {
    const LONG: usize = 100_000_000;
    let broker = broker("vm_memory_high_watermark.absolute = 2GB").await;
    let peer = Peer::of(&broker).await;
    peer.queue("dead", FieldTable::default()).await;
    peer.queue("work", arguments(&[("x-dead-letter-exchange", ""), ("x-dead-letter-routing-key", "dead")])).await;
    let keys = "queues.work = { durable = true, arguments = { x-dead-letter-exchange = '', \
                x-dead-letter-routing-key = 'dead' } }";
    let process = HandlerProcess::new(&broker, keys);
    peer.publish("", "work", b"first", BasicProperties::default()).await;
    eventually("the first", || process.log().contains("message work: first").then_some(())).await;
    let before = process.memory("VmHWM");
    peer.publish("", "work", &vec![b' '; LONG], BasicProperties::default()).await;
    peer.publish("", "work", b"next", BasicProperties::default()).await;
    eventually("the next", || process.log().contains("message work: next").then_some(())).await;
    let grown = process.memory("VmHWM") - before;
    println!("a body of {LONG} bytes: memory {} KiB, grown by {} KiB", before / 1024, grown / 1024);
    assert!(grown < LONG as u64 / 3, "{grown}");
    let log = process.log();
    assert_eq!(log.matches("message too long").count(), 1, "{log}");
    assert!(log.contains(&format!("queue=work bytes={LONG}")), "{log}");
    assert_eq!(peer.waiting("dead").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_says_who_a_cage_is_to_its_broker_as_it_does_for_postage() {
    let broker = broker("").await;
    for arguments in [
        &["add_vhost", "post"][..],
        &["add_user", "carrier", "horn"],
        &["set_permissions", "-p", "post", "carrier", ".*", ".*", ".*"],
    ] {
        broker.control(arguments);
    }
    let root = Root::new(&[("posted", &["amqp_handler"])]);
    let keys = "protocol = 'amqp'\nmodule = 'amqp_handler'\nformat = 'raw'\nqueues.work = {}";
    root.configure("posted", &format!("[interfaces.in]\nhost = '127.0.0.1'\nport = {}\n{keys}", broker.port()));
    let mut command = root.command(&["run", "posted"]);
    command.envs([("POSTAGE_VHOST", "post"), ("POSTAGE_RMQ_USER", "carrier"), ("POSTAGE_RMQ_PASSWORD", "horn")]);
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    root.serving("posted").await;
    let address = format!("amqp://carrier@127.0.0.1:{}/post (work)", broker.port());
    eventually("the cage consumes", || {
        let logs = fs::read_dir(root.cage("posted").join("logs")).into_iter().flatten().flatten();
        let log: String = logs.map(|log| fs::read_to_string(log.path()).unwrap_or_default()).collect();
        log.contains(&address).then_some(())
    })
    .await;
    assert!(broker.control(&["list_queues", "-p", "post", "name"]).contains("work"));
    root.stop("posted").await;
    run.wait().await.unwrap();
}
