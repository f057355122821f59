//! The other side is a Postage program: one that was written from its documents for Python 3 (`fixtures/postage/peer.py`), and
//! the original under the Python 2.7 that `POSTAGE_PYTHON` names (`tests/run` sets it where it can).

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use wasmcage_tests::{Need, RabbitMq, TestCage, missing, unique_name};

/// A Postage program that can be started.
struct PostageProgram {
    broker: Arc<RabbitMq>,
    python: String,
    script: &'static str,
    /// The script's first argument.
    server: String,
}

impl PostageProgram {
    /// The one for Python 3, which speaks by `pika`.
    async fn pika() -> Self {
        let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
        let python = std::env::var("PIKA_PYTHON").unwrap_or_else(|_| "python3".into());
        let server = broker.url();
        Self { broker, python, script: "peer.py", server }.able_to_import("pika", Need::Pika).await
    }

    /// The original.
    async fn postage() -> Self {
        let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
        let python = std::env::var("POSTAGE_PYTHON").unwrap_or_else(|_| "python2.7".into());
        let server = broker.port().to_string();
        Self { broker, python, script: "original.py", server }.able_to_import("postage", Need::Postage).await
    }

    async fn able_to_import(self, package: &str, need: Need) -> Self {
        let imported = Command::new(&self.python).args(["-c", &format!("import {package}")]).output().await;
        if !imported.is_ok_and(|output| output.status.success()) {
            missing(need, format_args!("{} has no {package}", self.python));
        }
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/postage").join(self.script);
        let mut command = Command::new(&self.python);
        command.arg(script).arg(&self.server).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
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

async fn check_that_a_program_sends_to_a_cage_and_asks_it(other: PostageProgram) {
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

async fn check_that_a_cage_sends_to_a_program_and_asks_it(other: PostageProgram) {
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

async fn check_that_a_program_gets_the_error_that_a_service_names(other: PostageProgram) {
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
        (r#"{"fail": "exception"}"#, json!({"type": "exception", "value": "ValueError", "message": "not a number"})),
        (r#"{"say": "hi"}"#, json!({"type": "success", "value": {"say": "hi"}, "message": "hi"})),
    ] {
        let reply = other.output(&["rpc", &unique, "k", "echo", parameters]).await;
        assert_eq!(serde_json::from_str::<Value>(&reply).unwrap(), content);
    }
    assert!(cage.stop().await);
}

/// They repeat no correlation id.
async fn check_that_many_callers_of_a_program_get_their_own_answers(other: PostageProgram) {
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

/// A program that was written from the documents of Postage.
mod with_pika {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_program_sends_to_a_cage_and_asks_it() {
        check_that_a_program_sends_to_a_cage_and_asks_it(PostageProgram::pika().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cage_sends_to_a_program_and_asks_it() {
        check_that_a_cage_sends_to_a_program_and_asks_it(PostageProgram::pika().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_program_gets_the_error_that_a_service_names() {
        check_that_a_program_gets_the_error_that_a_service_names(PostageProgram::pika().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_callers_of_a_program_get_their_own_answers() {
        check_that_many_callers_of_a_program_get_their_own_answers(PostageProgram::pika().await).await;
    }
}

/// The original Postage.
mod with_postage {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_program_sends_to_a_cage_and_asks_it() {
        check_that_a_program_sends_to_a_cage_and_asks_it(PostageProgram::postage().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cage_sends_to_a_program_and_asks_it() {
        check_that_a_cage_sends_to_a_program_and_asks_it(PostageProgram::postage().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_program_gets_the_error_that_a_service_names() {
        check_that_a_program_gets_the_error_that_a_service_names(PostageProgram::postage().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_callers_of_a_program_get_their_own_answers() {
        check_that_many_callers_of_a_program_get_their_own_answers(PostageProgram::postage().await).await;
    }
}
