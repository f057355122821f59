//! Runs a call: chooses the copies that are tried one after the other, and the error when none answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::LanInner;
use super::choice::{Choice, choose};
use super::copies::CageCopies;
use super::copy::RemoteCopy;
use super::dial::SLOW_TO_CONNECT;
use crate::envelope;
use crate::fabric::CopyId;
use crate::link::LinkError;
use crate::link::frame::RefusalReason;
use wasmcage_config::nearest;
use wasmcage_core::call::Call;
use wasmcage_core::error::DispatchError;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::{Deadline, Payload};

/// How long after the start a call waits for multicast or configured addresses to find its cage.
const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a call waits for a connection to a copy while another copy has one.
const CONNECT_TIMEOUT_IF_OTHERS: Duration = SLOW_TO_CONNECT;
/// Copies that one call tries, including those that turn out to be gone and do not count as attempts.
const COPIES_TRIED_MAX: usize = 100;

/// Why an attempt brought no answer.
enum AttemptError {
    /// The copy is not there any more.
    Gone(String),
    /// The call surely did not run there.
    NotRun(String),
    /// The call may have run.
    Lost(String),
    TimedOut,
}

/// Counts as one call in flight to a cage until it is dropped.
pub(super) struct CallPermit(Arc<CageCopies>);

impl CageCopies {
    /// Counts a call in, up to `max`: a cage that hangs must not hold all of the caller's calls.
    ///
    /// # Errors
    /// `Overloaded` when `max` calls have no answer yet.
    pub(super) fn begin_call(self: &Arc<Self>, cage: &str, max: usize) -> Result<CallPermit, DispatchError> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let permit = CallPermit(self.clone());
        match before < max {
            true => Ok(permit),
            false => Err(DispatchError::Overloaded(format!("{max} calls to cage {cage} have no answer yet"))),
        }
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl LanInner {
    /// Returns the known copies of a cage. Shortly after the start, waits for discovery to find one.
    pub(super) async fn find_cage(&self, cage: &str, deadline: Deadline) -> Result<Arc<CageCopies>, DispatchError> {
        if let Some(known) = self.copies.get(cage) {
            return Ok(known);
        }
        self.scan();
        // Configured peers send gossip about other cages.
        let may_appear = self.multicast.get().is_some() || !self.config.peers.is_empty();
        let until = deadline.instant().min(self.started + DISCOVERY_TIMEOUT);
        loop {
            let changed = self.changed.notified();
            if let Some(known) = self.copies.get(cage) {
                return Ok(known);
            }
            if !may_appear || tokio::time::timeout_at(until, changed).await.is_err() {
                return Err(self.no_such_cage(cage));
            }
        }
    }

    fn no_such_cage(&self, cage: &str) -> DispatchError {
        let known = self.copies.cages();
        let hint = nearest(cage, known.iter().map(|cage| &**cage));
        let hint = hint.map(|hint| format!("; did you mean `{hint}`?")).unwrap_or_default();
        DispatchError::NoSuchCage(format!(
            "no running copy of cage {cage} is known in flock {}{hint}",
            self.local.flock
        ))
    }

    /// Tries one copy after the other, as long as the call surely has not run or is idempotent.
    pub(super) async fn call(
        self: &Arc<Self>,
        call: Call,
        cage_copies: Arc<CageCopies>,
    ) -> Result<Payload, DispatchError> {
        let deadline = call.context.deadline;
        let mut tried: Vec<CopyId> = Vec::new();
        let mut cage_copies = Some(cage_copies);
        let (mut attempts, mut last) = (0, None);
        while attempts < self.config.attempts_max
            && tried.len() < COPIES_TRIED_MAX
            && let Some((copy, others)) = cage_copies.as_ref().and_then(|cage_copies| self.choose(cage_copies, &tried))
        {
            tried.push(copy.id);
            attempts += 1;
            let until = match call.idempotent && others {
                true => deadline.within(self.config.attempt_timeout),
                false => deadline,
            };
            let connected_until = match cage_copies
                .as_ref()
                .is_some_and(|cage_copies| Self::another_is_ready(&copy, cage_copies, &tried))
            {
                true => until.within(CONNECT_TIMEOUT_IF_OTHERS),
                false => until,
            };
            let error = match self.attempt(&copy, &call, connected_until, until).await {
                // The callee refused the call without running it; another copy may have room.
                Ok(Err(error @ (DispatchError::Overloaded(_) | DispatchError::Draining))) => error,
                Ok(result) => return result,
                Err(AttemptError::Gone(text)) => {
                    attempts -= 1;
                    unreachable_cage(&call, &text)
                }
                Err(AttemptError::NotRun(text)) => unreachable_cage(&call, &text),
                Err(AttemptError::Lost(text)) => {
                    let error = DispatchError::Lost(format!("{} of cage {}: {text}", call.action, call.cage));
                    if !call.idempotent {
                        return Err(error);
                    }
                    error
                }
                Err(AttemptError::TimedOut) if deadline.passed() => return Err(deadline_exceeded(&call)),
                Err(AttemptError::TimedOut) => {
                    DispatchError::Lost(format!("cage {} gave no answer in time", call.cage))
                }
            };
            if deadline.passed() {
                return Err(deadline_exceeded(&call));
            }
            // Once it may have run somewhere, no later attempt can say that it surely did not.
            last = last.filter(|last| matches!(last, DispatchError::Lost(_))).or(Some(error));
            // Another copy may have become known meanwhile.
            cage_copies = self.copies.get(&call.cage);
        }
        Err(last.unwrap_or_else(|| self.no_such_cage(&call.cage)))
    }

    /// Returns the next copy to try, and whether there are others.
    fn choose(self: &Arc<Self>, cage_copies: &CageCopies, tried: &[CopyId]) -> Option<(Arc<RemoteCopy>, bool)> {
        let copies = cage_copies.copies();
        let Choice { copy, to_probe } = choose(&copies, tried, self.config.near_first);
        to_probe.into_iter().for_each(|copy| self.probe(copy));
        Some((copy?, copies.len() > tried.len() + 1))
    }

    /// Returns whether this lane has no connection to `copy`, while a healthy copy that was not tried yet has one.
    fn another_is_ready(copy: &RemoteCopy, cage_copies: &CageCopies, tried: &[CopyId]) -> bool {
        let lane = Lanes::current() % copy.connections.len();
        let is_ready =
            |other: &Arc<RemoteCopy>| !tried.contains(&other.id) && other.is_healthy() && other.is_connected();
        !copy.connections[lane].is_usable() && cage_copies.copies().iter().any(is_ready)
    }

    /// Calls the copy of that name, without trying others.
    ///
    /// # Errors
    /// `NoSuchCage` when no copy of that name is known.
    pub(super) async fn call_copy(self: &Arc<Self>, call: Call, name: &str) -> Result<Payload, DispatchError> {
        let copy = CopyId::parse(name).and_then(|id| self.copies.find(&call.cage, id));
        let Some(copy) = copy else {
            return Err(DispatchError::NoSuchCage(format!("no copy {name} of cage {} is known", call.cage)));
        };
        let deadline = call.context.deadline;
        match self.attempt(&copy, &call, deadline, deadline).await {
            Ok(result) => result,
            Err(AttemptError::NotRun(text) | AttemptError::Gone(text)) => {
                Err(DispatchError::Unreachable(format!("copy {name} of cage {}: {text}", call.cage)))
            }
            Err(AttemptError::Lost(text)) => Err(DispatchError::Lost(text)),
            Err(AttemptError::TimedOut) => Err(deadline_exceeded(&call)),
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        copy: &Arc<RemoteCopy>,
        call: &Call,
        connected_until: Deadline,
        until: Deadline,
    ) -> Result<Result<Payload, DispatchError>, AttemptError> {
        let _in_flight = copy.gauge.begin();
        let link = match tokio::time::timeout_at(connected_until.instant(), self.link(copy)).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => {
                copy.gauge.fail();
                self.copies.drop_if_unreachable(copy);
                let failure = if error.vacant || error.own { AttemptError::Gone } else { AttemptError::NotRun };
                return Err(failure(error.to_string()));
            }
            Err(_) => {
                copy.gauge.fail();
                return Err(AttemptError::NotRun("no connection in time".into()));
            }
        };
        let message = match envelope::encode_call(call) {
            Ok(message) => message,
            Err(error) => return Ok(Err(error)),
        };
        let begun = Instant::now();
        match link.call(message, until).await {
            Ok(answer) => {
                copy.gauge.answered(begun.elapsed());
                envelope::decode_answer(answer).map_err(|error| AttemptError::Lost(error.to_string()))
            }
            Err(LinkError::Refused(RefusalReason::TooLarge, text)) => Ok(Err(DispatchError::BadRequest(text))),
            Err(LinkError::Refused(RefusalReason::TooMany, text)) => Ok(Err(DispatchError::Overloaded(text))),
            Err(LinkError::Refused(RefusalReason::Draining, _)) => Ok(Err(DispatchError::Draining)),
            Err(LinkError::Refused(RefusalReason::NotServed | RefusalReason::Cancelled, text)) => {
                Err(AttemptError::NotRun(text))
            }
            Err(LinkError::NotHandedOver(text)) => Err(AttemptError::NotRun(text)),
            Err(LinkError::Lost(closed)) => {
                copy.gauge.fail();
                copy.failed(closed.to_string());
                Err(AttemptError::Lost(closed.to_string()))
            }
            Err(LinkError::TimedOut) => {
                // The function may be slow although the copy is well.
                match link.is_suspect() {
                    true => copy.gauge.fail(),
                    false => copy.gauge.slow(begun.elapsed()),
                }
                Err(AttemptError::TimedOut)
            }
        }
    }
}

fn unreachable_cage(call: &Call, text: &str) -> DispatchError {
    DispatchError::Unreachable(format!("no copy of cage {} can be reached: {text}", call.cage))
}

pub(super) fn deadline_exceeded(call: &Call) -> DispatchError {
    DispatchError::DeadlineExceeded(format!("{} of cage {} gave no answer", call.action, call.cage))
}
