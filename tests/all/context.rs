//! What a module learns of its request and of itself, and what it says of the request in the log.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use wasmcage_core::request::{Facts, Payload, RequestContext};
use wasmcage_tests::{RunningCage, TestCage, query};

async fn started(config: &str) -> RunningCage {
    TestCage::new().config(config).module("echo", "interface_web").http("web").start().await
}

/// The lines of the log that hold `text`.
fn lines<'a>(log: &'a str, text: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(text)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_knows_its_request_and_itself() {
    let cage = started("request_timeout_ms = 5000").await;
    let client = cage.client("web");
    let first = client.get("/context").await.json();
    let id = first["request_id"].as_str().unwrap();
    let (date, random) = id.strip_prefix("RQ-").and_then(|id| id.split_once('-')).unwrap();
    assert!(date.len() == 14 && date.bytes().all(|byte| byte.is_ascii_digit()), "{id}");
    assert!(random.len() == 12 && random.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F')), "{id}");
    assert_eq!((&first["cage"], &first["module"]), (&json!(cage.name()), &json!("interface_web")));
    assert_eq!(first["facts"], json!({ "peer-address": "127.0.0.1" }));
    assert_eq!(first["log_level"], "info");
    let left = first["deadline_left_ms"].as_u64().unwrap();
    assert!((1..=5000).contains(&left), "{left}");
    // The same in the request's record, and another for every request.
    let second = client.get("/").await.json();
    assert!(second["id"].as_str().unwrap().starts_with("RQ-") && second["id"] != first["request_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_left_runs_down() {
    let cage = TestCage::new()
        .config("request_timeout_ms = 20000")
        .module("echo", "interface_web")
        .module("service_echo", "service_echo")
        .http("web")
        .start()
        .await;
    // One request makes three calls. The second is busy for a while by its own clock: the third has at least that much less time
    // left than the first.
    const BUSY_MS: u64 = 50;
    let context = RequestContext::new("test".into(), "test", Duration::from_secs(15), Arc::new(Facts::default()));
    let (context, dispatcher) = (Arc::new(context), cage.host().cage(cage.name()).unwrap().dispatcher());
    let call = async |function: &str, args: Value| {
        let arguments = Payload::Json(json!({ "args": args }).to_string());
        match dispatcher.call(context.clone(), "service_echo", function.to_owned(), arguments).await.unwrap() {
            Payload::Json(json) => serde_json::from_str::<Value>(&json).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let left = |known: Value| known["deadline_left_ms"].as_str().unwrap().parse::<u64>().unwrap();
    let before = left(call("context", json!([])).await);
    call("slow", json!([BUSY_MS])).await;
    let after = left(call("context", json!([])).await);
    assert!((BUSY_MS..=15_000).contains(&before) && after + BUSY_MS <= before, "{before}, then {after}");

    // A callee of a request from outside sees how much time that has left.
    let left = async |target: &str| {
        let known = cage.client("web").get(target).await.json();
        known["deadline_left_ms"].as_str().unwrap().parse::<u64>().unwrap()
    };
    let call = |timeout: &'static str| {
        let common = [("module", "service_echo"), ("function", "context"), ("timeout_ms", timeout)];
        query("/call", &common[..if timeout.is_empty() { 2 } else { 3 }])
    };
    assert!((1..=20_000).contains(&left(&call("")).await));
    // A timeout shortens what is inherited, and cannot lengthen it.
    assert!((1..=700).contains(&left(&call("700")).await));
    assert!((1..=20_000).contains(&left(&call("3600000")).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modules_own_timeout_is_what_it_sees() {
    let cage = started("[modules.interface_web]\ntimeout_ms = 900").await;
    let left = cage.client("web").get("/context").await.json()["deadline_left_ms"].as_u64().unwrap();
    assert!((1..=900).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_stands_in_the_requests_later_lines() {
    let cage =
        TestCage::new().config("log_level = \"debug\"").module("echo", "interface_web").http("web").start().await;
    let client = cage.client("web");
    let describe = async |text: &str| {
        let answer = client.get(&query("/context", &[("describe", text)])).await;
        let id = answer.json()["request_id"].as_str().unwrap().to_owned();
        let tail = format!("# RQ-{}", &id[id.len() - 4..]);
        let log = cage.logged(&tail).await;
        lines(&log, &tail).join("\n")
    };
    let told = describe("order 17 of Alice").await;
    assert!(told.contains("request completed") && told.contains(" (order 17 of Alice) via web +"), "{told}");
    // Line breaks are replaced in a description, and a long one is cut.
    let told = describe(&format!("a\r\nb\x1b[31m{}", "ä".repeat(1000))).await;
    assert_eq!(told.lines().count(), 1, "{told}");
    let (_, description) = told.split_once(" (a  b [31m").unwrap_or_else(|| panic!("{told}"));
    assert_eq!(description.split(')').next().unwrap(), "ä".repeat(100 - "a\r\nb\x1b[31m".len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_can_be_watched_closely_in_a_cage_that_is_not() {
    let cage = TestCage::new()
        .module("echo", "interface_web")
        .module("service_echo", "service_echo")
        .http("web")
        .start()
        .await;
    let client = cage.client("web");
    let log = async |level: &str, text: &str| {
        let args = json!(["debug", text]).to_string();
        let target = [("module", "service_echo"), ("function", "log"), ("args", &args), ("level", level)];
        assert_eq!(client.get(&query("/call", &target[..if level.is_empty() { 3 } else { 4 }])).await.status, 200);
    };
    log("", "nobody looks").await;
    log("debug", "looked at").await;
    log("info", "nobody looks here either").await;
    let text = cage.logged("looked at").await;
    assert_eq!(lines(&text, "DBG [service_echo] looked at").len(), 1, "{text}");
    // The request's own end, too: it is told at debug.
    let done = cage.logged("request completed").await;
    assert_eq!(lines(&done, "request completed").len(), 1, "{done}");
    assert!(lines(&done, "nobody looks").is_empty(), "{done}");

    // Less than the cage's level is a level, too.
    let level = client.get("/context?level=error").await.json()["log_level"].clone();
    assert_eq!(level, "error");
    assert_eq!(client.get("/context").await.json()["log_level"], "info");
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_lines_carry_their_request() {
    let cage = started("").await;
    let client = cage.client("web");
    client.get(&query("/log", &[("level", "warn"), ("text", "by the log\nin one line")])).await;
    client.get(&query("/print", &[("text", "on stdout")])).await;
    client.get(&query("/print", &[("to", "stderr"), ("text", "on stderr")])).await;
    client.get(&query("/log", &[("level", "debug"), ("text", "too quiet")])).await;
    let log = cage.logged("on stderr").await;
    for expected in [
        "WRN [interface_web] by the log in one line # RQ-",
        "INF [interface_web] on stdout # RQ-",
        "WRN [interface_web] on stderr # RQ-",
    ] {
        assert_eq!(lines(&log, expected).len(), 1, "{expected}\n{log}");
    }
    assert!(!log.contains("too quiet"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_reads_its_own_settings_and_no_others() {
    let config = "[modules.interface_web]\nenv = { REGION = \"eu\" }\n\
        config = { greeting = \"hello\", retries = 3, deep = { list = [1, \"two\", 2.5], on = true } }\n\
        [modules.other]\nconfig = { secret = \"x\" }";
    let cage = started(config).await;
    let client = cage.client("web");
    let all = json!({ "greeting": "hello", "retries": 3, "deep": { "list": [1, "two", 2.5], "on": true } });
    assert_eq!(client.get("/config").await.json(), all);
    for (key, value) in all.as_object().unwrap() {
        assert_eq!(client.get(&format!("/config?key={key}")).await.json(), *value);
    }
    assert_eq!(client.get("/config?key=secret").await.json(), Value::Null);
    assert_eq!(client.get("/env").await.json(), json!({ "REGION": "eu" }));
}
