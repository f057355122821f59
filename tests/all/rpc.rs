//! Calls between cages of different processes: what a caller gets, what a callee learns, what happens when a copy goes.

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use wasmcage_fabric::keys::Authority;
use wasmcage_tests::{Answer, RunningCage, TestCage, check_call_error as check, eventually, query, unique_name};

/// Cages with names of their own, so that parallel tests do not share a log, and the place where they meet.
struct FrontAndWorker {
    meeting: TempDir,
    front: String,
    worker: String,
}

impl FrontAndWorker {
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

    async fn call(&self, front: &RunningCage, function: &str, parameters: &[(&str, &str)]) -> Answer {
        let mut all = vec![("cage", &*self.worker), ("module", "work"), ("function", function)];
        all.extend_from_slice(parameters);
        front.client("web").get(&query("/try_call", &all)).await
    }

    async fn result(&self, front: &RunningCage, function: &str, args: Value) -> Value {
        let answer = self.call(front, function, &[("args", &args.to_string())]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// The error's kind and text.
    async fn failure(&self, front: &RunningCage, function: &str, parameters: &[(&str, &str)]) -> (String, String) {
        self.call(front, function, parameters).await.call_error()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_of_another_process_is_called_like_one_of_this() {
    let cages = FrontAndWorker::new();
    let worker = cages.worker().module("calculator", "calculator").start().await;
    let front = cages.front().start().await;
    assert_eq!(cages.result(&front, "add", json!([2, 3])).await, 5);
    let bytes = Bytes::from(vec![7; 3 << 20]);
    let target = query("/call", &[("cage", &*cages.worker), ("module", "work"), ("function", "echo_raw")]);
    assert_eq!(front.client("web").post(&target, bytes.clone()).await.body, bytes);
    let typed = [("cage", &*cages.worker), ("module", "calculator"), ("function", "add"), ("args", "[1, 2]")];
    assert_eq!(front.client("web").get(&query("/call", &typed)).await.json(), 3);
    assert!(worker.stop().await && front.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callee_learns_who_calls() {
    let cages = FrontAndWorker::new();
    let _worker = cages.worker().start().await;
    let front = cages.front().start().await;
    let known = cages.result(&front, "context", json!([])).await;
    assert_eq!((known["cage"].as_str(), known["module"].as_str()), (Some(&*cages.worker), Some("work")));
    let front_name = Some(&*cages.front);
    assert_eq!((known["source-cage"].as_str(), known["origin-cage"].as_str()), (front_name, front_name));
    assert_eq!(known["source-module"], "interface_web");
    let id = known["request_id"].as_str().unwrap();
    assert!(id.starts_with("RQ-"), "{id}");
    let left: u64 = known["deadline_left_ms"].as_str().unwrap().parse().unwrap();
    assert!((1..=10_000).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_learns_why_there_is_no_result() {
    let cages = FrontAndWorker::new();
    let worker = cages.worker().start().await;
    let front = cages.front().start().await;
    check(cages.failure(&front, "refuse", &[("args", "[\"never\"]")]).await, "Refused", &["never"]);
    check(cages.failure(&front, "fail", &[("args", "[\"later\"]")]).await, "Failed", &["later"]);
    check(cages.failure(&front, "panic", &[("args", "[\"boom\"]")]).await, "Failed", &["trapped"]);
    check(cages.failure(&front, "ad", &[]).await, "NoSuchFunction", &["did you mean `add`"]);
    check(cages.failure(&front, "add", &[("args", "[1]")]).await, "BadArguments", &["parameter b"]);
    check(cages.failure(&front, "misread", &[("args", "[\"no date\"]")]).await, "BadArguments", &["no date"]);
    let slow = [("args", "[60000]"), ("timeout_ms", "200")];
    check(cages.failure(&front, "slow", &slow).await, "TimedOut", &[]);
    worker.quiet().await;
    let missing = [("module", "wrok")];
    let answer =
        front.client("web").get(&query("/try_call", &[("cage", &*cages.worker), missing[0], ("function", "f")])).await;
    assert!(answer.text().contains("did you mean `work`"), "{}", answer.text());
    let nobody = query("/try_call", &[("cage", "other"), ("module", "work"), ("function", "f")]);
    let answer = front.client("web").get(&nobody).await;
    assert!(answer.text().contains("NoSuchCage") && answer.text().contains("flock default"), "{}", answer.text());
}

/// Something that lets nobody in where a copy of the cage should be.
#[tokio::test(flavor = "multi_thread")]
async fn a_known_cage_that_cannot_be_reached_is_told_from_a_full_one() {
    let cages = FrontAndWorker::new();
    let front = cages.front().start().await;
    let socket = format!("meeting/default/{}.00000000000000ff.sock", cages.worker);
    let listener = tokio::net::UnixListener::bind(cages.meeting.path().join(socket)).unwrap();
    let closing = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            drop(connection);
        }
    });
    eventually("the copy", || (!front.snapshot().cages[0].members.is_empty()).then_some(())).await;
    let answer = cages.call(&front, "add", &[("args", "[1, 2]")]).await;
    check(answer.call_error(), "Unreachable", &[&format!("callee unreachable: no copy of cage {}", cages.worker)]);
    assert_eq!(answer.json()["may_have_run"], false);
    closing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_may_be_restricted() {
    let cages = FrontAndWorker::new();
    let rules = format!("[rpc.allow]\n\"work.add\" = [\"{}\"]\n\"work.greet\" = [\"other\"]", cages.front);
    let worker = cages.worker().config(&rules).start().await;
    let front = cages.front().start().await;
    assert_eq!(cages.result(&front, "add", json!([2, 3])).await, 5);
    check(
        cages.failure(&front, "greet", &[("args", "[\"x\"]")]).await,
        "NotPermitted",
        &[&*format!("cage {}", cages.front), "work.greet", "[rpc.allow]"],
    );
    worker.configure("");
    eventually("the new rules", || worker.log().contains("cage.toml applied").then_some(())).await;
    assert_eq!(cages.result(&front, "greet", json!(["x"])).await, "Hello, x !");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_hold_within_a_process_too() {
    let cages = FrontAndWorker::new();
    let rules = format!("[rpc.allow]\n\"work.add\" = [\"{}\"]", cages.front);
    let front = cages.front().cage(&cages.worker).module("service_echo", "work").config(&rules).start().await;
    assert_eq!(cages.result(&front, "add", json!([2, 3])).await, 5);
    check(cages.failure(&front, "greet", &[("args", "[\"x\"]")]).await, "NotPermitted", &["[rpc.allow]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn flocks_do_not_see_each_other() {
    let cages = FrontAndWorker::new();
    let _worker = cages.worker().config("flock = \"blue\"").start().await;
    let front = cages.front().start().await;
    check(cages.failure(&front, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &["flock default"]);
    let both = cages.caller(TestCage::new().config("flock = \"green\""));
    let both = both.cage(&cages.worker).module("service_echo", "work").start().await;
    check(cages.failure(&both, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &["flock green"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_share_the_calls_and_stand_in_for_each_other() {
    let cages = FrontAndWorker::new();
    let front = cages.front().start().await;
    let first = cages.worker().start().await;
    assert_eq!(cages.result(&front, "add", json!([2, 3])).await, 5);
    let second = cages.worker().start().await;
    let served = |worker: &RunningCage| worker.module("work").map_or(0, |module| module.readings.requests);
    eventually("both copies to be known", || (front.snapshot().cages[0].members.len() == 2).then_some(())).await;
    for n in 0.. {
        assert_eq!(cages.result(&front, "add", json!([n, 1])).await, n + 1);
        if served(&first) > 20 && served(&second) > 20 {
            break;
        }
        assert!(n < 20_000, "{} {}", served(&first), served(&second));
    }
    assert!(first.stop().await);
    for n in 0..50 {
        assert_eq!(cages.result(&front, "add", json!([n, 1])).await, n + 1);
    }
    eventually("the stopped copy to be forgotten", || (front.snapshot().cages[0].members.len() == 1).then_some(()))
        .await;
    assert!(second.stop().await);
    eventually("the last one to be forgotten", || front.snapshot().cages[0].members.is_empty().then_some(())).await;
    check(cages.failure(&front, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &[&cages.worker]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_come_back_through_the_caller() {
    let cages = FrontAndWorker::new();
    let _worker = cages
        .worker()
        .config(&format!("concurrency = 1\n[modules.work]\nallow = {{ cages = [\"{}\"] }}", cages.front))
        .start()
        .await;
    let front = cages.front().module("service_echo", "service_echo").start().await;
    let args = json!([cages.front, "service_echo", "add", [20, 22]]);
    assert_eq!(cages.result(&front, "forward", args).await, 42);
}

/// Keys of one flock, and cages that could as well be on machines of their own: each meets nobody.
struct Network {
    cages: FrontAndWorker,
    authority: Authority,
}

impl Network {
    fn new() -> Self {
        let cages = FrontAndWorker::new();
        let authority = Authority::create(&cages.meeting.path().join("authority"), "default").unwrap();
        Self { cages, authority }
    }

    /// Puts a cage on a machine of its own.
    fn on_its_own(&self, cage: TestCage, rpc: &str) -> TestCage {
        self.issue(&cage);
        let meeting = cage.directory().join("run");
        cage.meeting_at(&meeting).config(&format!("[interfaces.rpc]\nmulticast = false\n{rpc}"))
    }

    fn issue(&self, cage: &TestCage) {
        self.authority.issue(cage.name(), 1).unwrap().write(&cage.directory().join("keys"), true).unwrap();
    }
}

/// `host:port` of the cage's interface rpc.
fn tls_address(cage: &RunningCage) -> String {
    let serving = cage.host().serving();
    let address = serving.iter().find_map(|line| line.address.strip_prefix("tls://").map(str::to_owned));
    address.expect("a TLS address")
}

fn peers(cage: &str, address: &str) -> String {
    format!("peers = {{ {cage} = [\"{address}\"] }}")
}

const LISTEN: &str = "listen = \"127.0.0.1:0\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_of_another_machine_is_called_by_its_address() {
    let network = Network::new();
    let cages = &network.cages;
    let worker = network.on_its_own(cages.worker(), LISTEN).start().await;
    let known = peers(&cages.worker, &tls_address(&worker));
    let front = network.on_its_own(cages.front(), &known).start().await;
    assert_eq!(cages.result(&front, "add", json!([2, 3])).await, 5);
    let bytes = Bytes::from(vec![7; 3 << 20]);
    let target = query("/call", &[("cage", &*cages.worker), ("module", "work"), ("function", "echo_raw")]);
    assert_eq!(front.client("web").post(&target, bytes.clone()).await.body, bytes);
    let context = cages.result(&front, "context", json!([])).await;
    assert_eq!(context["source-cage"].as_str(), Some(&*cages.front));
    let members = front.snapshot().cages[0].members.clone();
    assert_eq!((members.len(), &*members[0].found), (1, "peers"), "{members:?}");
    assert_eq!(members[0].health, "connected");
    // The worker's process comes back at another address; the configuration is told, and the calls go on.
    assert!(worker.stop().await);
    eventually("it to be forgotten", || front.snapshot().cages[0].members.is_empty().then_some(())).await;
    check(cages.failure(&front, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_cage_or_authority_is_turned_away() {
    let network = Network::new();
    let cages = &network.cages;
    let worker = network.on_its_own(cages.worker(), LISTEN).start().await;
    let known = peers(&cages.worker, &tls_address(&worker));
    // Signed by somebody else.
    let stranger = Network::new();
    let front = stranger.on_its_own(cages.front(), &known).start().await;
    check(cages.failure(&front, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &[]);
    worker.logged("peer refused").await;
    front.logged("peer unreachable").await;
    assert!(front.stop().await);
    // Good keys, but the one at the address is another cage than the one that is called.
    let front = network.on_its_own(cages.front(), &peers("other", &tls_address(&worker))).start().await;
    let other = query("/try_call", &[("cage", "other"), ("module", "work"), ("function", "f")]);
    let answer = front.client("web").get(&other).await;
    assert!(answer.text().contains("NoSuchCage"), "{}", answer.text());
    front.logged("where cage other was expected").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_nobody_listens_to_the_network() {
    let cages = FrontAndWorker::new();
    let worker = cages.worker().config(&format!("[interfaces.rpc]\n{LISTEN}")).start().await;
    worker.logged("wasmcage keys issue").await;
    assert!(worker.host().serving().iter().all(|line| !line.address.starts_with("tls://")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_peers_know_is_told_on() {
    let network = Network::new();
    let cages = &network.cages;
    let worker = network.on_its_own(cages.worker(), LISTEN).start().await;
    let middle = TestCage::named(&unique_name("middle"));
    let middle_name = middle.name().to_owned();
    let known = format!("{LISTEN}\n{}", peers(&cages.worker, &tls_address(&worker)));
    let middle = network.on_its_own(middle, &known).start().await;
    eventually("the worker in the middle", || (!middle.snapshot().cages[0].members.is_empty()).then_some(())).await;
    let front = network.on_its_own(cages.front(), &peers(&middle_name, &tls_address(&middle))).start().await;
    let told = || front.snapshot().cages[0].members.iter().any(|member| member.cage == cages.worker);
    eventually("the worker in front", || told().then_some(())).await;
    assert_eq!(cages.result(&front, "add", json!([2, 3])).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_renewed_without_a_restart() {
    let network = Network::new();
    let cages = &network.cages;
    let worker_cage = network.on_its_own(cages.worker(), LISTEN);
    let directory = worker_cage.directory();
    let worker = worker_cage.start().await;
    let renewed = network.authority.issue(&cages.worker, 2).unwrap();
    renewed.write(&directory.join("keys"), true).unwrap();
    worker.logged("keys changed").await;
    let front = network.on_its_own(cages.front(), &peers(&cages.worker, &tls_address(&worker))).start().await;
    assert_eq!(cages.result(&front, "add", json!([2, 3])).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_is_served_by_one_that_it_cannot_reach() {
    let network = Network::new();
    let cages = &network.cages;
    // The front is in the DMZ: it knows of nobody, and listens.
    let front = network.on_its_own(cages.front(), LISTEN).start().await;
    check(cages.failure(&front, "add", &[("args", "[1, 2]")]).await, "NoSuchCage", &[]);
    let reverse = format!(
        "[interfaces.inward]\nprotocol = \"reverse-rpc\"\nserve = [\"{}\"]\nmulticast = false\n{}",
        cages.front,
        peers(&cages.front, &tls_address(&front))
    );
    let inner = async || network.on_its_own(cages.worker(), "").config(&reverse).start().await;
    let (first, second) = (inner().await, inner().await);
    let known = |count: usize| (front.snapshot().cages[0].members.len() == count).then_some(());
    eventually("both of them", || known(2)).await;
    for n in 0..50 {
        assert_eq!(cages.result(&front, "add", json!([n, 1])).await, n + 1);
    }
    let context = cages.result(&front, "context", json!([])).await;
    assert_eq!(context["source-cage"].as_str(), Some(&*cages.front));
    assert_eq!(front.snapshot().cages[0].members[0].found, "reverse");
    assert!(first.stop().await);
    for n in 0..50 {
        assert_eq!(cages.result(&front, "add", json!([n, 1])).await, n + 1);
    }
    assert!(second.stop().await);
    eventually("none of them", || known(0)).await;
    let _third = inner().await;
    eventually("a new one", || known(1)).await;
    assert_eq!(cages.result(&front, "add", json!([2, 3])).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_serves_in_reverse_says_whom_it_does_not_reach() {
    let network = Network::new();
    let cages = &network.cages;
    let front = network.on_its_own(cages.front(), LISTEN).start().await;
    let reverse = format!(
        "[interfaces.inward]\nprotocol = \"reverse-rpc\"\nserve = [\"{0}\", \"nobody\"]\nmulticast = false\npeers = {{ {0} = \
         [\"{1}\"], nobody = [\"127.0.0.1:1\"] }}",
        cages.front,
        tls_address(&front)
    );
    let inner = network.on_its_own(cages.worker(), "").config(&reverse).start().await;
    let news = || {
        let interfaces = inner.snapshot().cages.swap_remove(0).interfaces;
        interfaces.into_iter().find(|interface| interface.interface == "inward").and_then(|inward| inward.status)
    };
    let only_nobody = |news: &String| news.contains("reverse://nobody: not served") && !news.contains(&cages.front);
    let told = eventually("what it tells", || news().filter(only_nobody)).await;
    assert!(told.contains("cannot connect to 127.0.0.1:1"), "{told}");
    assert!(front.stop().await);
    let both = |news: &String| news.contains(&format!("reverse://{}: not served", cages.front));
    eventually("what it tells of the front", || news().filter(both)).await;
}

/// A grant of `*` is one for every cage.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_may_be_allowed_to_call_every_cage() {
    let cages = FrontAndWorker::new();
    let _worker = cages.worker().start().await;
    let front = TestCage::named(&cages.front).meeting_at(cages.meeting.path()).module("echo", "interface_web");
    let front = front.http("web").config("[modules.interface_web]\nallow = { cages = [\"*\"] }").start().await;
    assert_eq!(cages.result(&front, "add", json!([2, 3])).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_target_cannot_take_all_places() {
    let cages = FrontAndWorker::new();
    let worker = cages.worker().start().await;
    let bound = "[interfaces.rpc]\nmax_calls_per_cage = 2";
    let front = cages.front().config(bound).start().await;
    let slow = [("args", "[60000]"), ("timeout_ms", "60000")];
    let hanging: Vec<_> = (0..2)
        .map(|_| {
            let client = front.client("web");
            let mut all = vec![("cage", &*cages.worker), ("module", "work"), ("function", "slow")];
            all.extend_from_slice(&slow);
            let target = query("/try_call", &all);
            tokio::spawn(async move { client.get(&target).await })
        })
        .collect();
    eventually("both calls", || (worker.snapshot().cages[0].in_work == 2).then_some(())).await;
    check(cages.failure(&front, "add", &[("args", "[1, 2]")]).await, "Overloaded", &["2 calls to cage"]);
    hanging.iter().for_each(|hanging| hanging.abort());
    assert_eq!(front.client("web").get("/status/204").await.status, 204);
}
