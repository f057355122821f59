//! Resource `amqp`: what is published and confirmed, asked and answered; by the traits of resources, without a module.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Connection, Operation, OperationReply, Resource, ResourceError};
use wasmcage_tests::{Peer, RabbitMq, TestCage, unique_name};

pub struct ResourceFixture {
    pub broker: Arc<RabbitMq>,
    pub peer: Peer,
    pub exchange: String,
    pub queue: String,
    _root: tempfile::TempDir,
    pub resource: Box<dyn Resource>,
}

impl ResourceFixture {
    pub async fn new(keys: &str) -> Self {
        let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
        Self::at(broker, keys).await
    }

    pub async fn at(broker: Arc<RabbitMq>, keys: &str) -> Self {
        let peer = Peer::of(&broker).await;
        let unique = |prefix: &str| format!("{}-{}", unique_name(prefix), std::process::id());
        let (exchange, queue) = (unique("out"), unique("outqueue"));
        peer.bound(&exchange, &queue, "k").await;
        let root = tempfile::tempdir().unwrap();
        let eks = format!("eks = [{{ exchange = '{exchange}', key = 'k' }}]");
        let resource = resource(root.path(), &format!("url = '{}'\n{eks}\n{keys}", broker.url()));
        Self { broker, peer, exchange, queue, _root: root, resource }
    }

    /// A resource at the same broker, with keys of its own.
    pub fn another(&self, keys: &str) -> Box<dyn Resource> {
        resource(self._root.path(), &format!("url = '{}'\n{keys}", self.broker.url()))
    }

    pub async fn connect(&self) -> Box<dyn Connection> {
        self.resource.connect(within()).await.unwrap()
    }

    async fn taken(&self) -> Value {
        let delivery = self.peer.take(&self.queue).await.expect("a message");
        assert_eq!(*delivery.properties.delivery_mode(), Some(2));
        serde_json::from_slice(&delivery.data).unwrap()
    }

    /// Answers every rpc by the guest of the demos.
    async fn answering(&self) -> wasmcage_tests::RunningCage {
        let Self { exchange, queue, .. } = self;
        let cage = TestCage::new().module("postage_echo", "echo").config(&format!(
            "[interfaces.in]\nprotocol = 'amqp'\nurl = '{}'\nhandlers = {{ 'rpc/command/echo' = 'echo.rpc_echo' }}\n\
             queues.{queue} = {{ durable = true }}\nbindings = [{{ exchange = '{exchange}', queue = '{queue}', key = 'k' }}]",
            self.broker.url()
        ));
        let cage = cage.start().await;
        cage.logged("address=\"amqp").await;
        cage
    }

    /// A guest that sends by its producer what comes by HTTP.
    async fn sending(&self) -> wasmcage_tests::RunningCage {
        let sender = TestCage::new().module("amqp_sender", "interface_web").http("web").config(&format!(
            "[modules.interface_web]\nallow = {{ resources = ['out'] }}\n[resources.out]\nprotocol = 'amqp'\nurl = '{}'\n\
             eks = [{{ exchange = '{}', key = 'k' }}]",
            self.broker.url(),
            self.exchange
        ));
        sender.start().await
    }
}

/// The resource `out` of a cage `sender` beneath this directory.
pub fn resource(root: &std::path::Path, keys: &str) -> Box<dyn Resource> {
    std::fs::create_dir_all(root.join("sender")).unwrap();
    let toml = format!("[resources.out]\nprotocol = 'amqp'\n{keys}");
    std::fs::write(root.join("sender/cage.toml"), toml).unwrap();
    let config = wasmcage::cage::load_config(root, "sender", "node", &wasmcage_bin::protocols())
        .unwrap_or_else(|error| panic!("{error}"));
    let section = config.resources["out"].section.clone();
    // Read by what keeps pools.
    section.table("pool");
    section.table("cache");
    wasmcage_bin::protocols().resource("amqp", section).unwrap_or_else(|error| panic!("{error}"))
}

pub fn within() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

pub fn operation(action: &str, target: &str, headers: &[(&str, &str)], body: Value) -> Operation {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Operation { action: action.into(), target: target.into(), headers, body: body.to_string().into() }
}

pub async fn alone(
    connection: &mut Box<dyn Connection>,
    operation: Operation,
) -> Result<OperationReply, ResourceError> {
    connection.execute_alone(operation, &[], within()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_in_the_queue() {
    let fixture = ResourceFixture::new("").await;
    let mut connection = fixture.connect().await;
    alone(&mut connection, operation("command", "rotate", &[], json!({"keep": 7}))).await.unwrap();
    let message = fixture.taken().await;
    assert_eq!((&message["name"], &message["content"]["parameters"]["keep"]), (&json!("rotate"), &json!(7)));
    assert_eq!(message["fingerprint"]["name"], "sender");
    alone(&mut connection, operation("forward", "", &[], message.clone())).await.unwrap();
    assert_eq!(fixture.taken().await, message);
    let raw = operation("publish", "", &[("content-type", "text/plain"), ("header.a", "b")], json!("raw"));
    alone(&mut connection, raw).await.unwrap();
    let delivery = fixture.peer.take(&fixture.queue).await.unwrap();
    assert_eq!(delivery.properties.content_type().as_ref().unwrap().as_str(), "text/plain");
    assert!(connection.is_healthy().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_queue_is_there_for_comes_back_as_an_error() {
    let fixture = ResourceFixture::new("").await;
    let mut connection = fixture.connect().await;
    let error = alone(&mut connection, operation("status", "on", &[("key", "nobody")], json!({}))).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.recoverable, error.terminal), ("unroutable", true, false));
    assert!(error.text.contains(&fixture.exchange) && error.text.contains("nobody"), "{error}");
    let relaxed = operation("status", "on", &[("key", "nobody"), ("mandatory", "false")], json!({}));
    alone(&mut connection, relaxed).await.unwrap();
    // Several at once: one of them went well.
    let eks = json!([[fixture.exchange, "k"], [fixture.exchange, "nobody"]]).to_string();
    let error = alone(&mut connection, operation("status", "on", &[("eks", &eks)], json!({}))).await.unwrap_err();
    assert!(!error.recoverable);
    assert_eq!(fixture.taken().await["name"], "on");
    let eks = json!([["no-such-exchange", "k"]]).to_string();
    let error = alone(&mut connection, operation("status", "on", &[("eks", &eks)], json!({}))).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.terminal), ("amqp-404", true));
    assert!(!connection.is_healthy().await);
}

/// A message that comes back is known by its body, and a long one comes back whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_message_that_no_queue_is_there_for_comes_back_as_an_error() {
    let fixture = ResourceFixture::new("max_body_bytes = 1_000").await;
    let mut connection = fixture.connect().await;
    for bytes in [2_000, 3 << 20] {
        let body = json!("x".repeat(bytes));
        let error = alone(&mut connection, operation("publish", "", &[("key", "nobody")], body)).await.unwrap_err();
        assert_eq!((error.code.as_str(), error.terminal), ("unroutable", false), "{error}");
        assert!(!error.text.contains("ShortString"), "{error}");
    }
}

/// A frame that is longer than the broker agreed to would end the connection that all share.
#[tokio::test(flavor = "multi_thread")]
async fn headers_that_do_not_fit_into_a_frame_harm_nobody_else() {
    let broker = tokio::task::spawn_blocking(|| RabbitMq::start("frame_max = 8192"));
    let broker = broker.await.unwrap();
    let fixture = ResourceFixture::at(Arc::new(broker), "").await;
    let (mut first, mut second) = (fixture.connect().await, fixture.connect().await);
    let send = |bytes: usize| operation("command", "n", &[("header.a", &"x".repeat(bytes))], json!({}));
    let error = alone(&mut first, send(140_000)).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.terminal), ("bad-operation", false), "{error}");
    let error = alone(&mut first, send(20_000)).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.recoverable, error.terminal), ("too-large", true, false), "{error}");
    assert!(error.text.contains("8192 in one frame"), "{error}");
    for connection in [&mut first, &mut second] {
        alone(connection, send(7_000)).await.unwrap();
        assert!(connection.is_healthy().await);
        assert_eq!(fixture.taken().await["name"], "n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_sent_with_their_types_and_a_result_with_its_text() {
    let fixture = ResourceFixture::new("").await;
    let mut connection = fixture.connect().await;
    let headers =
        json!({"N": 5, "list": ["a", true], "when": {"$timestamp": 7}, "bytes": {"$bytes": "AP8="}}).to_string();
    let sent = operation("result", "", &[("headers", &headers), ("message", "five")], json!(5));
    alone(&mut connection, sent).await.unwrap();
    let delivery = fixture.peer.take(&fixture.queue).await.unwrap();
    let body: Value = serde_json::from_slice(&delivery.data).unwrap();
    assert_eq!(body["content"], json!({"type": "success", "value": 5, "message": "five"}));
    let table = delivery.properties.headers().as_ref().unwrap().inner();
    assert_eq!(table["N"], AMQPValue::LongLongInt(5));
    assert_eq!(table["when"], AMQPValue::Timestamp(7));
    assert!(matches!(&table["list"], AMQPValue::FieldArray(list) if list.as_slice().len() == 2));
    assert!(matches!(&table["bytes"], AMQPValue::ByteArray(bytes) if bytes.as_slice() == [0, 255]));
}

/// Messages of many go out together, and the library does not say whose it is that comes back.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_publishers_each_is_told_what_became_of_its_own() {
    let fixture = ResourceFixture::new("").await;
    let mut connections = Vec::new();
    for _ in 0..32 {
        connections.push(fixture.connect().await);
    }
    let publishing = connections.iter_mut().enumerate().map(|(number, connection)| async move {
        for round in 0..30 {
            let key = if (number + round) % 3 == 0 { "nobody" } else { "k" };
            let result = alone(connection, operation("command", "n", &[("key", key)], json!([number, round]))).await;
            let code = result.as_ref().err().map(|error| (error.code.as_str(), error.recoverable, error.terminal));
            assert_eq!(code, (key == "nobody").then_some(("unroutable", true, false)), "{number}, {round}");
        }
    });
    join_all(publishing).await;
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(32 * 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_publishes_at_its_commit() {
    let fixture = ResourceFixture::new("").await;
    let mut connection = fixture.connect().await;
    connection.begin(&[], within()).await.unwrap();
    for number in 0..3 {
        connection.execute(operation("command", "n", &[], json!(number)), within()).await.unwrap();
    }
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
    connection.commit(within()).await.unwrap();
    for number in 0..3 {
        assert_eq!(fixture.taken().await["content"]["parameters"], number);
    }
    connection.begin(&[], within()).await.unwrap();
    connection.execute(operation("command", "n", &[], json!(9)), within()).await.unwrap();
    connection.rollback(within()).await.unwrap();
    connection.commit(within()).await.unwrap();
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
}

/// Messages that a broker without room leaves unread would otherwise pile up in the cage.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_a_broker_that_takes_no_messages() {
    let broker = tokio::task::spawn_blocking(|| RabbitMq::start("vm_memory_high_watermark.absolute = 1"));
    let broker = broker.await.unwrap();
    let fixture = ResourceFixture::at(Arc::new(broker), "").await;
    let (mut first, mut second) = (fixture.connect().await, fixture.connect().await);
    let send = |text: &str| operation("command", "n", &[], json!(text));
    let soon = || Deadline::after(Duration::from_secs(1));
    // The broker says so when a message comes, and leaves that one unread.
    let error = first.execute_alone(send("sent"), &[], soon()).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.terminal), ("timed-out", true));
    let error = second.execute_alone(send("kept back"), &[], soon()).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.recoverable, error.terminal), ("blocked", true, false));
    assert!(error.text.contains("low on memory"), "{error}");
    let control = fixture.broker.clone();
    let raise = move || control.control(&["set_vm_memory_high_watermark", "absolute", "512MB"]);
    tokio::task::spawn_blocking(raise).await.unwrap();
    alone(&mut second, send("at last")).await.unwrap();
    assert_eq!(fixture.taken().await["content"]["parameters"], "sent");
    assert_eq!(fixture.taken().await["content"]["parameters"], "at last");
}

async fn check_rpc(keys: &str) {
    let fixture = ResourceFixture::new(keys).await;
    let _cage = fixture.answering().await;
    let mut connection = fixture.connect().await;
    for number in 0..3 {
        let reply = alone(&mut connection, operation("rpc", "echo", &[], json!({"n": number}))).await.unwrap();
        assert_eq!((reply.status, reply.body), (200, json!({"n": number}).to_string().into()));
    }
    let reply = alone(&mut connection, operation("rpc", "echo", &[], json!({"fail": "refuse"}))).await.unwrap();
    assert_eq!(reply.status, 422);
    let reply = alone(&mut connection, operation("rpc", "echo", &[], json!({"fail": "panic"}))).await.unwrap();
    assert_eq!((reply.status, &*reply.headers[0].1), (500, "trapped"));
    let asked = operation("rpc", "echo", &[("queue-only", "true")], json!({"later": 1}));
    let queue = String::from_utf8(alone(&mut connection, asked).await.unwrap().body.to_vec()).unwrap();
    let reply = alone(&mut connection, operation("fetch", &queue, &[], json!(null))).await.unwrap();
    assert_eq!(reply.body, json!({"later": 1}).to_string());
    assert!(connection.is_healthy().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_is_answered_over_direct_reply_to() {
    check_rpc("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_is_answered_over_a_queue_of_its_own() {
    check_rpc("reply_queue = 'exclusive'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_that_nobody_answers_is_sent_again_and_then_times_out() {
    let fixture = ResourceFixture::new("").await;
    let mut connection = fixture.connect().await;
    let asked = operation("rpc", "echo", &[("timeout-ms", "50"), ("max-retry", "2")], json!({}));
    let error = alone(&mut connection, asked).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.terminal), ("timed-out", true));
    assert!(error.text.contains("3 tries"), "{error}");
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(3));
    let error = alone(&mut fixture.connect().await, operation("rpc", "x", &[("key", "nobody")], json!({}))).await;
    assert_eq!(error.unwrap_err().code, "unroutable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_none_is_an_error_that_says_so() {
    let fixture = ResourceFixture::new("").await;
    let mut connection = fixture.connect().await;
    let asked = tokio::spawn(async move { alone(&mut connection, operation("rpc", "echo", &[], json!({}))).await });
    let request = fixture.peer.next(&fixture.queue).await;
    let reply_to = request.properties.reply_to().as_ref().unwrap().to_string();
    // Without a correlation id, as the original replies.
    fixture.peer.publish("", &reply_to, b"{}", BasicProperties::default().with_headers(FieldTable::default())).await;
    let reply = asked.await.unwrap().unwrap();
    assert_eq!(reply.status, 422);
    assert!(String::from_utf8_lossy(&reply.body).contains("cannot be read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_of_a_hundred_megabytes_is_an_error() {
    let fixture = ResourceFixture::new("").await;
    let mut connection = fixture.connect().await;
    let asked = tokio::spawn(async move { alone(&mut connection, operation("rpc", "echo", &[], json!({}))).await });
    let request = fixture.peer.next(&fixture.queue).await;
    let reply_to = request.properties.reply_to().as_ref().unwrap().to_string();
    fixture.peer.publish("", &reply_to, &vec![b' '; 100_000_000], BasicProperties::default()).await;
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(error.code, "too-large");
    assert!(error.text.contains("100000000 bytes"), "{error}");
    alone(&mut fixture.connect().await, operation("command", "after", &[], json!({}))).await.unwrap();
    assert_eq!(fixture.taken().await["name"], "after");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_sends_and_asks_by_its_producer() {
    let fixture = ResourceFixture::new("").await;
    let _answering = fixture.answering().await;
    let sender = fixture.sending().await;
    let answer = sender.client("web").get("/rpc?text=hello").await;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({"text": "hello"})));
    assert_eq!(sender.client("web").get("/command?text=hello").await.status, 204);
    assert_eq!(sender.client("web").get("/command?key=nobody").await.status, 500);
    sender.logged("unroutable").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_modules_transaction_is_published_if_that_commits() {
    let fixture = ResourceFixture::new("").await;
    let sender = fixture.sending().await;
    let client = sender.client("web");
    assert_eq!(client.get("/once?text=first").await.status, 204);
    let message = fixture.taken().await;
    assert_eq!((&message["name"], &message["content"]["parameters"]["text"]), (&json!("echo"), &json!("first")));
    // It remembers: the transaction is rolled back.
    assert_eq!(client.get("/once?text=second").await.status, 500);
    sender.logged("code conflict").await;
    assert_eq!(client.get("/command?text=third").await.status, 204);
    assert_eq!(fixture.taken().await["content"]["parameters"]["text"], "third");
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
}
