//! A fabric for tests: cages of one process that call each other without a socket. Every call still goes through the
//! envelope and the limits, and a test can cut, slow and freeze the links between cages.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::envelope::{self, Message};
use super::fabric::{CallHandler, CallLimits, CopyId, Fabric, LocalCopy};
use super::keyed_limit::KeyedLimit;
use wasmcage_core::call::{Call, Member, Remote};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_protocol::InterfaceError;

/// A network that fabrics join to reach each other.
#[derive(Clone, Default)]
pub(super) struct MemoryNetwork(Arc<NetworkState>);

#[derive(Default)]
struct NetworkState {
    served: Mutex<Vec<Arc<ServedCopy>>>,
    links: watch::Sender<LinkStates>,
}

/// State of the link between two cages or copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkState {
    Up,
    /// Calls and answers are each delayed by this much.
    Slow(Duration),
    /// Calls arrive and run; answers wait until the state changes.
    Frozen,
    /// Nothing passes; calls in flight are lost.
    Cut,
}

/// The states that were set, the latest last; each end is the name of a cage or of a copy.
#[derive(Default)]
struct LinkStates(Vec<(String, String, LinkState)>);

/// A copy that others can call.
struct ServedCopy {
    local: LocalCopy,
    limits: CallLimits,
    handler: Arc<dyn CallHandler>,
    drain: Drain,
    peers: Arc<KeyedLimit<CopyId>>,
    in_flight: TaskTracker,
    killed: CancellationToken,
}

/// Outcome of a call at one copy.
enum MemoryOutcome {
    Answered(Result<Payload, DispatchError>),
    /// The call surely did not run.
    NotHandedOver,
    Lost,
}

impl MemoryNetwork {
    pub(super) fn join(&self, local: LocalCopy, limits: CallLimits) -> Arc<MemoryFabric> {
        Arc::new(MemoryFabric {
            network: self.clone(),
            local,
            limits,
            cages: KeyedLimit::new(limits.calls_per_cage_max),
        })
    }

    /// Sets the state of the link between two cages or copies, in both directions.
    pub(super) fn set_link(&self, one: &str, other: &str, link: LinkState) {
        self.0.links.send_modify(|links| {
            links.0.retain(|(a, b, _)| (a.as_str(), b.as_str()) != (one, other));
            links.0.push((one.to_owned(), other.to_owned(), link));
        });
    }

    /// Ends a copy as if its process had been killed: its calls are dropped and lost.
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

impl LinkStates {
    fn between(&self, one: &LocalCopy, other: &LocalCopy) -> LinkState {
        let is = |name: &str, end: &LocalCopy| *name == *end.cage || *name == end.copy.to_string();
        let set = self.0.iter().rev().find(|(a, b, _)| is(a, one) && is(b, other) || is(b, one) && is(a, other));
        set.map_or(LinkState::Up, |(.., link)| *link)
    }
}

/// A cage on a `MemoryNetwork`.
pub(super) struct MemoryFabric {
    network: MemoryNetwork,
    local: LocalCopy,
    limits: CallLimits,
    cages: Arc<KeyedLimit<String>>,
}

#[async_trait]
impl Fabric for MemoryFabric {
    async fn advertise(&self, handler: Arc<dyn CallHandler>, drain: Drain) -> Result<(), InterfaceError> {
        let served = Arc::new(ServedCopy {
            local: self.local.clone(),
            limits: self.limits,
            handler,
            drain: drain.clone(),
            peers: KeyedLimit::new(self.limits.calls_per_peer_max),
            in_flight: TaskTracker::new(),
            killed: CancellationToken::new(),
        });
        self.network.0.served.lock().push(served.clone());
        let _guard = AdvertiseGuard(self);
        drain.stopping().await;
        served.in_flight.close();
        tokio::select! {
            () = served.in_flight.wait() => {}
            () = drain.forcing() => {}
        }
        Ok(())
    }

    fn addresses(&self) -> Vec<String> {
        let advertised = self.network.0.served.lock().iter().any(|served| served.local == self.local);
        advertised.then(|| format!("memory:{}", self.local.copy)).into_iter().collect()
    }
}

/// Removes the copy at the end of `advertise`, also when its future is dropped.
struct AdvertiseGuard<'a>(&'a MemoryFabric);

impl Drop for AdvertiseGuard<'_> {
    fn drop(&mut self) {
        self.0.network.kill(self.0.local.copy);
    }
}

#[async_trait]
impl Remote for MemoryFabric {
    async fn call(&self, call: Call, copy: Option<&str>) -> Result<Payload, DispatchError> {
        let (bytes, max) = (envelope::body_bytes(&call.arguments), self.limits.body_bytes_max);
        if bytes > max {
            return Err(DispatchError::BadRequest(format!("the arguments have {bytes} bytes, more than {max}")));
        }
        let Some(_permit) = self.cages.try_acquire(call.cage.clone()) else {
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
        let health = |served: &ServedCopy| match links.between(&self.local, &served.local) {
            _ if served.drain.begun() => "draining",
            LinkState::Up | LinkState::Slow(_) | LinkState::Frozen => "connected",
            LinkState::Cut => "cut off",
        };
        let member = |served: &Arc<ServedCopy>| Member {
            cage: served.local.cage.to_string(),
            copy: served.local.copy.to_string(),
            node: served.local.node.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            addresses: vec![format!("memory:{}", served.local.copy)],
            found: "memory".into(),
            health: health(served).into(),
            in_flight: served.in_flight.len() as u32,
            latency_us: None,
        };
        self.others().iter().map(member).collect()
    }
}

impl MemoryFabric {
    fn others(&self) -> Vec<Arc<ServedCopy>> {
        let all = self.network.0.served.lock();
        let other = |served: &&Arc<ServedCopy>| served.local.flock == self.local.flock && served.local != self.local;
        all.iter().filter(other).cloned().collect()
    }

    fn reachable(&self, cage: &str, copy: Option<&str>) -> Vec<Arc<ServedCopy>> {
        let mut all = self.others();
        let links = self.network.0.links.borrow();
        all.retain(|served| {
            let wanted = *served.local.cage == *cage && copy.is_none_or(|copy| served.local.copy.to_string() == copy);
            wanted && !served.drain.begun() && links.between(&self.local, &served.local) != LinkState::Cut
        });
        all
    }

    async fn attempts(&self, call: &Call, copy: Option<&str>) -> Result<Payload, DispatchError> {
        let mut tried = Vec::new();
        let mut failure = DispatchError::NoSuchCage(format!("no copy of cage {} can be reached", call.cage));
        loop {
            let mut left = self.reachable(&call.cage, copy);
            left.retain(|served| !tried.contains(&served.local.copy));
            let Some(served) = left.iter().min_by_key(|served| (served.in_flight.len(), fastrand::u32(..))) else {
                return Err(failure);
            };
            tried.push(served.local.copy);
            match self.attempt(call, served).await? {
                MemoryOutcome::Answered(answer) => return answer,
                MemoryOutcome::NotHandedOver => {}
                MemoryOutcome::Lost => {
                    failure = DispatchError::Lost(format!("copy {} of cage {} is gone", served.local.copy, call.cage));
                    if !call.idempotent {
                        return Err(failure);
                    }
                }
            }
        }
    }

    async fn attempt(&self, call: &Call, served: &ServedCopy) -> Result<MemoryOutcome, DispatchError> {
        let message = envelope::encode_call(call)?;
        let link = |links: &LinkStates| links.between(&self.local, &served.local);
        let mut links = self.network.0.links.subscribe();
        let mut cuts = links.clone();
        if link(&links.borrow_and_update()) == LinkState::Cut || served.drain.begun() {
            return Ok(MemoryOutcome::NotHandedOver);
        }
        let passing = async {
            let now = link(&links.borrow_and_update());
            wait(now).await;
            let answer = served.run(message, &self.local).await;
            // The sender is not dropped during the call: this fabric holds the network.
            let now = links.wait_for(|links| link(links) != LinkState::Frozen).await.map(|links| link(&links));
            wait(now.unwrap_or(LinkState::Up)).await;
            answer
        };
        tokio::select! {
            biased;
            _ = cuts.wait_for(|links| link(links) == LinkState::Cut) => Ok(MemoryOutcome::Lost),
            () = served.killed.cancelled() => Ok(MemoryOutcome::Lost),
            answer = passing => {
                let answer = envelope::decode_answer(answer).map_err(|error| DispatchError::Host(error.to_string()))?;
                Ok(MemoryOutcome::Answered(answer))
            }
        }
    }
}

impl ServedCopy {
    /// Runs a call within the caller's future, so that dropping the future cancels the call.
    async fn run(&self, message: Message, caller: &LocalCopy) -> Message {
        let _token = self.in_flight.token();
        let (bytes, max) = (message.body.len(), self.limits.body_bytes_max);
        let result = match (self.peers.try_acquire(caller.copy), envelope::decode_call(message, &caller.cage)) {
            _ if bytes > max => {
                Err(DispatchError::BadRequest(format!("the arguments have {bytes} bytes, more than {max}")))
            }
            (None, _) => Err(DispatchError::Overloaded(format!(
                "{} calls of cage {} have no answer yet",
                self.peers.max(),
                caller.cage
            ))),
            (Some(_), Err(malformed)) => Err(DispatchError::BadRequest(malformed.to_string())),
            (Some(_permit), Ok(call)) => self.handler.serve(call).await,
        };
        envelope::encode_answer(result, self.limits.body_bytes_max)
    }
}

async fn wait(link: LinkState) {
    match link {
        LinkState::Slow(delay) => tokio::time::sleep(delay).await,
        LinkState::Up | LinkState::Frozen | LinkState::Cut => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract::{RunningCopy, TestBed, call, call_of, contract};
    use super::*;

    #[derive(Default)]
    struct MemoryTestBed(MemoryNetwork);

    #[async_trait]
    impl TestBed for MemoryTestBed {
        async fn join(&self, local: &LocalCopy, limits: CallLimits) -> Arc<dyn Fabric> {
            self.0.join(local.clone(), limits)
        }

        async fn kill(&self, local: &LocalCopy, _: Arc<dyn Fabric>) {
            self.0.kill(local.copy);
        }
    }

    contract!(Arc::new(MemoryTestBed::default()));

    async fn pair() -> (MemoryTestBed, Arc<dyn Fabric>, RunningCopy) {
        let bed = MemoryTestBed::default();
        let worker = RunningCopy::start(&bed, "worker").await;
        let front = bed.join(&RunningCopy::local("default", "front"), CallLimits::default()).await;
        (bed, front, worker)
    }

    #[tokio::test]
    async fn a_cut_link_loses_what_is_in_flight_and_heals() {
        let (bed, front, worker) = pair().await;
        let waiting = tokio::spawn({
            let front = front.clone();
            async move { front.call(call("wait"), None).await }
        });
        worker.handler.until(|counts| counts.begun == 1).await;
        bed.0.set_link("front", "worker", LinkState::Cut);
        assert!(matches!(waiting.await.unwrap(), Err(DispatchError::Lost(_))));
        worker.handler.until(|counts| counts.dropped == 1).await;
        assert!(matches!(front.call(call("echo"), None).await, Err(DispatchError::NoSuchCage(_))));
        assert_eq!(worker.handler.counts().begun, 1);
        bed.0.set_link("front", "worker", LinkState::Up);
        front.call(call("echo"), None).await.unwrap();
    }

    #[tokio::test]
    async fn a_slow_link_takes_its_time_and_a_frozen_one_all_of_it() {
        let (bed, front, worker) = pair().await;
        let copy = worker.local.copy.to_string();
        bed.0.set_link("front", &copy, LinkState::Slow(Duration::from_millis(50)));
        let begun = tokio::time::Instant::now();
        front.call(call("echo"), None).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100));
        bed.0.set_link("front", &copy, LinkState::Frozen);
        let call = call_of("worker", "echo", Payload::Json("{}".into()), Duration::from_millis(200));
        assert!(matches!(front.call(call, None).await, Err(DispatchError::DeadlineExceeded(_))));
        assert_eq!(worker.handler.counts().begun, 2);
    }
}
