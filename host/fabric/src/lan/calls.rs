//! A call's way: which copies are tried, one after the other, and what is told when none answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::choice::{Choice, choose};
use super::copies::Known;
use super::copy::Copy;
use super::dial::SLOW_TO_CONNECT;
use crate::envelope;
use crate::fabric::CopyId;
use crate::link::LinkError;
use crate::link::frame::Refusal;
use wasmcage_config::nearest;
use wasmcage_core::call::Call;
use wasmcage_core::error::DispatchError;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::{Deadline, Payload};

/// A copy that multicast or a configured address leads to is known this long after the start at the latest.
const DISCOVERY_TIME: Duration = Duration::from_millis(1_500);
/// A call waits no longer for a connection while another copy has one.
const CONNECT_WITHIN: Duration = SLOW_TO_CONNECT;
/// Copies that one call looks for at most. Those that turn out to be gone count as no attempt.
const LOOKED_FOR_MAX: usize = 100;

/// One attempt that brought no answer.
enum Failure {
    /// The copy is not there any more.
    Gone(String),
    /// It surely did not run there.
    NotRun(String),
    /// It may have run.
    Lost(String),
    /// The attempt's time is over.
    Late,
}

/// A place among the calls to a cage. Given back when dropped.
pub(super) struct Entered(Arc<Known>);

impl Known {
    /// Bounded, so that a cage that hangs cannot take all of the caller's calls.
    pub(super) fn enter(self: &Arc<Self>, cage: &str, most: usize) -> Result<Entered, DispatchError> {
        if self.in_flight.fetch_add(1, Ordering::Relaxed) < most {
            return Ok(Entered(self.clone()));
        }
        leave(&self.in_flight);
        Err(DispatchError::Overloaded(format!("{most} calls to cage {cage} have no answer yet")))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        leave(&self.0.in_flight);
    }
}

fn leave(in_flight: &AtomicUsize) {
    in_flight.fetch_sub(1, Ordering::Relaxed);
}

impl Inner {
    /// What is known of a cage; one not known yet is looked for.
    pub(super) async fn find(&self, cage: &str, deadline: Deadline) -> Result<Arc<Known>, DispatchError> {
        if let Some(known) = self.copies.get(cage) {
            return Ok(known);
        }
        self.scan();
        // Peers tell of others, too.
        let looking = self.multicast.get().is_some() || !self.config.peers.is_empty();
        let until = deadline.instant().min(self.started + DISCOVERY_TIME);
        loop {
            let changed = self.changed.notified();
            if let Some(known) = self.copies.get(cage) {
                return Ok(known);
            }
            if !looking || tokio::time::timeout_at(until, changed).await.is_err() {
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

    /// Has one copy after the other try, as long as the call surely has not run, or may run twice.
    pub(super) async fn call(self: &Arc<Self>, call: Call, known: Arc<Known>) -> Result<Payload, DispatchError> {
        let deadline = call.context.deadline;
        let mut tried: Vec<CopyId> = Vec::new();
        let mut known = Some(known);
        let (mut attempts, mut last) = (0, None);
        while attempts < self.config.attempts_max
            && tried.len() < LOOKED_FOR_MAX
            && let Some((copy, others)) = known.as_ref().and_then(|known| self.choose(known, &tried))
        {
            tried.push(copy.id);
            attempts += 1;
            let until = match call.idempotent && others {
                true => deadline.within(self.config.attempt_timeout),
                false => deadline,
            };
            let connected_until = match known.as_ref().is_some_and(|known| Self::has_ready(&copy, known, &tried)) {
                true => until.within(CONNECT_WITHIN),
                false => until,
            };
            let error = match self.attempt(&copy, &call, connected_until, until).await {
                // The callee took it and did nothing with it; another copy may have room.
                Ok(Err(error @ (DispatchError::Overloaded(_) | DispatchError::Draining))) => error,
                Ok(result) => return result,
                Err(Failure::Gone(text)) => {
                    attempts -= 1;
                    unreachable_cage(&call, &text)
                }
                Err(Failure::NotRun(text)) => unreachable_cage(&call, &text),
                Err(Failure::Lost(text)) => {
                    let error = DispatchError::Lost(format!("{} of cage {}: {text}", call.action, call.cage));
                    if !call.idempotent {
                        return Err(error);
                    }
                    error
                }
                Err(Failure::Late) if deadline.passed() => return Err(late(&call)),
                Err(Failure::Late) => DispatchError::Lost(format!("cage {} gave no answer in time", call.cage)),
            };
            if deadline.passed() {
                return Err(late(&call));
            }
            // Once it may have run somewhere, no later attempt can say that it surely did not.
            last = last.filter(|last| matches!(last, DispatchError::Lost(_))).or(Some(error));
            // A copy may have come since.
            known = self.copies.get(&call.cage);
        }
        Err(last.unwrap_or_else(|| self.no_such_cage(&call.cage)))
    }

    /// The next copy, and whether there are others.
    fn choose(self: &Arc<Self>, known: &Known, tried: &[CopyId]) -> Option<(Arc<Copy>, bool)> {
        let copies = known.copies();
        let Choice { copy, unproven } = choose(&copies, tried, self.config.near_first);
        unproven.into_iter().for_each(|copy| self.prove(copy));
        Some((copy?, copies.len() > tried.len() + 1))
    }

    /// Whether a call that waits for a connection to a copy could be with another one at once, of those not tried yet.
    fn has_ready(copy: &Copy, known: &Known, tried: &[CopyId]) -> bool {
        let lane = Lanes::current() % copy.places.len();
        let is_ready = |other: &Arc<Copy>| !tried.contains(&other.id) && other.is_sound() && other.is_connected();
        !copy.places[lane].is_usable() && known.copies().iter().any(is_ready)
    }

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
            Err(Failure::NotRun(text) | Failure::Gone(text)) => {
                Err(DispatchError::Unreachable(format!("copy {name} of cage {}: {text}", call.cage)))
            }
            Err(Failure::Lost(text)) => Err(DispatchError::Lost(text)),
            Err(Failure::Late) => Err(late(&call)),
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        copy: &Arc<Copy>,
        call: &Call,
        connected_until: Deadline,
        until: Deadline,
    ) -> Result<Result<Payload, DispatchError>, Failure> {
        let _in_flight = copy.gauge.begin();
        let link = match tokio::time::timeout_at(connected_until.instant(), self.link(copy)).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => {
                copy.gauge.fail();
                self.copies.drop_if_lost(copy);
                let failure = if error.vacant || error.own { Failure::Gone } else { Failure::NotRun };
                return Err(failure(error.to_string()));
            }
            Err(_) => {
                copy.gauge.fail();
                return Err(Failure::NotRun("no connection in time".into()));
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
                envelope::decode_answer(answer).map_err(|error| Failure::Lost(error.to_string()))
            }
            Err(LinkError::Refused(Refusal::TooLarge, text)) => Ok(Err(DispatchError::BadRequest(text))),
            Err(LinkError::Refused(Refusal::TooMany, text)) => Ok(Err(DispatchError::Overloaded(text))),
            Err(LinkError::Refused(Refusal::Draining, _)) => Ok(Err(DispatchError::Draining)),
            Err(LinkError::Refused(Refusal::NotServed | Refusal::Cancelled, text)) => Err(Failure::NotRun(text)),
            Err(LinkError::NotHandedOver(text)) => Err(Failure::NotRun(text)),
            Err(LinkError::Lost(closed)) => {
                copy.gauge.fail();
                copy.failed(closed.to_string());
                Err(Failure::Lost(closed.to_string()))
            }
            Err(LinkError::TimedOut) => {
                // The function may be slow, and the copy well all the same.
                match link.is_suspect() {
                    true => copy.gauge.fail(),
                    false => copy.gauge.slow(begun.elapsed()),
                }
                Err(Failure::Late)
            }
        }
    }
}

fn unreachable_cage(call: &Call, text: &str) -> DispatchError {
    DispatchError::Unreachable(format!("no copy of cage {} can be reached: {text}", call.cage))
}

pub(super) fn late(call: &Call) -> DispatchError {
    DispatchError::DeadlineExceeded(format!("{} of cage {} gave no answer", call.action, call.cage))
}
