//! What stands behind an interface in tests: it does what the test says, and remembers what it was asked.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use wasmcage_core::body::StreamBody;
use wasmcage_core::call::{Call, CallAction, Remote};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Deadline, Payload, Reply, Request, RequestContext};
use wasmcage_core::run_to_end::RunToEnd;
use wasmcage_protocol::{Dispatch, Route, RouteKind};
use wasmcage_store::CallEntry;

/// What becomes of requests from now on.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// A request's answer is its body; a call's, its arguments.
    Echo,
    /// The same, once `TestDispatch::release` has let it go.
    Wait,
    Fail(fn() -> DispatchError),
    /// As a mistake in the code of the host would.
    Panic,
    /// There is no version of the module, which has had a file since the start.
    NoModule,
}

/// Requests that have come so far, and those of them that have ended.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    begun: usize,
    ended: usize,
    /// Times that an interface looked for a version of its module in vain.
    without_module: usize,
}

pub struct TestDispatch {
    behaviour: Mutex<Behaviour>,
    counts: watch::Sender<Counts>,
    /// Bodies and arguments of the requests that have come; the id of a retried call.
    payloads: Mutex<Vec<Bytes>>,
    gate: Semaphore,
}

impl Default for TestDispatch {
    fn default() -> Self {
        Self {
            behaviour: Mutex::new(Behaviour::Echo),
            counts: watch::Sender::default(),
            payloads: Mutex::default(),
            gate: Semaphore::new(0),
        }
    }
}

/// Counts the end of a request, whichever way it ends.
struct Ended(Arc<TestDispatch>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.counts.send_modify(|counts| counts.ended += 1);
    }
}

impl TestDispatch {
    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    /// Lets so many requests go that wait, or will.
    pub fn release(&self, requests: usize) {
        self.gate.add_permits(requests);
    }

    /// How many requests have come.
    pub fn begun(&self) -> usize {
        self.counts.borrow().begun
    }

    /// How many requests have come whose body, or arguments, contain this text, or whose id, of a retried call, does: a
    /// request that came twice counts twice.
    pub fn begun_with(&self, text: &str) -> usize {
        let contains = |payload: &&Bytes| String::from_utf8_lossy(payload).contains(text);
        self.payloads.lock().iter().filter(contains).count()
    }

    /// How often an interface has looked for a version of its module in vain.
    pub fn without_module(&self) -> usize {
        self.counts.borrow().without_module
    }

    /// Resolves when so many requests have come.
    ///
    /// # Panics
    /// After 60 seconds.
    pub async fn until_begun(&self, requests: usize) {
        self.until("come", requests, |counts| counts.begun).await;
    }

    /// Resolves when so many requests have ended.
    ///
    /// # Panics
    /// After 60 seconds.
    pub async fn until_ended(&self, requests: usize) {
        self.until("ended", requests, |counts| counts.ended).await;
    }

    async fn until(&self, what: &str, requests: usize, count: impl Fn(&Counts) -> usize) {
        let mut counts = self.counts.subscribe();
        let reached = counts.wait_for(|counts| count(counts) >= requests);
        let reached = tokio::time::timeout(crate::contract::TIMEOUT, reached).await;
        assert!(reached.is_ok(), "{:?}: {requests} requests have not {what}", *self.counts.borrow());
    }

    async fn serve(self: Arc<Self>, payload: Payload) -> Result<Payload, DispatchError> {
        let thread = std::thread::current();
        assert!(
            thread.name().is_some_and(|name| name.starts_with("lane-")),
            "a guest would run on thread {:?}: the contract wants a lane",
            thread.name()
        );
        self.payloads.lock().push(match &payload {
            Payload::Bytes(bytes) => bytes.clone(),
            Payload::Json(json) => json.clone().into(),
            Payload::Values(values) => values.bytes(),
        });
        // Before it is counted: a test may change the behaviour as soon as it sees the request.
        let behaviour = self.behaviour.lock().clone();
        self.counts.send_modify(|counts| counts.begun += 1);
        let _ended = Ended(self.clone());
        match behaviour {
            Behaviour::Echo => Ok(payload),
            Behaviour::Wait => {
                self.gate.acquire().await.expect("it is never closed").forget();
                Ok(payload)
            }
            Behaviour::Fail(error) => Err(error()),
            Behaviour::Panic => panic!("as the test has asked"),
            Behaviour::NoModule => Err(DispatchError::NoSuchModule("there is no module".to_owned())),
        }
    }
}

/// The `Dispatch` of one interface.
#[derive(Clone)]
pub(crate) struct InterfaceTestDispatch(pub(crate) Arc<TestDispatch>);

#[async_trait]
impl Dispatch for InterfaceTestDispatch {
    fn route(&self) -> Result<Option<Route>, DispatchError> {
        match *self.0.behaviour.lock() {
            Behaviour::NoModule => {
                self.0.counts.send_modify(|counts| counts.without_module += 1);
                Ok(None)
            }
            _ => Ok(Some(Route::new(RouteKind::Whole, Arc::new(())))),
        }
    }

    fn has_had_module(&self) -> bool {
        true
    }

    fn handle(&self, _: Route, request: Request) -> RunToEnd<Result<Reply, DispatchError>> {
        let dispatch = self.0.clone();
        RunToEnd::new(async move {
            match dispatch.serve(Payload::Bytes(request.body)).await? {
                Payload::Bytes(body) => Ok(Reply { status: 200, headers: Vec::new(), body }),
                other => panic!("bytes came, {other:?} is the answer"),
            }
        })
    }

    async fn stream(
        &self,
        _: Route,
        _: Arc<RequestContext>,
        _: http::Request<StreamBody>,
        _: Duration,
    ) -> Result<http::Response<StreamBody>, DispatchError> {
        panic!("no route of this dispatch is for a request that streams");
    }

    async fn call(
        &self,
        _: Arc<RequestContext>,
        _: &str,
        _: &str,
        arguments: Payload,
    ) -> Result<Payload, DispatchError> {
        self.0.clone().serve(arguments).await
    }

    async fn answer_call(&self, call: Call) -> Result<Payload, DispatchError> {
        assert!(matches!(call.action, CallAction::Run { .. }), "{call:?}");
        self.0.clone().serve(call.arguments).await
    }

    async fn attempt(&self, entry: &CallEntry, _: Vec<u8>, _: Deadline) -> Result<(), DispatchError> {
        self.0.clone().serve(Payload::Bytes(entry.id.clone().into())).await.map(drop)
    }

    fn flock(&self) -> String {
        "default".to_owned()
    }

    fn set_remote(&self, _: Arc<dyn Remote>) {}

    fn unset_remote(&self, _: &Arc<dyn Remote>) {}
}
