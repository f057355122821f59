//! A fake resource for tests. In each phase it behaves as its script says, and it records the steps.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::live::ResourceParts;
use super::{
    CacheSettings, Caller, LiveResource, Operation, OperationReply, Phase, PoolSettings, ReplyStream, ResourceError,
};
use crate::{Connection, Resource, Reuse};
use wasmcage_config::ResourceConfig;
use wasmcage_config::testing::section;
use wasmcage_core::request::{Deadline, RequestContext};
use wasmcage_core::telemetry::{Level, LevelCell};

/// How a step behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Work,
    /// It fails with a harmless error.
    Refuse,
    /// It fails with an error after which the connection is discarded.
    Break,
    Hang,
    Panic,
}

/// The behaviour of a fake resource, and the record of its steps.
#[derive(Default)]
pub(crate) struct Script {
    behaviour: Mutex<HashMap<Phase, Behaviour>>,
    steps: Mutex<Vec<String>>,
    connections: AtomicUsize,
    connections_most: AtomicUsize,
    made: AtomicUsize,
    used_up: AtomicBool,
    gate: Mutex<Option<Arc<tokio::sync::Semaphore>>>,
    reuse: Mutex<Option<Reuse>>,
    reset: Mutex<Option<Behaviour>>,
    keeps_modules_apart: AtomicBool,
}

impl Script {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Sets the behaviour of a phase from now on.
    pub(crate) fn set(&self, phase: Phase, behaviour: Behaviour) {
        self.behaviour.lock().insert(phase, behaviour);
    }

    /// Sets what happens to connections when they are returned, and the behaviour of a reset.
    pub(crate) fn set_reuse(&self, reuse: Reuse, reset: Behaviour) {
        *self.reuse.lock() = Some(reuse);
        *self.reset.lock() = Some(reset);
    }

    pub(crate) fn keep_modules_apart(&self) {
        self.keeps_modules_apart.store(true, SeqCst);
    }

    /// From now on each execution waits for a permit of this semaphore.
    pub(crate) fn gate(&self) -> Arc<tokio::sync::Semaphore> {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        *self.gate.lock() = Some(gate.clone());
        gate
    }

    /// Returns the steps so far, in order.
    pub(crate) fn steps(&self) -> String {
        self.steps.lock().join(" ")
    }

    pub(crate) fn record(&self, text: &str) {
        self.steps.lock().push(text.to_owned());
    }

    pub(crate) fn forget(&self) {
        self.steps.lock().clear();
    }

    /// Sets whether connections are used up from now on.
    pub(crate) fn set_used_up(&self, used_up: bool) {
        self.used_up.store(used_up, SeqCst);
    }

    /// Number of connections now.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    /// Largest number of connections at the same time.
    pub(crate) fn connections_most(&self) -> usize {
        self.connections_most.load(SeqCst)
    }

    /// Number of connections that were ever made.
    pub(crate) fn made(&self) -> usize {
        self.made.load(SeqCst)
    }

    async fn step(&self, phase: Phase) -> Result<(), ResourceError> {
        self.record(&phase.to_string());
        let behaviour = self.behaviour.lock().get(&phase).copied().unwrap_or(Behaviour::Work);
        Self::perform(phase, behaviour).await
    }

    async fn perform(phase: Phase, behaviour: Behaviour) -> Result<(), ResourceError> {
        match behaviour {
            Behaviour::Work => Ok(()),
            Behaviour::Refuse => Err(ResourceError::harmless(phase, "refused", "as scripted")),
            Behaviour::Break => Err(ResourceError::fatal(phase, "broken", "as scripted")),
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Panic => panic!("as scripted"),
        }
    }
}

pub(crate) struct FakeResource(pub(crate) Arc<Script>);

struct FakeConnection {
    script: Arc<Script>,
}

impl Drop for FakeConnection {
    fn drop(&mut self) {
        self.script.connections.fetch_sub(1, SeqCst);
        self.script.record("disconnect");
    }
}

#[async_trait]
impl Resource for FakeResource {
    fn check(&self, operation: &Operation) -> Result<(), ResourceError> {
        match &*operation.action {
            "unknown" => Err(ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, "no such action")),
            _ => Ok(()),
        }
    }

    fn can_roll_back(&self, operation: &Operation) -> bool {
        operation.action != "at-once"
    }

    fn keeps_modules_apart(&self) -> bool {
        self.0.keeps_modules_apart.load(SeqCst)
    }

    async fn connect(&self, _deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError> {
        let script = self.0.clone();
        let now = script.connections.fetch_add(1, SeqCst) + 1;
        script.connections_most.fetch_max(now, SeqCst);
        let connection = FakeConnection { script: script.clone() };
        tokio::task::yield_now().await;
        script.step(Phase::Connect).await.map_err(|error| ResourceError { recoverable: true, ..error })?;
        script.made.fetch_add(1, SeqCst);
        Ok(Box::new(connection))
    }
}

#[async_trait]
impl Connection for FakeConnection {
    async fn begin(&mut self, _options: &[(String, String)], _deadline: Deadline) -> Result<(), ResourceError> {
        self.script.step(Phase::Begin).await
    }

    /// Answers with the operation's own body.
    async fn execute(&mut self, operation: Operation, _deadline: Deadline) -> Result<OperationReply, ResourceError> {
        let gate = self.script.gate.lock().clone();
        if let Some(gate) = gate {
            gate.acquire().await.expect("the gate stays").forget();
        }
        self.script.step(Phase::Execute).await?;
        Ok(OperationReply { status: 200, headers: Vec::new(), body: operation.body })
    }

    async fn commit(&mut self, _deadline: Deadline) -> Result<(), ResourceError> {
        self.script.step(Phase::Commit).await
    }

    async fn rollback(&mut self, _deadline: Deadline) -> Result<(), ResourceError> {
        self.script.step(Phase::Rollback).await
    }

    async fn open(
        self: Box<Self>,
        operation: Operation,
        _options: &[(String, String)],
        _deadline: Deadline,
    ) -> Result<(OperationReply, Box<dyn ReplyStream>), ResourceError> {
        let parts = operation.body.chunks(1).map(Bytes::copy_from_slice).collect();
        Ok((
            OperationReply { status: 200, ..OperationReply::default() },
            Box::new(FakeStream { connection: self, parts }),
        ))
    }

    fn is_used_up(&self) -> bool {
        self.script.used_up.load(SeqCst)
    }

    async fn is_healthy(&mut self) -> bool {
        self.script.step(Phase::Acquire).await.is_ok()
    }

    fn reuse(&self) -> Reuse {
        self.script.reuse.lock().unwrap_or(Reuse::AsItIs)
    }

    async fn reset(&mut self) -> Result<(), ResourceError> {
        // Lets the task that returned the connection continue first.
        tokio::task::yield_now().await;
        self.script.record("reset");
        let behaviour = self.script.reset.lock().unwrap_or(Behaviour::Work);
        Script::perform(Phase::Acquire, behaviour).await
    }
}

/// A stream of the body, byte by byte.
struct FakeStream {
    connection: Box<FakeConnection>,
    parts: std::collections::VecDeque<Bytes>,
}

#[async_trait]
impl ReplyStream for FakeStream {
    async fn next(&mut self) -> Result<Option<Bytes>, ResourceError> {
        self.connection.script.step(Phase::Execute).await?;
        Ok(self.parts.pop_front())
    }

    fn finish(self: Box<Self>) -> Option<Box<dyn Connection>> {
        Some(self.connection)
    }
}

/// Settings of a pool whose timeouts do not pass during a test.
pub(crate) fn pool(size: usize) -> PoolSettings {
    let day = Duration::from_secs(24 * 3600);
    PoolSettings { size, standby: 0, idle_timeout: day, age_max: day, time_min: Duration::ZERO, time_max: None }
}

/// A resource called `name` that behaves as the script says.
pub(crate) fn resource(
    name: &str,
    script: &Arc<Script>,
    pool: PoolSettings,
    cache: Option<CacheSettings>,
) -> Arc<LiveResource> {
    let (timeout, section) = (None, section(""));
    let config = ResourceConfig { name: name.into(), protocol: "double".into(), enabled: true, timeout, section };
    let built = ResourceParts { resource: Box::new(FakeResource(script.clone())), pool, cache };
    Arc::new(LiveResource::new("test".into(), Arc::new(LevelCell::new(Level::Error)), config, built))
}

/// A caller with so many milliseconds until its deadline.
pub(crate) fn caller(left_ms: u64) -> Caller {
    caller_of("test", left_ms)
}

pub(crate) fn caller_of(module: &str, left_ms: u64) -> Caller {
    let left = Duration::from_millis(left_ms);
    let request = RequestContext::new("test".into(), "test", left, Arc::default());
    Caller { cage: "test".into(), module: module.into(), request: Arc::new(request) }
}

pub(crate) fn operation(action: &str, body: &str) -> Operation {
    Operation { action: action.into(), body: Bytes::copy_from_slice(body.as_bytes()), ..Operation::default() }
}

/// Polls until the condition holds.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Deadline::after(Duration::from_secs(60));
    while !is_so() {
        assert!(!deadline.passed(), "waited for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
