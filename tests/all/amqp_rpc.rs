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

use crate::amqp_resource::{Scene, alone, operation, within};

/// Rounds of the test with many callers; `AMQP_ROUNDS` may say more.
const ROUNDS: usize = 20;
const CALLERS: usize = 16;

/// Answers every request of the scene's queue by its own parameters, without a correlation id, so many times.
async fn serving(scene: &Scene, replies: usize) -> JoinHandle<()> {
    let peer = wasmcage_tests::Peer::of(&scene.broker).await;
    let consumed = peer.channel.basic_consume(
        scene.queue.as_str().into(),
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
    let Some(scene) = Scene::new(keys).await else { return };
    let scene = Arc::new(scene);
    let _serving = serving(&scene, replies).await;
    let rounds = std::env::var("AMQP_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let callers = (0..CALLERS).map(|caller| {
        let scene = scene.clone();
        tokio::spawn(async move {
            let mut connection = scene.connect().await;
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
        let Some(scene) = Scene::new(keys).await else { return };
        let mut connection = scene.connect().await;
        let first = operation("rpc", "echo", &[("timeout-ms", "200"), ("max-retry", "100")], json!("first"));
        let asked = tokio::spawn(async move {
            let reply = alone(&mut connection, first).await.unwrap();
            (connection, reply)
        });
        let (one, two) = (scene.peer.next(&scene.queue).await, scene.peer.next(&scene.queue).await);
        let reply_to = |request: &lapin::message::Delivery| request.properties.reply_to().as_ref().unwrap().to_string();
        for request in [&one, &two] {
            scene.peer.publish("", &reply_to(request), &result(&json!("first")), BasicProperties::default()).await;
        }
        let (mut connection, reply) = asked.await.unwrap();
        assert_eq!(reply.body, "\"first\"");
        while scene.peer.take(&scene.queue).await.is_some() {}
        // And once more, while the next one waits.
        let asked = tokio::spawn(async move { ask(&mut connection, json!("second")).await });
        let next = scene.peer.next(&scene.queue).await;
        assert_ne!(reply_to(&next), reply_to(&one));
        scene.peer.publish("", &reply_to(&one), &result(&json!("first")), BasicProperties::default()).await;
        scene.peer.publish("", &reply_to(&next), &result(&json!("second")), BasicProperties::default()).await;
        assert_eq!(asked.await.unwrap(), "second");
    }
}

/// As nameko has it: replies go through an exchange, by a key that the requester names.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_comes_through_an_exchange_where_that_is_said() {
    let Some(scene) = Scene::new("").await else { return };
    let through = format!("{}-replies", scene.exchange);
    let keys = format!(
        "eks = [{{ exchange = '{}', key = 'k' }}]\nexchanges.{through} = {{ type = 'topic' }}\nreply_exchange = '{through}'",
        scene.exchange
    );
    let asking = scene.another(&keys);
    let mut connection = asking.connect(within()).await.unwrap();
    for number in 0..2 {
        let answering = async {
            let request = scene.peer.next(&scene.queue).await;
            let reply_to = request.properties.reply_to().as_ref().unwrap().to_string();
            scene.peer.publish(&through, &reply_to, &result(&json!(number)), BasicProperties::default()).await;
        };
        let (value, ()) = tokio::join!(ask(&mut connection, json!(null)), answering);
        assert_eq!(value, number);
    }
}

/// The same for an interface: a cage answers a requester that listens at an exchange.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_goes_through_an_exchange_where_that_is_said() {
    let Some(scene) = crate::amqp::Scene::new().await else { return };
    let (through, replies) = (format!("{}-replies", scene.exchange), format!("{}-replies", scene.queue));
    let keys = format!("format = 'raw'\nreply_exchange = '{through}'\nexchanges.{through} = {{ type = 'topic' }}");
    let cage = scene.start(&keys).await;
    let topic = lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
    let channel = &scene.peer.channel;
    channel.exchange_declare(through.as_str().into(), ExchangeKind::Topic, topic, FieldTable::default()).await.unwrap();
    scene.peer.queue(&replies, FieldTable::default()).await;
    let bound = channel.queue_bind(
        replies.as_str().into(),
        through.as_str().into(),
        "mine.1".into(),
        lapin::options::QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.unwrap();
    let properties = BasicProperties::default().with_reply_to("mine.1".into()).with_correlation_id("c".into());
    scene.send(b"hello", properties).await;
    let reply = scene.peer.next(&replies).await;
    assert_eq!((reply.data, reply.exchange.as_str()), (b"hello".to_vec(), through.as_str()));
    assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), "c");
    assert!(cage.stop().await);
}

/// What is asked is done at once, whatever becomes of the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_takes_no_rpc_back() {
    let Some(scene) = Scene::new("").await else { return };
    for (action, can_roll_back) in [("command", true), ("publish", true), ("rpc", false), ("fetch", false)] {
        assert_eq!(scene.resource.can_roll_back(&operation(action, "x", &[], json!({}))), can_roll_back, "{action}");
    }
    let mut connection = scene.connect().await;
    connection.begin(&[], within()).await.unwrap();
    let asked = operation("rpc", "echo", &[("timeout-ms", "100"), ("max-retry", "0")], json!({}));
    let error = connection.execute(asked, within()).await.unwrap_err();
    assert!(!error.recoverable, "{error}");
    assert_eq!(scene.peer.waiting(&scene.queue).await, Some(1));
}

/// Once the other side is gone a connection says so by itself, and is not used again.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_channel_was_closed_is_used_up() {
    let Some(scene) = Scene::new("").await else { return };
    let mut connection = scene.connect().await;
    assert!(!connection.is_used_up());
    let eks = json!([["no-such-exchange", "k"]]).to_string();
    alone(&mut connection, operation("status", "on", &[("eks", &eks)], json!({}))).await.unwrap_err();
    wasmcage_tests::eventually_within(Duration::from_secs(30), "its end", || connection.is_used_up().then_some(()))
        .await;
}
