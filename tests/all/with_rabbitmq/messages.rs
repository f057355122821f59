//! Messages over a real RabbitMQ: what reaches which module, what is replied, what becomes of each delivery.

use std::sync::Arc;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use wasmcage_tests::{Peer, RabbitMq, RunningCage, TestCage, eventually, postage, unique_name};

/// A broker, a program at it, and names that nobody else uses.
pub struct BrokerFixture {
    pub broker: Arc<RabbitMq>,
    pub peer: Peer,
    pub exchange: String,
    pub queue: String,
}

impl BrokerFixture {
    pub async fn new() -> Self {
        let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
        let peer = Peer::of(&broker).await;
        let unique = |prefix: &str| format!("{}-{}", unique_name(prefix), std::process::id());
        Self { exchange: unique("exchange"), queue: unique("queue"), broker, peer }
    }

    /// Consumes the fixture's queue, bound by key `k`.
    pub fn cage(&self, keys: &str) -> TestCage {
        let Self { exchange, queue, .. } = self;
        TestCage::new().module("postage_echo", "echo").module("amqp_handler", "interface_in").config(&format!(
            "[interfaces.in]\nprotocol = 'amqp'\nurl = '{}'\n{keys}\n\
             [[interfaces.in.bindings]]\nexchange = '{exchange}'\nqueue = '{queue}'\nkey = 'k'",
            self.broker.url()
        ))
    }

    pub async fn start(&self, keys: &str) -> RunningCage {
        let cage = self.cage(keys).start().await;
        cage.logged("address=\"amqp").await;
        cage
    }

    pub async fn command(&self, name: &str, parameters: Value) {
        self.peer.command(&self.exchange, "k", name, parameters).await;
    }

    pub async fn ask(&self, name: &str, parameters: Value) -> Value {
        let (content, correlation) = self.peer.ask(&self.exchange, "k", name, parameters).await;
        assert_eq!(correlation.as_deref(), Some("7"));
        content
    }

    pub async fn send(&self, body: &[u8], properties: BasicProperties) {
        self.peer.publish(&self.exchange, "k", body, properties).await;
    }
}

const HANDLERS: &str = "handlers = { 'message/command/echo' = ['echo.echo', 'echo.loud_only > echo.shout'], \
                        'rpc/command/echo' = 'echo.rpc_echo', 'rpc/command/loud' = 'echo.loud_only > echo.rpc_echo' }";

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_every_function_of_its_key() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start(HANDLERS).await;
    fixture.command("echo", json!({"text": "one"})).await;
    cage.logged(r#"echo: {"text":"one"}"#).await;
    cage.logged(r#"shout: {"seen":true,"text":"one"}"#).await;
    fixture.command("echo", json!({"quiet": true})).await;
    cage.logged("handler skipped by a filter").await;
    assert!(!cage.log().contains(r#"shout: {"quiet""#));
    assert!(cage.stop().await);
    // A filter's refusal is no failure: nothing is left, nothing was rejected.
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_is_answered_by_a_result_an_error_or_an_exception() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start(HANDLERS).await;
    assert_eq!(
        fixture.ask("echo", json!({"a": 1.5})).await,
        json!({"type": "success", "value": {"a": 1.5}, "message": ""})
    );
    for (fail, kind, value) in [
        ("misread", "error", Value::Null),
        ("refuse", "error", Value::Null),
        ("fail", "exception", json!("failed")),
        ("panic", "exception", json!("trapped")),
    ] {
        let content = fixture.ask("echo", json!({"fail": fail})).await;
        assert_eq!((&content["type"], &content["value"]), (&json!(kind), &value), "{content}");
        let text = content["message"].as_str().unwrap();
        // The guest's text is for the log; a stranger gets an id to ask about.
        assert!(text.contains("RQ-") && !text.contains("secret"), "{text}");
    }
    cage.logged("a secret cause").await;
    let reply = fixture.ask("loud", json!({"x": 1})).await;
    assert_eq!(reply["value"], json!({"x": 1, "seen": true}));
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_module_answers_what_no_table_names() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start("").await;
    fixture.command("anything", json!(1)).await;
    cage.logged(r#"message anything: {"parameters":1}"#).await;
    let content = fixture.ask("anything", json!(2)).await;
    assert_eq!(content["value"], json!({"parameters": 2}));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_nobody_can_read_do_not_stop_the_queue() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start(&format!("max_body_bytes = 1000\n{HANDLERS}")).await;
    let mut table = FieldTable::default();
    for _ in 0..50 {
        let mut outer = FieldTable::default();
        outer.insert("t".into(), AMQPValue::FieldTable(table));
        table = outer;
    }
    let deep = BasicProperties::default().with_headers(table);
    for body in [&b"{"[..], b"\xff\xfe\n", b"[]", br#"{"type":"command","category":"message","name":"echo"}"#] {
        fixture.send(body, BasicProperties::default()).await;
    }
    fixture.send(&vec![b' '; 1_001], BasicProperties::default()).await;
    fixture.send(&vec![b' '; 3 << 20], BasicProperties::default()).await;
    fixture.send(&postage("message", "echo", json!("deep")), deep).await;
    fixture.command("nobody", json!({})).await;
    fixture.send(&postage("odd", "echo", json!({})), BasicProperties::default()).await;
    fixture.command("echo", json!("last")).await;
    cage.logged("echo: \"last\"").await;
    let log = cage.logged("message too long").await;
    // Its text is not in the log.
    assert!(log.contains("message cannot be read bytes=") || log.contains("message cannot be read why="), "{log}");
    assert!(!log.contains("begins="), "{log}");
    assert!(!log.contains("deep"), "{log}");
    let snapshot = cage.snapshot();
    let readings = &snapshot.cages[0].interfaces.iter().find(|one| one.interface == "in").unwrap().readings.outcomes;
    assert_eq!((readings.get("bad-request"), readings.get("not-found")), (Some(&7), Some(&2)), "{readings:?}");
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_message_comes_with_its_properties_and_is_answered_if_asked() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start("format = 'raw'").await;
    let mut own = FieldTable::default();
    own.insert("X-Colour".into(), AMQPValue::LongString("red".into()));
    let properties = BasicProperties::default().with_content_type("text/plain".into()).with_headers(own);
    let reply = fixture.peer.ask_raw(&fixture.exchange, "k", b"headers", properties).await;
    let text = String::from_utf8(reply.data).unwrap();
    assert!(text.starts_with("rpc k\n"), "{text}");
    for line in ["routing-key: k", "content-type: text/plain", "header.X-Colour: red", "correlation-id: 7"] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), "7");
    let reply = fixture.peer.ask_raw(&fixture.exchange, "k", &[0, 255, 7], BasicProperties::default()).await;
    assert_eq!(reply.data, [0, 255, 7]);
    for (body, code) in [("refuse", "refused"), ("misread", "bad-request")] {
        let reply = fixture.peer.ask_raw(&fixture.exchange, "k", body.as_bytes(), BasicProperties::default()).await;
        let error = reply.properties.headers().as_ref().unwrap().inner().get("error").cloned();
        assert_eq!(error, Some(AMQPValue::LongString(code.into())));
        assert!(!String::from_utf8(reply.data).unwrap().contains("secret"));
    }
    fixture.send(b"hello", BasicProperties::default()).await;
    cage.logged("message k: hello").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_found_by_its_names_and_groups() {
    let fixture = BrokerFixture::new().await;
    let name = format!("application-{}", fixture.queue);
    let keys = format!("application = '{name}'\ngroups = ['red']\n{HANDLERS}");
    let cage = fixture.start(&keys).await;
    let exchange = "generic-application-exchange";
    let (content, _) = fixture.peer.ask(exchange, &format!("{name}/rr"), "ping", json!({})).await;
    assert_eq!((&content["type"], &content["value"]["name"]), (&json!("success"), &json!(name)));
    let (pid, host) = (content["value"]["pid"].as_str().unwrap(), content["value"]["host"].as_str().unwrap());
    // The first application of a process is told by the process's number alone, as in the original.
    assert!(pid.starts_with(&std::process::id().to_string()), "{pid}");
    let keys = [
        name.clone(),
        format!("@{host}"),
        format!("{name}@{host}/rr"),
        format!("{name}@{host}"),
        format!("{pid}@{host}"),
        format!("{name}#red"),
        format!("{name}#red/rr"),
    ];
    for key in &keys {
        fixture.peer.command(exchange, key, "echo", json!({"by": key})).await;
        cage.logged(&format!(r#"echo: {{"by":"{key}"}}"#)).await;
    }
    let blue = format!("{name}#blue");
    fixture.peer.command(exchange, &name, "join_group", json!({"group_name": "blue"})).await;
    cage.logged("message/command/join_group").await;
    // The binding follows the acknowledgement.
    for number in 0.. {
        fixture.peer.command(exchange, &blue, "echo", json!({"blue": number})).await;
        if cage.log().contains(r#"echo: {"blue":"#) {
            break;
        }
        assert!(number < 10_000, "the group was not joined");
    }
    fixture.peer.command(exchange, &name, "leave_group", json!({"group_name": "blue"})).await;
    cage.logged("message/command/leave_group").await;
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn quit_ends_the_interface_and_restart_begins_it_anew() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start(HANDLERS).await;
    fixture.command("restart", json!({})).await;
    eventually("a second start", || (cage.log().matches("address=\"amqp").count() > 1).then_some(())).await;
    assert_eq!(fixture.ask("echo", json!(1)).await["value"], 1);
    fixture.command("quit", json!({})).await;
    cage.logged("interface has stopped").await;
    fixture.command("echo", json!("waits")).await;
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(1), "quit was acknowledged, and nobody consumes");
    assert!(cage.stop().await);
    let deaf = fixture.start(&format!("defaults = false\n{HANDLERS}")).await;
    deaf.logged("echo: \"waits\"").await;
    fixture.command("quit", json!({})).await;
    assert_eq!(fixture.ask("echo", json!(1)).await["value"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_fails_is_tried_so_often_and_then_dead_lettered() {
    let fixture = BrokerFixture::new().await;
    let dead = format!("dead-{}", fixture.queue);
    fixture.peer.bound(&format!("{}-dead", fixture.exchange), &dead, "dead").await;
    let quorum = format!("poison-{}", fixture.queue);
    let arguments =
        format!("{{ x-dead-letter-exchange = '{}-dead', x-dead-letter-routing-key = 'dead' }}", fixture.exchange);
    let keys =
        format!("format = 'raw'\nattempts = 3\nqueues.{quorum} = {{ type = 'quorum', arguments = {arguments} }}");
    let cage = fixture.start(&keys).await;
    let poison = BasicProperties::default().with_message_id("poison".into());
    fixture.peer.publish("", &quorum, b"fail", poison.clone()).await;
    fixture.peer.publish("", &quorum, b"refuse", poison.clone()).await;
    fixture.peer.publish("", &quorum, b"misread", poison.clone()).await;
    fixture.peer.publish("", &quorum, b"good", BasicProperties::default()).await;
    cage.logged(&format!("message {quorum}: good")).await;
    let mut letters = Vec::new();
    while letters.len() < 3 {
        letters.extend(fixture.peer.take(&dead).await.map(|letter| letter.data));
    }
    letters.sort();
    assert_eq!(letters, [b"fail".to_vec(), b"misread".to_vec(), b"refuse".to_vec()]);
    assert_eq!(cage.log().matches("failing poison").count(), 3);
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&quorum).await, Some(0));
}

/// The other way to bound the tries of a message: the broker counts, and dead-letters what came back too often.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_reaches_the_delivery_limit_of_its_queue_and_does_not_stop_it() {
    let fixture = BrokerFixture::new().await;
    let (dead, quorum) = (format!("dead-{}", fixture.queue), format!("limited-{}", fixture.queue));
    fixture.peer.queue(&dead, FieldTable::default()).await;
    let keys = format!(
        "format = 'raw'\nattempts = 1_000\nprefetch = 1\nqueues.{quorum} = {{ type = 'quorum', arguments = {{ \
         x-delivery-limit = 3, x-dead-letter-exchange = '', x-dead-letter-routing-key = '{dead}' }} }}"
    );
    let cage = fixture.start(&keys).await;
    fixture.peer.publish("", &quorum, b"fail", BasicProperties::default().with_message_id("poison".into())).await;
    fixture.peer.publish("", &quorum, b"good", BasicProperties::default()).await;
    cage.logged(&format!("message {quorum}: good")).await;
    let letter = fixture.peer.next(&dead).await;
    assert_eq!(letter.data, b"fail");
    let headers = letter.properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers["x-first-death-reason"], AMQPValue::LongString("delivery_limit".into()));
    assert_eq!(cage.log().matches("failing poison").count(), 4, "the first try and three more");
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&quorum).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_applications_of_one_process_have_queues_of_their_own() {
    let fixture = BrokerFixture::new().await;
    let name = format!("twice-{}", fixture.queue);
    let config = format!(
        "[interfaces.in]\nprotocol = 'amqp'\nurl = '{}'\napplication = '{name}'\n{HANDLERS}",
        fixture.broker.url()
    );
    let (first, second) = (unique_name("first"), unique_name("second"));
    let cages = TestCage::named(&first).module("postage_echo", "echo").config(&config);
    let cages = cages.cage(&second).module("postage_echo", "echo").config(&config).start().await;
    for cage in [&first, &second] {
        eventually("consumers", || cages.log_of(cage).contains("address=\"amqp").then_some(())).await;
    }
    // By the name, all of them are reached.
    let exchange = "generic-application-exchange";
    fixture.peer.command(exchange, &name, "echo", json!({"to": "all"})).await;
    for cage in [&first, &second] {
        eventually("the message", || cages.log_of(cage).contains(r#"echo: {"to":"all"}"#).then_some(())).await;
    }
    // Each of them by what it says of itself.
    let mut found = std::collections::BTreeSet::new();
    while found.len() < 2 {
        let (content, _) = fixture.peer.ask(exchange, &format!("{name}/rr"), "ping", json!({})).await;
        let (pid, host) = (content["value"]["pid"].as_str().unwrap(), content["value"]["host"].as_str().unwrap());
        let (own, _) = fixture.peer.ask(exchange, &format!("{pid}@{host}"), "ping", json!({})).await;
        assert_eq!(own["value"]["pid"], pid);
        found.insert(pid.to_owned());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_waits_for_its_module() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start("module = 'late'").await;
    fixture.command("anything", json!(1)).await;
    cage.logged("no such module").await;
    cage.deploy("late", &std::fs::read(wasmcage_tests::guest("amqp_handler")).unwrap());
    cage.logged("message anything").await;
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn exchanges_of_every_type_are_declared_and_bound() {
    let fixture = BrokerFixture::new().await;
    let BrokerFixture { exchange, queue, .. } = &fixture;
    let keys = format!(
        "format = 'raw'\nexchanges.{exchange}-fanout = {{ type = 'fanout', auto_delete = true }}\n\
         exchanges.{exchange}-topic = {{ type = 'topic' }}\n\
         exchanges.{exchange}-headers = {{ type = 'headers', durable = false }}"
    );
    let mut cage = fixture.cage(&keys);
    for (kind, binding) in [
        ("fanout", ""),
        ("topic", "key = '*.orange.#'"),
        ("headers", "arguments = { x-match = 'all', colour = 'red' }"),
    ] {
        cage = cage.config(&format!(
            "[[interfaces.in.bindings]]\nexchange = '{exchange}-{kind}'\nqueue = '{queue}'\n{binding}"
        ));
    }
    let cage = cage.start().await;
    cage.logged("address=\"amqp").await;
    let mut red = FieldTable::default();
    red.insert("colour".into(), AMQPValue::LongString("red".into()));
    let (plain, red) = (BasicProperties::default(), BasicProperties::default().with_headers(red));
    for (kind, key, properties) in [
        ("fanout", "anything", plain.clone()),
        ("topic", "quick.orange.male.rabbit", plain.clone()),
        ("topic", "quick.brown.fox", plain.clone()),
        ("headers", "with-colour", red),
        ("headers", "without", plain),
    ] {
        fixture.peer.publish(&format!("{exchange}-{kind}"), key, b"came", properties).await;
    }
    for line in ["message anything: came", "message quick.orange.male.rabbit: came", "message with-colour: came"] {
        cage.logged(line).await;
    }
    let log = cage.log();
    assert!(!log.contains("message quick.brown.fox") && !log.contains("message without"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passive_exchange_has_to_be_there() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.cage(&format!("exchanges.{} = {{ passive = true }}", fixture.exchange)).start().await;
    cage.logged(&format!("cannot declare exchange {}", fixture.exchange)).await;
    // It is looked for again and again, and its binding is made when it is there.
    fixture.peer.bound(&fixture.exchange, &format!("{}-other", fixture.queue), "k").await;
    eventually("the binding", || {
        fixture
            .broker
            .control(&["list_bindings", "destination_name"])
            .lines()
            .any(|line| line == fixture.queue)
            .then_some(())
    })
    .await;
    eventually("no problem", || news(&cage).is_none().then_some(())).await;
    fixture.command("anything", json!(1)).await;
    cage.logged("message anything").await;
}

/// The problem of the interface that an operator is shown, if there is one.
pub fn news(cage: &RunningCage) -> Option<String> {
    let snapshot = cage.snapshot();
    let interface = snapshot.cages[0].interfaces.iter().find(|one| one.interface == "in").unwrap();
    interface.status.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_declaration_names_what_differs() {
    let fixture = BrokerFixture::new().await;
    fixture.peer.bound(&fixture.exchange, &fixture.queue, "k").await;
    let cage = fixture.cage("").start().await;
    let log = cage.logged("interface failed").await;
    assert!(log.contains(&format!("cannot declare queue {}", fixture.queue)) && log.contains("durable"), "{log}");
    cage.configure(
        &std::fs::read_to_string(cage.directory().join("cage.toml"))
            .unwrap()
            .replace("url =", &format!("queues.{} = {{ durable = true }}\nurl =", fixture.queue)),
    );
    fixture.command("anything", json!(1)).await;
    cage.logged("message anything").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_may_get_the_whole_message() {
    let fixture = BrokerFixture::new().await;
    let keys = "pass = 'message'\nhandlers = { 'rpc/command/echo' = 'whole.echo' }";
    let cage = fixture.cage(keys).module("service_echo", "whole").start().await;
    cage.logged("address=\"amqp").await;
    let whole = &fixture.ask("echo", json!({"a": 1})).await["value"];
    let seen = [&whole["category"], &whole["type"], &whole["name"], &whole["version"], &whole["fingerprint"]["name"]];
    assert_eq!(seen, ["rpc", "command", "echo", "2", "peer"], "{whole}");
    assert_eq!(whole["content"], json!({"parameters": {"a": 1}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_have_the_flags_that_they_are_given() {
    let fixture = BrokerFixture::new().await;
    let BrokerFixture { queue, peer, broker, .. } = &fixture;
    let flags = format!(
        "queues.{queue} = {{ exclusive = true }}\nqueues.{queue}-2 = {{ auto_delete = true }}\n\
         queues.{queue}-3 = {{ durable = true, arguments = {{ x-max-length = 1 }} }}"
    );
    let cage = fixture.start(&flags).await;
    let listed = || broker.control(&["list_queues", "name", "durable", "auto_delete", "exclusive", "arguments"]);
    let all = listed();
    let line = |name: &str| {
        let line = all.lines().find(|line| line.split('\t').next() == Some(name));
        line.unwrap_or_else(|| panic!("{name} is not in {all}"))
            .split('\t')
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(line(queue)[..3], ["false", "false", "true"]);
    assert_eq!(line(&format!("{queue}-2"))[..3], ["false", "true", "false"]);
    assert_eq!(line(&format!("{queue}-3"))[..3], ["true", "false", "false"]);
    assert!(line(&format!("{queue}-3"))[3].contains("x-max-length"));
    assert!(cage.stop().await);
    // Of the three, one outlives its consumer and its connection.
    eventually("the others are gone", || {
        let left = listed();
        (!left.lines().any(|line| line.starts_with(&format!("{queue}\t")) || line.starts_with(&format!("{queue}-2\t"))))
            .then_some(())
    })
    .await;
    assert_eq!(peer.waiting(&format!("{queue}-3")).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passive_queue_has_to_be_there() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.cage(&format!("queues.{} = {{ passive = true }}", fixture.queue)).start().await;
    let log = cage.logged("interface failed").await;
    assert!(log.contains(&format!("cannot declare queue {}", fixture.queue)), "{log}");
}
