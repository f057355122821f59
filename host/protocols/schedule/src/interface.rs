//! Interface `schedule`: waits for the planner's times, makes its ticks, and tells it when they have ended.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::task::JoinSet;

use super::NAME;
use super::planner::{CatchUp, Planner, Progress, Rules, Tick};
use super::record::Record;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Deadline, Facts, Request, RequestContext};
use wasmcage_core::telemetry::error_chain;
use wasmcage_protocol::{Dispatch, Endpoint, Interface, InterfaceContext, InterfaceError, Route};

/// Between two looks at the clock, which may be set while nobody looks.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks for a module that is not ready.
const MODULE_LOOK: Duration = Duration::from_millis(100);

pub(super) struct ScheduleInterface {
    pub(super) rules: Rules,
}

#[async_trait]
impl Interface for ScheduleInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let drain = cx.drain.clone();
        tokio::select! {
            running = Running::begin(self.rules, cx) => running.run().await,
            () = drain.stopping() => {}
        }
        Ok(())
    }
}

struct Running {
    cx: InterfaceContext,
    rules: Rules,
    planner: Planner,
    /// None for a schedule that catches nothing up.
    record: Option<Record>,
    /// The store did not take the last record, which has been told.
    unrecorded: bool,
    ticks: JoinSet<()>,
}

impl Running {
    async fn begin(rules: Rules, cx: InterfaceContext) -> Self {
        let record = (rules.catch_up != CatchUp::None)
            .then(|| Record::new(cx.store.clone(), &cx.endpoint.interface, &rules.times.written));
        let known = match &record {
            Some(record) => record.load().await.map(Some),
            None => Ok(None),
        };
        let progress = known.as_ref().ok().cloned().flatten().flatten();
        let planner = Planner::new(rules.clone(), progress.unwrap_or_else(|| Progress::begin(Timestamp::now())));
        let mut running = Self { cx, rules, planner, record, unrecorded: false, ticks: JoinSet::new() };
        match known {
            Err(error) => running.warn_unrecorded(&error),
            // The first downtime may come before the first tick.
            Ok(_) => running.save().await,
        }
        running
    }

    /// Until the drain, and then until the last tick in work has ended.
    async fn run(mut self) {
        loop {
            let looked = self.look().await;
            tokio::select! {
                () = self.cx.drain.stopping() => break,
                () = tokio::time::sleep(looked) => {}
                Some(_) = self.ticks.join_next() => {
                    if let Some(tick) = self.planner.ended() {
                        self.save().await;
                        self.make(tick);
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

    /// Begins what is due, and returns how long to wait until the next look.
    async fn look(&mut self) -> Duration {
        let before = self.planner.next();
        let due = self.planner.look(Timestamp::now());
        let next = self.planner.next();
        if next != before || !due.is_empty() {
            // Before the ticks begin: no time fires twice, even when the process is killed.
            self.save().await;
        }
        for tick in due {
            self.make(tick);
        }
        self.cx.endpoint.set_status(Some(match next {
            Some(next) => format!("next {}", self.rules.times.shown(next)),
            None => "no time to come".to_owned(),
        }));
        let wait = next.map(|next| Duration::try_from(next.duration_since(Timestamp::now())).unwrap_or_default());
        wait.unwrap_or(LOOK).min(LOOK)
    }

    fn make(&mut self, tick: Tick) {
        let (endpoint, dispatch) = (self.cx.endpoint.clone(), self.cx.dispatch.clone());
        let (cage, interface) = (&*endpoint.cage, &*endpoint.interface);
        let time = self.rules.times.shown(tick.time).to_string();
        let mut headers = vec![("scheduled-time".to_owned(), time.clone())];
        if tick.missed > 0 {
            tracing::info!(cage, interface, %time, missed = tick.missed, "scheduled times before this one were left out");
            headers.push(("missed".to_owned(), tick.missed.to_string()));
        }
        let drain = self.cx.drain.clone();
        let work = async move {
            let route = tokio::select! {
                route = module_of(&*dispatch, &endpoint) => route,
                () = drain.stopping() => dispatch.route(),
            };
            let (cage, interface, module) = (&*endpoint.cage, &*endpoint.interface, &*endpoint.module);
            let route = match route {
                Ok(Some(route)) => route,
                Ok(None) => {
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
            // The dispatcher has counted and told how it ended; nobody waits for the answer.
            let _ = dispatch.handle(route, request).await;
        };
        let work = self.cx.tasks.run_once("a scheduled request", work).map(|_| ());
        self.ticks.spawn_on(work, self.cx.lanes.next());
    }

    async fn save(&mut self) {
        let Some(record) = &self.record else { return };
        match record.save(&self.planner.settled()).await {
            Ok(()) => self.unrecorded = false,
            Err(error) => self.warn_unrecorded(&error),
        }
    }

    /// Once for each time that the store fails.
    fn warn_unrecorded(&mut self, error: &wasmcage_store::StoreError) {
        if !std::mem::replace(&mut self.unrecorded, true) {
            let (cage, interface, error) = (&*self.cx.endpoint.cage, &*self.cx.endpoint.interface, error_chain(error));
            tracing::warn!(cage, interface, %error, "the schedule goes on, but may catch up wrongly after a restart");
        }
    }
}

/// The version that serves the request. A module whose file is there may still be compiled: it is waited for as long as the
/// request may take.
async fn module_of(dispatch: &dyn Dispatch, endpoint: &Endpoint) -> Result<Option<Route>, DispatchError> {
    let deadline = Deadline::after(endpoint.timeout());
    loop {
        match dispatch.route()? {
            None if dispatch.has_had_module() && !deadline.passed() => tokio::time::sleep(MODULE_LOOK).await,
            found => return Ok(found),
        }
    }
}
