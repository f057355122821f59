//! The contract of fabrics, as tests. A fabric's own tests implement `TestBed`, which starts and kills copies of cages,
//! and pass it to the macro:
//!
//! ```ignore
//! mod unix {
//!     contract!(Arc::new(LanTestBed::unix()));
//! }
//! mod tls {
//!     contract!(LanTestBed::tls().await); // Arc<dyn TestBed>; an expression that may await
//! }
//! ```
//!
//! Each promise becomes a test of its own, with a test bed of its own. A bed that is not available panics with the reason.
//!
//! Where fabrics differ, `FabricTraits` has the difference, which is asserted.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::fabric::{CallHandler, CallLimits, CopyId, Fabric, LocalCopy};
use wasmcage_core::call::{Call, CallAction};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Facts, Payload, RequestContext};
use wasmcage_core::telemetry::Level;
use wasmcage_protocol::InterfaceError;

/// Timeout of each test.
const PROMISE_TIMEOUT: Duration = Duration::from_secs(60);
/// An operation without waiting takes less than this even on a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes copies of cages on a fabric. One test bed is made for each test.
#[async_trait]
pub(super) trait TestBed: Send + Sync {
    /// Makes the fabric of a new copy of a cage. It can call at once; others can call it once it is advertised.
    async fn join(&self, local: &LocalCopy, limits: CallLimits) -> Arc<dyn Fabric>;

    /// Called when that copy has an address. On a fabric without discovery, tells the address to other copies.
    async fn introduce(&self, _: &LocalCopy, _: &Arc<dyn Fabric>) {}

    /// Ends a copy as if its process had been killed. The future of its `advertise` has been dropped before.
    async fn kill(&self, local: &LocalCopy, fabric: Arc<dyn Fabric>);

    fn traits(&self) -> FabricTraits {
        FabricTraits::default()
    }
}

/// Properties in which fabrics differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct FabricTraits {
    /// Time until the death of a copy is noticed: then its calls are lost, and it is no longer listed.
    pub(super) death_noticed_within: Duration,
}

impl Default for FabricTraits {
    fn default() -> Self {
        Self { death_noticed_within: Duration::from_secs(3) }
    }
}

/// Defines a test for each promise. Takes an expression of type `Arc<dyn TestBed>`.
macro_rules! contract {
    ($bed:expr) => {
        $crate::contract::contract!(@ $bed;
            answers_arrive
            errors_arrive
            the_context_travels
            a_retried_call_is_handed_over
            a_caller_is_who_the_fabric_says
            all_copies_are_used
            a_named_copy_is_reached
            an_unknown_cage_is_reported_at_once
            bodies_over_the_limit_are_refused
            a_deadline_ends_the_call_on_both_sides
            a_caller_that_leaves_ends_the_call
            a_draining_copy_finishes_what_it_has
            calls_of_a_dead_copy_are_lost_or_tried_elsewhere
            calls_avoid_a_dead_copy
            a_copy_that_comes_back_is_used
            many_calls_at_once_get_their_own_answers
            flocks_do_not_see_each_other
            calls_to_a_cage_are_bounded
            calls_of_a_peer_are_bounded
            members_are_known
        );
    };
    (@ $bed:expr; $($promise:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let bed: std::sync::Arc<dyn $crate::contract::TestBed> = $bed;
                $crate::contract::within_bounds($crate::contract::$promise(bed)).await;
            }
        )*
    };
}
pub(super) use contract;

pub(super) async fn within_bounds(promise: impl Future<Output = ()>) {
    timeout(PROMISE_TIMEOUT, promise).await.expect("a promise is kept within a minute");
}

/// An advertised copy of a cage, with the handler of its calls.
pub(super) struct RunningCopy {
    pub(super) local: LocalCopy,
    pub(super) fabric: Arc<dyn Fabric>,
    pub(super) handler: Arc<TestHandler>,
    drain: Drain,
    advertised: JoinHandle<Result<(), InterfaceError>>,
}

impl RunningCopy {
    pub(super) fn local(flock: &str, cage: &str) -> LocalCopy {
        LocalCopy { flock: flock.into(), cage: cage.into(), copy: CopyId::random(), node: "node-1".into() }
    }

    pub(super) async fn start(bed: &dyn TestBed, cage: &str) -> Self {
        Self::start_as(bed, Self::local("default", cage), CallLimits::default()).await
    }

    pub(super) async fn start_as(bed: &dyn TestBed, local: LocalCopy, limits: CallLimits) -> Self {
        let fabric = bed.join(&local, limits).await;
        let (handler, drain) = (TestHandler::new(local.copy), Drain::new());
        let advertised = tokio::spawn({
            let (fabric, handler, drain) = (fabric.clone(), handler.clone(), drain.clone());
            async move { fabric.advertise(handler, drain).await }
        });
        until("the copy has an address", || !fabric.addresses().is_empty()).await;
        bed.introduce(&local, &fabric).await;
        Self { local, fabric, handler, drain, advertised }
    }

    async fn kill(self, bed: &dyn TestBed) {
        self.advertised.abort();
        // It was aborted, or has ended just before.
        let _ = self.advertised.await;
        bed.kill(&self.local, self.fabric).await;
    }

    fn name(&self) -> String {
        self.local.copy.to_string()
    }
}

/// The handler of every copy. Its functions are `echo`; `copy`, which returns the copy's name; `error`, which fails with
/// the code in its argument; `bytes`, which returns the number of bytes in its argument; and `wait`, which returns after
/// a call of `release`.
pub(super) struct TestHandler {
    copy: CopyId,
    calls: Mutex<Vec<Call>>,
    counts: watch::Sender<CallCounts>,
    gate: Semaphore,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CallCounts {
    pub(super) begun: usize,
    pub(super) ended: usize,
    /// Calls that were dropped before they ended.
    pub(super) dropped: usize,
}

impl TestHandler {
    fn new(copy: CopyId) -> Arc<Self> {
        Arc::new(Self { copy, calls: Mutex::default(), counts: watch::Sender::default(), gate: Semaphore::new(0) })
    }

    pub(super) fn counts(&self) -> CallCounts {
        *self.counts.borrow()
    }

    pub(super) async fn until(&self, reached: impl FnMut(&CallCounts) -> bool) {
        let mut counts = self.counts.subscribe();
        let waiting = async { counts.wait_for(reached).await.map(|counts| *counts) };
        match timeout(PROMISE_TIMEOUT / 2, waiting).await {
            Ok(reached) => drop(reached.expect("the handler holds the sender")),
            Err(_) => panic!("the service has {:?}", self.counts()),
        }
    }

    fn release(&self, calls: usize) {
        self.gate.add_permits(calls);
    }

    fn last(&self) -> Call {
        self.calls.lock().last().expect("it was called").clone()
    }
}

struct CallGuard<'a>(&'a TestHandler, bool);

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        self.0.counts.send_modify(|counts| if self.1 { counts.ended += 1 } else { counts.dropped += 1 });
    }
}

#[async_trait]
impl CallHandler for TestHandler {
    async fn serve(&self, call: Call) -> Result<Payload, DispatchError> {
        // Bodies are not kept: some are large.
        self.calls.lock().push(Call { arguments: Payload::Bytes(Bytes::new()), ..call.clone() });
        self.counts.send_modify(|counts| counts.begun += 1);
        let mut begun = CallGuard(self, false);
        let text = match &call.arguments {
            Payload::Json(json) => json.clone(),
            Payload::Bytes(_) | Payload::Values(_) => String::new(),
        };
        let function = match &call.action {
            CallAction::Run { function, .. } => function.as_str(),
            CallAction::AcceptRetried => "echo",
        };
        let answer = match function {
            "echo" => Ok(call.arguments),
            "copy" => Ok(Payload::Json(self.copy.to_string())),
            "error" => Err(error_of(&text)),
            "bytes" => Ok(pattern(text.parse().expect("a number"), 0)),
            "wait" => {
                self.gate.acquire().await.expect("never closed").forget();
                Ok(Payload::Json(self.copy.to_string()))
            }
            other => Err(DispatchError::NoSuchFunction(other.into())),
        };
        begun.1 = true;
        answer
    }
}

const ERROR_TEXT: &str = "why it went wrong: é";

fn error_of(code: &str) -> DispatchError {
    let text = ERROR_TEXT.to_owned();
    let all = [
        DispatchError::BadRequest(text.clone()),
        DispatchError::NoSuchCage(text.clone()),
        DispatchError::NoSuchModule(text.clone()),
        DispatchError::NoSuchFunction(text.clone()),
        DispatchError::NotPermitted(text.clone()),
        DispatchError::Refused(text.clone()),
        DispatchError::Failed(text.clone()),
        DispatchError::Trap(text.clone()),
        DispatchError::DeadlineExceeded(text.clone()),
        DispatchError::Lost(text.clone()),
        DispatchError::Overloaded(text.clone()),
        DispatchError::Draining,
        DispatchError::Host(text.clone()),
        DispatchError::Unreachable(text),
    ];
    all.into_iter().find(|error| error.code() == code).expect("a code of an error")
}

/// Returns bytes that differ from those of another seed or length.
fn pattern(bytes: usize, seed: u8) -> Payload {
    let byte = |at: usize| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8).wrapping_add(seed);
    Payload::Bytes((0..bytes).map(byte).collect::<Vec<u8>>().into())
}

/// Returns a call of a function of `worker/work`, made by `front/caller`.
pub(super) fn call(function: &str) -> Call {
    call_of("worker", function, Payload::Json("{}".into()), CALL_TIMEOUT)
}

fn call_with(function: &str, arguments: impl Into<String>) -> Call {
    call_of("worker", function, Payload::Json(arguments.into()), CALL_TIMEOUT)
}

pub(super) fn call_of(cage: &str, function: &str, arguments: Payload, timeout: Duration) -> Call {
    let context = RequestContext::new("my_http".into(), "http", timeout, Arc::default());
    Call {
        context: Arc::new(context.for_call("front", "caller", None)),
        cage: cage.into(),
        action: CallAction::Run { module: "work".into(), function: function.into() },
        arguments,
        idempotent: false,
    }
}

/// Makes a cage that only calls.
async fn caller(bed: &dyn TestBed) -> Arc<dyn Fabric> {
    bed.join(&RunningCopy::local("default", "front"), CallLimits::default()).await
}

fn started(fabric: &Arc<dyn Fabric>, call: Call, copy: Option<String>) -> JoinHandle<Result<Payload, DispatchError>> {
    let fabric = fabric.clone();
    tokio::spawn(async move { fabric.call(call, copy.as_deref()).await })
}

async fn copy_that_answers(fabric: &Arc<dyn Fabric>) -> String {
    match fabric.call(call("copy"), None).await {
        Ok(Payload::Json(copy)) => copy,
        other => panic!("no copy answered: {other:?}; members: {:?}", fabric.members()),
    }
}

async fn sees(fabric: &Arc<dyn Fabric>, cage: &str, expected: &[&RunningCopy]) {
    let mut names: Vec<_> = expected.iter().map(|copy| copy.name()).collect();
    names.sort();
    let seen = || {
        let mut copies = fabric.copies(cage);
        copies.sort();
        copies == names
    };
    if timeout(PROMISE_TIMEOUT / 2, until_true(&seen)).await.is_err() {
        panic!("copies {names:?} of cage {cage} were expected; members: {:?}", fabric.members());
    }
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    if timeout(PROMISE_TIMEOUT / 2, until_true(&reached)).await.is_err() {
        panic!("waited in vain until {what}");
    }
}

async fn until_true(reached: &impl Fn() -> bool) {
    while !reached() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[track_caller]
fn check_error(result: Result<Payload, DispatchError>, expected: &[&str]) -> String {
    match result {
        Err(error) if expected.contains(&error.code()) => error.to_string(),
        Err(error) => panic!("{expected:?} expected, got {error:?}"),
        Ok(payload) => {
            panic!("{expected:?} expected, got an answer of {} bytes", super::envelope::body_bytes(&payload))
        }
    }
}

pub(super) async fn answers_arrive(bed: Arc<dyn TestBed>) {
    let worker = RunningCopy::start(&*bed, "worker").await;
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&worker]).await;
    let json = Payload::Json(r#"{"args":["é",1.5,null]}"#.into());
    let bodies = [0, 1, 2_000, 64 << 10, (64 << 10) + 1, 1_000_000, 16 << 20].map(|bytes| pattern(bytes, 7));
    for body in [json, Payload::Json(String::new())].into_iter().chain(bodies) {
        let bytes = super::envelope::body_bytes(&body);
        let answer = front.call(call_of("worker", "echo", body.clone(), CALL_TIMEOUT), None).await;
        assert!(answer.as_ref().is_ok_and(|answer| *answer == body), "{bytes} bytes: {:?}", answer.err());
    }
}

pub(super) async fn errors_arrive(bed: Arc<dyn TestBed>) {
    let worker = RunningCopy::start(&*bed, "worker").await;
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&worker]).await;
    let codes = [
        "bad-request",
        "no-such-cage",
        "no-such-module",
        "no-such-function",
        "not-permitted",
        "refused",
        "failed",
        "trapped",
        "deadline-exceeded",
        "lost",
        "overloaded",
        "draining",
        "host-error",
        "unreachable",
    ];
    for code in codes {
        let text = check_error(front.call(call_with("error", code), None).await, &[code]);
        assert!(code == "draining" || text.ends_with(ERROR_TEXT), "{text}");
    }
    assert_eq!(worker.handler.counts().begun, codes.len(), "an answered call ran again");
}

pub(super) async fn the_context_travels(bed: Arc<dyn TestBed>) {
    let worker = RunningCopy::start(&*bed, "worker").await;
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&worker]).await;
    let mut facts = Facts::default();
    facts.set(Facts::USERNAME, "alice");
    facts.set(Facts::PASSWORD, "secret");
    let context = RequestContext::new("my_http".into(), "http", Duration::from_secs(20), Arc::new(facts));
    context.set_level(Level::Debug);
    context.describe("invoice 7");
    let sent = Arc::new(context.for_call("front", "caller", None));
    let made = Call { context: sent.clone(), idempotent: true, ..call("echo") };
    front.call(made, None).await.unwrap();
    let received = worker.handler.last();
    let action = CallAction::Run { module: "work".into(), function: "echo".into() };
    assert_eq!((&*received.cage, &received.action, received.idempotent), ("worker", &action, true));
    let here = &received.context;
    assert_eq!((here.id, here.level(), here.description()), (sent.id, sent.level(), sent.description()));
    assert_eq!((&here.callers, &*here.interface, &*here.protocol), (&sent.callers, "my_http", "http"));
    let left = here.deadline.left();
    assert!((Duration::from_secs(5)..=Duration::from_secs(20)).contains(&left), "{left:?} left of 20 s");
    let fact = |name| here.facts.get(name);
    assert_eq!((fact(Facts::USERNAME), fact(Facts::PASSWORD)), (Some("alice"), None));
    assert_eq!((fact(Facts::ORIGIN_CAGE), fact(Facts::SOURCE_CAGE)), (Some("front"), Some("front")));
    assert_eq!(fact(Facts::SOURCE_MODULE), Some("caller"));
}

pub(super) async fn a_retried_call_is_handed_over(bed: Arc<dyn TestBed>) {
    let worker = RunningCopy::start(&*bed, "worker").await;
    let front = caller(&*bed).await;
    let handed_over = Call { action: CallAction::AcceptRetried, ..call_with("", "[1]") };
    let accepted = front.call(handed_over, None).await.unwrap();
    assert_eq!(accepted, Payload::Json("[1]".into()));
    assert_eq!(worker.handler.last().action, CallAction::AcceptRetried);
}

pub(super) async fn a_caller_is_who_the_fabric_says(bed: Arc<dyn TestBed>) {
    let worker = RunningCopy::start(&*bed, "worker").await;
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&worker]).await;
    let context = RequestContext::new("my_http".into(), "http", CALL_TIMEOUT, Arc::default());
    let claimed = Arc::new(context.for_call("admin", "console", None));
    front.call(Call { context: claimed, ..call("echo") }, None).await.unwrap();
    let received = worker.handler.last().context;
    assert_eq!(received.callers.last().map(|last| &**last), Some("front/"));
    assert_eq!(received.facts.get(Facts::SOURCE_CAGE), Some("front"));
}

pub(super) async fn all_copies_are_used(bed: Arc<dyn TestBed>) {
    let (one, two) = (RunningCopy::start(&*bed, "worker").await, RunningCopy::start(&*bed, "worker").await);
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&one, &two]).await;
    let calling = async {
        while one.handler.counts().begun == 0 || two.handler.counts().begun == 0 {
            front.call(call("echo"), None).await.unwrap();
        }
    };
    if timeout(PROMISE_TIMEOUT / 2, calling).await.is_err() {
        panic!("one of two copies was never called; members: {:?}", front.members());
    }
}

pub(super) async fn a_named_copy_is_reached(bed: Arc<dyn TestBed>) {
    let (one, two) = (RunningCopy::start(&*bed, "worker").await, RunningCopy::start(&*bed, "worker").await);
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&one, &two]).await;
    for copy in [&one, &two, &one, &one, &two, &two] {
        let answer = front.call(call("copy"), Some(&copy.name())).await.unwrap();
        assert_eq!(answer, Payload::Json(copy.name()));
    }
    for unknown in [CopyId::random().to_string(), "no copy".to_owned()] {
        check_error(front.call(call("copy"), Some(&unknown)).await, &["no-such-cage"]);
    }
}

pub(super) async fn an_unknown_cage_is_reported_at_once(bed: Arc<dyn TestBed>) {
    let front = caller(&*bed).await;
    let unknown = front.call(call("echo"), None);
    let text = check_error(timeout(AT_ONCE, unknown).await.expect("at once"), &["no-such-cage"]);
    assert!(text.contains("worker"), "{text}");
}

pub(super) async fn bodies_over_the_limit_are_refused(bed: Arc<dyn TestBed>) {
    let limits = CallLimits { body_bytes_max: 100_000, ..CallLimits::default() };
    let worker = RunningCopy::start_as(&*bed, RunningCopy::local("default", "worker"), limits).await;
    let front = bed.join(&RunningCopy::local("default", "front"), limits).await;
    let generous = caller(&*bed).await;
    for fabric in [&front, &generous] {
        sees(fabric, "worker", &[&worker]).await;
    }
    let echo = |bytes| call_of("worker", "echo", pattern(bytes, 1), CALL_TIMEOUT);
    let text = check_error(front.call(echo(100_001), None).await, &["bad-request"]);
    assert!(text.contains("100001") && text.contains("100000"), "{text}");
    // A caller with a higher limit than the callee gets that error from the callee, or its connection is closed.
    check_error(generous.call(echo(100_001), None).await, &["bad-request", "lost"]);
    assert_eq!(worker.handler.counts().begun, 0);
    let text = check_error(front.call(call_with("bytes", "100001"), None).await, &["failed"]);
    assert!(text.contains("100001") && text.contains("100000"), "{text}");
    assert_eq!(front.call(echo(100_000), None).await.unwrap(), pattern(100_000, 1));
    assert_eq!(front.call(call_with("bytes", "100000"), None).await.unwrap(), pattern(100_000, 0));
}

pub(super) async fn a_deadline_ends_the_call_on_both_sides(bed: Arc<dyn TestBed>) {
    let worker = RunningCopy::start(&*bed, "worker").await;
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&worker]).await;
    let hasty = call_of("worker", "wait", Payload::Json("{}".into()), Duration::from_millis(300));
    let deadline = hasty.context.deadline;
    check_error(front.call(hasty, None).await, &["deadline-exceeded"]);
    assert!(deadline.passed());
    worker.handler.until(|counts| counts.dropped == 1).await;
    let late = call_of("worker", "echo", Payload::Json("{}".into()), Duration::ZERO);
    check_error(front.call(late, None).await, &["deadline-exceeded"]);
    assert_eq!(worker.handler.counts().begun, 1);
    front.call(call("echo"), None).await.unwrap();
}

pub(super) async fn a_caller_that_leaves_ends_the_call(bed: Arc<dyn TestBed>) {
    let worker = RunningCopy::start(&*bed, "worker").await;
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&worker]).await;
    let waiting = started(&front, call("wait"), None);
    worker.handler.until(|counts| counts.begun == 1).await;
    waiting.abort();
    worker.handler.until(|counts| counts.dropped == 1).await;
    front.call(call("echo"), None).await.unwrap();
}

pub(super) async fn a_draining_copy_finishes_what_it_has(bed: Arc<dyn TestBed>) {
    let (one, two) = (RunningCopy::start(&*bed, "worker").await, RunningCopy::start(&*bed, "worker").await);
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&one, &two]).await;
    let waiting = started(&front, call("wait"), Some(one.name()));
    one.handler.until(|counts| counts.begun == 1).await;
    one.drain.begin();
    for _ in 0..50 {
        assert_eq!(copy_that_answers(&front).await, two.name());
    }
    check_error(front.call(call("copy"), Some(&one.name())).await, &["no-such-cage", "unreachable", "draining"]);
    assert!(!one.advertised.is_finished(), "a call is still in work");
    one.handler.release(1);
    assert_eq!(waiting.await.unwrap().unwrap(), Payload::Json(one.name()));
    one.advertised.await.unwrap().unwrap();
    assert_eq!(one.handler.counts().begun, 1);
    sees(&front, "worker", &[&two]).await;
    two.drain.begin();
    two.advertised.await.unwrap().unwrap();
    check_error(front.call(call("copy"), None).await, &["no-such-cage", "unreachable", "draining"]);
}

pub(super) async fn calls_of_a_dead_copy_are_lost_or_tried_elsewhere(bed: Arc<dyn TestBed>) {
    let noticed = bed.traits().death_noticed_within + AT_ONCE;
    let (one, two) = (RunningCopy::start(&*bed, "worker").await, RunningCopy::start(&*bed, "worker").await);
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&one, &two]).await;
    let tried_again = started(&front, Call { idempotent: true, ..call("wait") }, None);
    until("a copy has the call", || one.handler.counts().begun + two.handler.counts().begun == 1).await;
    let (dying, other) = if one.handler.counts().begun == 1 { (one, two) } else { (two, one) };
    let named = started(&front, call("wait"), Some(dying.name()));
    dying.handler.until(|counts| counts.begun == 2).await;
    let handler = dying.handler.clone();
    dying.kill(&*bed).await;
    other.handler.release(1);
    let lost = timeout(noticed, named).await.expect("a dead copy is noticed").unwrap();
    check_error(lost, &["lost"]);
    let answer = timeout(noticed, tried_again).await.expect("a dead copy is noticed").unwrap();
    assert_eq!(answer.unwrap(), Payload::Json(other.name()));
    assert_eq!(other.handler.counts().begun, 1);
    handler.until(|counts| counts.dropped == 2).await;
}

pub(super) async fn calls_avoid_a_dead_copy(bed: Arc<dyn TestBed>) {
    let noticed = bed.traits().death_noticed_within + AT_ONCE;
    let (one, two) = (RunningCopy::start(&*bed, "worker").await, RunningCopy::start(&*bed, "worker").await);
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&one, &two]).await;
    copy_that_answers(&front).await;
    one.kill(&*bed).await;
    for _ in 0..20 {
        // The death may not be noticed yet, so only an idempotent call is sure to be answered.
        let answer = front.call(Call { idempotent: true, ..call("copy") }, None).await;
        assert_eq!(answer.unwrap(), Payload::Json(two.name()));
    }
    timeout(noticed, sees(&front, "worker", &[&two])).await.expect("a dead copy is no longer named");
    for _ in 0..50 {
        assert_eq!(copy_that_answers(&front).await, two.name());
    }
}

pub(super) async fn a_copy_that_comes_back_is_used(bed: Arc<dyn TestBed>) {
    let first = RunningCopy::start(&*bed, "worker").await;
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&first]).await;
    assert_eq!(copy_that_answers(&front).await, first.name());
    first.kill(&*bed).await;
    sees(&front, "worker", &[]).await;
    check_error(front.call(call("echo"), None).await, &["no-such-cage"]);
    let again = RunningCopy::start(&*bed, "worker").await;
    sees(&front, "worker", &[&again]).await;
    assert_eq!(copy_that_answers(&front).await, again.name());
}

pub(super) async fn many_calls_at_once_get_their_own_answers(bed: Arc<dyn TestBed>) {
    let (one, two) = (RunningCopy::start(&*bed, "worker").await, RunningCopy::start(&*bed, "worker").await);
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&one, &two]).await;
    let calls = (0..200usize).map(|index| {
        let body = pattern([0, 1, 200, 64 << 10, 300_000][index % 5] + index, index as u8);
        let answer = started(&front, call_of("worker", "echo", body.clone(), CALL_TIMEOUT), None);
        async move { (body, answer.await.unwrap()) }
    });
    for (body, answer) in join_all(calls).await {
        assert!(answer.as_ref().is_ok_and(|answer| *answer == body), "{:?}", answer.err());
    }
    let (one, two) = (one.handler.counts(), two.handler.counts());
    assert_eq!((one.begun + two.begun, one.ended + two.ended), (200, 200));
}

pub(super) async fn flocks_do_not_see_each_other(bed: Arc<dyn TestBed>) {
    let worker = RunningCopy::start(&*bed, "worker").await;
    let stranger = RunningCopy::start_as(&*bed, RunningCopy::local("other", "worker"), CallLimits::default()).await;
    let alone = RunningCopy::start_as(&*bed, RunningCopy::local("other", "alone"), CallLimits::default()).await;
    let front = caller(&*bed).await;
    sees(&front, "worker", &[&worker]).await;
    for _ in 0..20 {
        assert_eq!(copy_that_answers(&front).await, worker.name());
    }
    let to_alone = || call_of("alone", "echo", Payload::Json("{}".into()), CALL_TIMEOUT);
    check_error(front.call(to_alone(), None).await, &["no-such-cage"]);
    check_error(front.call(to_alone(), Some(&alone.name())).await, &["no-such-cage"]);
    assert!(front.members().iter().all(|member| member.copy != stranger.name() && member.copy != alone.name()));
    assert_eq!((stranger.handler.counts().begun, alone.handler.counts().begun), (0, 0));
}

/// Makes as many waiting calls as the limit allows; checks that one more is refused, that `elsewhere` is not, and that
/// the waiting calls are answered.
async fn check_bound(max: usize, front: &Arc<dyn Fabric>, worker: &RunningCopy, elsewhere: impl Future<Output = ()>) {
    let waiting: Vec<_> = (0..max).map(|_| started(front, call("wait"), None)).collect();
    worker.handler.until(|counts| counts.begun == max).await;
    let refused = front.call(call("echo"), None);
    let text = check_error(timeout(AT_ONCE, refused).await.expect("at once"), &["overloaded"]);
    assert!(text.contains(&max.to_string()), "{text}");
    elsewhere.await;
    worker.handler.release(max);
    for answer in join_all(waiting).await {
        answer.unwrap().unwrap();
    }
    front.call(call("echo"), None).await.unwrap();
}

pub(super) async fn calls_to_a_cage_are_bounded(bed: Arc<dyn TestBed>) {
    let (worker, other) = (RunningCopy::start(&*bed, "worker").await, RunningCopy::start(&*bed, "other").await);
    let limits = CallLimits { calls_per_cage_max: 4, ..CallLimits::default() };
    let front = bed.join(&RunningCopy::local("default", "front"), limits).await;
    sees(&front, "worker", &[&worker]).await;
    sees(&front, "other", &[&other]).await;
    let elsewhere = async {
        let call = call_of("other", "echo", Payload::Json("{}".into()), CALL_TIMEOUT);
        front.call(call, None).await.unwrap();
    };
    check_bound(4, &front, &worker, elsewhere).await;
}

pub(super) async fn calls_of_a_peer_are_bounded(bed: Arc<dyn TestBed>) {
    let limits = CallLimits { calls_per_peer_max: 4, ..CallLimits::default() };
    let worker = RunningCopy::start_as(&*bed, RunningCopy::local("default", "worker"), limits).await;
    let (front, another) = (caller(&*bed).await, caller(&*bed).await);
    sees(&front, "worker", &[&worker]).await;
    sees(&another, "worker", &[&worker]).await;
    let elsewhere = async {
        another.call(call("echo"), None).await.unwrap();
    };
    check_bound(4, &front, &worker, elsewhere).await;
}

pub(super) async fn members_are_known(bed: Arc<dyn TestBed>) {
    let (one, two) = (RunningCopy::start(&*bed, "worker").await, RunningCopy::start(&*bed, "worker").await);
    let other = RunningCopy::start(&*bed, "other").await;
    sees(&other.fabric, "worker", &[&one, &two]).await;
    sees(&one.fabric, "worker", &[&two]).await;
    sees(&one.fabric, "other", &[&other]).await;
    copy_that_answers(&other.fabric).await;
    let members = other.fabric.members();
    for copy in [&one, &two] {
        let member = members.iter().find(|member| member.copy == copy.name()).expect("it is a member");
        assert_eq!(member.cage, "worker");
        assert!(member.node.is_empty() || member.node == "node-1", "{member:?}");
        assert!(!member.found.is_empty() && !member.health.is_empty() && member.in_flight == 0, "{member:?}");
    }
    assert!(members.iter().all(|member| member.copy != other.name()), "a copy is no member of its own: {members:?}");
}
