//! Interface `schedule`: waits for the planner's times, makes the requests for its ticks, and reports their ends to it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::task::JoinSet;

use super::NAME;
use super::planner::{CatchUp, Planner, Progress, ScheduleRules, Tick};
use super::record::ProgressRecord;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Deadline, Facts, Request, RequestContext};
use wasmcage_core::telemetry::error_chain;
use wasmcage_protocol::{Dispatch, Endpoint, Interface, InterfaceContext, InterfaceError, Route};

/// How often the clock is polled at least, since it may be set.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How often a module that is not ready is polled.
const MODULE_POLL_INTERVAL: Duration = Duration::from_millis(100);

pub(super) struct ScheduleInterface {
    pub(super) rules: ScheduleRules,
}

#[async_trait]
impl Interface for ScheduleInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let drain = cx.drain.clone();
        tokio::select! {
            scheduler = Scheduler::begin(self.rules, cx) => scheduler.run().await,
            () = drain.stopping() => {}
        }
        Ok(())
    }
}

/// A running schedule.
struct Scheduler {
    cx: InterfaceContext,
    rules: ScheduleRules,
    planner: Planner,
    /// None for a schedule that does not catch up.
    record: Option<ProgressRecord>,
    /// The last write to the store failed, which was logged.
    save_failed: bool,
    ticks: JoinSet<()>,
}

impl Scheduler {
    async fn begin(rules: ScheduleRules, cx: InterfaceContext) -> Self {
        let record = (rules.catch_up != CatchUp::None)
            .then(|| ProgressRecord::new(cx.store.clone(), &cx.endpoint.interface, &rules.times.source));
        let loaded = match &record {
            Some(record) => record.load().await.map(Some),
            None => Ok(None),
        };
        let progress = loaded.as_ref().ok().cloned().flatten().flatten();
        let planner = Planner::new(rules.clone(), progress.unwrap_or_else(|| Progress::begin(Timestamp::now())));
        let mut scheduler = Self { cx, rules, planner, record, save_failed: false, ticks: JoinSet::new() };
        match loaded {
            Err(error) => scheduler.log_save_error(&error),
            // It is saved at once, since the first downtime may come before the first tick.
            Ok(_) => scheduler.save().await,
        }
        scheduler
    }

    /// Runs until the drain, and then until the last tick in flight has ended.
    async fn run(mut self) {
        loop {
            let wait = self.begin_due().await;
            tokio::select! {
                () = self.cx.drain.stopping() => break,
                () = tokio::time::sleep(wait) => {}
                Some(_) = self.ticks.join_next() => {
                    if let Some(tick) = self.planner.tick_ended() {
                        self.save().await;
                        self.spawn(tick);
                    }
                }
            }
        }
        self.cx.endpoint.set_status(None);
        let (cage, interface, waiting) =
            (&*self.cx.endpoint.cage, &*self.cx.endpoint.interface, self.planner.waiting());
        if waiting > 0 {
            tracing::warn!(cage, interface, waiting, "scheduled requests that waited were not made");
        }
        while self.ticks.join_next().await.is_some() {}
    }

    /// Begins the ticks that are due, and returns how long to wait until the next call.
    async fn begin_due(&mut self) -> Duration {
        let before = self.planner.next();
        let due = self.planner.decide(Timestamp::now());
        let next = self.planner.next();
        if next != before || !due.is_empty() {
            // It is saved before the ticks begin, so that no time fires twice, even if the process is killed.
            self.save().await;
        }
        for tick in due {
            self.spawn(tick);
        }
        self.cx.endpoint.set_status(Some(match next {
            Some(next) => format!("next {}", self.rules.times.display(next)),
            None => "no time to come".to_owned(),
        }));
        let wait = next.map(|next| Duration::try_from(next.duration_since(Timestamp::now())).unwrap_or_default());
        wait.unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL)
    }

    /// Makes the request for a tick, in a task of its own.
    fn spawn(&mut self, tick: Tick) {
        let (endpoint, dispatch) = (self.cx.endpoint.clone(), self.cx.dispatch.clone());
        let (cage, interface) = (&*endpoint.cage, &*endpoint.interface);
        let time = self.rules.times.display(tick.time).to_string();
        let mut headers = vec![("scheduled-time".to_owned(), time.clone())];
        if tick.missed > 0 {
            tracing::info!(cage, interface, %time, missed = tick.missed, "scheduled times before this one were left out");
            headers.push(("missed".to_owned(), tick.missed.to_string()));
        }
        let drain = self.cx.drain.clone();
        let work = async move {
            let route = tokio::select! {
                route = wait_for_module(&*dispatch, &endpoint) => route,
                () = drain.stopping() => dispatch.route(),
            };
            let (cage, interface, module) = (&*endpoint.cage, &*endpoint.interface, &*endpoint.module);
            let route = match route {
                Ok(Some(route)) => route,
                Ok(None) => {
                    endpoint.count_without_module();
                    tracing::warn!(cage, interface, module, %time, "no module is there for a scheduled request");
                    return;
                }
                Err(error) => {
                    tracing::warn!(cage, interface, module, %time, %error, "a scheduled request cannot be made");
                    return;
                }
            };
            let facts = Arc::new(Facts::default());
            let context = Arc::new(RequestContext::new(endpoint.interface.clone(), NAME, endpoint.timeout(), facts));
            let (action, target) = ("tick".to_owned(), endpoint.interface.to_string());
            let request = Request { context, action, target, headers, body: Bytes::new(), body_room: None };
            // The dispatcher counts and logs the result, and nobody waits for the reply.
            let _ = dispatch.handle(route, request).await;
        };
        let work = self.cx.tasks.run_once("a scheduled request", work).map(|_| ());
        self.ticks.spawn_on(work, self.cx.lanes.next());
    }

    async fn save(&mut self) {
        let Some(record) = &self.record else { return };
        match record.save(&self.planner.settled()).await {
            Ok(()) => self.save_failed = false,
            Err(error) => self.log_save_error(&error),
        }
    }

    /// Logs an error of the store, once until it works again.
    fn log_save_error(&mut self, error: &wasmcage_store::StoreError) {
        if !std::mem::replace(&mut self.save_failed, true) {
            let (cage, interface, error) = (&*self.cx.endpoint.cage, &*self.cx.endpoint.interface, error_chain(error));
            tracing::warn!(cage, interface, %error, "the schedule goes on, but may catch up wrongly after a restart");
        }
    }
}

/// Finds the module's version for the request. A module that is not ready may still be compiling; this waits for it as
/// long as the request may take.
async fn wait_for_module(dispatch: &dyn Dispatch, endpoint: &Endpoint) -> Result<Option<Route>, DispatchError> {
    let deadline = Deadline::after(endpoint.timeout());
    loop {
        match dispatch.route()? {
            None if dispatch.has_had_module() && !deadline.passed() => tokio::time::sleep(MODULE_POLL_INTERVAL).await,
            found => return Ok(found),
        }
    }
}
