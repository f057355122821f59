//! Durable keys and queues of modules: every operation, conflicts, bounds, who sees what, and that what was acknowledged is
//! there after whatever happens.

use std::fs;

use serde_json::{Value, json};
use wasmcage_core::error::DispatchError;
use wasmcage_tests::{Need, Root, RunningCage, TestCage, eventually, guest, missing, program, unique_name};

/// One module, `m`, with every operation as a function.
fn cage() -> TestCage {
    TestCage::new().module("state_user", "m")
}

async fn done(cage: &RunningCage, function: &str, arguments: Value) -> Value {
    let result = cage.call(&format!("m.{function}"), arguments.clone()).await;
    result.unwrap_or_else(|error| panic!("{function}{arguments}: {error}"))
}

/// The error that the module gets in place of a result.
async fn failure(cage: &RunningCage, function: &str, arguments: Value) -> String {
    match cage.call(&format!("m.{function}"), arguments.clone()).await {
        Err(DispatchError::Failed(text)) => text,
        other => panic!("{function}{arguments}: {other:?}"),
    }
}

#[track_caller]
fn said(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in {text:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_set_read_and_deleted() {
    let cage = cage().start().await;
    assert_eq!(done(&cage, "get", json!(["a"])).await, Value::Null);
    let value = json!({ "ä": [1, 2.5, null, "\n"], "long": 9_007_199_254_740_993_u64 });
    assert_eq!(done(&cage, "set", json!(["a", value])).await, Value::Null);
    assert_eq!(done(&cage, "get", json!(["a"])).await, value);
    assert_eq!(done(&cage, "delete", json!(["a"])).await, true);
    assert_eq!(done(&cage, "delete", json!(["a"])).await, false);
    assert_eq!(done(&cage, "get", json!(["a"])).await, Value::Null);
    // Text is kept as it was, bytes are no JSON.
    done(&cage, "set_text", json!(["t", "{\"b\": 1.50,  \"a\": 1}"])).await;
    assert_eq!(done(&cage, "get", json!(["t"])).await, json!({ "b": 1.5, "a": 1 }));
    done(&cage, "set_bytes", json!(["b", 3])).await;
    said(&failure(&cage, "get", json!(["b"])).await, &["b", "bytes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_replaced_if_it_is_the_expected_one() {
    let cage = cage().start().await;
    let swap =
        async |expected: Value, value: Value| done(&cage, "compare_and_set", json!(["k", expected, value])).await;
    assert_eq!(swap(json!("x"), json!("y")).await, false);
    assert_eq!(swap(Value::Null, json!("a")).await, true);
    assert_eq!(swap(Value::Null, json!("b")).await, false);
    assert_eq!(swap(json!("a"), json!("b")).await, true);
    assert_eq!(done(&cage, "get", json!(["k"])).await, "b");
    assert_eq!(swap(json!("b"), Value::Null).await, true);
    assert_eq!(done(&cage, "get", json!(["k"])).await, Value::Null);
    assert_eq!(swap(Value::Null, Value::Null).await, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_counted_up_by_many_at_once() {
    const CALLS: usize = 40;
    let cage = cage().start().await;
    let calls = (0..CALLS).map(async |_| {
        done(&cage, "increment", json!(["n", 2])).await;
        done(&cage, "update", json!(["u"])).await;
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(done(&cage, "get", json!(["n"])).await, 2 * CALLS);
    assert_eq!(done(&cage, "get", json!(["u"])).await, CALLS);
    assert_eq!(done(&cage, "increment", json!(["n", -100])).await, -20);
    assert_eq!(done(&cage, "increment", json!(["top", i64::MAX])).await, i64::MAX);
    failure(&cage, "increment", json!(["top", 1])).await;
    assert_eq!(done(&cage, "get", json!(["top"])).await, i64::MAX);
    done(&cage, "set", json!(["word", "x"])).await;
    said(&failure(&cage, "increment", json!(["word", 1])).await, &["integer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_give_entries_in_the_order_in_which_they_came() {
    let cage = cage().start().await;
    assert_eq!(done(&cage, "pop", json!(["q"])).await, Value::Null);
    for n in 1..=5 {
        assert_eq!(done(&cage, "push", json!(["q", { "n": n }])).await, n);
    }
    done(&cage, "push", json!(["other", 0])).await;
    assert_eq!(done(&cage, "peek", json!(["q", 2])).await, json!([{ "n": 1 }, { "n": 2 }]));
    assert_eq!(done(&cage, "length", json!(["q"])).await, 5);
    for n in 1..=5 {
        assert_eq!(done(&cage, "pop", json!(["q"])).await, json!({ "n": n }));
    }
    assert_eq!(done(&cage, "length", json!(["q"])).await, 0);
    assert_eq!(done(&cage, "push", json!(["q", 6])).await, 1);
    assert_eq!(done(&cage, "length", json!(["other"])).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_does_all_steps_or_none() {
    let cage = cage().start().await;
    assert_eq!(done(&cage, "every_step", json!([])).await, json!(["a", 5, 1, 2, 1, 1, true]));
    assert_eq!(done(&cage, "get", json!(["t/new"])).await, Value::Null);
    // The condition of step 1 does not hold: step 0 is not done either.
    done(&cage, "set", json!(["taken", 1])).await;
    assert_eq!(done(&cage, "conflict", json!(["new", "taken"])).await, 1);
    assert_eq!(done(&cage, "get", json!(["new"])).await, Value::Null);
    assert_eq!(done(&cage, "conflict", json!(["new", "free"])).await, Value::Null);
    assert_eq!(done(&cage, "get", json!(["new"])).await, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_at_the_same_time_lose_nothing() {
    let cage = cage().start().await;
    done(&cage, "set", json!(["from", 1000])).await;
    let transfer = async |_| cage.call("m.transfer", json!(["from", "to", 7])).await.is_ok();
    let transfers = futures_util::future::join_all((0..30).map(transfer)).await;
    let done_ones = transfers.into_iter().filter(|done| *done).count();
    assert!(done_ones >= 1);
    assert_eq!(done(&cage, "get", json!(["to"])).await, 7 * done_ones);
    assert_eq!(done(&cage, "get", json!(["from"])).await, 1000 - 7 * done_ones);
    assert_eq!(done(&cage, "length", json!(["transfers"])).await, done_ones);
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_go_through_a_range_in_either_direction() {
    let cage = cage().start().await;
    for key in ["b/1", "a", "b/3", "b/2", "c", "b/ä", "b"] {
        done(&cage, "set", json!([key, key])).await;
    }
    let keys = async |arguments: Value| done(&cage, "keys", arguments).await;
    assert_eq!(keys(json!([""])).await, json!(["a", "b", "b/1", "b/2", "b/3", "b/ä", "c"]));
    for page in [1, 2, 3, 100] {
        assert_eq!(keys(json!(["b/", null, null, false, page])).await, json!(["b/1", "b/2", "b/3", "b/ä"]), "{page}");
        assert_eq!(keys(json!(["b/", null, null, true, page])).await, json!(["b/ä", "b/3", "b/2", "b/1"]), "{page}");
    }
    assert_eq!(keys(json!(["b/", "b/2", "b/3"])).await, json!(["b/2"]));
    assert_eq!(keys(json!(["", "b/2", null, true])).await, json!(["c", "b/ä", "b/3", "b/2"]));
    assert_eq!(keys(json!(["nothing"])).await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_stays_good_while_keys_come_and_go() {
    let cage = cage().start().await;
    for n in 10..20 {
        done(&cage, "set", json!([format!("k{n}"), n])).await;
    }
    let first = done(&cage, "page", json!(["k", 3])).await;
    assert_eq!(first[0], json!([["k10", 10], ["k11", 11], ["k12", 12]]));
    // The last key of the page goes, and the first of the next one; others come before and after.
    for key in ["k12", "k13"] {
        done(&cage, "delete", json!([key])).await;
    }
    for key in ["k00", "k125", "k135"] {
        done(&cage, "set", json!([key, 0])).await;
    }
    let second = done(&cage, "page", json!(["k", 3, first[1]])).await;
    assert_eq!(second[0], json!([["k125", 0], ["k135", 0], ["k14", 14]]));
    let rest = done(&cage, "page", json!(["k", 100, second[1]])).await;
    assert_eq!(rest, json!([[["k15", 15], ["k16", 16], ["k17", 17], ["k18", 18], ["k19", 19]], null]));
    said(&failure(&cage, "page", json!(["k", 3, "no cursor"])).await, &["cursor"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_is_named() {
    let cage = cage().start().await;
    said(&failure(&cage, "set", json!(["k".repeat(1025), 1])).await, &["1025", "1024"]);
    done(&cage, "set", json!(["k".repeat(1024), 1])).await;
    said(&failure(&cage, "set_text", json!(["a", "{not json"])).await, &["no JSON"]);
    assert_eq!(done(&cage, "get", json!(["a"])).await, Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_keeps_no_more_than_its_quota() {
    let cage = cage().config("[modules.m]\nstate = { max_mb = 1, max_entries = 4 }").start().await;
    done(&cage, "set_bytes", json!(["a", 600_000])).await;
    said(&failure(&cage, "set_bytes", json!(["b", 600_000])).await, &["quota", "max_mb"]);
    // What was there is there; the room of what is replaced counts as free.
    done(&cage, "set_bytes", json!(["a", 900_000])).await;
    assert_eq!(done(&cage, "delete", json!(["a"])).await, true);
    for n in 0..3 {
        done(&cage, "set", json!([n.to_string(), n])).await;
    }
    done(&cage, "push", json!(["q", 1])).await;
    said(&failure(&cage, "push", json!(["q", 2])).await, &["quota", "max_entries"]);
    said(&failure(&cage, "set", json!(["3", 3])).await, &["quota", "max_entries"]);
    done(&cage, "pop", json!(["q"])).await;
    done(&cage, "set", json!(["3", 3])).await;
    // The bound is live.
    cage.configure("[modules.m]\nstate = { max_entries = 5 }");
    cage.swapped("m", cage.version("m")).await;
    done(&cage, "set", json!(["4", 4])).await;
    said(&failure(&cage, "set", json!(["5", 5])).await, &["quota"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_and_cages_have_data_of_their_own() {
    let other = unique_name("other");
    let cage = cage().module("state_user", "n").cage(&other).module("state_user", "m").start().await;
    let (first, here) = ("k", json!(["k"]));
    done(&cage, "set", json!([first, "mine"])).await;
    done(&cage, "push", json!(["q", 1])).await;
    assert_eq!(cage.call("n.get", here.clone()).await.unwrap(), Value::Null);
    assert_eq!(cage.call("n.keys", json!([""])).await.unwrap(), json!([]));
    assert_eq!(cage.call("n.pop", json!(["q"])).await.unwrap(), Value::Null);
    assert_eq!(cage.call_cage(&other, "m.get", here.clone()).await.unwrap(), Value::Null);
    cage.call("n.set", json!([first, "another's"])).await.unwrap();
    cage.call_cage(&other, "m.set", json!([first, "elsewhere"])).await.unwrap();
    assert_eq!(done(&cage, "get", here).await, "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_finds_what_the_old_one_kept() {
    let cage = cage().start().await;
    done(&cage, "increment", json!(["n", 41])).await;
    let version = cage.version("m");
    cage.deploy("m", &another_version());
    cage.swapped("m", version).await;
    assert_eq!(done(&cage, "increment", json!(["n", 1])).await, 42);
}

/// Guest `state_user` with another name in a text of its own: another component, which does the same.
fn another_version() -> Vec<u8> {
    let mut bytes = fs::read(guest("state_user")).unwrap();
    let (from, to) = (b"at the start: ", b"at its start: ");
    let at = bytes.windows(from.len()).position(|window| window == from).expect("the text in the component");
    bytes[at..at + from.len()].copy_from_slice(to);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_state_while_a_module_is_being_loaded() {
    let cage = cage().config("[modules.m]\ninstances = { mode = \"single\" }").start().await;
    done(&cage, "set", json!(["a", 1])).await;
    cage.deploy("m", &another_version());
    let log = cage.logged("at its start: ").await;
    said(&log, &["state unavailable", "while the module is being loaded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_too_little_room_on_the_disk_nothing_is_written() {
    let cage = cage().start().await;
    done(&cage, "set", json!(["a", 1])).await;
    cage.configure("[state]\nminimum_free_space_mb = 1_000_000_000");
    cage.logged("cage.toml applied").await;
    let refused = loop {
        match cage.call("m.set", json!(["b", 2])).await {
            Err(DispatchError::Failed(text)) => break text,
            Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            Err(other) => panic!("{other}"),
        }
    };
    said(&refused, &["state unavailable", "minimum_free_space_mb"]);
    assert_eq!(done(&cage, "get", json!(["a"])).await, 1);
    cage.configure("");
    while cage.call("m.set", json!(["b", 2])).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_whose_store_is_broken_serves_on() {
    let cage = cage().module("hello", "interface_web").http("web");
    fs::create_dir(cage.directory().join("state")).unwrap();
    fs::write(cage.directory().join("state/store.redb"), b"no database\n".repeat(1000)).unwrap();
    let other = unique_name("other");
    let cage = cage.cage(&other).module("state_user", "m").start().await;
    for (function, arguments) in [("set", json!(["a", 1])), ("get", json!(["a"])), ("keys", json!([""]))] {
        let words = ["state unavailable", "store.redb", "damaged", "put a copy of it back", "move it away"];
        said(&failure(&cage, function, arguments).await, &words);
    }
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    assert_eq!(cage.call_cage(&other, "m.increment", json!(["n", 1])).await.unwrap(), 1);
    // Nobody has touched it: it may be repaired.
    let file = fs::read(cage.directory().join("state/store.redb")).unwrap();
    assert_eq!(file, b"no database\n".repeat(1000));
    fs::rename(cage.directory().join("state/store.redb"), cage.directory().join("state/broken")).unwrap();
    while cage.call("m.increment", json!(["n", 1])).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(done(&cage, "get", json!(["n"])).await, 1);
    cage.logged("the store is available again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_that_keeps_nothing_has_no_store() {
    let cage = cage().module("hello", "interface_web").http("web").start().await;
    assert_eq!(cage.client("web").get("/").await.status, 200);
    assert!(!cage.directory().join("state").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_there_is_opened_at_the_start() {
    let there = |cage: &TestCage, content: &[u8]| {
        fs::create_dir(cage.directory().join("state")).unwrap();
        fs::write(cage.directory().join("state/store.redb"), content).unwrap();
    };
    // Nobody asks for anything.
    let broken = cage();
    there(&broken, b"no database");
    let broken = broken.start().await;
    said(&broken.logged("the store is not available").await, &["state/store.redb"]);

    let first = cage().start().await;
    done(&first, "set", json!(["a", 1])).await;
    let content = first.root().join("content");
    // A copy of the file as it is: as after a kill.
    fs::copy(first.directory().join("state/store.redb"), &content).unwrap();
    let second = cage();
    there(&second, &fs::read(&content).unwrap());
    let file = second.directory().join("state/store.redb");
    let second = second.start().await;
    let is_open = || {
        let mut open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link == file)).then_some(())
    };
    eventually("the open file", is_open).await;
    assert_eq!(done(&second, "get", json!(["a"])).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn visits_are_counted_across_restarts_and_kills() {
    let root = Root::new(&[("visits", &[])]);
    fs::copy(guest("tally"), root.cage("visits").join("interface_web.wasm")).unwrap();
    fs::copy(guest("state_user"), root.cage("visits").join("m.wasm")).unwrap();
    let (mut counted, mut pushed) = (0, 0);
    for round in 0..4 {
        let mut run = root.run("visits").await;
        for _ in 0..5 {
            counted += 1;
            assert_eq!(root.call("visits", &["m.increment", "/page", "1"]).await, counted);
            pushed += 1;
            assert_eq!(root.call("visits", &["m.push", "q", &pushed.to_string()]).await, pushed);
        }
        if round % 2 == 0 {
            root.stop("visits").await;
        } else {
            // Both processes, without a word.
            let pid = root.serving("visits").await;
            run.kill().await.unwrap();
            let killed = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
            assert!(killed.success());
        }
        run.wait().await.unwrap();
    }
    let _run = root.run("visits").await;
    let entries: Vec<_> = (1..=pushed).collect();
    assert_eq!(root.call("visits", &["m.peek", "q", "1000"]).await, json!(entries));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_counts_for_all_paths() {
    let cage = TestCage::new().module("tally", "interface_web").http("web").start().await;
    let client = cage.client("web");
    for expected in ["1", "2", "3"] {
        assert_eq!(client.get("/page").await.text(), expected);
    }
    assert_eq!(client.get("/other?x=1").await.text(), "1");
    assert_eq!(client.get("/").await.json(), json!({ "/other": 1, "/page": 3 }));
}

/// `wasi:keyvalue`, by the guest `keyvalue_user`.
async fn keyvalue() -> RunningCage {
    cage().file("kv", &fs::read(guest("keyvalue_user")).unwrap()).start().await
}

async fn kv(cage: &RunningCage, function: &str, arguments: Value) -> Value {
    let result = cage.call(&format!("kv.{function}"), arguments.clone()).await;
    result.unwrap_or_else(|error| panic!("{function}{arguments}: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_buckets_are_parts_of_a_modules_keys() {
    let cage = keyvalue().await;
    assert_eq!(kv(&cage, "get", json!(["", "k"])).await, Value::Null);
    for (bucket, value) in [("", "first"), ("images", "second"), ("image", "third"), ("default", "fourth")] {
        kv(&cage, "set", json!([bucket, "k", value])).await;
    }
    // The empty name is that of the default bucket.
    assert_eq!(kv(&cage, "get", json!(["", "k"])).await, "fourth");
    assert_eq!(kv(&cage, "get", json!(["images", "k"])).await, "second");
    assert_eq!(kv(&cage, "get", json!(["image", "k"])).await, "third");
    assert_eq!(kv(&cage, "keys", json!([""])).await, json!([["k"], 1]));
    assert_eq!(kv(&cage, "keys", json!(["images"])).await, json!([["k"], 1]));
    assert_eq!(kv(&cage, "exists", json!(["images", "k"])).await, true);
    kv(&cage, "delete", json!(["images", "k"])).await;
    kv(&cage, "delete", json!(["images", "k"])).await;
    assert_eq!(kv(&cage, "exists", json!(["images", "k"])).await, false);
    assert_eq!(kv(&cage, "exists", json!(["image", "k"])).await, true);
    let no_such = cage.call("kv.get", json!(["a\u{1}b", "k"])).await.unwrap_err().to_string();
    said(&no_such, &["NoSuchStore"]);
    // Another module's buckets are its own.
    assert_eq!(done(&cage, "keys", json!([""])).await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_keys_come_in_pages() {
    let cage = keyvalue().await;
    let pairs: serde_json::Map<_, _> = (0..2_500).map(|n| (format!("{n:04}"), json!("x"))).collect();
    kv(&cage, "set_many", json!(["many", pairs])).await;
    let keys: Vec<_> = pairs.keys().collect();
    assert_eq!(kv(&cage, "keys", json!(["many"])).await, json!([keys, 3]));
    let asked = json!(["0007", "nothing", "2499"]);
    let found = json!([["0007", "x"], ["nothing", null], ["2499", "x"]]);
    assert_eq!(kv(&cage, "get_many", json!(["many", asked])).await, found);
    kv(&cage, "delete_many", json!(["many", keys[1..]])).await;
    assert_eq!(kv(&cage, "keys", json!(["many"])).await, json!([["0000"], 1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_atomics_count_and_swap() {
    let cage = keyvalue().await;
    assert_eq!(kv(&cage, "increment", json!(["n", "k", 5])).await, 5);
    assert_eq!(kv(&cage, "increment", json!(["n", "k", -7])).await, -2);
    assert_eq!(kv(&cage, "get", json!(["n", "k"])).await, "-2");
    // A number that was written as text is one.
    kv(&cage, "set", json!(["n", "text", "41"])).await;
    assert_eq!(kv(&cage, "increment", json!(["n", "text", 1])).await, 42);
    kv(&cage, "set", json!(["n", "word", "x"])).await;
    said(&cage.call("kv.increment", json!(["n", "word", 1])).await.unwrap_err().to_string(), &["not a 64-bit integer"]);

    assert_eq!(kv(&cage, "append", json!(["swap", "k", "a"])).await, 1);
    assert_eq!(kv(&cage, "append", json!(["swap", "k", "c", "b"])).await, 2);
    assert_eq!(kv(&cage, "get", json!(["swap", "k"])).await, "abc");
    let appended = (0..10).map(async |n: u32| kv(&cage, "append", json!(["swap", "all", n.to_string()])).await);
    futures_util::future::join_all(appended).await;
    let all = kv(&cage, "get", json!(["swap", "all"])).await;
    let mut digits: Vec<_> = all.as_str().unwrap().chars().collect();
    digits.sort_unstable();
    assert_eq!(digits.into_iter().collect::<String>(), "0123456789");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_draft_is_served_too() {
    let cage = keyvalue().await;
    let expected = json!([[["set", "old"], null, ["counted", "7"]], ["counted", "set"]]);
    assert_eq!(kv(&cage, "old", json!(["x"])).await, expected);
    assert_eq!(kv(&cage, "get", json!(["x", "set"])).await, "old");
}

mod in_mount_namespace {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn on_a_read_only_disk_a_cage_serves_without_its_state() {
        const READ_ONLY: &str = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && shift && exec \"$@\"";
        let root = Root::new(&[("shop", &["state_user", "service_echo"])]);
        let state = root.cage("shop").join("state");
        let mut run = root.run("shop").await;
        assert_eq!(root.call("shop", &["state_user.increment", "n", "41"]).await, 41);
        assert_eq!(root.call("shop", &["state_user.push", "q", "7"]).await, 1);
        root.stop("shop").await;
        run.wait().await.unwrap();

        // In a namespace of its own, where its state cannot be written.
        let within = |program: &std::ffi::OsStr, arguments: &[&str]| {
            let mut command = root.command(arguments);
            let environment: Vec<_> =
                command.as_std().get_envs().map(|(key, value)| (key.to_owned(), value.unwrap().to_owned())).collect();
            command = tokio::process::Command::new("unshare");
            command
                .args(["-m", "sh", "-c", READ_ONLY, "sh"])
                .arg(&state)
                .arg(program)
                .args(arguments)
                .envs(environment);
            command
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            command.kill_on_drop(true);
            command
        };
        if !within("true".as_ref(), &[]).status().await.is_ok_and(|status| status.success()) {
            missing(Need::MountNamespace, "a read-only disk cannot be mounted");
        }
        let mut run = within(program().as_os_str(), &["run", "shop"]).spawn().unwrap();
        root.serving("shop").await;
        for arguments in [["state_user.get", "n"], ["state_user.pop", "q"], ["state_user.delete", "n"]] {
            let told = root.failure(1, &[&["call", "shop"], &arguments[..]].concat()).await;
            said(&told, &["state unavailable", "store.redb", "Read-only", "until the disk can be written"]);
        }
        assert_eq!(root.call("shop", &["service_echo.add", "2", "3"]).await, 5);
        root.stop("shop").await;
        run.wait().await.unwrap();

        let _run = root.run("shop").await;
        assert_eq!(root.call("shop", &["state_user.increment", "n", "1"]).await, 42);
        assert_eq!(root.call("shop", &["state_user.pop", "q"]).await, 7);
    }
}
