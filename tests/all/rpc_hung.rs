//! One of three copies hangs, as a process that is stopped does: what it costs those who call the cage.
//! `WASMCAGE_HUNG_SECONDS` says for how long.

use std::sync::atomic::Ordering;
use std::time::Duration;

use wasmcage_tests::{Client, Load, Machine, Machines, Plan, length};

const COPIES: usize = 3;
const CALLERS: usize = 64;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer is dead when nothing was heard of it for so long, looked at every quarter of a second.
const PING_LIMIT: Duration = Duration::from_millis(2_750);
/// What a busy machine may add.
const NOISE: Duration = Duration::from_secs(2);
const PORT: u16 = 8080;
const WORKER: Plan<'_> =
    Plan { cage: "worker", modules: &[("service_echo", "work")], rpc: "multicast = false", more: "" };

async fn one_of_three_hangs(hangs: impl FnOnce(&Machines) -> (Machine, Vec<Machine>), idempotent: bool) {
    let machines = Machines::new(1 + COPIES);
    let (front, workers) = hangs(&machines);
    let known = || machines.members(&front, "worker").is_some_and(|found| found.len() == COPIES);
    while !known() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let client = Client::new(&format!("{}:{PORT}", machines.ip(0)));
    let load = Load::new("worker", CALL_TIMEOUT, idempotent);
    let stopped = load
        .while_(&client, CALLERS, async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let stopped = load.now();
            workers[0].signal("STOP");
            tokio::time::sleep(Duration::from_secs(length("WASMCAGE_HUNG_SECONDS", 7))).await;
            workers[0].signal("CONT");
            tokio::time::sleep(Duration::from_secs(1)).await;
            stopped
        })
        .await;
    println!("{}", load.told("one of three hangs"));
    let over = stopped + PING_LIMIT;
    println!("the longest call that began after the hung copy was given up: {:.0?}", load.longest(over, Duration::MAX));
    let (failed, first) = load.wrong();
    assert_eq!(failed, 0, "{first:?}\n{}", front.log());
    let lost = load.lost.load(Ordering::Relaxed);
    assert!(lost <= CALLERS as u64 && !(idempotent && lost > 0), "a caller stalls once: {lost} lost");
    assert!(
        load.longest(Duration::ZERO, Duration::MAX) < PING_LIMIT + NOISE,
        "nobody waits longer than the ping limit"
    );
    assert!(load.longest(over, Duration::MAX) < NOISE, "nobody waits for it again");
    assert!(load.longest_stall() < NOISE, "others are answered meanwhile");
}

fn front(machines: &Machines, peers: &str) -> Machine {
    let more = format!(
        "[interfaces.web]\nprotocol = \"http\"\nlisten = \"{}:{PORT}\"\n[modules.interface_web]\nallow = {{ cages = \
         [\"worker\"] }}",
        machines.ip(0)
    );
    let rpc = format!("multicast = false\n{peers}");
    machines.run(0, &Plan { cage: "front", modules: &[("echo", "interface_web")], rpc: &rpc, more: &more })
}

/// Copies on other machines, at configured addresses.
fn apart(machines: &Machines) -> (Machine, Vec<Machine>) {
    let addresses: Vec<_> = (1..=COPIES).map(|machine| format!("\"{}\"", machines.address(machine))).collect();
    let peers = format!("peers = {{ worker = [{}] }}", addresses.join(", "));
    let workers = (1..=COPIES).map(|machine| machines.start(machine, &WORKER)).collect();
    (front(machines, &peers), workers)
}

/// All on one machine, each with a root of its own.
fn together(machines: &Machines) -> (Machine, Vec<Machine>) {
    let workers = (1..=COPIES).map(|number| machines.start_on_first(number, &WORKER)).collect();
    (front(machines, ""), workers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_hangs_on_this_machine_stalls_each_caller_once_at_most() {
    one_of_three_hangs(together, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_hangs_on_another_machine_stalls_each_caller_once_at_most() {
    one_of_three_hangs(apart, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotent_calls_do_without_a_copy_that_hangs() {
    one_of_three_hangs(apart, true).await;
}
