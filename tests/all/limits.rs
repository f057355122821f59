//! What a guest may use up ends where its limits are: time, stack, memory, tables, output, instances, places in the cage.
//! What goes over a limit costs one request, is told with the limit's name, and leaves nothing behind.

use futures_util::future::join_all;
use wasmcage_tests::{Client, RunningCage, TestCage, eventually, fixture, guest};

/// `hostile` at interface `bad`, `hello` at `good`.
async fn with_hostile(timeout_ms: u64, module: &str) -> RunningCage {
    TestCage::new()
        .config(&format!(
            "[interfaces.bad]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\ntimeout_ms = {timeout_ms}\n\
             [modules.interface_bad]\n{module}\n"
        ))
        .module("hostile", "interface_bad")
        .module("hello", "interface_good")
        .http("good")
        .start()
        .await
}

/// `echo` at interface `web`, which calls module `counter`.
async fn with_counter(instances: &str) -> RunningCage {
    TestCage::new()
        .config(&format!("[modules.counter]\ninstances = {{ {instances} }}\n"))
        .module("echo", "interface_web")
        .module("counter", "counter")
        .http("web")
        .start()
        .await
}

async fn check(client: &Client, path: &str, status: u16, code: &str) {
    let answer = client.get(path).await;
    assert_eq!(answer.status.as_u16(), status, "{path}: {}", answer.text());
    assert!(answer.text().starts_with(&format!("{code}: ")), "{path}: {}", answer.text());
}

/// The neighbour serves, nothing is in work, and the culprit's instances have gone.
async fn check_whole(cage: RunningCage) {
    assert_eq!(cage.client("good").get("/").await.text(), "Hello, world !");
    cage.quiet().await;
    eventually("the end of bad instances", || (cage.instances("interface_bad") == 0).then_some(())).await;
    assert!(cage.stop().await);
}

async fn increment(client: &Client) -> u64 {
    let answer = client.get("/call?module=counter&function=increment").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_ends_is_ended_at_its_deadline() {
    let cage = with_hostile(300, "").await;
    for path in ["/loop", "/loop-host", "/loop-print", "/sleep?ms=60000"] {
        check(&cage.client("bad"), path, 504, "deadline-exceeded").await;
    }
    cage.logged("deadline exceeded: the module was running").await;
    cage.logged("deadline exceeded: the module was waiting for the host").await;
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modules_own_timeout_is_tighter() {
    let cage = TestCage::new()
        .config("[modules.interface_web]\ntimeout_ms = 700\n")
        .module("echo", "interface_web")
        .http("web")
        .start()
        .await;
    let left = cage.client("web").get("/context").await.json()["deadline_left_ms"].as_u64().unwrap();
    assert!(left <= 700, "{left}");
    let cage = with_hostile(60_000, "timeout_ms = 200").await;
    check(&cage.client("bad"), "/loop", 504, "deadline-exceeded").await;
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recursion_without_end() {
    let cage = with_hostile(10_000, "").await;
    check(&cage.client("bad"), "/recurse", 500, "trapped").await;
    // Rust keeps a stack in the guest's memory.
    cage.logged("(maybe the guest's own stack is exhausted)").await;
    // Called as a service it ends in the same way, one call deeper.
    check(&cage.client("bad"), "/cycle", 500, "failed").await;
    cage.logged("calls are nested 16 deep").await;
    assert_eq!(cage.client("good").get("/").await.text(), "Hello, world !");
    cage.quiet().await;
    // Those of the cycle have answered as they should, and stay; the one that recursed does not.
    assert!((1..=17).contains(&cage.instances("interface_bad")), "{}", cage.instances("interface_bad"));
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn recursion_on_the_machines_stack() {
    let cage =
        TestCage::new().module("echo", "interface_web").file("deep", &fixture("recursion")).http("web").start().await;
    let client = cage.client("web");
    for _ in 0..10 {
        let answer = client.get("/try_call?module=deep&function=recurse&args=[1]").await;
        assert!(answer.text().contains("call stack exhausted"), "{}", answer.text());
    }
    // The caller made nothing of it, but the callee's operator is told.
    cage.logged("ERR [deep] call failed").await;
    cage.quiet().await;
    assert_eq!((cage.instances("deep"), cage.instances("interface_web")), (0, 1));
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_bomb() {
    let cage = with_hostile(10_000, "memory_mb = 16").await;
    check(&cage.client("bad"), "/memory", 500, "trapped").await;
    cage.logged("memory limit of 16 MiB reached (memory_mb in cage.toml)").await;
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_ends_with_its_instance() {
    let cage = with_hostile(10_000, "memory_mb = 16\ninstances = { max = 1 }").await;
    let client = cage.client("bad");
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(client.get("/leak?mb=5").await.status.as_u16());
        assert!(cage.instances("interface_bad") <= 1);
    }
    // Three times it fits, then a new instance begins anew.
    assert_eq!(statuses, [200, 200, 200, 500].repeat(3));
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_bomb() {
    let cage = TestCage::new()
        .config("[modules.small]\ntable_elements = 5_000\n")
        .module("echo", "interface_web")
        .file("bomb", &fixture("table_bomb"))
        .file("small", &fixture("table_bomb"))
        .http("web")
        .start()
        .await;
    let client = cage.client("web");
    let call = async |module: &str, function: &str| {
        let answer = client.get(&format!("/call?module={module}&function={function}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json().as_i64().unwrap()
    };
    for (module, limit) in [("bomb", 100_000), ("small", 5_000)] {
        assert_eq!(call(module, "at-once&args=[4000000000]").await, -1);
        let reached = call(module, "bit-by-bit").await;
        assert!((limit - 1_000..=limit).contains(&reached), "{reached}");
        assert_eq!(call(module, "at-once&args=[1000]").await, -1);
    }
    cage.quiet().await;
    assert!(cage.stop().await);
}

/// A flood of output: the cage answers on, the log stays small, and says how much it left out.
async fn check_flood(path: &str) {
    let cage = with_hostile(60_000, "memory_mb = 300").await;
    let client = cage.client("bad");
    let answer = client.get(path).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(cage.client("good").get("/").await.text(), "Hello, world !");
    // Told by the first line that is written again.
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !cage.log().contains("log lines of this module were dropped") {
        assert!(tokio::time::Instant::now() < until, "no word of the lines dropped");
        client.get("/log-lines?n=1").await;
    }
    let bytes = cage.log().len();
    assert!(bytes < 20 << 20, "the log has {bytes} bytes");
    cage.quiet().await;
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_of_stdout() {
    check_flood("/stdout?mb=100").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_of_stderr() {
    check_flood("/stderr?mb=100").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_log_lines() {
    check_flood("/log-lines?n=1000000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_line_of_a_hundred_megabytes() {
    let cage = with_hostile(60_000, "memory_mb = 300").await;
    let answer = cage.client("bad").get("/log?mb=100").await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    let log = cage.logged("bytes cut)").await;
    assert!(log.len() < 1 << 20, "the log has {} bytes", log.len());
    let answer = cage.client("bad").get("/describe?mb=50").await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(cage.client("good").get("/").await.text(), "Hello, world !");
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_reads() {
    let cage = TestCage::new()
        .module("hostile", "interface_whole")
        .module("hello", "interface_ignoring")
        .http("whole")
        .http("ignoring")
        .start()
        .await;
    let body = vec![b'x'; 5 << 20];
    for _ in 0..5 {
        assert_eq!(cage.client("ignoring").post("/", body.clone()).await.text(), "Hello, world !");
        assert_eq!(cage.client("whole").post("/panic", body.clone()).await.status, 500);
    }
    cage.quiet().await;
    assert_eq!((cage.instances("interface_ignoring"), cage.instances("interface_whole")), (1, 0));
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instance_serves_many_in_turn() {
    let cage = with_hostile(60_000, "instances = { max = 1 }").await;
    let client = cage.client("bad");
    let answers = join_all((0..30).map(|_| client.get("/sleep?ms=2"))).await;
    assert!(answers.iter().all(|answer| answer.text() == "slept"));
    assert_eq!(cage.instances("interface_bad"), 1);
    // Whoever waits for it too long has had its time; the one that had it, too.
    let cage = with_hostile(300, "instances = { max = 1 }").await;
    let client = cage.client("bad");
    let answers = join_all((0..5).map(|_| client.get("/sleep?ms=60000"))).await;
    assert!(answers.iter().all(|answer| answer.status == 504));
    cage.logged("all instances of the module were in use").await;
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_stay_within_the_bound() {
    let cage = with_hostile(60_000, "instances = { max = 4 }").await;
    let client = cage.client("bad");
    let requests = (0..100).map(|number| {
        let (client, cage) = (&client, &cage);
        async move {
            // Some of them end their instance.
            let path = ["/sleep?ms=1", "/panic", "/refuse", "/unreachable"][number % 4];
            let status = client.get(path).await.status.as_u16();
            assert_eq!(status, [200, 500, 400, 500][number % 4]);
            let instances = cage.instances("interface_bad");
            assert!(instances <= 4, "{instances} instances");
        }
    });
    join_all(requests).await;
    cage.quiet().await;
    assert!(cage.instances("interface_bad") <= 4);
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_replaced_after_so_many_uses() {
    let cage = with_counter("max = 1, max_uses = 3").await;
    let client = cage.client("web");
    let mut counts = Vec::new();
    for _ in 0..10 {
        counts.push(increment(&client).await);
    }
    // The first instance was used once already: it was asked for its functions.
    assert_eq!(counts, [1, 2, 1, 2, 3, 1, 2, 3, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_instance_remembers_nothing() {
    let cage = with_counter("mode = \"fresh\"").await;
    let client = cage.client("web");
    for _ in 0..5 {
        assert_eq!(increment(&client).await, 1);
    }
    let counts = join_all((0..20).map(|_| increment(&client))).await;
    assert_eq!(counts, [1; 20]);
    cage.quiet().await;
    assert_eq!(cage.instances("counter"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_instance_remembers() {
    let cage = with_counter("max = 1").await;
    let client = cage.client("web");
    assert_eq!((increment(&client).await, increment(&client).await), (1, 2));
    assert_eq!(cage.instances("counter"), 1);
}

/// `counter` with other bytes: an unknown section at its end.
fn counter(number: u8) -> Vec<u8> {
    let mut bytes = std::fs::read(guest("counter")).unwrap();
    bytes.extend([0, 3, 1, b'v', number]);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_instance_counts_everybody_across_swaps() {
    const CLIENTS: usize = 8;
    const CALLS: usize = 100;
    const SWAPS: u8 = 10;
    let cage = with_counter("mode = \"single\"").await;
    let client = cage.client("web");
    let counting = join_all((0..CLIENTS).map(|_| {
        let client = client.clone();
        async move {
            let mut counts = Vec::new();
            for _ in 0..CALLS {
                counts.push(increment(&client).await);
            }
            counts
        }
    }));
    let swapping = async {
        for number in 0..SWAPS {
            let before = cage.version("counter");
            cage.deploy("counter", &counter(number));
            cage.swapped("counter", before).await;
            assert!(cage.instances("counter") <= 1);
        }
    };
    let (counts, ()) = tokio::join!(counting, swapping);
    let mut counts: Vec<u64> = counts.into_iter().flatten().collect();
    counts.sort_unstable();
    let expected: Vec<u64> = (1..=(CLIENTS * CALLS) as u64).collect();
    assert!(counts == expected, "every call has a number of its own, and none is missing: {counts:?}");
    assert_eq!(cage.version("counter"), Some(1 + u64::from(SWAPS)));
    cage.quiet().await;
    assert_eq!(cage.instances("counter"), 1);
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_instances_are_freed() {
    let cage = with_counter("idle_timeout_ms = 1").await;
    let client = cage.client("web");
    assert_eq!(increment(&client).await, 1);
    eventually("no idle instance", || (cage.instances("counter") == 0).then_some(())).await;
    assert_eq!(increment(&client).await, 1);
    // The default is longer.
    assert_eq!(cage.instances("interface_web"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn surplus_requests_are_turned_away_at_once() {
    let cage = TestCage::new()
        .config("concurrency = 1\nqueue = 1\nrequest_timeout_ms = 60_000\n")
        .module("hostile", "interface_bad")
        .module("hello", "interface_good")
        .http("bad")
        .http("good")
        .start()
        .await;
    let (bad, good) = (cage.client("bad"), cage.client("good"));
    let load = |in_work, waiting| {
        let cage = &cage;
        eventually("the load", move || {
            let snapshot = cage.snapshot();
            ((snapshot.cages[0].in_work, snapshot.cages[0].waiting) == (in_work, waiting)).then_some(())
        })
    };
    let in_work = tokio::spawn({
        let bad = bad.clone();
        async move { bad.get("/sleep?ms=2000").await }
    });
    load(1, 0).await;
    let waiting = tokio::spawn({
        let good = good.clone();
        async move { good.get("/").await }
    });
    load(1, 1).await;
    for _ in 0..10 {
        let answer = good.get("/").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("retry-after"), "1");
        assert!(answer.text().starts_with("overloaded: too many requests at the moment\n"), "{}", answer.text());
    }
    assert_eq!(in_work.await.unwrap().text(), "slept");
    assert_eq!(waiting.await.unwrap().text(), "Hello, world !");
    cage.quiet().await;
    assert_eq!(good.get("/").await.text(), "Hello, world !");
    assert!(cage.stop().await);
}
