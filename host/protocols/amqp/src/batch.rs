//! Publishing in batches: the messages of all participants that are waiting are sent together on one channel, and each
//! participant gets its result when the broker has confirmed its messages. A broker confirms many messages of one
//! channel by one frame; with a channel for each participant, broker and client library did half as much.
//!
//! A batch must hold no message that could make the broker close the channel, since the outcome of all others on it
//! would then be unknown. So only messages of moderate length to exchanges that the resource declares are published
//! here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::Channel;
use lapin::message::BasicReturnMessage;
use lapin::types::ShortString;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::link::{BrokerLink, LiveConnection};
use super::operation::OutgoingMessage;
use super::producer::{ALONE_BYTES, BLOCKED, PendingConfirms, check_frames, unconfirmed};
use super::topology::ExchangeDeclaration;
use wasmcage_core::request::Deadline;
use wasmcage_core::task::catch_panic_async;
use wasmcage_resource::{Phase, ResourceError};

/// The most participants whose messages are sent in one batch.
const BATCH_MAX: usize = 256;
/// The most participants in the queue; further ones wait for room in it.
const QUEUE_MAX: usize = 1_024;
/// How many batches can be in flight, each on a channel of its own.
const CHANNELS: usize = 2;
/// After this time without all confirms, the next batch goes out on another channel.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause before the next attempt to open a channel.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Publishes for all participants of a resource.
pub(super) struct BatchPublisher {
    queue: mpsc::Sender<PublishJob>,
    link: Arc<BrokerLink>,
    /// The exchanges that are declared on each channel.
    exchanges: Arc<[ExchangeDeclaration]>,
    _workers: Vec<AbortOnDropHandle<()>>,
}

/// The messages of one participant.
struct PublishJob {
    messages: Vec<OutgoingMessage>,
    phase: Phase,
    deadline: Deadline,
    /// Set by whoever is first: the worker when it sends the messages, or the participant when it gives up before.
    claimed: Arc<AtomicBool>,
    result: oneshot::Sender<Result<(), ResourceError>>,
}

impl BatchPublisher {
    /// Starts the workers on `runtime`. They stop when the publisher is dropped.
    pub(super) fn new(
        link: Arc<BrokerLink>,
        exchanges: Arc<[ExchangeDeclaration]>,
        runtime: &tokio::runtime::Handle,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        let worker = |_| {
            let worker = BatchWorker { link: link.clone(), exchanges: exchanges.clone(), jobs: jobs.clone() };
            AbortOnDropHandle::new(runtime.spawn(worker.run()))
        };
        let _workers = (0..CHANNELS).map(worker).collect();
        Self { queue, link, exchanges, _workers }
    }

    pub(super) fn link(&self) -> &BrokerLink {
        &self.link
    }

    /// Returns whether no broker would close the channel over these messages, so that they can be batched with those of
    /// others.
    pub(super) fn accepts(&self, messages: &[OutgoingMessage]) -> bool {
        let is_declared = |exchange: &ShortString| {
            exchange.as_str().is_empty()
                || self.exchanges.iter().any(|known| known.name == *exchange && !known.is_internal())
        };
        let is_safe = |message: &OutgoingMessage| {
            message.body.len() <= ALONE_BYTES && message.targets.iter().all(|(exchange, _)| is_declared(exchange))
        };
        messages.iter().all(is_safe)
    }

    /// Publishes the messages in their order and waits until the broker has confirmed all of them.
    ///
    /// # Errors
    /// Those of `producer::publish`, and `connect` if there was no channel until the deadline.
    pub(super) async fn publish(
        &self,
        messages: Vec<OutgoingMessage>,
        deadline: Deadline,
        phase: Phase,
    ) -> Result<(), ResourceError> {
        check_frames(&messages, self.link.frame_bytes_max(), phase)?;
        let (result_tx, result) = oneshot::channel();
        let claimed = Arc::new(AtomicBool::new(false));
        let job = PublishJob { messages, phase, deadline, claimed: claimed.clone(), result: result_tx };
        let published = async {
            // The workers receive as long as `self` exists.
            let _ = self.queue.send(job).await;
            result.await
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

/// Sends one batch after the other on a channel of its own.
struct BatchWorker {
    link: Arc<BrokerLink>,
    exchanges: Arc<[ExchangeDeclaration]>,
    jobs: Arc<Mutex<mpsc::Receiver<PublishJob>>>,
}

impl BatchWorker {
    /// Runs for ever. After a panic it starts again; the participants of the interrupted batch get an error that leaves
    /// their outcome open.
    async fn run(self) {
        while let Err(panic) = catch_panic_async(self.publish_batches()).await {
            tracing::error!(error = %panic, "a part of the host panicked");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn publish_batches(&self) {
        let mut open = None;
        loop {
            let mut jobs = Vec::new();
            if self.jobs.lock().await.recv_many(&mut jobs, BATCH_MAX).await == 0 {
                return;
            }
            let usable = open.take().filter(|(channel, live): &(Channel, Arc<LiveConnection>)| live.is_open(channel));
            let (channel, live) = match usable {
                Some(open) => open,
                None => match self.open().await {
                    Ok(made) => made,
                    Err(why) => {
                        report_no_channel(jobs, &why);
                        continue;
                    }
                },
            };
            live.unblocked().await;
            let mut batch = PublishBatch::send(&channel, jobs).await;
            match tokio::time::timeout(CONFIRM_TIMEOUT, batch.wait()).await {
                Ok(()) => {
                    batch.report();
                    open = Some((channel, live));
                }
                Err(_) => {
                    batch.report_confirmed();
                    tokio::spawn(batch.wait_for_the_rest());
                }
            }
        }
    }

    /// Opens a channel as soon as there is a connection. The participants wait meanwhile, each until its deadline.
    async fn open(&self) -> Result<(Channel, Arc<LiveConnection>), String> {
        loop {
            let made = self.link.publishing_channel(&self.exchanges, Deadline::after(Duration::MAX)).await;
            if made.is_ok() || self.link.current().is_ok_and(|live| live.is_up()) {
                return made;
            }
            // The connection was lost just now.
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

fn report_no_channel(jobs: Vec<PublishJob>, why: &str) {
    for PublishJob { phase, result, .. } in jobs {
        // A participant that has given up has its error already.
        let _ = result.send(Err(ResourceError::harmless(phase, ResourceError::CONNECT, why)));
    }
}

/// Messages that were sent together, and what the broker has returned of them.
struct PublishBatch {
    sent: Vec<(PublishJob, PendingConfirms)>,
    returned: Vec<BasicReturnMessage>,
}

impl PublishBatch {
    async fn send(channel: &Channel, jobs: Vec<PublishJob>) -> Self {
        let jobs = jobs.into_iter().filter(|job| !job.claimed.swap(true, Ordering::AcqRel));
        let sent = join_all(jobs.map(async |job| {
            let sent = PendingConfirms::send(channel, &job.messages).await;
            (job, sent)
        }));
        Self { sent: sent.await, returned: Vec::new() }
    }

    /// Waits for all confirms, from the last message on: when that is confirmed, most others are, too, so that the task
    /// is not woken for each.
    async fn wait(&mut self) {
        for (_, sent) in self.sent.iter_mut().rev() {
            sent.wait(&mut self.returned).await;
        }
    }

    /// Reports the result to each participant.
    fn report(self) {
        let Self { sent, mut returned } = self;
        for (job, sent) in sent {
            let result = sent.result(&job.messages, &mut returned, job.phase);
            let _ = job.result.send(result);
        }
    }

    /// Reports to the participants whose messages are all confirmed; the others stay in the batch.
    fn report_confirmed(&mut self) {
        for (_, sent) in &mut self.sent {
            sent.poll(&mut self.returned);
        }
        let (confirmed, rest) = std::mem::take(&mut self.sent).into_iter().partition(|(_, sent)| sent.is_confirmed());
        let returned = std::mem::take(&mut self.returned);
        Self { sent: confirmed, returned }.report();
        self.sent = rest;
    }

    /// Waits for the other confirms until the last participant's deadline, and reports them. The channel is closed when
    /// this batch is dropped.
    async fn wait_for_the_rest(mut self) {
        let Some(last) = self.sent.iter().map(|(job, _)| job.deadline).max() else { return };
        if tokio::time::timeout_at(last.instant(), self.wait()).await.is_ok() {
            self.report();
        }
    }
}
