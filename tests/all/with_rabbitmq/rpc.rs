//! Every answer goes to its own request, also when the other side repeats no correlation id, as no Postage program does;
//! answers twice; or dies between its reply and its acknowledgement.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, ExchangeKind};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use wasmcage_resource::Connection;

use super::resource::{ResourceFixture, alone, operation, within};

/// Rounds of the test with many callers; `AMQP_ROUNDS` may say more.
const ROUNDS: usize = 20;
const CALLERS: usize = 16;

/// Answers every request of the fixture's queue by its own parameters, without a correlation id, so many times.
async fn serving(fixture: &ResourceFixture, replies: usize) -> JoinHandle<()> {
    let peer = wasmcage_tests::Peer::of(&fixture.broker).await;
    let consumed = peer.channel.basic_consume(
        fixture.queue.as_str().into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut requests = consumed.await.unwrap();
    tokio::spawn(async move {
        while let Some(Ok(request)) = requests.next().await {
            let message: Value = serde_json::from_slice(&request.data).unwrap();
            let value = &message["content"]["parameters"];
            let to = request.properties.reply_to().as_ref().unwrap().to_string();
            for _ in 0..replies {
                peer.publish("", &to, &result(value), BasicProperties::default()).await;
            }
            request.ack(BasicAckOptions::default()).await.unwrap();
        }
    })
}

fn result(value: &Value) -> Vec<u8> {
    let fingerprint = json!({"name": "p", "type": "t", "pid": "1", "host": "h", "user": "u", "vhost": "/"});
    let message = json!({
        "type": "result", "name": "none", "category": "message", "version": "2", "fingerprint": fingerprint,
        "content": {"type": "success", "value": value, "message": ""}, "_reserved": {},
    });
    message.to_string().into_bytes()
}

async fn ask(connection: &mut Box<dyn Connection>, value: Value) -> Value {
    let reply = alone(connection, operation("rpc", "echo", &[], value)).await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    serde_json::from_slice(&reply.body).unwrap()
}

/// On few connections, as a pool would give them to many callers.
async fn check_own_answers(keys: &str, replies: usize) {
    let fixture = ResourceFixture::new(keys).await;
    let fixture = Arc::new(fixture);
    let _serving = serving(&fixture, replies).await;
    let rounds = std::env::var("AMQP_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let callers = (0..CALLERS).map(|caller| {
        let fixture = fixture.clone();
        tokio::spawn(async move {
            let mut connection = fixture.connect().await;
            let mut wrong = 0;
            for round in 0..rounds {
                let value = json!([caller, round]);
                wrong += usize::from(ask(&mut connection, value.clone()).await != value);
                assert!(!connection.is_used_up());
            }
            wrong
        })
    });
    let wrong: usize = join_all(callers).await.into_iter().map(Result::unwrap).sum();
    println!("{} requests, {replies} replies to each, {wrong} answers to another request", rounds * CALLERS);
    assert_eq!(wrong, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_correlation_id_go_to_their_requests() {
    check_own_answers("", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_answer_goes_to_nobody() {
    check_own_answers("", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_answer_goes_to_nobody_with_queues_either() {
    check_own_answers("reply_queue = 'exclusive'", 2).await;
}

/// The other side has replied to a try that was given up, and to the next one.
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_a_request_that_was_sent_again_goes_to_it_and_to_no_later_one() {
    for keys in ["", "reply_queue = 'exclusive'"] {
        let fixture = ResourceFixture::new(keys).await;
        let mut connection = fixture.connect().await;
        let first = operation("rpc", "echo", &[("timeout-ms", "200"), ("max-retry", "100")], json!("first"));
        let asked = tokio::spawn(async move {
            let reply = alone(&mut connection, first).await.unwrap();
            (connection, reply)
        });
        let (one, two) = (fixture.peer.next(&fixture.queue).await, fixture.peer.next(&fixture.queue).await);
        let reply_to = |request: &lapin::message::Delivery| request.properties.reply_to().as_ref().unwrap().to_string();
        for request in [&one, &two] {
            fixture.peer.publish("", &reply_to(request), &result(&json!("first")), BasicProperties::default()).await;
        }
        let (mut connection, reply) = asked.await.unwrap();
        assert_eq!(reply.body, "\"first\"");
        while fixture.peer.take(&fixture.queue).await.is_some() {}
        // And once more, while the next one waits.
        let asked = tokio::spawn(async move { ask(&mut connection, json!("second")).await });
        let next = fixture.peer.next(&fixture.queue).await;
        assert_ne!(reply_to(&next), reply_to(&one));
        fixture.peer.publish("", &reply_to(&one), &result(&json!("first")), BasicProperties::default()).await;
        fixture.peer.publish("", &reply_to(&next), &result(&json!("second")), BasicProperties::default()).await;
        assert_eq!(asked.await.unwrap(), "second");
    }
}

/// Replies go through an exchange, by a key that the requester names, as with nameko.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_comes_through_an_exchange_where_that_is_said() {
    let fixture = ResourceFixture::new("").await;
    let through = format!("{}-replies", fixture.exchange);
    let keys = format!(
        "eks = [{{ exchange = '{}', key = 'k' }}]\nexchanges.{through} = {{ type = 'topic' }}\nreply_exchange = '{through}'",
        fixture.exchange
    );
    let asking = fixture.another(&keys);
    let mut connection = asking.connect(within()).await.unwrap();
    for number in 0..2 {
        let answering = async {
            let request = fixture.peer.next(&fixture.queue).await;
            let reply_to = request.properties.reply_to().as_ref().unwrap().to_string();
            fixture.peer.publish(&through, &reply_to, &result(&json!(number)), BasicProperties::default()).await;
        };
        let (value, ()) = tokio::join!(ask(&mut connection, json!(null)), answering);
        assert_eq!(value, number);
    }
}

/// The same for an interface: a cage answers a requester that listens at an exchange.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_goes_through_an_exchange_where_that_is_said() {
    let fixture = super::messages::BrokerFixture::new().await;
    let (through, replies) = (format!("{}-replies", fixture.exchange), format!("{}-replies", fixture.queue));
    let keys = format!("format = 'raw'\nreply_exchange = '{through}'\nexchanges.{through} = {{ type = 'topic' }}");
    let cage = fixture.start(&keys).await;
    let topic = lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
    let channel = &fixture.peer.channel;
    channel.exchange_declare(through.as_str().into(), ExchangeKind::Topic, topic, FieldTable::default()).await.unwrap();
    fixture.peer.queue(&replies, FieldTable::default()).await;
    let bound = channel.queue_bind(
        replies.as_str().into(),
        through.as_str().into(),
        "mine.1".into(),
        lapin::options::QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.unwrap();
    let properties = BasicProperties::default().with_reply_to("mine.1".into()).with_correlation_id("c".into());
    fixture.send(b"hello", properties).await;
    let reply = fixture.peer.next(&replies).await;
    assert_eq!((reply.data, reply.exchange.as_str()), (b"hello".to_vec(), through.as_str()));
    assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), "c");
    assert!(cage.stop().await);
}

/// An rpc is done at once, whatever becomes of its transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_takes_no_rpc_back() {
    let fixture = ResourceFixture::new("").await;
    for (action, can_roll_back) in [("command", true), ("publish", true), ("rpc", false), ("fetch", false)] {
        assert_eq!(fixture.resource.can_roll_back(&operation(action, "x", &[], json!({}))), can_roll_back, "{action}");
    }
    let mut connection = fixture.connect().await;
    connection.begin(&[], within()).await.unwrap();
    let asked = operation("rpc", "echo", &[("timeout-ms", "100"), ("max-retry", "0")], json!({}));
    let error = connection.execute(asked, within()).await.unwrap_err();
    assert!(!error.recoverable, "{error}");
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(1));
}

/// Once the other side is gone a connection says so by itself, and is not used again.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_channel_was_closed_is_used_up() {
    let fixture = ResourceFixture::new("").await;
    let mut connection = fixture.connect().await;
    assert!(!connection.is_used_up());
    let eks = json!([["no-such-exchange", "k"]]).to_string();
    alone(&mut connection, operation("status", "on", &[("eks", &eks)], json!({}))).await.unwrap_err();
    wasmcage_tests::eventually_within(Duration::from_secs(30), "its end", || connection.is_used_up().then_some(()))
        .await;
}
