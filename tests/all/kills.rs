//! Either process of a cage is killed, again and again, while its state, retried calls, files and schedule are used: what was
//! acknowledged is there, and nothing is done more often than its promise says. `WASMCAGE_KILLS` makes it longer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use tokio::process::Child;
use wasmcage_tests::{Client, Root, eventually, guest};

/// Calls that are made at once.
const CONCURRENCY: usize = 2;
const CLIENTS: usize = 4;

fn kills() -> usize {
    std::env::var("WASMCAGE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(4)
}

/// A port that nobody has now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn set_up(port: u16) -> Root {
    let root = Root::new(&[("shop", &[])]);
    let cage = root.cage("shop");
    let guests = [
        ("tally", "interface_web"),
        ("retried_user", "jobs"),
        ("dropbox", "interface_inbox"),
        ("scheduled", "interface_nightly"),
    ];
    for (from, to) in guests {
        fs::copy(guest(from), cage.join(format!("{to}.wasm"))).unwrap();
    }
    for directory in ["data", "in", "out"] {
        fs::create_dir(cage.join(directory)).unwrap();
    }
    root.configure(
        "shop",
        &format!(
            "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:{port}\"\n\
             [interfaces.retry]\nconcurrency = {CONCURRENCY}\nretry_interval_ms = 1\nretry_interval_max_ms = 20\n\
             [interfaces.inbox]\nprotocol = \"file\"\ndirectory = \"in\"\ninterval_ms = 20\nretry_ms = 20\nsettle_ms = 20\n\
             [interfaces.nightly]\nprotocol = \"schedule\"\ncron = \"* * * * * *\"\n\
             [resources.results]\nprotocol = \"file\"\ndirectory = \"out\"\n\
             [modules.interface_inbox]\nallow = {{ resources = [\"results\"] }}\n\
             [modules.jobs]\nallow = {{ files = [{{ host = \"data\", guest = \"/data\", mode = \"rw\" }}] }}\n"
        ),
    );
    root
}

fn run(root: &Root) -> Child {
    root.command(&["run", "shop"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Increments in turn, until it is told to stop. How many were acknowledged, and how many nobody knows of.
async fn increment(client: Client, stop: Arc<AtomicBool>) -> (usize, usize) {
    let (mut acknowledged, mut in_doubt) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        match client.try_send(Method::GET, "/n", &[], Bytes::new()).await {
            Ok(answer) if answer.status == 200 && answer.text().parse::<u64>().is_ok() => acknowledged += 1,
            Ok(_) | Err(_) => {
                in_doubt += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    (acknowledged, in_doubt)
}

/// Accepts calls and puts files, until it is told to stop. How many calls were accepted; every file was put.
async fn ask(root: &Root, files: &AtomicUsize, stop: &AtomicBool) -> BTreeSet<String> {
    let mut accepted = BTreeSet::new();
    let inbox = root.cage("shop").join("in");
    while !stop.load(Ordering::SeqCst) {
        let number = files.fetch_add(1, Ordering::SeqCst);
        let (new, name) = (inbox.join(format!(".{number:05}")), inbox.join(format!("{number:05}")));
        fs::write(&new, format!("text {number}")).unwrap();
        fs::rename(new, name).unwrap();
        let text = format!("call{number:05}");
        let asked = root.output(&["call", "shop", "jobs.ask", &text, "sleep 5", "--timeout", "5s"]).await;
        if asked.status.success() {
            accepted.insert(text);
        }
    }
    accepted
}

/// The process that serves, if one does.
async fn serving_pid(root: &Root) -> Option<i64> {
    let output = root.output(&["ps", "--json", "shop"]).await;
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    answer["processes"][0]["pid"].as_i64()
}

fn kill(pid: i64) {
    // It may have ended by itself.
    let _ = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status();
}

fn log(root: &Root) -> String {
    let logs = fs::read_dir(root.cage("shop").join("logs")).unwrap().flatten();
    logs.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect()
}

/// The number of times that each call was made.
fn times_made(cage: &Path) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for line in fs::read_to_string(cage.join("data/attempts")).unwrap_or_default().lines() {
        *times.entry(line.split(' ').next().unwrap().to_owned()).or_default() += 1;
    }
    times
}

/// The number of times that the schedule began each second.
fn times_fired(root: &Root) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for line in log(root).lines().filter(|line| line.contains(" begins, ")) {
        let time = line.split_once("nightly of ").unwrap().1.split(' ').next().unwrap();
        *times.entry(time.to_owned()).or_default() += 1;
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_whichever_process_is_killed() {
    let (kills, port) = (kills(), free_port());
    let root = Arc::new(set_up(port));
    let mut primary = run(&root);
    root.serving("shop").await;
    let (stop, files) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let client = || Client::new(&format!("127.0.0.1:{port}"));
    let incrementing: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(increment(client(), stop.clone()))).collect();
    let asking = tokio::spawn({
        let (root, files, stop) = (root.clone(), files.clone(), stop.clone());
        async move { ask(&root, &files, &stop).await }
    });
    for kill_number in 0..kills {
        let pid = root.serving("shop").await;
        tokio::time::sleep(Duration::from_millis(300 + 100 * (kill_number as u64 % 7))).await;
        match kill_number % 3 {
            // The one that serves: the primary starts another.
            0 => kill(pid),
            // The primary: the one that serves drains, and a new one is started meanwhile.
            1 => {
                primary.kill().await.unwrap();
                primary = run(&root);
            }
            // Both.
            _ => {
                primary.kill().await.unwrap();
                kill(pid);
                primary = run(&root);
            }
        }
        let until = Instant::now() + Duration::from_secs(60);
        while serving_pid(&root).await.is_none_or(|now| now == pid) {
            assert!(Instant::now() < until, "no process after kill {kill_number}\n{}", log(&root));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    root.serving("shop").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::SeqCst);
    let (mut acknowledged, mut in_doubt) = (0, 0);
    for task in incrementing {
        let (of_task, doubtful) = task.await.unwrap();
        (acknowledged, in_doubt) = (acknowledged + of_task, in_doubt + doubtful);
    }
    let accepted = asking.await.unwrap();
    let cage = root.cage("shop");
    let made = || accepted.iter().all(|text| times_made(&cage).contains_key(text));
    eventually("all accepted calls", || made().then_some(())).await;
    let empty = || fs::read_dir(cage.join("in")).unwrap().count() == 0;
    eventually("an empty inbox", || empty().then_some(())).await;

    // The count is asked for by one increment more.
    let count = client().get("/n").await.text().parse::<usize>().unwrap() - 1;
    assert!((acknowledged..=acknowledged + in_doubt).contains(&count), "{count} of {acknowledged} and {in_doubt}");
    for number in 0..files.load(Ordering::SeqCst) {
        let text = fs::read_to_string(cage.join(format!("out/{number:05}"))).unwrap();
        assert_eq!(text, format!("TEXT {number}"));
    }
    // Only what was in work when its process died is done again.
    let again: usize = times_made(&cage).values().map(|times| times - 1).sum();
    assert!(again <= CONCURRENCY * kills, "{again} calls were made again");
    let fired = times_fired(&root);
    let twice = fired.values().filter(|times| **times > 1).count();
    assert!(!fired.is_empty() && twice <= kills && fired.values().all(|times| *times <= 2), "{fired:?}");
    root.stop("shop").await;
    assert_eq!(primary.wait().await.unwrap().code(), Some(0));
    println!(
        "{kills} kills, {acknowledged} acknowledged increments, {in_doubt} in doubt, {count} found, {} calls, {again} made again, \
         {} files, {} seconds of the schedule, {twice} fired twice",
        accepted.len(),
        files.load(Ordering::SeqCst),
        fired.len()
    );
}

fn rounds() -> usize {
    std::env::var("WASMCAGE_REPLACEMENTS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

/// The store's file is moved away, removed, or replaced by a backup while clients write: what was acknowledged since the file
/// that is found there at the end was put there, is in it.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_in_silence_when_the_store_is_replaced() {
    let port = free_port();
    let root = Root::new(&[("shop", &[])]);
    fs::copy(guest("tally"), root.cage("shop").join("interface_web.wasm")).unwrap();
    root.configure("shop", &format!("[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:{port}\"\n"));
    let mut primary = run(&root);
    root.serving("shop").await;
    let store = root.cage("shop").join("state/store.redb");
    let (away, backup) = (root.path().join("away"), root.path().join("backup"));
    let client = Client::new(&format!("127.0.0.1:{port}"));
    let acknowledged = async || {
        let answer = client.get("/n").await;
        (answer.status == 200).then(|| answer.text().parse::<u64>().unwrap())
    };
    let write_until = async |wanted: bool| {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let found = acknowledged().await;
            if found.is_some() == wanted {
                return found;
            }
            assert!(Instant::now() < until, "writes are acknowledged: {}\n{}", !wanted, log(&root));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    for round in 0..rounds() {
        let mut last = write_until(true).await.unwrap();
        // Moved away while clients write: the count of the last acknowledged write is the file's.
        let stop = Arc::new(AtomicBool::new(false));
        let writing = (0..CLIENTS).map(|_| {
            let (client, stop) = (client.clone(), stop.clone());
            tokio::spawn(async move {
                let mut last = 0;
                while !stop.load(Ordering::SeqCst) {
                    let answer = client.get("/n").await;
                    if answer.status == 200 {
                        last = answer.text().parse::<u64>().unwrap();
                    }
                }
                last
            })
        });
        let writing: Vec<_> = writing.collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        fs::rename(&store, &away).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.store(true, Ordering::SeqCst);
        for task in writing {
            last = last.max(task.await.unwrap());
        }
        write_until(false).await;
        fs::rename(&away, &store).unwrap();
        let found = write_until(true).await.unwrap();
        assert!(found > last, "round {round}: {found} after {last} was acknowledged");

        // A backup is what counts, from the moment that it has the name.
        root.stop("shop").await;
        primary.wait().await.unwrap();
        fs::copy(&store, &backup).unwrap();
        primary = run(&root);
        root.serving("shop").await;
        for _ in 0..5 {
            write_until(true).await;
        }
        fs::rename(&backup, &store).unwrap();
        write_until(false).await;
        assert_eq!(write_until(true).await, Some(found + 1), "round {round}");
        assert!(log(&root).contains("the store's file was replaced"), "{}", log(&root));

        // Removed: nothing is acknowledged until the restart.
        fs::remove_file(&store).unwrap();
        for _ in 0..20 {
            assert_eq!(acknowledged().await, None, "round {round}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        root.stop("shop").await;
        primary.wait().await.unwrap();
        primary = run(&root);
        root.serving("shop").await;
        assert_eq!(acknowledged().await, Some(1), "round {round}");
    }
    root.stop("shop").await;
    assert_eq!(primary.wait().await.unwrap().code(), Some(0));
}
