//! Copies of a cage in processes of their own that are killed, stopped and restarted while others call them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::{Child, Command};
use wasmcage_tests::{Client, RunningCage, TestCage, cache, eventually, guest, program, query, unique_name};

const COPIES: usize = 3;
const CALLERS: usize = 64;
const CALL_TIMEOUT_MS: u64 = 10_000;
/// Between two faults.
const FAULT_INTERVAL: Duration = Duration::from_millis(1_500);
const FAULTS: usize = 8;

/// Copies of one cage, each with a root of its own; they and the caller meet in one place.
struct Copies {
    directory: TempDir,
    cage: String,
    processes: Vec<Child>,
}

impl Copies {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut copies = Self { directory, cage: unique_name("worker"), processes: Vec::new() };
        for copy in 0..COPIES {
            let root = copies.root(copy);
            fs::create_dir_all(root.join(&copies.cage)).unwrap();
            fs::copy(guest("service_echo"), root.join(&copies.cage).join("work.wasm")).unwrap();
            std::os::unix::fs::symlink(cache(), root.join(".cache")).unwrap();
            let process = copies.process(copy);
            copies.processes.push(process);
        }
        copies
    }

    fn root(&self, copy: usize) -> PathBuf {
        self.directory.path().join(format!("root{copy}"))
    }

    fn meeting(&self) -> &Path {
        self.directory.path()
    }

    /// The serving process itself, so that a kill kills it.
    fn process(&self, copy: usize) -> Child {
        let mut command = Command::new(program());
        let root = self.root(copy);
        command.args(["secondary", "--root"]).arg(root).args(["--lanes", "1", "--", &self.cage]);
        command.env("WASMCAGE_RUNTIME_DIR", self.meeting().join("meeting")).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn signal(&self, copy: usize, name: &str) {
        let pid = self.processes[copy].id().expect("it runs").to_string();
        assert!(std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// The logs of all copies, one copy after the other.
    fn logs(&self) -> String {
        let directories = (0..COPIES).map(|copy| self.root(copy).join(&self.cage).join("logs"));
        let files = directories.flat_map(|logs| fs::read_dir(logs).into_iter().flatten().flatten());
        files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect::<Vec<_>>().join("\n")
    }

    async fn replace(&mut self, copy: usize) {
        self.processes[copy].wait().await.unwrap();
        self.processes[copy] = self.process(copy);
    }

    async fn front(&self) -> RunningCage {
        let allow =
            format!("request_timeout_ms = 55_000\n[modules.interface_web]\nallow = {{ cages = [\"{}\"] }}", self.cage);
        let front = TestCage::named(&unique_name("front")).meeting_at(self.meeting());
        let front = front.module("echo", "interface_web").config(&allow).http("web").start().await;
        self.all_known(&front).await;
        front
    }

    async fn all_known(&self, front: &RunningCage) {
        let known = || front.snapshot().cages[0].members.iter().filter(|member| member.cage == self.cage).count();
        eventually("all copies to be known", || (known() == COPIES).then_some(())).await;
    }
}

/// The outcomes of all calls.
#[derive(Default)]
struct CallTally {
    answers: AtomicU64,
    lost: AtomicU64,
    first_lost: std::sync::Mutex<Option<String>>,
    /// The first few of those that should not be.
    wrong: std::sync::Mutex<Vec<String>>,
    longest_ms: AtomicU64,
}

/// Calls until told to stop.
async fn keep_calling(client: Client, target: String, stop: Arc<AtomicBool>, tally: Arc<CallTally>) {
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let text = client.get(&target).await.text();
        tally.longest_ms.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        match text {
            text if text == "5" => tally.answers.fetch_add(1, Ordering::Relaxed),
            text if text.contains("\"error\":\"Lost") => {
                let mut first = tally.first_lost.lock().unwrap();
                first.get_or_insert(text);
                tally.lost.fetch_add(1, Ordering::Relaxed)
            }
            text => {
                tally.wrong.lock().unwrap().push(text);
                0
            }
        };
    }
}

/// Calls from many while `faults` happen.
async fn under_load(
    copies: &mut Copies,
    front: &RunningCage,
    idempotent: bool,
    faults: impl AsyncFnOnce(&mut Copies),
) -> Arc<CallTally> {
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(CallTally::default()));
    let timeout = CALL_TIMEOUT_MS.to_string();
    let mut parameters = vec![("cage", &*copies.cage), ("module", "work"), ("function", "add"), ("args", "[2, 3]")];
    parameters.push(("timeout_ms", &timeout));
    if idempotent {
        parameters.push(("idempotent", "1"));
    }
    let target = query("/try_call", &parameters);
    let calling: Vec<_> = (0..CALLERS)
        .map(|_| tokio::spawn(keep_calling(front.client("web"), target.clone(), stop.clone(), tally.clone())))
        .collect();
    faults(copies).await;
    stop.store(true, Ordering::Relaxed);
    for caller in calling {
        caller.await.unwrap();
    }
    let (answers, lost) = (tally.answers.load(Ordering::Relaxed), tally.lost.load(Ordering::Relaxed));
    let (longest_ms, first) = (tally.longest_ms.load(Ordering::Relaxed), tally.first_lost.lock().unwrap());
    println!("{answers} answers, {lost} lost (the first: {first:?}), the longest call {longest_ms} ms");
    drop(first);
    let wrong = tally.wrong.lock().unwrap();
    let few = &wrong[..wrong.len().min(5)];
    assert!(wrong.is_empty(), "{} wrong answers: {few:?}\n{}", wrong.len(), copies.logs());
    assert!(answers > 1_000);
    drop(wrong);
    tally
}

/// A kill, a restart, a process that hangs and goes on, in turn.
async fn cause_faults(copies: &mut Copies) {
    for fault in 0..FAULTS {
        let copy = fault % COPIES;
        match fault % 4 {
            3 => {
                copies.signal(copy, "STOP");
                // Longer than a peer may be silent.
                tokio::time::sleep(2 * FAULT_INTERVAL + Duration::from_secs(1)).await;
                copies.signal(copy, "CONT");
            }
            _ => {
                copies.signal(copy, "KILL");
                copies.replace(copy).await;
            }
        }
        tokio::time::sleep(FAULT_INTERVAL).await;
    }
}

async fn nothing_is_left(copies: &Copies, front: &RunningCage) {
    copies.all_known(front).await;
    front.quiet().await;
    let members = front.snapshot().cages[0].members.clone();
    assert!(members.iter().all(|member| member.in_flight == 0), "{members:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotent_calls_survive_whatever_happens_to_one_copy() {
    let mut copies = Copies::start();
    let front = copies.front().await;
    let tally = under_load(&mut copies, &front, true, cause_faults).await;
    assert_eq!(tally.lost.load(Ordering::Relaxed), 0);
    nothing_is_left(&copies, &front).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_no_blow_loses_more_calls_than_there_are_callers() {
    let mut copies = Copies::start();
    let front = copies.front().await;
    let tally = under_load(&mut copies, &front, false, cause_faults).await;
    assert!(tally.lost.load(Ordering::Relaxed) <= (FAULTS * CALLERS) as u64);
    nothing_is_left(&copies, &front).await;
}

/// One copy after the other is killed while it works on calls: those are lost, all of them, and no others.
#[tokio::test(flavor = "multi_thread")]
async fn other_calls_are_lost_while_in_flight_only() {
    const CALLS: usize = 12;
    let mut copies = Copies::start();
    let front = copies.front().await;
    // The callee sleeps for longer than the request may take.
    let sleep = [("module", "work"), ("function", "log"), ("args", "[\"info\", \"awake\", 600000]")];
    let target = query("/try_call", &[&[("cage", &*copies.cage)], &sleep[..]].concat());
    let ended = Arc::new(std::sync::Mutex::new(Vec::new()));
    for _ in 0..CALLS {
        let (client, target, ended) = (front.client("web"), target.clone(), ended.clone());
        tokio::spawn(async move {
            let text = client.get(&target).await.text();
            ended.lock().unwrap().push(text);
        });
    }
    // Calls that each copy has not answered yet, as the front counts them.
    let in_flight = || -> BTreeMap<String, usize> {
        let members = front.snapshot().cages.remove(0).members.into_iter();
        members.map(|member| (member.copy, member.in_flight as usize)).filter(|(_, calls)| *calls > 0).collect()
    };
    let ended_count = || ended.lock().unwrap().len();
    let mut before =
        eventually("all calls in work", || Some(in_flight()).filter(|calls| calls.values().sum::<usize>() == CALLS))
            .await;
    let mut lost = 0;
    for copy in 0..COPIES {
        copies.signal(copy, "KILL");
        let settled = || {
            let (now, ended) = (in_flight(), ended_count());
            (ended > lost && ended + now.values().sum::<usize>() == CALLS).then_some((now, ended))
        };
        let (now, ended_now) = eventually("the loss of a copy's calls", settled).await;
        let gone: Vec<_> = before.keys().filter(|copy| !now.contains_key(*copy)).collect();
        assert_eq!(gone.len(), 1, "before {before:?}, now {now:?}");
        assert_eq!(ended_now - lost, before[gone[0]], "as many calls end as that copy had");
        assert!(now.iter().all(|(copy, calls)| before[copy] == *calls), "another copy goes on: {before:?}, {now:?}");
        assert!(ended.lock().unwrap().iter().all(|text| text.contains("\"error\":\"Lost")), "{ended:?}");
        (before, lost) = (now, ended_now);
    }
    assert_eq!(lost, CALLS);
    for copy in 0..COPIES {
        copies.replace(copy).await;
    }
    nothing_is_left(&copies, &front).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_replaced_one_after_the_other_without_a_failed_call() {
    let mut copies = Copies::start();
    let front = copies.front().await;
    let tally = under_load(&mut copies, &front, false, async |copies| {
        for round in 0..2 * COPIES {
            let copy = round % COPIES;
            copies.signal(copy, "TERM");
            copies.replace(copy).await;
            tokio::time::sleep(FAULT_INTERVAL / 2).await;
        }
    })
    .await;
    assert_eq!(tally.lost.load(Ordering::Relaxed), 0);
    nothing_is_left(&copies, &front).await;
}
