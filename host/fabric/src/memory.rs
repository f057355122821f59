//! The fabric of tests: cages of one process that call each other without a socket. Every call still goes through the
//! envelope and the limits, and links between cages are cut, slowed and frozen on demand. Serves no other purpose.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::envelope::{self, Message};
use super::fabric::{CopyId, Fabric, Limits, Local, Service};
use super::places::Places;
use wasmcage_core::call::{Call, Member, Remote};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_protocol::InterfaceError;

/// What several fabrics join to reach each other.
#[derive(Clone, Default)]
pub(super) struct Network(Arc<Shared>);

#[derive(Default)]
struct Shared {
    served: Mutex<Vec<Arc<Served>>>,
    links: watch::Sender<Links>,
}

/// State of the way between two cages or copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// Calls arrive, and answers leave, this much later.
    Slow(Duration),
    /// Calls arrive and run; answers wait until the link is set anew.
    Frozen,
    /// Nothing passes; what is in flight is lost.
    Cut,
}

/// Those that were set, the latest last; each end is the name of a cage or of a copy.
#[derive(Default)]
struct Links(Vec<(String, String, Link)>);

/// A copy that others can call.
struct Served {
    local: Local,
    limits: Limits,
    service: Arc<dyn Service>,
    drain: Drain,
    peers: Arc<Places<CopyId>>,
    in_work: TaskTracker,
    killed: CancellationToken,
}

/// What became of a call at one copy.
enum Attempt {
    Answered(Result<Payload, DispatchError>),
    /// It surely did not run.
    NotHandedOver,
    Lost,
}

impl Network {
    pub(super) fn join(&self, local: Local, limits: Limits) -> Arc<Memory> {
        Arc::new(Memory { network: self.clone(), local, limits, cages: Places::new(limits.calls_per_cage_max) })
    }

    /// Sets the way between two cages or copies, in both directions.
    pub(super) fn set_link(&self, one: &str, other: &str, link: Link) {
        self.0.links.send_modify(|links| {
            links.0.retain(|(a, b, _)| (a.as_str(), b.as_str()) != (one, other));
            links.0.push((one.to_owned(), other.to_owned(), link));
        });
    }

    /// Ends a copy as if its process were gone: what it works on is dropped and lost.
    pub(super) fn kill(&self, copy: CopyId) {
        self.0.served.lock().retain(|served| {
            let dead = served.local.copy == copy;
            if dead {
                served.killed.cancel();
            }
            !dead
        });
    }
}

impl Links {
    fn between(&self, one: &Local, other: &Local) -> Link {
        let is = |name: &str, end: &Local| *name == *end.cage || *name == end.copy.to_string();
        let set = self.0.iter().rev().find(|(a, b, _)| is(a, one) && is(b, other) || is(b, one) && is(a, other));
        set.map_or(Link::Up, |(.., link)| *link)
    }
}

/// A cage on a `Network`.
pub(super) struct Memory {
    network: Network,
    local: Local,
    limits: Limits,
    cages: Arc<Places<String>>,
}

#[async_trait]
impl Fabric for Memory {
    async fn advertise(&self, service: Arc<dyn Service>, drain: Drain) -> Result<(), InterfaceError> {
        let served = Arc::new(Served {
            local: self.local.clone(),
            limits: self.limits,
            service,
            drain: drain.clone(),
            peers: Places::new(self.limits.calls_per_peer_max),
            in_work: TaskTracker::new(),
            killed: CancellationToken::new(),
        });
        self.network.0.served.lock().push(served.clone());
        let _gone = Gone(self);
        drain.stopping().await;
        served.in_work.close();
        tokio::select! {
            () = served.in_work.wait() => {}
            () = drain.forcing() => {}
        }
        Ok(())
    }

    fn addresses(&self) -> Vec<String> {
        let advertised = self.network.0.served.lock().iter().any(|served| served.local == self.local);
        advertised.then(|| format!("memory:{}", self.local.copy)).into_iter().collect()
    }
}

/// The end of `advertise`, also when its future is dropped.
struct Gone<'a>(&'a Memory);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.network.kill(self.0.local.copy);
    }
}

#[async_trait]
impl Remote for Memory {
    async fn call(&self, call: Call, copy: Option<&str>) -> Result<Payload, DispatchError> {
        let (bytes, max) = (envelope::body_bytes(&call.arguments), self.limits.body_bytes_max);
        if bytes > max {
            return Err(DispatchError::BadRequest(format!("the arguments have {bytes} bytes, more than {max}")));
        }
        let Some(_place) = self.cages.enter(call.cage.clone()) else {
            let text = format!("{} calls to cage {} have no answer yet", self.cages.max(), call.cage);
            return Err(DispatchError::Overloaded(text));
        };
        let late = || DispatchError::DeadlineExceeded(format!("cage {} did not answer in time", call.cage));
        let deadline = call.context.deadline;
        if deadline.passed() {
            return Err(late());
        }
        match timeout_at(deadline.instant(), self.attempts(&call, copy)).await {
            Ok(answer) => answer,
            Err(_) => Err(late()),
        }
    }

    fn copies(&self, cage: &str) -> Vec<String> {
        self.reachable(cage, None).iter().map(|served| served.local.copy.to_string()).collect()
    }

    fn members(&self) -> Vec<Member> {
        let links = self.network.0.links.borrow();
        let health = |served: &Served| match links.between(&self.local, &served.local) {
            _ if served.drain.begun() => "draining",
            Link::Up | Link::Slow(_) | Link::Frozen => "connected",
            Link::Cut => "cut off",
        };
        let member = |served: &Arc<Served>| Member {
            cage: served.local.cage.to_string(),
            copy: served.local.copy.to_string(),
            node: served.local.node.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            addresses: vec![format!("memory:{}", served.local.copy)],
            found: "memory".into(),
            health: health(served).into(),
            in_flight: served.in_work.len() as u32,
            latency_us: None,
        };
        self.others().iter().map(member).collect()
    }
}

impl Memory {
    fn others(&self) -> Vec<Arc<Served>> {
        let all = self.network.0.served.lock();
        let other = |served: &&Arc<Served>| served.local.flock == self.local.flock && served.local != self.local;
        all.iter().filter(other).cloned().collect()
    }

    fn reachable(&self, cage: &str, copy: Option<&str>) -> Vec<Arc<Served>> {
        let mut all = self.others();
        let links = self.network.0.links.borrow();
        all.retain(|served| {
            let wanted = *served.local.cage == *cage && copy.is_none_or(|copy| served.local.copy.to_string() == copy);
            wanted && !served.drain.begun() && links.between(&self.local, &served.local) != Link::Cut
        });
        all
    }

    async fn attempts(&self, call: &Call, copy: Option<&str>) -> Result<Payload, DispatchError> {
        let mut tried = Vec::new();
        let mut failure = DispatchError::NoSuchCage(format!("no copy of cage {} can be reached", call.cage));
        loop {
            let mut left = self.reachable(&call.cage, copy);
            left.retain(|served| !tried.contains(&served.local.copy));
            let Some(served) = left.iter().min_by_key(|served| (served.in_work.len(), fastrand::u32(..))) else {
                return Err(failure);
            };
            tried.push(served.local.copy);
            match self.attempt(call, served).await? {
                Attempt::Answered(answer) => return answer,
                Attempt::NotHandedOver => {}
                Attempt::Lost => {
                    failure = DispatchError::Lost(format!("copy {} of cage {} is gone", served.local.copy, call.cage));
                    if !call.idempotent {
                        return Err(failure);
                    }
                }
            }
        }
    }

    async fn attempt(&self, call: &Call, served: &Served) -> Result<Attempt, DispatchError> {
        let message = envelope::encode_call(call)?;
        let link = |links: &Links| links.between(&self.local, &served.local);
        let mut links = self.network.0.links.subscribe();
        let mut cuts = links.clone();
        if link(&links.borrow_and_update()) == Link::Cut || served.drain.begun() {
            return Ok(Attempt::NotHandedOver);
        }
        let passing = async {
            let now = link(&links.borrow_and_update());
            wait(now).await;
            let answer = served.run(message, &self.local).await;
            // The network outlives the call: this fabric holds it.
            let now = links.wait_for(|links| link(links) != Link::Frozen).await.map(|links| link(&links));
            wait(now.unwrap_or(Link::Up)).await;
            answer
        };
        tokio::select! {
            biased;
            _ = cuts.wait_for(|links| link(links) == Link::Cut) => Ok(Attempt::Lost),
            () = served.killed.cancelled() => Ok(Attempt::Lost),
            answer = passing => {
                let answer = envelope::decode_answer(answer).map_err(|error| DispatchError::Host(error.to_string()))?;
                Ok(Attempt::Answered(answer))
            }
        }
    }
}

impl Served {
    /// Runs within the caller's future, so that dropping that ends the call here.
    async fn run(&self, message: Message, caller: &Local) -> Message {
        let _token = self.in_work.token();
        let (bytes, max) = (message.body.len(), self.limits.body_bytes_max);
        let result = match (self.peers.enter(caller.copy), envelope::decode_call(message, &caller.cage)) {
            _ if bytes > max => {
                Err(DispatchError::BadRequest(format!("the arguments have {bytes} bytes, more than {max}")))
            }
            (None, _) => Err(DispatchError::Overloaded(format!(
                "{} calls of cage {} have no answer yet",
                self.peers.max(),
                caller.cage
            ))),
            (Some(_), Err(malformed)) => Err(DispatchError::BadRequest(malformed.to_string())),
            (Some(_place), Ok(call)) => self.service.serve(call).await,
        };
        envelope::encode_answer(result, self.limits.body_bytes_max)
    }
}

async fn wait(link: Link) {
    match link {
        Link::Slow(delay) => tokio::time::sleep(delay).await,
        Link::Up | Link::Frozen | Link::Cut => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract::{Bench, Running, call, call_of, contract};
    use super::*;

    #[derive(Default)]
    struct MemoryBench(Network);

    #[async_trait]
    impl Bench for MemoryBench {
        async fn join(&self, local: &Local, limits: Limits) -> Arc<dyn Fabric> {
            self.0.join(local.clone(), limits)
        }

        async fn kill(&self, local: &Local, _: Arc<dyn Fabric>) {
            self.0.kill(local.copy);
        }
    }

    contract!(Arc::new(MemoryBench::default()));

    async fn pair() -> (MemoryBench, Arc<dyn Fabric>, Running) {
        let bench = MemoryBench::default();
        let worker = Running::start(&bench, "worker").await;
        let front = bench.join(&Running::local("default", "front"), Limits::default()).await;
        (bench, front, worker)
    }

    #[tokio::test]
    async fn a_cut_link_loses_what_is_in_flight_and_heals() {
        let (bench, front, worker) = pair().await;
        let waiting = tokio::spawn({
            let front = front.clone();
            async move { front.call(call("wait"), None).await }
        });
        worker.probe.until(|counts| counts.begun == 1).await;
        bench.0.set_link("front", "worker", Link::Cut);
        assert!(matches!(waiting.await.unwrap(), Err(DispatchError::Lost(_))));
        worker.probe.until(|counts| counts.dropped == 1).await;
        assert!(matches!(front.call(call("echo"), None).await, Err(DispatchError::NoSuchCage(_))));
        assert_eq!(worker.probe.counts().begun, 1);
        bench.0.set_link("front", "worker", Link::Up);
        front.call(call("echo"), None).await.unwrap();
    }

    #[tokio::test]
    async fn a_slow_link_takes_its_time_and_a_frozen_one_all_of_it() {
        let (bench, front, worker) = pair().await;
        let copy = worker.local.copy.to_string();
        bench.0.set_link("front", &copy, Link::Slow(Duration::from_millis(50)));
        let begun = tokio::time::Instant::now();
        front.call(call("echo"), None).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100));
        bench.0.set_link("front", &copy, Link::Frozen);
        let call = call_of("worker", "echo", Payload::Json("{}".into()), Duration::from_millis(200));
        assert!(matches!(front.call(call, None).await, Err(DispatchError::DeadlineExceeded(_))));
        assert_eq!(worker.probe.counts().begun, 2);
    }
}
