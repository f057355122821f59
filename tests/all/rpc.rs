//! Calls between cages of different processes: what a caller gets, what a callee learns, what happens when a copy goes.

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use wasmcage_tests::{Answer, Running, TestCage, eventually, query, unique_name};

/// Cages with names of their own, so that parallel tests do not share a log, and the place where they meet.
struct Scene {
    meeting: TempDir,
    front: String,
    worker: String,
}

impl Scene {
    fn new() -> Self {
        let meeting = tempfile::tempdir().unwrap();
        Self { meeting, front: unique_name("front"), worker: unique_name("worker") }
    }

    /// A cage whose interface calls whatever its request's query says.
    fn front(&self) -> TestCage {
        self.caller(TestCage::named(&self.front).meeting_at(self.meeting.path()))
    }

    fn caller(&self, cage: TestCage) -> TestCage {
        let allow = format!("[modules.interface_web]\nallow = {{ cages = [\"{}\", \"other\"] }}", self.worker);
        cage.module("echo", "interface_web").http("web").config(&allow)
    }

    fn worker(&self) -> TestCage {
        TestCage::named(&self.worker).meeting_at(self.meeting.path()).module("service_echo", "work")
    }

    async fn call(&self, front: &Running, function: &str, parameters: &[(&str, &str)]) -> Answer {
        let mut all = vec![("cage", &*self.worker), ("module", "work"), ("function", function)];
        all.extend_from_slice(parameters);
        front.client("web").get(&query("/try_call", &all)).await
    }

    async fn result(&self, front: &Running, function: &str, args: Value) -> Value {
        let answer = self.call(front, function, &[("args", &args.to_string())]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// The error's kind and text.
    async fn failure(&self, front: &Running, function: &str, parameters: &[(&str, &str)]) -> (String, String) {
        let answer = self.call(front, function, parameters).await.json();
        let kind = answer["error"].as_str().and_then(|error| error.split('(').next());
        let kind = kind.unwrap_or_else(|| panic!("no error: {answer}"));
        (kind.to_owned(), answer["text"].as_str().unwrap().to_owned())
    }
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
    let scene = Scene::new();
    let worker = scene.worker().module("calculator", "calculator").start().await;
    let front = scene.front().start().await;
    assert_eq!(scene.result(&front, "add", json!([2, 3])).await, 5);
    let bytes = Bytes::from(vec![7; 3 << 20]);
    let target = query("/call", &[("cage", &*scene.worker), ("module", "work"), ("function", "echo_raw")]);
    assert_eq!(front.client("web").post(&target, bytes.clone()).await.body, bytes);
    let typed = [("cage", &*scene.worker), ("module", "calculator"), ("function", "add"), ("args", "[1, 2]")];
    assert_eq!(front.client("web").get(&query("/call", &typed)).await.json(), 3);
    assert!(worker.stop().await && front.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callee_learns_who_calls() {
    let scene = Scene::new();
    let _worker = scene.worker().start().await;
    let front = scene.front().start().await;
    let known = scene.result(&front, "context", json!([])).await;
    assert_eq!((known["cage"].as_str(), known["module"].as_str()), (Some(&*scene.worker), Some("work")));
    let front_name = Some(&*scene.front);
    assert_eq!((known["source-cage"].as_str(), known["origin-cage"].as_str()), (front_name, front_name));
    assert_eq!(known["source-module"], "interface_web");
    let id = known["request_id"].as_str().unwrap();
    assert!(id.starts_with("RQ-"), "{id}");
    let left: u64 = known["deadline_left_ms"].as_str().unwrap().parse().unwrap();
    assert!((1..=10_000).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_learns_why_there_is_no_result() {
    let scene = Scene::new();
    let worker = scene.worker().start().await;
    let front = scene.front().start().await;
    check(scene.failure(&front, "refuse", &[("args", "[\"never\"]")]).await, "Refused", &["never"]);
    check(scene.failure(&front, "fail", &[("args", "[\"later\"]")]).await, "Failed", &["later"]);
    check(scene.failure(&front, "panic", &[("args", "[\"boom\"]")]).await, "Failed", &["trapped"]);
    check(scene.failure(&front, "ad", &[]).await, "NoSuchFunction", &["did you mean `add`"]);
    check(scene.failure(&front, "add", &[("args", "[1]")]).await, "Refused", &["parameter b"]);
    let slow = [("args", "[60000]"), ("timeout_ms", "200")];
    check(scene.failure(&front, "slow", &slow).await, "TimedOut", &[]);
    worker.quiet().await;
    let missing = [("module", "wrok")];
    let answer =
        front.client("web").get(&query("/try_call", &[("cage", &*scene.worker), missing[0], ("function", "f")])).await;
    assert!(answer.text().contains("did you mean `work`"), "{}", answer.text());
    let nobody = query("/try_call", &[("cage", "other"), ("module", "work"), ("function", "f")]);
    let answer = front.client("web").get(&nobody).await;
    assert!(answer.text().contains("NoSuchCage") && answer.text().contains("flock default"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_may_be_restricted() {
    let scene = Scene::new();
    let rules = format!("[rpc.allow]\n\"work.add\" = [\"{}\"]\n\"work.greet\" = [\"other\"]", scene.front);
    let worker = scene.worker().config(&rules).start().await;
    let front = scene.front().start().await;
    assert_eq!(scene.result(&front, "add", json!([2, 3])).await, 5);
    check(
        scene.failure(&front, "greet", &[("args", "[\"x\"]")]).await,
        "NotPermitted",
        &[&*format!("cage {}", scene.front), "work.greet", "[rpc.allow]"],
    );
    worker.configure("");
    eventually("the new rules", || worker.log().contains("cage.toml applied").then_some(())).await;
    assert_eq!(scene.result(&front, "greet", json!(["x"])).await, "Hello, x !");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_hold_within_a_process_too() {
    let scene = Scene::new();
    let rules = format!("[rpc.allow]\n\"work.add\" = [\"{}\"]", scene.front);
    let front = scene.front().cage(&scene.worker).module("service_echo", "work").config(&rules).start().await;
    assert_eq!(scene.result(&front, "add", json!([2, 3])).await, 5);
    check(scene.failure(&front, "greet", &[("args", "[\"x\"]")]).await, "NotPermitted", &["[rpc.allow]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn flocks_do_not_see_each_other() {
    let scene = Scene::new();
    let _worker = scene.worker().config("flock = \"blue\"").start().await;
    let front = scene.front().start().await;
    check(scene.failure(&front, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &["flock default"]);
    let both = scene.caller(TestCage::new().config("flock = \"green\""));
    let both = both.cage(&scene.worker).module("service_echo", "work").start().await;
    check(scene.failure(&both, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &["flock green"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_share_the_calls_and_stand_in_for_each_other() {
    let scene = Scene::new();
    let front = scene.front().start().await;
    let first = scene.worker().start().await;
    assert_eq!(scene.result(&front, "add", json!([2, 3])).await, 5);
    let second = scene.worker().start().await;
    let served = |worker: &Running| worker.module("work").map_or(0, |module| module.readings.requests);
    eventually("both copies to be known", || (front.snapshot().cages[0].members.len() == 2).then_some(())).await;
    for n in 0..200 {
        assert_eq!(scene.result(&front, "add", json!([n, 1])).await, n + 1);
    }
    assert!(served(&first) > 10 && served(&second) > 10, "{} {}", served(&first), served(&second));
    assert!(first.stop().await);
    for n in 0..50 {
        assert_eq!(scene.result(&front, "add", json!([n, 1])).await, n + 1);
    }
    eventually("the stopped copy to be forgotten", || (front.snapshot().cages[0].members.len() == 1).then_some(()))
        .await;
    assert!(second.stop().await);
    check(scene.failure(&front, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &[&scene.worker]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_come_back_through_the_caller() {
    let scene = Scene::new();
    let _worker = scene
        .worker()
        .config(&format!("concurrency = 1\n[modules.work]\nallow = {{ cages = [\"{}\"] }}", scene.front))
        .start()
        .await;
    let front = scene.front().module("service_echo", "service_echo").start().await;
    let args = json!([scene.front, "service_echo", "add", [20, 22]]);
    assert_eq!(scene.result(&front, "forward", args).await, 42);
}
