//! Nobody takes what belongs to others in the process: places in the cage, room in the pools of instances, memory, the time
//! of a lane. `WASMCAGE_FAIRNESS_ROUNDS` has the programs here go on for longer.

use std::fmt::Write as _;
use std::fs;

use futures_util::future::join_all;
use serde_json::json;
use wasmcage_core::error::DispatchError;
use wasmcage_tests::{Client, RunningCage, TestCage, eventually, fixture, query, unique_name};

const MIB: usize = 1 << 20;

/// The number of times that each program does its work.
fn rounds() -> usize {
    std::env::var("WASMCAGE_FAIRNESS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

/// A request in a task of its own, and its status.
fn get(client: &Client, target: &str) -> tokio::task::JoinHandle<u16> {
    let (client, target) = (client.clone(), target.to_owned());
    tokio::spawn(async move { client.get(&target).await.status.as_u16() })
}

async fn all(tasks: Vec<tokio::task::JoinHandle<u16>>) -> Vec<u16> {
    join_all(tasks).await.into_iter().map(|status| status.unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_a_slow_module_take_no_place_from_a_fast_one() {
    const PLACES: usize = 8;
    const SLOW: usize = 3;
    let cage = TestCage::new()
        .config(&format!("concurrency = {PLACES}\nqueue = 100\nrequest_timeout_ms = 60_000\n"))
        .config(&format!("[modules.interface_slow]\ninstances = {{ max = {SLOW} }}\n"))
        .module("hostile", "interface_slow")
        .module("hello", "interface_fast")
        .http("slow")
        .http("fast")
        .start()
        .await;
    let (slow, fast) = (cage.client("slow"), cage.client("fast"));
    for _ in 0..rounds() {
        let before = cage.module("interface_slow").unwrap().readings.outcomes;
        let sleeping: Vec<_> = (0..2 * PLACES).map(|_| get(&slow, "/sleep?ms=1500")).collect();
        eventually("the line before the slow module", || {
            let snapshot = cage.snapshot().cages.swap_remove(0);
            ((snapshot.in_work, snapshot.waiting) == (SLOW, 2 * PLACES - SLOW)).then_some(())
        })
        .await;
        for _ in 0..20 {
            assert_eq!(fast.get("/").await.text(), "Hello, world !");
        }
        // All of them before the first of the others has ended, which had every place of the cage otherwise.
        assert_eq!(cage.module("interface_slow").unwrap().readings.outcomes, before);
        assert_eq!(all(sleeping).await, [200; 2 * PLACES]);
    }
    cage.quiet().await;
    assert!(cage.stop().await);
}

/// A component with so many memories that few instances fill a pool; its function `spin` does not end.
fn many_memories() -> Vec<u8> {
    let mut text = "(component (core module $m (memory 1))".to_owned();
    for _ in 0..49 {
        text.push_str("(core instance (instantiate $m))");
    }
    let spin = "(core module $s (memory 1) (func (export \"spin\") loop br 0 end))\
                (core instance $i (instantiate $s)) (func (export \"spin\") (canon lift (core func $i \"spin\"))))";
    write!(text, "{spin}").unwrap();
    wat::parse_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_that_fills_the_pool_of_instances_leaves_room_for_its_neighbour() {
    const SPINNING: usize = 70;
    let (greedy, modest) = (unique_name("greedy"), unique_name("modest"));
    let cage = TestCage::named(&greedy)
        .config("[modules.a]\ntimeout_ms = 6_000\n[modules.b]\ntimeout_ms = 6_000\n")
        .file("a", &many_memories())
        .file("b", &many_memories())
        .cage(&modest)
        .config("request_timeout_ms = 60_000\n[modules.interface_web]\ninstances = { mode = \"fresh\" }\n")
        .module("hello", "interface_web")
        .http("web")
        .start()
        .await;
    let web = cage.client("web");
    for _ in 0..rounds() {
        let spinning = join_all((0..2 * SPINNING).map(|number| {
            let function = if number % 2 == 0 { "a.spin" } else { "b.spin" };
            cage.call_cage(&greedy, function, json!([]))
        }));
        let beside = async {
            eventually("as many instances as there may be", || (instances(&cage) > 50).then_some(())).await;
            let answers = join_all((0..100).map(|_| web.get("/"))).await;
            answers.iter().filter(|answer| answer.status == 200).count()
        };
        let (spun, answered) = tokio::join!(spinning, beside);
        assert_eq!(answered, 100, "the neighbour's requests");
        let overloaded =
            |error: &DispatchError| matches!(error, DispatchError::Overloaded(text) if text.contains("pool"));
        let refused = spun.iter().filter(|result| result.as_ref().is_err_and(overloaded)).count();
        let ended = spun.iter().filter(|result| matches!(result, Err(DispatchError::DeadlineExceeded(_)))).count();
        assert!(refused > 0 && ended > 50 && refused + ended == 2 * SPINNING, "{refused} refused, {ended} ended");
    }
    cage.quiet().await;
    assert!(cage.stop().await);
}

/// Of the first cage's modules.
fn instances(cage: &RunningCage) -> usize {
    let modules = cage.snapshot().cages.swap_remove(0).modules;
    modules.iter().filter_map(|module| module.version.as_ref()).map(|version| version.instances).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_long_texts_harms_no_neighbour() {
    let cage = TestCage::new()
        .lanes(2)
        .config("request_timeout_ms = 60_000\nlog_level = \"error\"\n[modules.long]\ntimeout_ms = 1_500\n")
        .file("long", &fixture("long_texts"))
        .module("echo", "interface_web")
        .http("web")
        .start()
        .await;
    let web = cage.client("web");
    for function in ["log", "describe", "fact", "get"].repeat(rounds()) {
        let name = format!("long.{function}");
        let culprits = join_all((0..4).map(|_| cage.call(&name, json!([]))));
        let beside = join_all((0..4).map(|client| {
            let web = web.clone();
            async move {
                for number in 0..25 {
                    let text = format!("{client} asks for the {number}th time");
                    assert_eq!(web.post("/body", text.clone()).await.text(), text);
                }
            }
        }));
        let (ends, _) = tokio::join!(culprits, beside);
        for end in ends {
            assert!(matches!(end, Err(DispatchError::DeadlineExceeded(_))), "{function}: {end:?}");
        }
    }
    cage.quiet().await;
    assert_eq!(cage.instances("long"), 0);
    assert!(cage.stop().await);
}

/// They are longer than all that one call may copy: one that was copied before it is looked at would end its guest.
#[tokio::test(flavor = "multi_thread")]
async fn long_texts_in_records_and_paths_are_refused_before_they_are_copied() {
    let config = "request_timeout_ms = 60_000\n[modules.interface_bad]\nmemory_mb = 1_000\n\
                  allow = { files = [{ host = \"data\", guest = \"/data\", mode = \"rw\" }] }\n";
    let cage = TestCage::new().config(config).module("hostile", "interface_bad").http("bad");
    fs::create_dir(cage.directory().join("data")).unwrap();
    fs::write(cage.directory().join("data/a"), "a").unwrap();
    let cage = cage.start().await;
    let bad = cage.client("bad");
    for (place, said) in [
        ("id of a retried call", "cannot name a call"),
        ("function of a retried call", "the function's name has"),
        ("queue of a retried call", "cannot name a queue"),
        ("prefix of a scan", "the prefix has 146800640 bytes, 2048 are allowed"),
        ("end of a scan", "an end of the range has 146800640 bytes, 2048 are allowed"),
        ("value", "a value has 146800640 bytes, 16777216 are allowed"),
        ("key of a step", "a key"),
        ("value of a step", "step 1: a value has 146800640 bytes, 16777216 are allowed"),
        ("target of an operation", "the target has 146800640 bytes, 131072 are allowed"),
        ("header of an operation", "the value of a header has 146800640 bytes, 131072 are allowed"),
        ("name that is read", "there is no [resources.any]"),
        ("target in a transaction", "the target has 146800640 bytes, 131072 are allowed"),
        ("function in a transaction", "nothing is called by more than 1024"),
        ("path", "name too long"),
        ("new path", "name too long"),
    ] {
        let answer = bad.get(&query("/long", &[("in", place)])).await;
        assert_eq!(answer.status, 200, "{place}: {}", cage.log());
        assert!(answer.text().to_lowercase().contains(said), "{place}: {}", answer.text());
    }
    assert_eq!(cage.module("interface_bad").unwrap().traps, 0);
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_longer_than_any_are_refused_before_they_are_compared() {
    let cage = TestCage::new().module("echo", "interface_web").http("web").start().await;
    let target = format!("/try_call?module={}&function=echo&args=[]", "x".repeat(2_000));
    let (kind, text) = cage.client("web").get(&target).await.call_error();
    assert_eq!((kind.as_str(), text.contains("a name of 2000 bytes")), ("BadArguments", true), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_has_grown_is_dropped_when_its_request_ends() {
    let cage = TestCage::new()
        .config("[modules.interface_kept]\ninstances = { keep_mb = 80 }\n[modules.interface_bad]\nmemory_mb = 128\n")
        .module("hostile", "interface_bad")
        .module("hostile", "interface_kept")
        .http("bad")
        .http("kept")
        .start()
        .await;
    assert_eq!(cage.client("bad").get("/leak?mb=4").await.text(), "leaked");
    cage.quiet().await;
    assert_eq!(cage.instances("interface_bad"), 1);
    assert_eq!(cage.client("bad").get("/leak?mb=40").await.text(), "leaked");
    assert_eq!(cage.client("kept").get("/leak?mb=40").await.text(), "leaked");
    cage.quiet().await;
    assert_eq!((cage.instances("interface_bad"), cage.instances("interface_kept")), (0, 1));
    assert_eq!(cage.client("bad").get("/sleep?ms=1").await.text(), "slept");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_all_guests_together_is_bounded_and_the_idle_make_room() {
    // A small guest has an eighth of a MiB.
    let cage = TestCage::new()
        .config("guest_memory_mb = 2\n[modules.interface_bad]\nmemory_mb = 128\ninstances = { keep_mb = 100 }\n")
        .config("[modules.interface_own]\ntotal_memory_mb = 1\n")
        .module("hostile", "interface_bad")
        .module("hostile", "interface_own")
        .module("hello", "interface_good")
        .http("bad")
        .http("own")
        .http("good")
        .start()
        .await;
    let (bad, good) = (cage.client("bad"), cage.client("good"));
    assert_eq!(bad.get("/leak?mb=30").await.status, 500);
    cage.logged("guests of this cage have 2 MiB of memory together, its bound (guest_memory_mb in cage.toml)").await;
    assert_eq!(cage.client("own").get("/leak?mb=1").await.status, 500);
    cage.logged("guests of this module have 1 MiB of memory together, its bound (total_memory_mb in cage.toml)").await;
    // Instances that sleep at the same time take all there is; when they are idle, another module gets some of it.
    for _ in 0..rounds() {
        let statuses = all((0..40).map(|_| get(&bad, "/sleep?ms=500")).collect()).await;
        let slept = statuses.iter().filter(|status| **status == 200).count();
        let refused = statuses.iter().filter(|status| **status == 503).count();
        assert!(slept >= 6 && refused > 0 && slept + refused == statuses.len(), "{statuses:?}");
        cage.quiet().await;
        let answers = join_all((0..4).map(|_| good.get("/"))).await;
        assert!(answers.iter().all(|answer| answer.text() == "Hello, world !"));
    }
    cage.quiet().await;
    let memory = cage.host().cage(cage.name()).unwrap().dispatcher().services().room.memory();
    assert!(memory <= 2 * MIB, "{memory}");
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_a_granted_directory_holds_up_nobody() {
    let test = TestCage::new()
        .config("request_timeout_ms = 20_000\n[modules.interface_web]\n")
        .config("allow = { files = [{ host = \"data\", guest = \"/data\" }] }\n")
        .module("echo", "interface_web")
        .http("web");
    let data = test.directory().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("a.txt"), "text").unwrap();
    let made = std::process::Command::new("mkfifo").arg(data.join("pipe")).status().unwrap();
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(data.join("socket")).unwrap();
    let cage = test.start().await;
    let web = cage.client("web");
    for _ in 0..rounds() {
        let opened =
            (0..100).flat_map(|_| ["pipe", "socket"]).map(|name| get(&web, &format!("/file?path=/data/{name}")));
        // An error of the guest, and not its deadline.
        assert_eq!(all(opened.collect()).await, [500; 200]);
        assert_eq!(web.get("/file?path=/data/a.txt").await.text(), "text");
    }
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let hung = threads.filter(|thread| {
        fs::read_to_string(thread.path().join("wchan"))
            .is_ok_and(|wchan| wchan.contains("fifo") || wchan.contains("pipe_wait"))
    });
    assert_eq!(hung.count(), 0);
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_granted_directory_that_is_swapped_is_seen_by_the_next_request() {
    let test = TestCage::new()
        .config("[modules.interface_web]\nallow = { files = [{ host = \"current\", guest = \"/data\" }] }\n")
        .module("echo", "interface_web")
        .http("web");
    let directory = test.directory();
    for version in ["v1", "v2"] {
        fs::create_dir(directory.join(version)).unwrap();
        fs::write(directory.join(version).join("a.txt"), version).unwrap();
    }
    let link = |version: &str| {
        let (temporary, current) = (directory.join("next"), directory.join("current"));
        std::os::unix::fs::symlink(version, &temporary).unwrap();
        fs::rename(temporary, current).unwrap();
    };
    link("v1");
    let cage = test.start().await;
    let web = cage.client("web");
    for version in ["v1", "v2", "v1", "v2"] {
        link(version);
        for _ in 0..3 {
            assert_eq!(web.get("/file?path=/data/a.txt").await.text(), version);
        }
        cage.quiet().await;
        assert_eq!(cage.instances("interface_web"), 1);
    }
    fs::remove_dir_all(directory.join("v1")).unwrap();
    assert_eq!(web.get("/file?path=/data/a.txt").await.text(), "v2");
    fs::remove_file(directory.join("current")).unwrap();
    assert_eq!(web.get("/file?path=/data/a.txt").await.status, 500);
    cage.logged("granted directory").await;
    link("v2");
    assert_eq!(web.get("/file?path=/data/a.txt").await.text(), "v2");
    assert!(cage.stop().await);
}
