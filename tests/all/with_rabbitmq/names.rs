//! Hostile names, in every place that takes one: from a peer, from a guest, from `cage.toml`. None of them ends more than what
//! it belongs to. `AMQP_NAMES` sets how many rounds of random ones follow the fixed ones.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use wasmcage_core::request::Deadline;
use wasmcage_tests::{RawPeer, RunningCage, postage};

use super::messages::BrokerFixture;
use super::resource::{ResourceFixture, operation};

/// Lengths around what a short string of AMQP holds, and one that no frame holds.
const LENGTHS: [usize; 5] = [0, 255, 256, 260, 100_000];
const ROUNDS: usize = 20;

fn rounds() -> usize {
    std::env::var("AMQP_NAMES").map_or(ROUNDS, |text| text.parse().unwrap())
}

/// Names of those lengths, and some that hold characters of several bytes, zeros or what else might end a text.
fn names() -> Vec<String> {
    let mut names: Vec<String> = LENGTHS.iter().map(|length| "x".repeat(*length)).collect();
    names.extend(
        ["é".repeat(127), "é".repeat(128), "\0".repeat(255), "a\nb\r\n".repeat(51), "#.*/..".into()].map(String::from),
    );
    names.extend((0..rounds()).map(|_| {
        let length = fastrand::usize(0..600);
        (0..length).map(|_| fastrand::char(..)).collect::<String>()
    }));
    names
}

async fn still_serves(fixture: &BrokerFixture, cage: &RunningCage, number: usize) {
    assert_eq!(fixture.ask("echo", json!(number)).await["value"], number, "{}", cage.log());
}

const HANDLERS: &str = "handlers = { 'rpc/command/echo' = 'echo.rpc_echo' }";

/// Every name that a message brings: of groups, of commands, of its sender; where it wants its reply, and as what.
#[tokio::test(flavor = "multi_thread")]
async fn names_in_messages_end_no_interface() {
    let fixture = BrokerFixture::new().await;
    let name = format!("named-{}", fixture.queue);
    let cage = fixture.start(&format!("application = '{name}'\n{HANDLERS}")).await;
    let exchange = "generic-application-exchange";
    for (number, hostile) in names().iter().enumerate() {
        for command in ["join_group", "leave_group"] {
            fixture.peer.command(exchange, &name, command, json!({ "group_name": hostile })).await;
        }
        fixture.command(hostile, json!({})).await;
        for (category, kind) in
            [(hostile.as_str(), "command"), ("message", hostile.as_str()), ("rpc", hostile.as_str())]
        {
            let mut message: Value = serde_json::from_slice(&postage(category, hostile, json!({}))).unwrap();
            message["type"] = kind.into();
            message["fingerprint"] = json!({ "name": hostile, hostile.as_str(): hostile });
            fixture.send(message.to_string().as_bytes(), BasicProperties::default()).await;
        }
        still_serves(&fixture, &cage, number).await;
    }
    for odd in [json!({}), json!({ "group_name": 7 }), json!([]), json!(null)] {
        fixture.peer.command(exchange, &name, "join_group", odd).await;
    }
    still_serves(&fixture, &cage, 0).await;
    assert!(!cage.log().contains("panicked"), "{}", cage.log());
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
}

/// The same for properties, those that the client library lets a peer write.
#[tokio::test(flavor = "multi_thread")]
async fn names_in_properties_end_no_interface() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start("format = 'raw'").await;
    for hostile in names().into_iter().filter(|name| name.len() <= 255) {
        let short = || hostile.as_str().into();
        let mut own = FieldTable::default();
        own.insert(short(), AMQPValue::LongString(hostile.as_str().into()));
        own.insert("x".into(), AMQPValue::FieldTable(own.clone()));
        let properties = BasicProperties::default().with_headers(own);
        let properties = properties.with_content_type(short()).with_content_encoding(short()).with_message_id(short());
        let properties = properties.with_type(short()).with_app_id(short()).with_correlation_id(short());
        // A reply to nowhere, and none at all.
        fixture.send(b"headers", properties.clone().with_reply_to(short())).await;
        fixture.send(b"headers", properties).await;
        let reply = fixture.peer.ask_raw(&fixture.exchange, "k", b"still here", BasicProperties::default()).await;
        assert_eq!(reply.data, b"still here");
    }
    assert!(!cage.log().contains("panicked"), "{}", cage.log());
    assert!(!cage.log().contains("broker lost"), "{}", cage.log());
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0));
}

/// Names that are no text at all: a broker passes them on as they came.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_no_text_end_no_connection() {
    let fixture = BrokerFixture::new().await;
    // Its queue is bound by any key.
    let keys = format!("format = 'raw'\nexchanges.{} = {{ type = 'fanout' }}", fixture.exchange);
    let cage = fixture.start(&keys).await;
    let exchange = fixture.exchange.clone();
    let broker = fixture.broker.clone();
    let taken = tokio::task::spawn_blocking(move || {
        let mut hostile: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let text = |bytes: &[u8]| [&[bytes.len() as u8][..], bytes].concat();
        // A key, or one property after the other.
        hostile.push((vec![0xff; 255], vec![0, 0]));
        for flag in [0x80_u8, 0x40, 0x04, 0x02, 0x01] {
            hostile.push((b"k".to_vec(), [&[flag, 0][..], &text(&[0xff, 0xfe])].concat()));
        }
        for flag in [0x80_u8, 0x20, 0x08, 0x04] {
            hostile.push((b"k".to_vec(), [&[0, flag][..], &text(&[0xc3])].concat()));
        }
        // A table with such a name, and with such a value.
        hostile.push((b"k".to_vec(), [&[0x20, 0, 0, 0, 0, 3, 1, 0xff, b'V'][..]].concat()));
        hostile.push((b"k".to_vec(), [&[0x20, 0, 0, 0, 0, 9, 1, b'a', b'S', 0, 0, 0, 2, 0xff, 0xfe][..]].concat()));
        // Random bytes: most brokers hang up at some of them.
        hostile.extend((0..rounds()).map(|_| {
            let bytes = (0..fastrand::usize(2..40)).map(|_| fastrand::u8(..)).collect();
            (b"k".to_vec(), bytes)
        }));
        let mut taken = 0;
        for (key, properties) in hostile {
            let publish = || RawPeer::of(&broker).publish(exchange.as_bytes(), &key, &properties, b"hostile");
            // The broker may hang up in the middle of it.
            taken += usize::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(publish)).unwrap_or(false));
        }
        taken
    });
    let taken = taken.await.unwrap();
    println!("the broker took {taken} of the hostile messages");
    assert!(taken > 0, "at least the key is the broker's to pass on");
    let reply = fixture.peer.ask_raw(&fixture.exchange, "k", b"still here", BasicProperties::default()).await;
    assert_eq!(reply.data, b"still here");
    let log = cage.log();
    assert!(!log.contains("broker lost") && !log.contains("panicked"), "{log}");
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0), "all of them are settled");
}

/// Names of a guest: each is sent, or is an error that leaves the connection usable.
#[tokio::test(flavor = "multi_thread")]
async fn names_in_operations_end_no_connection() {
    let fixture = ResourceFixture::new("").await;
    let mut connection = fixture.connect().await;
    let places = [
        "key",
        "content-type",
        "content-encoding",
        "correlation-id",
        "reply-to",
        "message-id",
        "type",
        "app-id",
        "expiration",
        "priority",
        "timestamp",
        "header.NAME",
        "headers",
        "eks",
        "message",
        "NAME",
    ];
    let actions = ["command", "message", "status", "result", "publish", "rpc", "fetch", "NAME"];
    for hostile in names() {
        for place in places {
            let value = match place {
                "headers" => json!({ hostile.as_str(): hostile }).to_string(),
                "eks" => json!([[fixture.exchange, hostile]]).to_string(),
                _ => hostile.clone(),
            };
            let name = place.replace("NAME", &hostile);
            check(&fixture, &mut connection, operation("publish", "", &[(&name, &value)], json!({}))).await;
        }
        for action in actions {
            let action = action.replace("NAME", &hostile);
            let quick = [("timeout-ms", "1"), ("max-retry", "0")];
            check(&fixture, &mut connection, operation(&action, &hostile, &quick, json!({}))).await;
        }
    }
    assert_eq!(
        fixture
            .connect()
            .await
            .execute_alone(operation("status", "on", &[], json!({})), &[], soon())
            .await
            .unwrap()
            .status,
        200
    );
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

async fn check(
    fixture: &ResourceFixture,
    connection: &mut Box<dyn wasmcage_resource::Connection>,
    operation: wasmcage_resource::Operation,
) {
    let shown = format!("{operation:?}").chars().take(200).collect::<String>();
    let checked = fixture.resource.check(&operation);
    let result = match checked {
        Ok(()) => connection.execute_alone(operation, &[], soon()).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        assert!(error.text.len() < 1_000, "{shown}: {} bytes", error.text.len());
        assert_ne!(error.code, "host-error", "{shown}: {error}");
        if error.terminal {
            // A queue that is not there, or a reply that does not come, costs its own channel.
            assert!(["amqp-404", "timed-out"].contains(&error.code.as_str()), "{shown}: {error}");
            *connection = fixture.connect().await;
        }
    }
}
