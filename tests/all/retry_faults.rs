//! Retried calls when the worst happens: either side of a hand-over is killed, the file is damaged, the other cage never comes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Child;
use wasmcage_store::{CallFilter, Store};
use wasmcage_tests::{Root, RunningCage, TestCage, eventually, guest, unique_name};

/// Calls that a cage makes, or hands over, at once.
const CONCURRENCY: usize = 2;

fn config(allow: &str) -> String {
    format!(
        "[interfaces.retry]\nconcurrency = {CONCURRENCY}\nretry_interval_ms = 1\nretry_interval_max_ms = 20\n\
         [modules.jobs]\nallow = {{ {allow} files = [{{ host = \"data\", guest = \"/data\", mode = \"rw\" }}] }}\n"
    )
}

fn set_up(root: &Root, cage: &str, allow: &str) {
    fs::create_dir(root.cage(cage).join("data")).unwrap();
    fs::copy(guest("retried_user"), root.cage(cage).join("jobs.wasm")).unwrap();
    root.configure(cage, &config(allow));
}

/// The number of times that each call was made there.
fn times_made(cage: &Path) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for line in fs::read_to_string(cage.join("data/attempts")).unwrap_or_default().lines() {
        *times.entry(line.split(' ').next().unwrap().to_owned()).or_default() += 1;
    }
    times
}

async fn pending(root: &Root, cage: &str) -> usize {
    let listed = root.done(&["retry", "list", cage, "--json", "--limit", "1000"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    listed["calls"].as_array().unwrap().len()
}

async fn idle(root: &Root, cage: &str) {
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
    while pending(root, cage).await > 0 {
        assert!(tokio::time::Instant::now() < until, "calls of {cage} are left");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The power of a cage is cut, as far as its processes can tell.
async fn kill(root: &Root, cage: &str, mut run: Child) {
    let pid = root.serving(cage).await;
    run.kill().await.unwrap();
    let killed = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    let gone = || !Path::new("/proc").join(pid.to_string()).exists();
    eventually("the end of the process", || gone().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_over_survives_the_death_of_either_side() {
    const ROUNDS: usize = 6;
    const CALLS: usize = 60;
    let root = Root::new(&[("front", &[]), ("worker", &[])]);
    set_up(&root, "front", "cages = [\"worker\"],");
    set_up(&root, "worker", "");
    let mut worker = root.run("worker").await;
    let mut front = root.run("front").await;
    let mut kills_of_worker = 0;
    for round in 0..ROUNDS {
        // Accepted, when the command has ended.
        let (prefix, count) = (format!("prefix=r{round}n"), format!("count={CALLS}"));
        let asked = ["call", "front", "jobs.ask_many", &prefix, &count, "of=worker", "then=sleep 1"];
        root.done(&[&asked[..], &["--timeout", "60s"]].concat()).await;
        // While they are handed over, and made.
        let of_round = |text: &&String| text.starts_with(&format!("r{round}n"));
        let some = || times_made(&root.cage("worker")).keys().filter(of_round).count() >= 3;
        eventually("some calls", || some().then_some(())).await;
        if round % 2 == 0 {
            kill(&root, "worker", worker).await;
            worker = root.run("worker").await;
            kills_of_worker += 1;
        } else {
            kill(&root, "front", front).await;
            front = root.run("front").await;
        }
    }
    idle(&root, "front").await;
    idle(&root, "worker").await;
    let times = times_made(&root.cage("worker"));
    assert_eq!(times.len(), ROUNDS * CALLS, "each was made");
    // Only what was in work when it was killed is made again. A hand-over whose answer was lost is none the worse for it.
    let again: usize = times.values().map(|times| times - 1).sum();
    assert!(again <= CONCURRENCY * kills_of_worker, "{again} calls were made again");
    assert!(times_made(&root.cage("front")).is_empty());
    root.stop("front").await;
    root.stop("worker").await;
    front.wait().await.unwrap();
    worker.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_with_one_attempt_is_made_whenever_its_cage_is_stopped() {
    const STOPS: usize = 8;
    const CALLS: usize = 20;
    let root = Root::new(&[("shop", &[])]);
    set_up(&root, "shop", "");
    root.configure("shop", &config("").replace("[modules.jobs]", "max_attempts = 1\n[modules.jobs]"));
    for stop in 0..STOPS {
        let mut run = root.run("shop").await;
        let (prefix, count) = (format!("prefix=s{stop}n"), format!("count={CALLS}"));
        root.done(&["call", "shop", "jobs.ask_many", &prefix, &count, "then=sleep 1"]).await;
        let some = || (times_made(&root.cage("shop")).len() > stop * CALLS / 2).then_some(());
        eventually("some calls", some).await;
        root.stop("shop").await;
        run.wait().await.unwrap();
    }
    let mut run = root.run("shop").await;
    idle(&root, "shop").await;
    let listed = root.done(&["retry", "list", "shop", "--json", "--dead", "--limit", "1000"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["calls"], json!([]), "a stop takes no attempt");
    let times = times_made(&root.cage("shop"));
    assert_eq!((times.len(), times.values().sum::<usize>()), (STOPS * CALLS, STOPS * CALLS), "each was made once");
    root.stop("shop").await;
    run.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_told_of_and_goes_on_when_a_copy_is_put_back() {
    const CALLS: usize = 30;
    let root = Root::new(&[("shop", &[])]);
    set_up(&root, "shop", "");
    let run = root.run("shop").await;
    root.done(&["call", "shop", "jobs.ask_many", "prefix=n", &format!("count={CALLS}"), "queue=later"]).await;
    kill(&root, "shop", run).await;
    let file = root.cage("shop").join("state/store.redb");
    let good = fs::read(&file).unwrap();
    let mut damaged = good.clone();
    damaged.iter_mut().skip(4_096).step_by(512).for_each(|byte| *byte ^= 0x5a);
    fs::write(&file, &damaged).unwrap();

    root.configure("shop", &format!("{}[interfaces.later]\nprotocol = \"retry\"\n", config("")));
    let mut run = root.run("shop").await;
    let words = ["store.redb", "damaged", "put a copy of it back", "move it away"];
    let check = |told: &str| words.iter().for_each(|word| assert!(told.contains(word), "{word:?} is not in {told:?}"));
    check(&root.failure(1, &["call", "shop", "jobs.work", "new", "ok", "--retried"]).await);
    check(&root.failure(1, &["retry", "list", "shop"]).await);
    let logs = fs::read_dir(root.cage("shop").join("logs")).unwrap().flatten();
    let log: String = logs.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect();
    check(&log);
    // A request that needs no state is served, and nothing was called.
    root.done(&["call", "shop", "jobs.facts"]).await;
    assert!(times_made(&root.cage("shop")).is_empty());

    // The running cage is asked.
    fs::write(file.with_file_name("copy"), &good).unwrap();
    fs::rename(file.with_file_name("copy"), &file).unwrap();
    eventually("all calls", || (times_made(&root.cage("shop")).len() == CALLS).then_some(())).await;
    assert!(times_made(&root.cage("shop")).values().all(|times| *times == 1));
    root.stop("shop").await;
    run.wait().await.unwrap();
}

fn store<'a>(cage: &'a RunningCage, name: &str) -> &'a Store {
    &cage.host().cage(name).unwrap().dispatcher().services().store
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_that_is_down_for_the_whole_retention_leaves_a_dead_letter() {
    let meeting = tempfile::tempdir().unwrap();
    let (front_name, worker_name) = (unique_name("front"), unique_name("worker"));
    let with_jobs = |name: &str, config: &str| {
        let cage = TestCage::named(name).meeting_at(meeting.path());
        fs::create_dir(cage.directory().join("data")).unwrap();
        cage.module("retried_user", "jobs").config(config)
    };
    let retention =
        config(&format!("cages = [\"{worker_name}\"],")).replace("[modules", "retention = \"1s\"\n[modules");
    let front = with_jobs(&front_name, &retention).start().await;
    let ask = json!(["job", "ok", worker_name]);
    let id = front.call("jobs.ask", ask).await.unwrap().as_str().unwrap().to_owned();
    let listed = |dead| store(&front, &front_name).calls(&CallFilter { dead, limit: 10, ..CallFilter::default() });
    let letter = eventually("a dead letter", || listed(true).unwrap().pop()).await;
    let error = letter.error.unwrap();
    assert!(letter.id == id && letter.attempts > 1 && error.contains("within the queue's retention"), "{error}");
    assert!(error.contains(&worker_name), "{error}");
    front.logged("call is given up").await;
    // It can be made all the same, when the cage is there again.
    let worker = with_jobs(&worker_name, &config("")).start().await;
    store(&front, &front_name)
        .run_call(&id, None, wasmcage_core::request::Deadline::after(std::time::Duration::from_secs(60)))
        .await
        .unwrap();
    eventually("the call", || {
        (times_made(&worker.directory()) == BTreeMap::from([("job".to_owned(), 1)])).then_some(())
    })
    .await;
    eventually("the end of the hand-over", || listed(false).unwrap().is_empty().then_some(())).await;
}
