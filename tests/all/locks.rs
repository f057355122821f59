//! Locks and queues in memory, as modules use them: a lock is released with the request that holds it, whatever becomes of
//! that; both outlive the versions of modules.

use std::fs;

use serde_json::{Value, json};
use wasmcage_tests::{Answer, Client, RunningCage, TestCage, eventually, guest, query};

/// Two modules of one cage that share its locks, and a way to call them. Requests last far longer than any test runs, unless they are cut off.
fn sharing() -> TestCage {
    let cage = TestCage::new().config("request_timeout_ms = 600_000").module("echo", "interface_web").http("web");
    cage.module("lock_user", "one").module("lock_user", "other")
}

async fn started() -> RunningCage {
    sharing().start().await
}

/// A request that calls `module.function`, for at most so long.
async fn ask(client: &Client, function: &str, args: Value, timeout_ms: Option<u64>) -> Answer {
    let (module, function) = function.split_once('.').expect("module.function");
    let (args, timeout) = (args.to_string(), timeout_ms.map(|timeout| timeout.to_string()));
    let mut parameters = vec![("module", module), ("function", function), ("args", &args)];
    parameters.extend(timeout.as_deref().map(|timeout| ("timeout_ms", timeout)));
    client.get(&query("/try_call", &parameters)).await
}

async fn result(client: &Client, function: &str, args: Value) -> Value {
    let answer = ask(client, function, args, None).await;
    let text = answer.text();
    assert!(answer.status == 200 && !text.contains("\"error\""), "{function}: {text}");
    answer.json()
}

async fn failure(client: &Client, function: &str, args: Value) -> String {
    ask(client, function, args, None).await.call_error().1
}

/// Begins a request that holds lock `name` as `mode` until it is cut off, and returns when it holds it.
async fn holding(cage: &RunningCage, module: &str, name: &str, cut_off_ms: u64) -> tokio::task::JoinHandle<Answer> {
    let (client, function, args) = (cage.client("web"), format!("{module}.hold"), json!([name, "write", "sleeps"]));
    let held = tokio::spawn(async move { ask(&client, &function, args, Some(cut_off_ms)).await });
    let client = cage.client("web");
    while !failure_or_nothing(&client, name).await.contains("was not free in time") {}
    held
}

/// The error of a request that does not wait for the lock.
async fn failure_or_nothing(client: &Client, name: &str) -> String {
    ask(client, "one.touch", json!([name, "write", 0]), None).await.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_released_whatever_ends_its_request() {
    let cage = started().await;
    let client = cage.client("web");
    for mode in ["read", "write"] {
        for end in ["traps", "loops", "sleeps", "fails", "keeps"] {
            let cut_off = matches!(end, "loops" | "sleeps").then_some(300);
            let answer = ask(&client, "one.hold", json!(["a", mode, end]), cut_off).await;
            assert_eq!(end == "keeps", !answer.text().contains("\"error\""), "{end}: {}", answer.text());
            // In time, and this is not waiting for the deadline of the request that is over.
            assert_eq!(result(&client, "other.touch", json!(["a", "write", 0])).await, Value::Null, "{end}");
        }
    }
    assert_eq!(result(&client, "one.hold", json!(["a", "read", "keeps"])).await, "Mode::Read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_a_called_module_took_is_released_when_that_call_ends() {
    let cage = started().await;
    // In one request, which would be told if it waited for itself.
    assert_eq!(result(&cage.client("web"), "one.take_after", json!(["other", "a"])).await, Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_of_an_earlier_request_releases_nothing() {
    let cage = sharing().config("[modules.one]\ninstances = { mode = \"single\" }").start().await;
    let client = cage.client("web");
    for _ in 0..3 {
        result(&client, "one.hold", json!(["a", "write", "keeps"])).await;
    }
    let held = holding(&cage, "other", "a", 3_000).await;
    assert_eq!(result(&client, "one.let_go", json!([])).await, 3);
    assert!(failure(&client, "one.touch", json!(["a", "write", 0])).await.contains("was not free in time"));
    assert!(held.await.unwrap().text().contains("\"error\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_would_wait_for_itself_is_told() {
    let cage = started().await;
    let client = cage.client("web");
    for (mode, callee_mode) in [("write", "write"), ("write", "read"), ("read", "write")] {
        let text = failure(&client, "one.call_holding", json!(["a", mode, "other", callee_mode])).await;
        assert!(text.contains("waiting would never end") && text.contains("lock a already"), "{text}");
    }
    result(&client, "one.call_holding", json!(["a", "read", "other", "read"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_gets_the_lock_when_the_other_request_is_over() {
    let cage = started().await;
    let held = holding(&cage, "one", "a", 2_000).await;
    assert_eq!(result(&cage.client("web"), "other.touch", json!(["a", "write"])).await, Value::Null);
    // It came to its end by its timeout, while the other one had four times as long to wait.
    assert!(held.await.unwrap().text().contains("\"error\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_bounds_are_told() {
    let cage = started().await;
    let client = cage.client("web");
    for name in ["", "a\u{0}b", &"x".repeat(65)] {
        assert!(failure(&client, "one.touch", json!([name, "read"])).await.contains("1 to 64 characters"), "{name}");
        assert!(failure(&client, "one.push", json!([name, "x"])).await.contains("1 to 64 characters"), "{name}");
    }
    assert_eq!(result(&client, "one.push_bytes", json!(["large", 40 << 20])).await, 1);
    assert!(failure(&client, "one.push_bytes", json!(["large", 40 << 20])).await.contains("queue large is full"));
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_join_modules_and_outlive_their_versions() {
    // The next version is another program.
    let cage = sharing().config("[modules.one]\ncompatible = false").start().await;
    let client = cage.client("web");
    assert_eq!(result(&client, "one.pop", json!(["jobs", 0])).await, Value::Null);
    assert_eq!(result(&client, "one.push", json!(["jobs", "first"])).await, 1);
    assert_eq!(result(&client, "one.push", json!(["jobs", "second"])).await, 2);
    let held = holding(&cage, "one", "a", 600_000).await;
    let old = cage.version("one");
    cage.deploy("one", &fs::read(guest("service_echo")).unwrap());
    cage.swapped("one", old).await;
    // The request in flight is served, and holds what it held, to its end.
    assert!(failure(&client, "other.touch", json!(["a", "read", 0])).await.contains("was not free in time"));
    assert_eq!(result(&client, "other.length", json!(["jobs"])).await, 2);
    for entry in ["first", "second"] {
        assert_eq!(result(&client, "other.pop", json!(["jobs", 0])).await, entry);
    }
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_entry_gets_the_next_one() {
    let cage = started().await;
    let client = cage.client("web");
    let waiter = cage.client("web");
    let waiting = tokio::spawn(async move { result(&waiter, "one.pop", json!(["jobs", 60_000])).await });
    eventually("a request in work", || (cage.snapshot().cages[0].in_work == 1).then_some(())).await;
    // 0: someone waited for it. One that comes before the other waits stays, and is taken all the same.
    assert!(result(&client, "other.push", json!(["jobs", "now"])).await.as_u64() <= Some(1));
    assert_eq!(waiting.await.unwrap(), "now");
    // One that gave up took nothing.
    let given_up = ask(&client, "one.pop", json!(["jobs", 60_000]), Some(50)).await;
    assert!(given_up.text().contains("\"error\"") || given_up.json() == Value::Null, "{}", given_up.text());
    assert_eq!(result(&client, "other.push", json!(["jobs", "kept"])).await, 1);
    assert_eq!(result(&client, "one.pop", json!(["jobs", 0])).await, "kept");
}
