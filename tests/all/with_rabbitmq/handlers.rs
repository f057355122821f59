//! What handlers may do beside returning a value: filters that fail, a module's own words in a reply, a text beside a value,
//! work after the reply, whole messages beside contents, headers with their types.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::{Value, json};
use wasmcage_tests::postage;

use super::messages::BrokerFixture;

/// A message with any content.
fn with_content(category: &str, name: &str, content: &Value) -> Vec<u8> {
    let mut message: Value = serde_json::from_slice(&postage(category, name, json!({}))).unwrap();
    message["content"] = content.clone();
    message.to_string().into_bytes()
}

/// Only a refusal is a filter's word on a message. One that breaks has said nothing, nor has one that cannot read it.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_fails_has_its_message_rejected() {
    let fixture = BrokerFixture::new().await;
    let (dead, queue) = (format!("dead-{}", fixture.queue), &fixture.queue);
    fixture.peer.queue(&dead, FieldTable::default()).await;
    let keys = format!(
        "queues.{queue} = {{ arguments = {{ x-dead-letter-exchange = '', x-dead-letter-routing-key = '{dead}' }} }}\n\
         handlers = {{ 'message/command/panic' = 'service.panic > echo.echo', 'message/command/fail' = \
         'service.fail > echo.echo', 'message/command/refuse' = 'service.refuse > echo.echo', 'message/command/misfit' = \
         'service.add > echo.echo', 'rpc/command/panic' = 'service.panic > echo.rpc_echo' }}"
    );
    let cage = fixture.cage(&keys).module("service_echo", "service").start().await;
    cage.logged("address=\"amqp").await;
    for name in ["panic", "fail", "refuse", "misfit"] {
        fixture.send(&with_content("message", name, &json!(name)), BasicProperties::default()).await;
    }
    let mut rejected = Vec::new();
    for _ in 0..3 {
        let letter: Value = serde_json::from_slice(&fixture.peer.next(&dead).await.data).unwrap();
        rejected.push(letter["name"].as_str().unwrap().to_owned());
    }
    rejected.sort();
    assert_eq!(rejected, ["fail", "misfit", "panic"]);
    cage.logged("handler skipped by a filter").await;
    // A requester is told.
    let body = with_content("rpc", "panic", &json!("text"));
    let reply = fixture.peer.ask_raw(&fixture.exchange, "k", &body, BasicProperties::default()).await;
    let reply: Value = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!((&reply["content"]["type"], &reply["content"]["value"]), (&json!("exception"), &json!("trapped")));
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_answers_in_its_own_words_when_it_says_so() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start("handlers = { 'rpc/command/echo' = 'echo.rpc_echo' }").await;
    for (parameters, content) in [
        (json!({"fail": "error"}), json!({"type": "error", "value": null, "message": "no such account"})),
        (json!({"fail": "exception"}), json!({"type": "exception", "value": "ValueError", "message": "not a number"})),
        (json!({"say": "hi"}), json!({"type": "success", "value": {"say": "hi"}, "message": "hi"})),
    ] {
        assert_eq!(fixture.ask("echo", parameters).await, content);
    }
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
}

/// The reply is there before the rest is done, and the request is acknowledged after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_goes_on_after_its_reply() {
    let fixture = BrokerFixture::new().await;
    let (dead, queue) = (format!("dead-{}", fixture.queue), &fixture.queue);
    fixture.peer.queue(&dead, FieldTable::default()).await;
    let keys = format!(
        "queues.{queue} = {{ arguments = {{ x-dead-letter-exchange = '', x-dead-letter-routing-key = '{dead}' }} }}\n\
         timeout_ms = 3_000\nhandlers = {{ 'rpc/command/echo' = 'echo.rpc_echo', 'rpc/command/raw' = 'service.echo' }}"
    );
    let cage = fixture.cage(&keys).module("service_echo", "service").start().await;
    cage.logged("address=\"amqp").await;
    let reply = fixture.ask("echo", json!({"n": 1, "then": "echo.echo"})).await;
    assert_eq!((&reply["type"], &reply["value"]["n"]), (&json!("success"), &json!(1)));
    cage.logged(r#"echo: {"n":1,"then":"echo.echo"}"#).await;
    // As a module without the SDK says it. What goes on would take a minute, and is cut off at the request's deadline: the
    // reply was there before.
    let then = json!({"function": "service.slow", "argument": 60_000});
    let slow = json!({"wasmcage:reply": {"type": "success", "value": 2, "then": then}});
    let body = with_content("rpc", "raw", &slow);
    let reply = fixture.peer.ask_raw(&fixture.exchange, "k", &body, BasicProperties::default()).await;
    let reply: Value = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!(reply["content"]["value"], 2);
    let letter: Value = serde_json::from_slice(&fixture.peer.next(&dead).await.data).unwrap();
    assert_eq!(letter["content"], slow);
    // A message whose handler fails after the reply is a dead letter.
    let reply = fixture.ask("echo", json!({"n": 3, "then": "echo.no_such_function"})).await;
    assert_eq!(reply["value"]["n"], 3);
    let letter: Value = serde_json::from_slice(&fixture.peer.next(&dead).await.data).unwrap();
    assert_eq!(letter["content"]["parameters"]["n"], 3);
    let then = json!({"function": "service.refuse", "argument": "no"});
    let failing = json!({"wasmcage:reply": {"type": "success", "then": then}});
    let body = with_content("rpc", "raw", &failing);
    fixture.peer.ask_raw(&fixture.exchange, "k", &body, BasicProperties::default()).await;
    let letter: Value = serde_json::from_slice(&fixture.peer.next(&dead).await.data).unwrap();
    assert_eq!(letter["content"], failing);
    // A reply that cannot be understood is the module's failure.
    let odd = json!({"wasmcage:reply": {"type": "odd"}});
    let reply = fixture
        .peer
        .ask_raw(&fixture.exchange, "k", &with_content("rpc", "raw", &odd), BasicProperties::default())
        .await;
    let reply: Value = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!(reply["content"]["value"], "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_for_contents_and_for_whole_messages_work_side_by_side() {
    let fixture = BrokerFixture::new().await;
    let keys = "handlers = { 'message/command/echo' = ['echo.echo', { function = 'echo.shout', pass = 'message' }], \
                'rpc/command/whole' = { function = 'service.echo', pass = 'message' }, 'rpc/command/content' = \
                { function = 'service.echo' } }";
    let cage = fixture.cage(keys).module("service_echo", "service").start().await;
    cage.logged("address=\"amqp").await;
    fixture.command("echo", json!({"a": 1})).await;
    cage.logged(r#"echo: {"a":1}"#).await;
    // It looks for parameters where a whole message has none.
    cage.logged("shout: null").await;
    let whole = &fixture.ask("whole", json!({"a": 1})).await["value"];
    assert_eq!((&whole["category"], &whole["content"]["parameters"]), (&json!("rpc"), &json!({"a": 1})));
    assert_eq!(fixture.ask("content", json!({"a": 1})).await["value"], json!({"parameters": {"a": 1}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_with_their_names_and_types_and_go_back_so() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start("format = 'raw'").await;
    let mut entry = FieldTable::default();
    entry.insert("count".into(), AMQPValue::LongLongInt(2));
    entry.insert("reason".into(), AMQPValue::LongString("rejected".into()));
    let mut own = FieldTable::default();
    own.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(entry)])));
    own.insert("X-Flag".into(), AMQPValue::Boolean(true));
    own.insert("when".into(), AMQPValue::Timestamp(1_700_000_000));
    let properties = BasicProperties::default().with_headers(own);
    let reply = fixture.peer.ask_raw(&fixture.exchange, "k", b"headers", properties).await;
    let text = String::from_utf8(reply.data).unwrap();
    for line in [
        r#"header.x-death: [{"count":2,"reason":"rejected"}]"#,
        "header.X-Flag: true",
        "header.when: 1700000000",
        r#"headers: {"X-Flag":true,"when":{"$timestamp":1700000000},"x-death":[{"count":2,"reason":"rejected"}]}"#,
    ] {
        assert!(text.lines().any(|known| known == line), "{line} is not in {text}");
    }
    assert!(cage.stop().await);
}
