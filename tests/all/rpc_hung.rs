//! One of three copies hangs, as a process that is stopped does: what it costs those who call the cage.
//! `WASMCAGE_HUNG_SECONDS` says for how long.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use wasmcage_tests::{CagePlan, CallOutcome, Client, Load, Machine, Machines, length};

const COPIES: usize = 3;
const CALLERS: usize = 64;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter than it takes to notice that a copy hangs.
const SHORT_TIMEOUTS_MS: [u64; 3] = [100, 400, 1_500];
/// Callers with each of these, and with the long one.
const SHORT_CALLERS: usize = 8;
/// A peer is dead when nothing was heard of it for so long, looked at every quarter of a second.
const PING_LIMIT: Duration = Duration::from_millis(2_750);
/// The time that a busy machine may add.
const NOISE: Duration = Duration::from_secs(2);
const PORT: u16 = 8080;
const WORKER: CagePlan<'_> =
    CagePlan { cage: "worker", modules: &[("service_echo", "work")], rpc: "multicast = false", more: "" };

/// Waits until the front says so of the members of the cage that it knows.
async fn until(machines: &Machines, front: &Machine, is_so: impl Fn(&[Value]) -> bool) {
    let looking = async {
        while !machines.members(front, "worker").is_some_and(|members| is_so(&members)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let looked = tokio::time::timeout(Duration::from_secs(60), looking).await;
    looked.unwrap_or_else(|_| panic!("{:?}\n{}", machines.members(front, "worker"), front.log()));
}

async fn one_of_three_hangs(hangs: impl FnOnce(&Machines) -> (Machine, Vec<Machine>), idempotent: bool) {
    let machines = Machines::new(1 + COPIES);
    let (front, workers) = hangs(&machines);
    until(&machines, &front, |members| members.len() == COPIES).await;
    let client = Client::new(&format!("{}:{PORT}", machines.ip(0)));
    let load = Load::new("worker", CALL_TIMEOUT, idempotent);
    let stopped = load
        .call_during(&client, CALLERS, async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let stopped = load.now();
            workers[0].signal("STOP");
            tokio::time::sleep(Duration::from_secs(length("WASMCAGE_HUNG_SECONDS", 7))).await;
            workers[0].signal("CONT");
            tokio::time::sleep(Duration::from_secs(1)).await;
            stopped
        })
        .await;
    println!("{}", load.report("one of three hangs"));
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

/// Calls with little time end with it, whatever the copy does that has them; and once it is given up, it gets no more.
async fn deadlines_hold_while_one_hangs(hangs: impl FnOnce(&Machines) -> (Machine, Vec<Machine>)) {
    let machines = Machines::new(1 + COPIES);
    let (front, workers) = hangs(&machines);
    until(&machines, &front, |members| members.len() == COPIES).await;
    let client = Client::new(&format!("{}:{PORT}", machines.ip(0)));
    let patient = Load::new("worker", CALL_TIMEOUT, false);
    let short = SHORT_TIMEOUTS_MS.map(|ms| Load::new("worker", Duration::from_millis(ms), false));
    let begins = async {
        let all_called =
            |members: &[Value]| members.len() == COPIES && members.iter().all(|member| member["health"] == "connected");
        until(&machines, &front, all_called).await;
        workers[0].signal("STOP");
        let given_up = |members: &[Value]| {
            let well = members.iter().filter(|member| member["health"] == "connected").count();
            well == COPIES - 1 && !members.iter().any(|member| member["health"] == "silent")
        };
        until(&machines, &front, given_up).await;
        let given_up = patient.now();
        let over = given_up + Duration::from_secs(length("WASMCAGE_HUNG_SECONDS", 7));
        while patient.now() < over {
            let members = machines.members(&front, "worker").unwrap_or_default();
            let hung = members.iter().find(|member| member["health"] != "connected");
            assert!(hung.is_none_or(|hung| hung["in_flight"] == 0), "a copy that was given up is called: {hung:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        workers[0].signal("CONT");
        until(&machines, &front, all_called).await;
        given_up
    };
    let [first, second, third] = &short;
    let calling = first.call_during(&client, SHORT_CALLERS, begins);
    let calling = second.call_during(&client, SHORT_CALLERS, calling);
    let calling = third.call_during(&client, SHORT_CALLERS, calling);
    let given_up = patient.call_during(&client, SHORT_CALLERS, calling).await;
    for load in short.iter().chain([&patient]) {
        println!("{}", load.deadline_report());
        println!(
            "{}; the longest that began after the copy was given up {:.0?}",
            load.report("one of three hangs"),
            load.longest(given_up, Duration::MAX)
        );
        assert_eq!(load.count_of(CallOutcome::Wrong, Duration::ZERO), 0, "{:?}\n{}", load.wrong(), front.log());
        assert_eq!(load.count_of(CallOutcome::Lost, given_up), 0, "{}", front.log());
    }
    let late = short.iter().map(|load| load.count_of(CallOutcome::Late, Duration::ZERO)).sum::<usize>();
    assert!(late > 0, "some calls were with the copy that hangs");
    assert_eq!(patient.count_of(CallOutcome::Late, Duration::ZERO), 0, "{}", front.log());
}

fn front(machines: &Machines, peers: &str) -> Machine {
    let more = format!(
        "[interfaces.web]\nprotocol = \"http\"\nlisten = \"{}:{PORT}\"\n[modules.interface_web]\nallow = {{ cages = \
         [\"worker\"] }}",
        machines.ip(0)
    );
    let rpc = format!("multicast = false\n{peers}");
    machines.run(0, &CagePlan { cage: "front", modules: &[("echo", "interface_web")], rpc: &rpc, more: &more })
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

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_hold_while_a_copy_on_this_machine_hangs() {
    deadlines_hold_while_one_hangs(together).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_hold_while_a_copy_on_another_machine_hangs() {
    deadlines_hold_while_one_hangs(apart).await;
}
