//! Consuming one queue, on a channel of its own and on one lane: takes deliveries, has them handled, settles them. What a
//! delivery comes to is decided in `deliver.rs`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::deliver::Receiver;
use super::link::{Link, Live};
use super::settle::{Verdict, settle};
use wasmcage_core::request::Deadline;
use wasmcage_core::task::{Panic, catch_panic_async};

/// Deliveries of a queue beyond so many in work go to the lanes in turn.
const LOCAL_MAX: usize = 16;
/// For what is asked of a broker, at the beginning and at the end.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// A queue that is being consumed.
pub(super) struct Consuming {
    queue: Arc<str>,
    channel: Channel,
    live: Arc<Live>,
    deliveries: Consumer,
}

/// A delivery in work: its tag, and what becomes of it.
type Work = BoxFuture<'static, (u64, Verdict)>;

impl Consuming {
    /// # Errors
    /// Why the broker does not let it be consumed.
    pub(super) async fn begin(link: &Link, queue: &ShortString, prefetch: u16) -> Result<Self, String> {
        let (channel, live) = link.channel(Deadline::after(BROKER_TIMEOUT)).await?;
        let begun = async {
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await
        };
        let deliveries = match tokio::time::timeout(BROKER_TIMEOUT, begun).await {
            Ok(begun) => begun.map_err(|error| format!("cannot consume queue {queue}: {error}"))?,
            Err(_) => return Err(format!("cannot consume queue {queue}: the broker does not answer")),
        };
        Ok(Self { queue: queue.as_str().into(), channel, live, deliveries })
    }

    /// Calls `ended` once, as soon as it takes no more, with the reason; returns when everything it took is settled.
    pub(super) async fn run(
        self,
        receiver: Arc<Receiver>,
        stop: CancellationToken,
        ended: impl Fn(String) + Send + Sync,
    ) {
        let queue = self.queue.clone();
        if let Err(panic) = catch_panic_async(self.consume(&receiver, stop, &ended)).await {
            receiver.panicked(&queue, &panic);
            // What it had in work goes back to the queue with the channel.
            ended(format!("queue {queue}: the host {panic}"));
        }
    }

    async fn consume(
        mut self,
        receiver: &Arc<Receiver>,
        stop: CancellationToken,
        ended: &(impl Fn(String) + Send + Sync),
    ) {
        let prefetch = receiver.config.prefetch;
        let (verdicts, waiting) = mpsc::unbounded_channel();
        let settler = AbortOnDropHandle::new(tokio::spawn(settle(self.channel.clone(), waiting, prefetch)));
        let mut in_work: FuturesUnordered<Work> = FuturesUnordered::new();
        let queue = self.queue.clone();
        let why = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break "stopped".to_owned(),
                Some(verdict) = in_work.next() => {
                    if verdicts.send(verdict).is_err() {
                        break format!("queue {queue}: nothing can be acknowledged any more");
                    }
                }
                delivery = self.deliveries.next(), if in_work.len() < prefetch.into() => match delivery {
                    Some(Ok(delivery)) => in_work.push(self.work(receiver, delivery, in_work.len())),
                    Some(Err(error)) => break format!("queue {queue}: {error}"),
                    None => break format!("queue {queue}: the broker cancelled the consumer: was the queue deleted?"),
                },
            }
        };
        ended(why);
        let tag = self.deliveries.tag();
        // What the broker has sent beyond this goes back with the end of the channel.
        let cancelled = self.channel.basic_cancel(tag, BasicCancelOptions::default());
        let _ = tokio::time::timeout(BROKER_TIMEOUT, cancelled).await;
        while let Some(verdict) = in_work.next().await {
            let _ = verdicts.send(verdict);
        }
        drop(verdicts);
        let _ = tokio::time::timeout(BROKER_TIMEOUT, settler).await;
        let _ = tokio::time::timeout(BROKER_TIMEOUT, self.channel.close(200, "done".into())).await;
    }

    fn work(&self, receiver: &Arc<Receiver>, delivery: Delivery, in_work: usize) -> Work {
        let tag = delivery.delivery_tag;
        let work = handle(receiver.clone(), self.queue.clone(), delivery, self.live.clone());
        match in_work < LOCAL_MAX {
            true => work.boxed(),
            false => elsewhere(receiver, tag, work),
        }
    }
}

async fn handle(receiver: Arc<Receiver>, queue: Arc<str>, delivery: Delivery, live: Arc<Live>) -> (u64, Verdict) {
    let (tag, redelivered) = (delivery.delivery_tag, delivery.redelivered);
    let work = receiver.receive(&queue, delivery, &live);
    (tag, contained(work, redelivered, |panic| receiver.panicked(&queue, panic)).await)
}

/// A panic of the host's own is that delivery's end, and not its queue's: it is tried once more, since something else may have
/// been at fault, and then rejected.
async fn contained(work: impl Future<Output = Verdict>, redelivered: bool, tell: impl FnOnce(&Panic)) -> Verdict {
    match catch_panic_async(work).await {
        Ok(verdict) => verdict,
        Err(panic) => {
            tell(&panic);
            if redelivered { Verdict::Reject } else { Verdict::Return }
        }
    }
}

/// The work, on the next lane. When that is gone the process ends, and the delivery goes back to its queue.
fn elsewhere(receiver: &Receiver, tag: u64, work: impl Future<Output = (u64, Verdict)> + Send + 'static) -> Work {
    let task = AbortOnDropHandle::new(receiver.cx.lanes.next().spawn(work));
    async move { task.await.unwrap_or((tag, Verdict::Return)) }.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_delivery_at_which_the_host_panics_is_tried_once_more_and_then_rejected() {
        let panicking = async || panic!("a bug of {}", "ours");
        for (redelivered, verdict) in [(false, Verdict::Return), (true, Verdict::Reject)] {
            let mut told = String::new();
            let result = contained(panicking(), redelivered, |panic| told.push_str(&panic.text)).await;
            assert_eq!((result, told.as_str()), (verdict, "a bug of ours"));
        }
        assert_eq!(contained(async { Verdict::Ack }, false, |_| unreachable!()).await, Verdict::Ack);
    }
}
