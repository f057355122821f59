//! Calls between cages of different processes: what a caller gets, what a callee learns, what happens when a copy goes.

use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use wasmcage_tests::{Answer, Running, TestCage, eventually, query};

/// Where the processes of one test meet.
fn meeting() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A cage whose interface calls whatever its request's query says.
fn front(meeting: &Path) -> TestCage {
    let allow = "[modules.interface_web]\nallow = { cages = [\"worker\", \"other\", \"dmz\"] }";
    TestCage::named("front").meeting_at(meeting).module("echo", "interface_web").http("web").config(allow)
}

fn worker(meeting: &Path) -> TestCage {
    TestCage::named("worker").meeting_at(meeting).module("service_echo", "work").module("calculator", "calculator")
}

async fn call(front: &Running, function: &str, parameters: &[(&str, &str)]) -> Answer {
    let mut all = vec![("cage", "worker"), ("module", "work"), ("function", function)];
    all.extend_from_slice(parameters);
    front.client("web").get(&query("/try_call", &all)).await
}

async fn result(front: &Running, function: &str, args: Value) -> Value {
    let answer = call(front, function, &[("args", &args.to_string())]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The error's kind and text.
async fn failure(front: &Running, function: &str, parameters: &[(&str, &str)]) -> (String, String) {
    let answer = call(front, function, parameters).await.json();
    let kind = answer["error"].as_str().and_then(|error| error.split('(').next());
    let kind = kind.unwrap_or_else(|| panic!("no error: {answer}"));
    (kind.to_owned(), answer["text"].as_str().unwrap().to_owned())
}

#[track_caller]
fn check(found: (String, String), kind: &str, words: &[&str]) {
    assert_eq!(found.0, kind, "{}", found.1);
    for word in words {
        assert!(found.1.contains(word), "{word:?} is not in {:?}", found.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_of_another_process_is_called_like_one_of_this() {
    let meeting = meeting();
    let worker = worker(meeting.path()).start().await;
    let front = front(meeting.path()).start().await;
    assert_eq!(result(&front, "add", json!([2, 3])).await, 5);
    let bytes = Bytes::from(vec![7; 3 << 20]);
    let target = query("/call", &[("cage", "worker"), ("module", "work"), ("function", "echo_raw")]);
    assert_eq!(front.client("web").post(&target, bytes.clone()).await.body, bytes);
    let typed = [("cage", "worker"), ("module", "calculator"), ("function", "add"), ("args", "[1, 2]")];
    assert_eq!(front.client("web").get(&query("/call", &typed)).await.json(), 3);
    assert!(worker.stop().await && front.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callee_learns_who_calls() {
    let meeting = meeting();
    let _worker = worker(meeting.path()).start().await;
    let front = front(meeting.path()).start().await;
    let known = result(&front, "context", json!([])).await;
    assert_eq!((&known["cage"], &known["module"]), (&json!("worker"), &json!("work")));
    assert_eq!((&known["source-cage"], &known["origin-cage"]), (&json!("front"), &json!("front")));
    assert_eq!(known["source-module"], "interface_web");
    let id = known["request_id"].as_str().unwrap();
    assert!(id.starts_with("RQ-"), "{id}");
    let left: u64 = known["deadline_left_ms"].as_str().unwrap().parse().unwrap();
    assert!((1..=10_000).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_learns_why_there_is_no_result() {
    let meeting = meeting();
    let worker = worker(meeting.path()).start().await;
    let front = front(meeting.path()).start().await;
    check(failure(&front, "refuse", &[("args", "[\"never\"]")]).await, "Refused", &["never"]);
    check(failure(&front, "fail", &[("args", "[\"later\"]")]).await, "Failed", &["later"]);
    check(failure(&front, "panic", &[("args", "[\"boom\"]")]).await, "Failed", &["trapped"]);
    check(failure(&front, "ad", &[]).await, "NoSuchFunction", &["did you mean `add`"]);
    check(failure(&front, "add", &[("args", "[1]")]).await, "Refused", &["parameter b"]);
    let slow = [("args", "[60000]"), ("timeout_ms", "200")];
    check(failure(&front, "slow", &slow).await, "TimedOut", &["work.slow of cage worker"]);
    worker.quiet().await;
    let missing = [("module", "wrok")];
    let answer = front.client("web").get(&query("/try_call", &[("cage", "worker"), missing[0], ("function", "f")])).await;
    assert!(answer.text().contains("did you mean `work`"), "{}", answer.text());
    let nobody = query("/try_call", &[("cage", "other"), ("module", "work"), ("function", "f")]);
    let answer = front.client("web").get(&nobody).await;
    assert!(answer.text().contains("NoSuchCage") && answer.text().contains("flock default"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_may_be_restricted() {
    let meeting = meeting();
    let rules = "[rpc.allow]\n\"work.add\" = [\"front\"]\n\"work.greet\" = [\"other\"]";
    let worker = worker(meeting.path()).config(rules).start().await;
    let front = front(meeting.path()).start().await;
    assert_eq!(result(&front, "add", json!([2, 3])).await, 5);
    check(failure(&front, "greet", &[("args", "[\"x\"]")]).await, "NotPermitted", &["cage front", "work.greet", "[rpc.allow]"]);
    worker.configure("");
    eventually("the new rules", || worker.log().contains("cage.toml applied").then_some(())).await;
    assert_eq!(result(&front, "greet", json!(["x"])).await, "Hello, x !");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_hold_within_a_process_too() {
    let front = TestCage::named("front")
        .module("echo", "interface_web")
        .http("web")
        .config("[modules.interface_web]\nallow = { cages = [\"worker\"] }")
        .cage("worker")
        .module("service_echo", "work")
        .config("[rpc.allow]\n\"work.add\" = [\"front\"]")
        .start()
        .await;
    assert_eq!(result(&front, "add", json!([2, 3])).await, 5);
    check(failure(&front, "greet", &[("args", "[\"x\"]")]).await, "NotPermitted", &["[rpc.allow]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn flocks_do_not_see_each_other() {
    let meeting = meeting();
    let _worker = worker(meeting.path()).config("flock = \"blue\"").start().await;
    let front = front(meeting.path()).start().await;
    check(failure(&front, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &["flock default"]);
    let both = TestCage::named("front")
        .config("flock = \"green\"")
        .module("echo", "interface_web")
        .http("web")
        .config("[modules.interface_web]\nallow = { cages = [\"worker\"] }")
        .cage("worker")
        .module("service_echo", "work")
        .start()
        .await;
    check(failure(&both, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &["flock green"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_share_the_calls_and_stand_in_for_each_other() {
    let meeting = meeting();
    let front = front(meeting.path()).start().await;
    let first = worker(meeting.path()).start().await;
    assert_eq!(result(&front, "add", json!([2, 3])).await, 5);
    let second = worker(meeting.path()).start().await;
    let served = |worker: &Running| worker.module("work").map_or(0, |module| module.readings.requests);
    eventually("both copies to be known", || (front.snapshot().cages[0].members.len() == 2).then_some(())).await;
    for n in 0..200 {
        assert_eq!(result(&front, "add", json!([n, 1])).await, n + 1);
    }
    assert!(served(&first) > 10 && served(&second) > 10, "{} {}", served(&first), served(&second));
    assert!(first.stop().await);
    for n in 0..50 {
        assert_eq!(result(&front, "add", json!([n, 1])).await, n + 1);
    }
    eventually("the stopped copy to be forgotten", || (front.snapshot().cages[0].members.len() == 1).then_some(())).await;
    assert!(second.stop().await);
    check(failure(&front, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &["worker"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_come_back_through_the_caller() {
    let meeting = meeting();
    let _worker = worker(meeting.path())
        .config("concurrency = 1\n[modules.work]\nallow = { cages = [\"front\"] }")
        .start()
        .await;
    let front = front(meeting.path()).module("service_echo", "service_echo").start().await;
    let args = json!(["front", "service_echo", "add", [20, 22]]);
    assert_eq!(result(&front, "forward", args).await, 42);
}
