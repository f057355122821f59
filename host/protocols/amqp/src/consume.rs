//! The consumer of one queue, with a channel of its own, on one lane: it takes deliveries, has `deliver.rs` handle
//! them, and settles them by the verdict that comes back.

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

use super::deliver::DeliveryReceiver;
use super::link::{BrokerLink, LiveConnection};
use super::settle::settle;
use super::verdict::DeliveryVerdict;
use wasmcage_core::request::Deadline;
use wasmcage_core::task::{Panic, catch_panic_async};

/// The most deliveries of a queue that run on its consumer's lane; further ones go to the lanes in turn.
const LOCAL_MAX: usize = 16;
/// The time the broker has to answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// A queue, and the channel on which it is consumed.
pub(super) struct QueueConsumer {
    queue: Arc<str>,
    channel: Channel,
    live: Arc<LiveConnection>,
    deliveries: Consumer,
}

/// A delivery in flight: resolves to its tag and its verdict.
type PendingVerdict = BoxFuture<'static, (u64, DeliveryVerdict)>;

impl QueueConsumer {
    /// Asks the broker for the queue's messages.
    ///
    /// # Errors
    /// Why the queue cannot be consumed.
    pub(super) async fn open(link: &BrokerLink, queue: &ShortString, prefetch: u16) -> Result<Self, String> {
        let (channel, live) = link.channel(Deadline::after(BROKER_TIMEOUT)).await?;
        let opened = async {
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await
        };
        let deliveries = match tokio::time::timeout(BROKER_TIMEOUT, opened).await {
            Ok(opened) => opened.map_err(|error| format!("cannot consume queue {queue}: {error}"))?,
            Err(_) => return Err(format!("cannot consume queue {queue}: the broker does not answer")),
        };
        Ok(Self { queue: queue.as_str().into(), channel, live, deliveries })
    }

    /// Consumes until `stop` or a failure. Calls `ended` once with the reason, as soon as no more deliveries are taken;
    /// returns when those in flight are settled.
    pub(super) async fn run(
        self,
        receiver: Arc<DeliveryReceiver>,
        stop: CancellationToken,
        ended: impl Fn(String) + Send + Sync,
    ) {
        let queue = self.queue.clone();
        if let Err(panic) = catch_panic_async(self.consume(&receiver, stop, &ended)).await {
            receiver.report_panic(&queue, &panic);
            // The channel is closed now, which returns the deliveries in flight to the queue.
            ended(format!("queue {queue}: the host {panic}"));
        }
    }

    async fn consume(
        mut self,
        receiver: &Arc<DeliveryReceiver>,
        stop: CancellationToken,
        ended: &(impl Fn(String) + Send + Sync),
    ) {
        let prefetch = receiver.config.prefetch;
        let (verdicts, pending) = mpsc::unbounded_channel();
        let settler = AbortOnDropHandle::new(tokio::spawn(settle(self.channel.clone(), pending, prefetch)));
        let mut in_flight: FuturesUnordered<PendingVerdict> = FuturesUnordered::new();
        let queue = self.queue.clone();
        let why = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break "stopped".to_owned(),
                Some(verdict) = in_flight.next() => {
                    if verdicts.send(verdict).is_err() {
                        break format!("queue {queue}: nothing can be acknowledged any more");
                    }
                }
                delivery = self.deliveries.next(), if in_flight.len() < prefetch.into() => match delivery {
                    Some(Ok(delivery)) => in_flight.push(self.start(receiver, delivery, in_flight.len())),
                    Some(Err(error)) => break format!("queue {queue}: {error}"),
                    None => break format!("queue {queue}: the broker cancelled the consumer: was the queue deleted?"),
                },
            }
        };
        ended(why);
        let tag = self.deliveries.tag();
        // Deliveries that were received and not taken return to the queue when the channel is closed.
        let cancelled = self.channel.basic_cancel(tag, BasicCancelOptions::default());
        let _ = tokio::time::timeout(BROKER_TIMEOUT, cancelled).await;
        while let Some(verdict) = in_flight.next().await {
            let _ = verdicts.send(verdict);
        }
        drop(verdicts);
        let _ = tokio::time::timeout(BROKER_TIMEOUT, settler).await;
        let _ = tokio::time::timeout(BROKER_TIMEOUT, self.channel.close(200, "done".into())).await;
    }

    /// Starts to handle a delivery.
    fn start(&self, receiver: &Arc<DeliveryReceiver>, delivery: Delivery, in_flight: usize) -> PendingVerdict {
        let tag = delivery.delivery_tag;
        let handled = handle(receiver.clone(), self.queue.clone(), delivery, self.live.clone());
        match in_flight < LOCAL_MAX {
            true => handled.boxed(),
            false => on_next_lane(receiver, tag, handled),
        }
    }
}

async fn handle(
    receiver: Arc<DeliveryReceiver>,
    queue: Arc<str>,
    delivery: Delivery,
    live: Arc<LiveConnection>,
) -> (u64, DeliveryVerdict) {
    let (tag, redelivered) = (delivery.delivery_tag, delivery.redelivered);
    let verdict = receiver.receive(&queue, delivery, &live);
    (tag, catch_panic(verdict, redelivered, |panic| receiver.report_panic(&queue, panic)).await)
}

/// Turns a panic of the host into a verdict on the delivery, so that the queue's other deliveries go on. The message is
/// handled once more, since it may not have been the cause, and then rejected.
async fn catch_panic(
    verdict: impl Future<Output = DeliveryVerdict>,
    redelivered: bool,
    report: impl FnOnce(&Panic),
) -> DeliveryVerdict {
    match catch_panic_async(verdict).await {
        Ok(verdict) => verdict,
        Err(panic) => {
            report(&panic);
            if redelivered { DeliveryVerdict::Reject } else { DeliveryVerdict::Return }
        }
    }
}

/// Runs the future on the next lane. If that lane is gone the process is ending, and the delivery returns to its queue.
fn on_next_lane(
    receiver: &DeliveryReceiver,
    tag: u64,
    handled: impl Future<Output = (u64, DeliveryVerdict)> + Send + 'static,
) -> PendingVerdict {
    let task = AbortOnDropHandle::new(receiver.cx.lanes.next().spawn(handled));
    async move { task.await.unwrap_or((tag, DeliveryVerdict::Return)) }.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_delivery_at_which_the_host_panics_is_tried_once_more_and_then_rejected() {
        let panicking = async || panic!("a bug of {}", "ours");
        for (redelivered, verdict) in [(false, DeliveryVerdict::Return), (true, DeliveryVerdict::Reject)] {
            let mut reported = String::new();
            let result = catch_panic(panicking(), redelivered, |panic| reported.push_str(&panic.text)).await;
            assert_eq!((result, reported.as_str()), (verdict, "a bug of ours"));
        }
        assert_eq!(catch_panic(async { DeliveryVerdict::Ack }, false, |_| unreachable!()).await, DeliveryVerdict::Ack);
    }
}
