//! Publishing for many at once: the messages that wait are sent together on one channel, and answered when the broker has
//! confirmed them. A broker confirms many messages of one channel by one frame; channels of their own cost it, and the
//! client library, half of what they can do.
//!
//! Only what no broker closes a channel over, which would leave what others sent on it in doubt: messages of a moderate length,
//! to exchanges that the resource declares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::Channel;
use lapin::message::BasicReturnMessage;
use lapin::types::ShortString;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::link::{Link, Live};
use super::operation::Outgoing;
use super::producer::{ALONE_BYTES, BLOCKED, Sent, check_frames, unconfirmed};
use super::topology::Exchange;
use wasmcage_core::request::Deadline;
use wasmcage_core::task::catch_panic_async;
use wasmcage_resource::{Phase, ResourceError};

/// Participants whose messages are sent together at most.
const TOGETHER_MAX: usize = 256;
/// Participants that wait to be taken; who is one more waits for a place.
const WAITING_MAX: usize = 1_024;
/// Groups that are on their way at once, each on a channel of its own.
const CHANNELS: usize = 2;
/// A message that the broker has not confirmed by then holds up no others: they go on over another channel.
const PATIENCE: Duration = Duration::from_secs(1);
/// Before a channel is asked for anew.
const PAUSE: Duration = Duration::from_millis(100);

/// The channels that a resource's publishers share.
pub(super) struct Group {
    waiting: mpsc::Sender<Job>,
    link: Arc<Link>,
    /// Declared on each channel.
    exchanges: Arc<[Exchange]>,
    _workers: Vec<AbortOnDropHandle<()>>,
}

/// What one participant publishes.
struct Job {
    messages: Vec<Outgoing>,
    phase: Phase,
    deadline: Deadline,
    /// True once it is sent, or taken back: whoever sets it decides.
    claimed: Arc<AtomicBool>,
    answer: oneshot::Sender<Result<(), ResourceError>>,
}

impl Group {
    /// On `runtime`, as long as somebody holds it.
    pub(super) fn new(link: Arc<Link>, exchanges: Arc<[Exchange]>, runtime: &tokio::runtime::Handle) -> Self {
        let (waiting, jobs) = mpsc::channel(WAITING_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        let worker = |_| {
            let worker = Worker { link: link.clone(), exchanges: exchanges.clone(), jobs: jobs.clone() };
            AbortOnDropHandle::new(runtime.spawn(worker.run()))
        };
        let _workers = (0..CHANNELS).map(worker).collect();
        Self { waiting, link, exchanges, _workers }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Whether messages can go with those of others.
    pub(super) fn takes(&self, messages: &[Outgoing]) -> bool {
        let takes = |exchange: &ShortString| {
            exchange.as_str().is_empty()
                || self.exchanges.iter().any(|known| known.name == *exchange && !known.is_internal())
        };
        let is_safe = |message: &Outgoing| {
            message.body.len() <= ALONE_BYTES && message.targets.iter().all(|(exchange, _)| takes(exchange))
        };
        messages.iter().all(is_safe)
    }

    /// Publishes all, in their order, and waits until the broker has confirmed all.
    ///
    /// # Errors
    /// As `producer::publish`; `connect` when there was no channel until the deadline.
    pub(super) async fn publish(
        &self,
        messages: Vec<Outgoing>,
        deadline: Deadline,
        phase: Phase,
    ) -> Result<(), ResourceError> {
        check_frames(&messages, self.link.frame_bytes_max(), phase)?;
        let (answer, answered) = oneshot::channel();
        let claimed = Arc::new(AtomicBool::new(false));
        let job = Job { messages, phase, deadline, claimed: claimed.clone(), answer };
        let published = async {
            // The workers listen as long as `self` is there.
            let _ = self.waiting.send(job).await;
            answered.await
        };
        match tokio::time::timeout_at(deadline.instant(), published).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                Err(ResourceError::fatal(phase, ResourceError::DISCONNECTED, "the resource's connection is given up"))
            }
            Err(_) if claimed.swap(true, Ordering::AcqRel) => Err(match self.link.current() {
                Ok(live) => unconfirmed(&live, phase),
                Err(why) => ResourceError::fatal(phase, ResourceError::TIMED_OUT, why),
            }),
            Err(_) => Err(match self.link.current().map(|live| live.blocked()) {
                Ok(Some(why)) => ResourceError::harmless(phase, BLOCKED, why),
                Ok(None) => ResourceError::harmless(phase, ResourceError::TIMED_OUT, "the broker was too busy"),
                Err(why) => ResourceError::harmless(phase, ResourceError::CONNECT, why),
            }),
        }
    }
}

/// Sends one group after the other.
struct Worker {
    link: Arc<Link>,
    exchanges: Arc<[Exchange]>,
    jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
}

impl Worker {
    /// Goes on whatever happens; what it had in work is told that its outcome is not known.
    async fn run(self) {
        while let Err(panic) = catch_panic_async(self.work()).await {
            tracing::error!(error = %panic, "a part of the host panicked");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn work(&self) {
        let mut open = None;
        loop {
            let mut jobs = Vec::new();
            if self.jobs.lock().await.recv_many(&mut jobs, TOGETHER_MAX).await == 0 {
                return;
            }
            let usable = open.take().filter(|(channel, live): &(Channel, Arc<Live>)| live.carries(channel));
            let (channel, live) = match usable {
                Some(open) => open,
                None => match self.open().await {
                    Ok(made) => made,
                    Err(why) => {
                        refuse(jobs, &why);
                        continue;
                    }
                },
            };
            live.unblocked().await;
            let mut round = Round::send(&channel, jobs).await;
            match tokio::time::timeout(PATIENCE, round.confirmed()).await {
                Ok(()) => {
                    round.answer();
                    open = Some((channel, live));
                }
                Err(_) => {
                    round.answer_confirmed();
                    tokio::spawn(round.wait_for_the_rest());
                }
            }
        }
    }

    /// A channel, as soon as there is a connection. Publishers wait as long as they can.
    async fn open(&self) -> Result<(Channel, Arc<Live>), String> {
        loop {
            let made = self.link.publishing_channel(&self.exchanges, Deadline::after(Duration::MAX)).await;
            if made.is_ok() || self.link.current().is_ok_and(|live| live.is_up()) {
                return made;
            }
            // The connection was lost in this moment.
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn refuse(jobs: Vec<Job>, why: &str) {
    for Job { phase, answer, .. } in jobs {
        // Whoever is not there any more has its error.
        let _ = answer.send(Err(ResourceError::harmless(phase, ResourceError::CONNECT, why)));
    }
}

/// Messages that are on their way together.
struct Round {
    sent: Vec<(Job, Sent)>,
    returned: Vec<BasicReturnMessage>,
}

impl Round {
    async fn send(channel: &Channel, jobs: Vec<Job>) -> Self {
        let jobs = jobs.into_iter().filter(|job| !job.claimed.swap(true, Ordering::AcqRel));
        let sent = join_all(jobs.map(async |job| {
            let sent = Sent::send(channel, &job.messages).await;
            (job, sent)
        }));
        Self { sent: sent.await, returned: Vec::new() }
    }

    /// From the last on: when that is confirmed, the others mostly are, and nobody is woken for each.
    async fn confirmed(&mut self) {
        for (_, sent) in self.sent.iter_mut().rev() {
            sent.confirmed(&mut self.returned).await;
        }
    }

    fn answer(self) {
        let Self { sent, mut returned } = self;
        for (job, sent) in sent {
            let result = sent.judged(&job.messages, &mut returned, job.phase);
            let _ = job.answer.send(result);
        }
    }

    /// What came back is known by now for all that were confirmed a while ago.
    fn answer_confirmed(&mut self) {
        for (_, sent) in &mut self.sent {
            sent.look(&mut self.returned);
        }
        let (confirmed, rest) = std::mem::take(&mut self.sent).into_iter().partition(|(_, sent)| sent.is_confirmed());
        let returned = std::mem::take(&mut self.returned);
        Self { sent: confirmed, returned }.answer();
        self.sent = rest;
    }

    /// As long as somebody wants to know; the channel is closed with it.
    async fn wait_for_the_rest(mut self) {
        let Some(last) = self.sent.iter().map(|(job, _)| job.deadline).max() else { return };
        if tokio::time::timeout_at(last.instant(), self.confirmed()).await.is_ok() {
            self.answer();
        }
    }
}
