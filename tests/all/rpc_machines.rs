//! Copies of a cage on machines of their own, at fixed ports, found by multicast: restarted and killed one after the other
//! while others call them. `WASMCAGE_RESTART_CALLS` says for how many calls.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use wasmcage_tests::{CagePlan, Client, Load, Machine, Machines, length};

const COPIES: usize = 3;
const CALLERS: usize = 16;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// No copy takes longer to start and to be found.
const FOUND_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at who is known.
const LOOK: Duration = Duration::from_millis(200);
const FRONT_PORT: u16 = 8080;
const WORKER: CagePlan<'_> = CagePlan { cage: "worker", modules: &[("service_echo", "work")], rpc: "", more: "" };

/// A front on the first machine, a worker on each other one.
struct Cluster {
    machines: Machines,
    front: Machine,
    workers: Vec<Machine>,
}

impl Cluster {
    async fn start() -> Self {
        let machines = Machines::with_multicast(1 + COPIES);
        let web = format!(
            "[interfaces.web]\nprotocol = \"http\"\nlisten = \"{}:{FRONT_PORT}\"\n[modules.interface_web]\nallow = {{ cages = \
             [\"worker\"] }}",
            machines.ip(0)
        );
        let front = CagePlan { cage: "front", modules: &[("echo", "interface_web")], rpc: "", more: &web };
        let front = machines.run(0, &front);
        let workers = (1..=COPIES).map(|number| machines.start(number, &WORKER)).collect();
        let cluster = Self { machines, front, workers };
        cluster.known(&HashSet::new(), COPIES).await;
        cluster
    }

    fn client(&self) -> Client {
        Client::new(&format!("{}:{FRONT_PORT}", self.machines.ip(0)))
    }

    /// Waits until the front knows every copy and no other, so many of them new beside `old`. Returns their names.
    async fn known(&self, old: &HashSet<String>, new: usize) -> HashSet<String> {
        let begun = Instant::now();
        loop {
            let members = self.machines.members(&self.front, "worker");
            let names = members.iter().flatten().map(|member| member["copy"].as_str().expect("a name").to_owned());
            let names: HashSet<_> = names.collect();
            if names.len() == COPIES && names.difference(old).count() == new {
                return names;
            }
            assert!(begun.elapsed() < FOUND_WITHIN, "{members:?}\n{}", self.front.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One fault of each copy in turn, until there were enough calls.
    async fn faults(&mut self, load: &Load, signal: &str) -> u64 {
        let calls = length("WASMCAGE_RESTART_CALLS", 1_000);
        let (mut faults, mut known) = (0, self.known(&HashSet::new(), COPIES).await);
        while faults < 2 * COPIES as u64 || load.count() < calls {
            let copy = faults as usize % COPIES;
            self.workers[copy].signal(signal);
            self.machines.restart(&mut self.workers[copy]).await;
            known = self.known(&known, 1).await;
            faults += 1;
        }
        faults
    }
}

async fn under_load(idempotent: bool, signal: &str) {
    let mut cluster = Cluster::start().await;
    let (client, load) = (cluster.client(), Load::new("worker", CALL_TIMEOUT, idempotent));
    let faults = load.call_during(&client, CALLERS, cluster.faults(&load, signal)).await;
    println!("{}", load.report(&format!("{faults} times {signal}")));
    let (failed, first) = load.wrong();
    let lost = load.lost.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((failed, lost), (0, 0), "{first:?}\n{}", cluster.front.log());
}

/// One address is enough to find a flock, whenever its members start.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_starts_later_is_told_of() {
    let machines = Machines::new(3);
    let peers = format!("multicast = false\npeers = {{ hub = [\"{}\"] }}", machines.address(0));
    let hub_machine = machines.run(0, &CagePlan { cage: "hub", rpc: "multicast = false", ..CagePlan::default() });
    let front = machines.run(1, &CagePlan { cage: "front", rpc: &peers, ..CagePlan::default() });
    let known = async |cage: &str, count: usize| {
        let begun = Instant::now();
        while machines.members(&front, cage).is_none_or(|members| members.len() != count) {
            let (front, hub) = (front.log(), hub_machine.log());
            assert!(begun.elapsed() < FOUND_WITHIN, "{count} of {cage}\n{front}\n{hub}");
            tokio::time::sleep(LOOK).await;
        }
    };
    known("hub", 1).await;
    let mut worker = machines.start(2, &CagePlan { rpc: &peers, ..WORKER });
    known("worker", 1).await;
    // Another copy at the same address takes its place.
    for _ in 0..3 {
        let before = machines.members(&front, "worker").expect("members")[0]["copy"].clone();
        worker.signal("KILL");
        machines.restart(&mut worker).await;
        let begun = Instant::now();
        while machines
            .members(&front, "worker")
            .is_none_or(|members| members.len() != 1 || members[0]["copy"] == before)
        {
            assert!(begun.elapsed() < FOUND_WITHIN, "{:?}", machines.members(&front, "worker"));
            tokio::time::sleep(LOOK).await;
        }
    }
}

mod with_multicast {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn copies_on_other_machines_are_restarted_one_after_the_other_without_a_failed_call() {
        under_load(false, "TERM").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn idempotent_calls_survive_the_kill_of_one_machine_after_the_other() {
        under_load(true, "KILL").await;
    }
}
