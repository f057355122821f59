//! Retried calls: accepted once, made until they succeed, given up when they must be, handed over to other cages, and there
//! again after whatever ended the process.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use wasmcage_store::{CallFilter, CallView, Store};
use wasmcage_tests::{RunningCage, TestCage, cache, check_call_error, eventually, guest, program, query, unique_name};

/// What a cage needs whose module `jobs` asks for calls, and is called by them.
fn jobs(allow: &str) -> String {
    format!("[modules.jobs]\nallow = {{ {allow} files = [{{ host = \"data\", guest = \"/data\", mode = \"rw\" }}] }}\n")
}

/// An interface of the queue `retry`, quick to try again.
const QUICK: &str = "[interfaces.retry]\nretry_interval_ms = 1\nretry_interval_max_ms = 20\n";

fn with_jobs(cage: TestCage, config: &str) -> TestCage {
    fs::create_dir(cage.directory().join("data")).unwrap();
    cage.module("echo", "interface_web").http("web").module("retried_user", "jobs").config(config)
}

async fn started(config: &str) -> RunningCage {
    with_jobs(TestCage::new(), &format!("{config}\n{}", jobs(""))).start().await
}

/// Calls a function of module `jobs` at once.
async fn call(cage: &RunningCage, function: &str, arguments: Value) -> Value {
    let parameters = [("module", "jobs"), ("function", function), ("kwargs", &arguments.to_string())];
    let answer = cage.client("web").get(&query("/try_call", &parameters)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Asks for a retried call; returns its id.
async fn ask(cage: &RunningCage, text: &str, then: &str, options: Value) -> String {
    let mut arguments = options;
    arguments["text"] = text.into();
    arguments["then"] = then.into();
    let id = call(cage, "ask", arguments).await;
    id.as_str().unwrap_or_else(|| panic!("no id: {id}")).to_owned()
}

/// One line that module `jobs` has written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attempt {
    text: String,
    attempt: u32,
    id: String,
    first_started_ms: u64,
    expires: bool,
}

fn attempts_in(cage: &Path) -> Vec<Attempt> {
    let lines = fs::read_to_string(cage.join("data/attempts")).unwrap_or_default();
    let made = lines.lines().map(|line| {
        let [text, attempt, id, first_started_ms, expires] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line:?}")
        };
        Attempt {
            text: text.into(),
            attempt: attempt.parse().unwrap(),
            id: id.into(),
            first_started_ms: first_started_ms.parse().unwrap(),
            expires: expires.parse().unwrap(),
        }
    });
    made.collect()
}

fn made(cage: &RunningCage) -> Vec<Attempt> {
    attempts_in(&cage.directory())
}

/// The calls that were made, in order, each attempt once.
fn texts(cage: &RunningCage) -> Vec<String> {
    made(cage).into_iter().map(|made| made.text).collect()
}

fn store<'a>(cage: &'a RunningCage, name: &str) -> &'a Store {
    &cage.host().cage(name).unwrap().dispatcher().services().store
}

fn listed(cage: &RunningCage, name: &str, dead: bool) -> Vec<CallView> {
    store(cage, name).calls(&CallFilter { dead, limit: 1_000, ..CallFilter::default() }).unwrap()
}

/// Waits until no call of the first cage is pending.
async fn idle(cage: &RunningCage) {
    eventually("the end of all calls", || listed(cage, cage.name(), false).is_empty().then_some(())).await;
}

/// Waits for a dead letter.
async fn dead(cage: &RunningCage) -> CallView {
    eventually("a dead letter", || listed(cage, cage.name(), true).pop()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_made_in_the_background_and_has_an_id() {
    let cage = started("").await;
    let id = ask(&cage, "one", "ok", json!({})).await;
    let (digits, hex) = id.strip_prefix("RT-").and_then(|id| id.split_once('-')).unwrap();
    assert!(digits.len() == 14 && digits.bytes().all(|byte| byte.is_ascii_digit()), "{id}");
    assert!(hex.len() == 12 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    let other = ask(&cage, "one", "ok", json!({})).await;
    assert_ne!(id, other, "without a name each is a call of its own");
    idle(&cage).await;
    let mut ids: Vec<_> = made(&cage).into_iter().map(|made| (made.attempt, made.id)).collect();
    ids.sort();
    let mut expected = [(1, id), (1, other)];
    expected.sort();
    assert_eq!(ids, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_a_transaction_of_state_is_made_if_that_is_done() {
    let cage = started("").await;
    let ask = async |key: &str, text: &str| call(&cage, "ask_if_free", json!({ "key": key, "text": text })).await;
    let first = ask("a", "one").await;
    assert_eq!(ask("a", "two").await, Value::Null, "the key is taken");
    assert_eq!(listed(&cage, cage.name(), false).iter().filter(|call| call.id != first).count(), 0);
    let last = ask("b", "three").await;
    idle(&cage).await;
    let mut made: Vec<_> = made(&cage).into_iter().map(|made| (made.text, Value::from(made.id))).collect();
    made.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(made, [("one".to_owned(), first), ("three".to_owned(), last)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_call_is_accepted_once() {
    let cage = started(QUICK).await;
    for _ in 0..3 {
        assert_eq!(ask(&cage, "one", "fail until 3", json!({ "id": "order-7" })).await, "order-7");
    }
    idle(&cage).await;
    // Its name is remembered when it is done.
    assert_eq!(ask(&cage, "again", "ok", json!({ "id": "order-7" })).await, "order-7");
    ask(&cage, "last", "ok", json!({ "id": "order-8" })).await;
    idle(&cage).await;
    assert_eq!(texts(&cage), ["one", "one", "one", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_forgotten_after_the_retention() {
    let cage = started("[interfaces.retry]\nretention = \"1s\"").await;
    ask(&cage, "one", "ok", json!({ "id": "a" })).await;
    eventually("the first", || (texts(&cage) == ["one"]).then_some(())).await;
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while texts(&cage).len() < 2 {
        assert!(tokio::time::Instant::now() < until, "it is remembered for ever");
        ask(&cage, "again", "ok", json!({ "id": "a" })).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_is_made_again_until_it_succeeds() {
    let cage = started(QUICK).await;
    let id = ask(&cage, "one", "fail until 4", json!({ "expires_ms": 3_600_000 })).await;
    ask(&cage, "two", "ok", json!({})).await;
    idle(&cage).await;
    let (ones, others): (Vec<_>, Vec<_>) = made(&cage).into_iter().partition(|made| made.text == "one");
    assert_eq!(ones.iter().map(|made| made.attempt).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(ones.iter().all(|made| made.id == id && made.expires), "{ones:?}");
    assert!(ones.iter().all(|made| made.first_started_ms == ones[0].first_started_ms), "{ones:?}");
    assert!(others.len() == 1 && !others[0].expires, "{others:?}");
    let log = cage.logged("call is made again later").await;
    assert!(log.contains("one fails"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_and_a_missing_module_mean_later() {
    let cage = started(&format!("{QUICK}max_attempts = 2\n")).await;
    ask(&cage, "one", "panic", json!({})).await;
    let letter = dead(&cage).await;
    assert!(letter.attempts == 2 && letter.error.as_deref().unwrap().contains("failed 2 times"), "{letter:?}");
    // Asked for, then its module is taken away, and comes back.
    let gone = started("").await;
    ask(&gone, "two", "ok", json!({ "queue": "later" })).await;
    let file = gone.directory().join("jobs.wasm");
    fs::rename(&file, gone.directory().join("jobs.away")).unwrap();
    eventually("no module", || gone.version("jobs").is_none().then_some(())).await;
    gone.configure(&format!("[interfaces.later]\nprotocol = \"retry\"\nretry_interval_max_ms = 1000\n{}", jobs("")));
    gone.logged("no such module").await;
    fs::rename(gone.directory().join("jobs.away"), &file).unwrap();
    idle(&gone).await;
    assert_eq!(texts(&gone), ["two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_a_dead_letter() {
    let cage = started(QUICK).await;
    let id = ask(&cage, "one", "refuse", json!({})).await;
    let letter = dead(&cage).await;
    assert_eq!((&letter.id, letter.attempts, letter.state), (&id, 1, "dead"));
    assert!(letter.error.unwrap().contains("one is refused"));
    assert_eq!(texts(&cage), ["one"]);
    cage.logged("call is given up").await;
    let off = started(&format!("{QUICK}dead_letter = false\n")).await;
    ask(&off, "one", "refuse", json!({})).await;
    off.logged("call is given up").await;
    idle(&off).await;
    assert_eq!(listed(&off, off.name(), true), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_arguments_are_a_dead_letter_here_and_in_another_cage() {
    let (front, worker) = (unique_name("front"), unique_name("worker"));
    let cages = front_and_worker(&front, &worker, QUICK).start().await;
    let check = async |cage: &str, id: String, reason: &str| {
        let letter = || listed(&cages, cage, true).into_iter().find(|letter| letter.id == id);
        let letter = eventually("a dead letter", letter).await;
        assert_eq!((letter.attempts, letter.state), (1, "dead"));
        assert!(letter.error.as_deref().unwrap().contains(reason), "{letter:?}");
    };
    for cage in [&front, &worker] {
        // The function says so, or what reads its arguments.
        let id = ask(&cages, "one", "misread", json!({ "of": cage })).await;
        check(cage, id, "bad request: one is misread").await;
        let id = call(&cages, "ask_amiss", json!({ "of": cage })).await;
        check(cage, id.as_str().unwrap().to_owned(), "bad request: work: the parameter text (&str) does not fit").await;
    }
    idle(&cages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_and_time_may_be_bounded() {
    let cage = started(QUICK).await;
    ask(&cage, "few", "fail", json!({ "attempts_max": 3 })).await;
    let letter = dead(&cage).await;
    assert!(letter.error.as_deref().unwrap().contains("failed 3 times; last: failed: few fails"), "{letter:?}");
    assert_eq!(texts(&cage), ["few", "few", "few"]);
    let short = ask(&cage, "short", "fail", json!({ "expires_ms": 100 })).await;
    let letter =
        eventually("the second", || listed(&cage, cage.name(), true).into_iter().find(|letter| letter.id == short));
    assert!(letter.await.error.unwrap().contains("expired"));
    let late = ask(&cage, "late", "ok", json!({ "expires_ms": 1, "not_before_ms": 2 })).await;
    eventually("the third", || listed(&cage, cage.name(), true).into_iter().find(|letter| letter.id == late)).await;
    assert!(!texts(&cage).contains(&"late".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_queue_waits_for_its_first() {
    let cage = started(&format!("{QUICK}keep_order = true\n")).await;
    for (text, then) in [("a", "fail until 3"), ("b", "ok"), ("c", "fail until 2"), ("d", "refuse"), ("e", "ok")] {
        ask(&cage, text, then, json!({ "priority": 5 })).await;
    }
    idle(&cage).await;
    assert_eq!(texts(&cage), ["a", "a", "a", "b", "c", "c", "d", "e"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn higher_priorities_go_first() {
    let cage = started("[interfaces.retry]\nconcurrency = 1").await;
    // All three are there before the first can be looked at: their queue is not worked off yet.
    for (text, priority) in [("low", -1), ("middle", 0), ("high", 1)] {
        ask(&cage, text, "ok", json!({ "priority": priority, "queue": "later" })).await;
    }
    cage.configure(&format!(
        "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n\
         [interfaces.later]\nprotocol = \"retry\"\nconcurrency = 1\n{}",
        jobs("")
    ));
    idle(&cage).await;
    assert_eq!(texts(&cage), ["high", "middle", "low"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_a_queue_that_nobody_works_off_waits() {
    let cage = started("").await;
    ask(&cage, "one", "ok", json!({ "queue": "slow" })).await;
    ask(&cage, "two", "ok", json!({ "queue": "slow" })).await;
    let log = cage.logged("no interface works off").await;
    assert_eq!(log.matches("no interface works off").count(), 1, "told once");
    assert_eq!(listed(&cage, cage.name(), false).len(), 2);
    // An interface of another protocol is none that works it off.
    let web = "protocol = \"http\"\nlisten = \"127.0.0.1:0\"";
    cage.configure(&format!("[interfaces.web]\n{web}\n[interfaces.slow]\n{web}\n{}", jobs("")));
    cage.logged("cage.toml applied").await;
    ask(&cage, "three", "ok", json!({ "queue": "slow" })).await;
    assert_eq!(listed(&cage, cage.name(), false).len(), 3);
    cage.configure(&format!("[interfaces.slow]\nprotocol = \"retry\"\n{}", jobs("")));
    idle(&cage).await;
    assert_eq!(texts(&cage).len(), 3);
    assert!(!cage.log().contains("calls wait in a queue"), "they were told of before");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_whose_queue_is_worked_off_no_more_are_told_of() {
    let slow = |module: &str| format!("[interfaces.slow]\nprotocol = \"retry\"\nconcurrency = 1\n{module}");
    let web = "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n";
    let cage = with_jobs(TestCage::new(), &slow(&jobs(""))).start().await;
    for text in ["one", "two"] {
        ask(&cage, text, "ok", json!({ "queue": "slow", "not_before_ms": 3_600_000 })).await;
    }
    assert!(!cage.log().contains("no interface works off"));
    // At once when it is taken out of the settings.
    cage.configure(&format!("{web}{}", jobs("")));
    let told = |log: &str| {
        let line = log.lines().find(|line| line.contains("calls wait in a queue that no interface works off"));
        let line = line.unwrap_or_else(|| panic!("{log}"));
        for part in ["slow", "pending", "2", "cage.toml", "wasmcage retry move"] {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
    };
    told(&cage.logged("calls wait in a queue").await);
    // At the start otherwise.
    let next = with_jobs(TestCage::new(), &jobs(""));
    fs::create_dir(next.directory().join("state")).unwrap();
    fs::copy(cage.directory().join("state/store.redb"), next.directory().join("state/store.redb")).unwrap();
    let next = next.start().await;
    told(&next.logged("calls wait in a queue").await);
    assert_eq!(next.log().matches("no interface works off").count(), 1);
    assert_eq!(listed(&next, next.name(), false).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_inside_a_retried_call_are_its_own() {
    let cage = started(QUICK).await;
    ask(&cage, "a", "steps", json!({ "id": "outer-a" })).await;
    ask(&cage, "b", "steps", json!({ "id": "outer-b" })).await;
    idle(&cage).await;
    let mut made: Vec<_> = made(&cage).into_iter().map(|made| (made.text, made.attempt, made.id)).collect();
    made.sort();
    let line = |text: &str, attempt: u32, id: &str| (text.to_owned(), attempt, id.to_owned());
    // Both attempts at the outer call ask for the step; it is made once.
    let expected = [
        line("a", 1, "outer-a"),
        line("a", 2, "outer-a"),
        line("a-step", 1, "outer-a/step"),
        line("b", 1, "outer-b"),
        line("b", 2, "outer-b"),
        line("b-step", 1, "outer-b/step"),
    ];
    assert_eq!(made, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_call_holds_one_place_until_its_deadline() {
    let cage = started("[interfaces.retry]\nconcurrency = 2\ntimeout_ms = 60000").await;
    ask(&cage, "hung", "hang", json!({})).await;
    for number in 0..5 {
        ask(&cage, &format!("quick{number}"), "ok", json!({})).await;
    }
    eventually("the others", || (texts(&cage).len() == 6).then_some(())).await;
    eventually("the end of the others", || (listed(&cage, cage.name(), false).len() == 1).then_some(())).await;
    assert_eq!(listed(&cage, cage.name(), false)[0].state, "in work");
    let one = started("[interfaces.retry]\nconcurrency = 1\ntimeout_ms = 100\nretry_interval_ms = 60000").await;
    ask(&one, "hung", "hang", json!({})).await;
    ask(&one, "next", "ok", json!({})).await;
    eventually("the next", || texts(&one).contains(&"next".to_owned()).then_some(())).await;
    let hung = &listed(&one, one.name(), false)[0];
    assert!(hung.error.as_deref().is_some_and(|error| error.contains("deadline exceeded")), "{hung:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_concurrency_strands_nothing() {
    let config = |concurrency: u32| {
        format!(
            "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n\
             [interfaces.retry]\nconcurrency = {concurrency}\n{}",
            jobs("")
        )
    };
    let cage = started("").await;
    call(&cage, "ask_many", json!({ "prefix": "n", "count": 300 })).await;
    for concurrency in [8, 1, 3] {
        cage.configure(&config(concurrency));
        cage.logged("cage.toml applied").await;
        let before = texts(&cage).len();
        eventually("progress", || (texts(&cage).len() > before || texts(&cage).len() == 300).then_some(())).await;
    }
    idle(&cage).await;
    let mut texts = texts(&cage);
    texts.sort();
    texts.dedup();
    assert_eq!((texts.len(), made(&cage).len()), (300, 300), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_calls_are_refused_at_once() {
    let cage = started("").await;
    let check = async |options: Value, kind: &str, words: &[&str]| {
        let mut kwargs = options;
        kwargs["text"] = "x".into();
        kwargs["then"] = "ok".into();
        let target = query("/try_call", &[("module", "jobs"), ("function", "ask"), ("kwargs", &kwargs.to_string())]);
        check_call_error(cage.client("web").get(&target).await.call_error(), kind, words);
    };
    check(json!({ "queue": "no queue" }), "Failed", &["bad arguments", "cannot name a queue"]).await;
    check(json!({ "id": "a\nb" }), "Failed", &["bad arguments", "cannot name a call"]).await;
    check(json!({ "id": "x".repeat(257) }), "Failed", &["1 to 256 bytes"]).await;
    check(json!({ "attempts_max": 0 }), "Failed", &["no attempt at all"]).await;
    check(json!({ "of": "elsewhere" }), "Failed", &["not permitted", "add it to allow"]).await;
    assert_eq!(listed(&cage, cage.name(), false), []);
}

/// Cages `front` and `worker`, each with module `jobs`.
fn front_and_worker(front: &str, worker: &str, worker_config: &str) -> TestCage {
    let config = format!("{QUICK}{}", jobs(&format!("cages = [\"{worker}\"],")));
    let both = with_jobs(TestCage::named(front), &config).cage(worker);
    fs::create_dir(both.directory().join("data")).unwrap();
    both.module("retried_user", "jobs").config(&format!("{worker_config}\n{}", jobs("")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_another_cage_is_handed_over() {
    let (front, worker) = (unique_name("front"), unique_name("worker"));
    let cages = front_and_worker(&front, &worker, QUICK).start().await;
    let fresh = ask(&cages, "fresh", "fail until 2", json!({ "of": worker })).await;
    ask(&cages, "named", "ok", json!({ "of": worker, "id": "order-7", "queue": "elsewhere" })).await;
    let at_worker = cages.root().join(&worker);
    idle_but_for(&cages, 1).await;
    cages.configure(&format!(
        "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n[interfaces.elsewhere]\nprotocol = \"retry\"\n{}",
        jobs(&format!("cages = [\"{worker}\"],"))
    ));
    eventually("all attempts", || (attempts_in(&at_worker).len() == 3).then_some(())).await;
    let mut made: Vec<_> = attempts_in(&at_worker).into_iter().map(|made| (made.text, made.attempt, made.id)).collect();
    made.sort();
    let fresh_line = |attempt| ("fresh".to_owned(), attempt, fresh.clone());
    assert_eq!(made, [fresh_line(1), fresh_line(2), ("named".into(), 1, format!("{front}/order-7"))]);
    idle(&cages).await;
    assert!(texts(&cages).is_empty(), "none of it was called in the cage that asked");
}

async fn idle_but_for(cage: &RunningCage, left: usize) {
    eventually("the hand-over", || (listed(cage, cage.name(), false).len() == left).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_other_cage_does_not_allow_is_a_dead_letter() {
    let (front, worker) = (unique_name("front"), unique_name("worker"));
    let rules = "[rpc.allow]\n\"jobs.ask\" = [\"*\"]\n";
    let cages = front_and_worker(&front, &worker, rules).start().await;
    ask(&cages, "one", "ok", json!({ "of": worker })).await;
    let letter = dead(&cages).await;
    assert!(letter.error.as_deref().unwrap().contains("[rpc.allow]"), "{letter:?}");
    assert!(attempts_in(&cages.root().join(&worker)).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_cannot_pretend_to_hand_over() {
    let cage = started("").await;
    let target = query("/try_call", &[("module", ""), ("function", "accept-retried-call")]);
    let answer = cage.client("web").get(&target).await;
    assert!(answer.text().contains("NoSuchModule"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_in_another_process_takes_a_call_when_it_comes() {
    let meeting = tempfile::tempdir().unwrap();
    let (front_name, worker_name) = (unique_name("front"), unique_name("worker"));
    let config = format!("{QUICK}{}", jobs(&format!("cages = [\"{worker_name}\"],")));
    let front = with_jobs(TestCage::named(&front_name).meeting_at(meeting.path()), &config).start().await;
    for number in 0..20 {
        ask(&front, &format!("n{number}"), "ok", json!({ "of": worker_name, "id": format!("order-{number}") })).await;
    }
    front.logged("call is made again later").await;
    assert_eq!(listed(&front, &front_name, false).len(), 20);
    let worker = TestCage::named(&worker_name).meeting_at(meeting.path());
    let worker = with_jobs(worker, &format!("{QUICK}{}", jobs(""))).start().await;
    idle(&front).await;
    eventually("all calls", || (made(&worker).len() == 20).then_some(())).await;
    idle(&worker).await;
    assert!(made(&worker).iter().all(|made| made.attempt == 1 && made.id.starts_with(&front_name)));
}

/// A root with cages of the whole program.
struct RetryRoot {
    directory: TempDir,
}

impl RetryRoot {
    /// Cage `shop`, whose module `jobs` asks for calls and is called.
    fn new(config: &str) -> Self {
        let root = Self { directory: tempfile::tempdir().unwrap() };
        std::os::unix::fs::symlink(cache(), root.directory.path().join(".cache")).unwrap();
        fs::create_dir_all(root.cage().join("data")).unwrap();
        fs::copy(guest("retried_user"), root.cage().join("jobs.wasm")).unwrap();
        root.configure(config);
        root
    }

    fn cage(&self) -> PathBuf {
        self.directory.path().join("shop")
    }

    fn configure(&self, config: &str) {
        fs::write(self.cage().join("cage.toml"), format!("{config}\n{}", jobs(""))).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("WASMCAGE_ROOT", self.directory.path())
            .env("WASMCAGE_RUNTIME_DIR", self.directory.path().join(".run"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a command, and returns its output.
    async fn output(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.output(arguments).await).unwrap()
    }

    /// The command fails, and says so.
    async fn refused(&self, arguments: &[&str], part: &str) {
        let output = self.command(arguments).output().await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && told.contains(part), "{arguments:?}: {told}");
    }

    /// Runs the cage; returns when it takes calls.
    async fn run(&self) -> CageProcess {
        let child = self.command(&["run", "shop"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !self.command(&["call", "shop", "jobs.facts"]).output().await.unwrap().status.success() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let process = &self.json(&["ps", "--json"]).await["processes"][0];
        CageProcess { child, pids: ["primary_pid", "pid"].map(|key| process[key].to_string()) }
    }

    async fn stop(&self, mut process: CageProcess) {
        self.output(&["stop", "shop"]).await;
        process.child.wait().await.unwrap();
    }

    async fn calls(&self, more: &[&str]) -> Vec<Value> {
        let arguments = [&["retry", "list", "shop", "--json", "--limit", "1000"], more].concat();
        self.json(&arguments).await["calls"].as_array().unwrap().clone()
    }

    async fn until_calls(&self, more: &[&str], count: usize) -> Vec<Value> {
        let until = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let calls = self.calls(more).await;
            if calls.len() == count {
                return calls;
            }
            assert!(tokio::time::Instant::now() < until, "{count} calls {more:?} expected: {calls:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Has a call be made in the background, from the command line.
    async fn ask(&self, text: &str, then: &str, more: &[&str]) -> String {
        let arguments = [&["call", "shop", "jobs.work", text, then, "--retried", "--raw"], more].concat();
        self.output(&arguments).await
    }
}

/// A running cage.
struct CageProcess {
    child: Child,
    pids: [String; 2],
}

impl CageProcess {
    /// The machine's power is cut, as far as a process can tell.
    async fn kill(mut self) {
        let killed = std::process::Command::new("kill").arg("-KILL").args(&self.pids).status().unwrap();
        assert!(killed.success());
        self.child.wait().await.unwrap();
        let gone = || !Path::new("/proc").join(&self.pids[1]).exists();
        eventually("the end of the process", || gone().then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_lost_when_the_process_is_killed_and_none_that_is_done_is_made_again() {
    const CALLS: usize = 400;
    const KILLS: usize = 3;
    let root = RetryRoot::new("[interfaces.retry]\nconcurrency = 4");
    let mut process = root.run().await;
    root.output(&["call", "shop", "jobs.ask_many", "n", &CALLS.to_string(), "--timeout", "60s"]).await;
    for kill in 1..=KILLS {
        let enough = CALLS * kill / (KILLS + 2);
        eventually("some calls", || (attempts_in(&root.cage()).len() >= enough).then_some(())).await;
        process.kill().await;
        process = root.run().await;
    }
    root.until_calls(&[], 0).await;
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    attempts_in(&root.cage()).into_iter().for_each(|made| *times.entry(made.text).or_default() += 1);
    assert_eq!(times.len(), CALLS, "each was made");
    // Those that were in work when the process was killed, at most.
    let again: usize = times.values().map(|times| times - 1).sum();
    assert!(again <= 4 * KILLS, "{again} calls were made again");
    root.stop(process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_calls_start_at_once_after_a_restart() {
    let root = RetryRoot::new("[interfaces.retry]\nretry_interval_ms = 3600000\nretry_interval_max_ms = 3600000");
    let process = root.run().await;
    let id = root.ask("one", "fail until 2", &[]).await;
    root.until_calls(&[], 1).await;
    eventually("the first attempt", || (attempts_in(&root.cage()).len() == 1).then_some(())).await;
    root.ask("two", "ok", &["--queue", "later"]).await;
    root.stop(process).await;
    root.configure("[interfaces.later]\nprotocol = \"retry\"\n");
    let process = root.run().await;
    root.until_calls(&[], 0).await;
    let mut made: Vec<_> =
        attempts_in(&root.cage()).into_iter().map(|made| (made.text, made.attempt, made.id)).collect();
    let two = made.iter().position(|made| made.0 == "two").map(|index| made.remove(index)).unwrap();
    assert_eq!(made, [("one".into(), 1, id.clone()), ("one".into(), 2, id)]);
    assert_eq!(two.1, 1);
    root.stop(process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_and_change_calls() {
    let root = RetryRoot::new("[interfaces.retry]\nmax_attempts = 1\n");
    let process = root.run().await;
    root.ask("seven", "refuse", &["--id", "order-7"]).await;
    root.ask("eight", "refuse", &["--id", "order-8"]).await;
    root.ask("nine", "ok", &["--id", "order-9", "--queue", "later", "--expires", "1h"]).await;
    assert_eq!(root.ask("nine", "ok", &["--id", "order-9"]).await, "order-9", "it is accepted once");
    root.until_calls(&["--dead"], 2).await;
    let table = root.output(&["retry", "list", "shop", "--dead"]).await;
    for part in ["order-7", "jobs.work", "dead", "seven is refused", "QUEUE"] {
        assert!(table.contains(part), "{part:?} is not in\n{table}");
    }
    let shown = root.json(&["retry", "show", "shop", "order-9", "--json"]).await;
    assert_eq!((&shown["call"]["queue"], &shown["call"]["state"]), (&json!("later"), &json!("ready")));
    assert!(shown["call"]["expires"].is_string(), "{shown}");
    let arguments: Value = serde_json::from_str(shown["arguments"]["json"].as_str().unwrap()).unwrap();
    assert_eq!(arguments["args"], json!(["nine", "ok"]));
    let text = root.output(&["retry", "show", "shop", "order-9"]).await;
    assert!(text.contains("jobs.work") && text.contains("nine"), "{text}");
    // Of a running cage, then of one that is not.
    root.output(&["retry", "run", "shop", "order-7"]).await;
    eventually("another attempt", || {
        (attempts_in(&root.cage()).iter().filter(|made| made.text == "seven").count() == 2).then_some(())
    })
    .await;
    root.until_calls(&["--dead"], 2).await;
    root.output(&["retry", "drop", "shop", "order-8"]).await;
    root.refused(&["retry", "drop", "shop", "order-8"], "still remembered").await;
    root.refused(&["retry", "show", "shop", "order-10"], "there is no call order-10").await;
    root.refused(&["retry", "list", "shopp"], "did you mean shop?").await;
    root.stop(process).await;
    assert_eq!(root.calls(&["--dead"]).await[0]["id"], "order-7");
    let moved = root.output(&["retry", "move", "shop", "order-9", "--to", "retry"]).await;
    assert!(moved.contains("order-9 is in queue retry now"), "{moved}");
    root.output(&["retry", "drop", "shop", "--dead"]).await;
    assert_eq!((root.calls(&["--dead"]).await.len(), root.calls(&[]).await.len()), (0, 1));
    let process = root.run().await;
    root.until_calls(&[], 0).await;
    assert!(attempts_in(&root.cage()).iter().any(|made| made.text == "nine"));
    root.stop(process).await;
}
