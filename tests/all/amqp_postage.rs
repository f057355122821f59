//! The other side is a Postage program: one written from its documents for Python 3 (`fixtures/postage/peer.py`), and the
//! original under Python 2.7 where `POSTAGE_PYTHON` names an interpreter that has it (`tests/run` sets it where it can).

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use wasmcage_tests::{RabbitMq, TestCage, unique_name};

/// How to start a program of the other side.
struct Other {
    broker: Arc<RabbitMq>,
    python: String,
    script: &'static str,
    /// The script's first argument.
    place: String,
}

impl Other {
    /// Those that can be started here.
    async fn all() -> Vec<Self> {
        let Some(broker) = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap() else { return Vec::new() };
        let python = std::env::var("PIKA_PYTHON").unwrap_or_else(|_| "python3".into());
        let peer = Self { broker: broker.clone(), python, script: "peer.py", place: broker.url() };
        let python = std::env::var("POSTAGE_PYTHON").unwrap_or_else(|_| "python2.7".into());
        let original = Self { python, script: "original.py", place: broker.port().to_string(), broker };
        let mut found = Vec::new();
        for (other, module) in [(peer, "pika"), (original, "postage")] {
            let has = Command::new(&other.python).args(["-c", &format!("import {module}")]).output().await;
            match has.is_ok_and(|output| output.status.success()) {
                true => found.push(other),
                false => {
                    let text = format!("not run: AMQP with {}: {} has no {module}\n", other.script, other.python);
                    std::io::stderr().write_all(text.as_bytes()).unwrap();
                }
            }
        }
        found
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/postage").join(self.script);
        let mut command = Command::new(&self.python);
        command.arg(script).arg(&self.place).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn output(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().await.unwrap();
        assert!(output.status.success(), "{}: {}", self.script, String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn serving(&self, exchange: &str, queue: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
        let arguments = ["consume", exchange, queue, "k", "1000000"];
        let count = if self.script == "peer.py" { 5 } else { 4 };
        let mut child = self.command(&arguments[..count]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        (child, lines)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postage_programs_send_to_a_cage_and_ask_it() {
    for other in Other::all().await {
        let unique = format!("{}-{}", unique_name("postage"), std::process::id());
        let cage = TestCage::new().module("postage_echo", "echo").config(&format!(
            "[interfaces.in]\nprotocol = 'amqp'\nurl = '{}'\nqueues.{unique} = {{ durable = true }}\n\
             bindings = [{{ exchange = '{unique}', queue = '{unique}', key = 'k' }}]\n\
             handlers = {{ 'message/command/echo' = 'echo.echo', 'rpc/command/echo' = 'echo.rpc_echo' }}",
            other.broker.url()
        ));
        let cage = cage.start().await;
        cage.logged("address=\"amqp").await;
        other.output(&["send", &unique, "k", "echo", r#"{"text":"from python"}"#]).await;
        cage.logged(r#"echo: {"text":"from python"}"#).await;
        let reply = other.output(&["rpc", &unique, "k", "echo", r#"{"n": 1}"#]).await;
        let reply: Value = serde_json::from_str(&reply).unwrap();
        assert_eq!(reply, json!({"type": "success", "value": {"n": 1}, "message": ""}));
        let reply = other.output(&["rpc", &unique, "k", "echo", r#"{"fail": "panic"}"#]).await;
        let reply: Value = serde_json::from_str(&reply).unwrap();
        assert_eq!((&reply["type"], &reply["value"]), (&json!("exception"), &json!("trapped")));
        assert!(cage.stop().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_sends_to_postage_programs_and_asks_them() {
    for other in Other::all().await {
        let unique = format!("{}-{}", unique_name("postage-out"), std::process::id());
        let (_child, mut lines) = other.serving(&unique, &unique).await;
        let cage = TestCage::new().module("amqp_sender", "interface_web").http("web").config(&format!(
            "[modules.interface_web]\nallow = {{ resources = ['out'] }}\n[resources.out]\nprotocol = 'amqp'\nurl = '{}'\n\
             eks = [{{ exchange = '{unique}', key = 'k' }}]",
            other.broker.url()
        ));
        let cage = cage.start().await;
        assert_eq!(cage.client("web").get("/command?text=hello").await.status, 204);
        assert_eq!(lines.next_line().await.unwrap().unwrap(), r#"command echo {"text": "hello"}"#);
        let answer = cage.client("web").get("/rpc?text=hello").await;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({"text": "hello"})));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postage_programs_hear_a_services_own_words() {
    for other in Other::all().await {
        let unique = format!("{}-{}", unique_name("postage-words"), std::process::id());
        let cage = TestCage::new().module("postage_echo", "echo").config(&format!(
            "[interfaces.in]\nprotocol = 'amqp'\nurl = '{}'\nqueues.{unique} = {{ durable = true }}\n\
             bindings = [{{ exchange = '{unique}', queue = '{unique}', key = 'k' }}]\n\
             handlers = {{ 'rpc/command/echo' = 'echo.rpc_echo' }}",
            other.broker.url()
        ));
        let cage = cage.start().await;
        cage.logged("address=\"amqp").await;
        for (parameters, content) in [
            (r#"{"fail": "error"}"#, json!({"type": "error", "value": null, "message": "no such account"})),
            (
                r#"{"fail": "exception"}"#,
                json!({"type": "exception", "value": "ValueError", "message": "not a number"}),
            ),
            (r#"{"say": "hi"}"#, json!({"type": "success", "value": {"say": "hi"}, "message": "hi"})),
        ] {
            let reply = other.output(&["rpc", &unique, "k", "echo", parameters]).await;
            assert_eq!(serde_json::from_str::<Value>(&reply).unwrap(), content);
        }
        assert!(cage.stop().await);
    }
}

/// They repeat no correlation id.
#[tokio::test(flavor = "multi_thread")]
async fn many_callers_of_postage_programs_get_their_own_answers() {
    for other in Other::all().await {
        let unique = format!("{}-{}", unique_name("postage-many"), std::process::id());
        let (_child, _lines) = other.serving(&unique, &unique).await;
        let cage = TestCage::new().module("amqp_sender", "interface_web").http("web").config(&format!(
            "[modules.interface_web]\nallow = {{ resources = ['out'] }}\n[resources.out]\nprotocol = 'amqp'\nurl = '{}'\n\
             pool.size = 4\neks = [{{ exchange = '{unique}', key = 'k' }}]",
            other.broker.url()
        ));
        let cage = Arc::new(cage.start().await);
        let callers = (0..16).map(|caller| {
            let cage = cage.clone();
            tokio::spawn(async move {
                for round in 0..5 {
                    let text = format!("{caller}-{round}");
                    let answer = cage.client("web").get(&format!("/rpc?text={text}")).await;
                    assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({ "text": text })));
                }
            })
        });
        for caller in callers {
            caller.await.unwrap();
        }
    }
}
