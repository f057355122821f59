//! Settling: one task for each channel collects the verdicts on its deliveries and sends them to the broker, several
//! with one acknowledgement where possible. The client library needs some 60 microseconds for each acknowledgement that
//! is waited for, however many deliveries it covers.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use tokio::sync::mpsc;

use super::verdict::DeliveryVerdict;

/// A batch of verdicts is sent when one in `BATCH_SHARE` of the prefetch is pending, or after `BATCH_TIMEOUT`. Without
/// the wait few would be pending while one acknowledgement is on its way, and each costs the broker as much as a
/// message.
const BATCH_SHARE: u16 = 16;
const BATCH_TIMEOUT: Duration = Duration::from_millis(1);

/// Settles deliveries until all senders of verdicts are gone. The channel of verdicts is bounded by the prefetch: the
/// broker delivers no more messages than that unsettled.
pub(super) async fn settle(
    channel: Channel,
    mut verdicts: mpsc::UnboundedReceiver<(u64, DeliveryVerdict)>,
    prefetch: u16,
) {
    let batch_size = usize::from(prefetch / BATCH_SHARE).max(1);
    let (mut plan, mut batch) = (AckPlan::default(), Vec::new());
    while verdicts.recv_many(&mut batch, prefetch.into()).await > 0 {
        let mut timeout = pin!(tokio::time::sleep(BATCH_TIMEOUT));
        while batch.len() < batch_size {
            let missing = batch_size - batch.len();
            tokio::select! {
                biased;
                more = verdicts.recv_many(&mut batch, missing) => if more == 0 { break },
                () = &mut timeout => break,
            }
        }
        batch.drain(..).for_each(|verdict| plan.add(verdict));
        let settlements = plan.settlements();
        // A channel that has failed returns everything to its queue, and its consumer ends.
        let _ = join_all(settlements.into_iter().map(|settlement| send(&channel, settlement))).await;
    }
}

async fn send(channel: &Channel, (tag, verdict, multiple): Settlement) -> lapin::Result<()> {
    match verdict {
        DeliveryVerdict::Ack => channel.basic_ack(tag, BasicAckOptions { multiple }).await,
        DeliveryVerdict::Reject => channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await,
        DeliveryVerdict::Requeue => channel.basic_reject(tag, BasicRejectOptions { requeue: true }).await,
        DeliveryVerdict::Return => channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await,
    }
}

/// A delivery's tag, the verdict, and whether the verdict holds for all earlier unsettled deliveries, too.
type Settlement = (u64, DeliveryVerdict, bool);

/// Finds the acknowledgements that can be combined. A channel numbers its deliveries from 1, so one acknowledgement can
/// cover all up to a tag once each of them has a verdict.
#[derive(Debug, Default)]
struct AckPlan {
    /// The deliveries up to this tag are settled.
    settled: u64,
    /// Verdicts on later deliveries; none where it was sent already.
    later: BTreeMap<u64, Option<DeliveryVerdict>>,
}

impl AckPlan {
    fn add(&mut self, (tag, verdict): (u64, DeliveryVerdict)) {
        self.later.insert(tag, Some(verdict));
    }

    /// Returns the settlements to send now. Rejections come before the one acknowledgement that would otherwise cover
    /// them, since a tag may be settled only once.
    fn settlements(&mut self) -> Vec<Settlement> {
        let mut settlements = Vec::new();
        let mut acked = None;
        while let Some(entry) = self.later.first_entry().filter(|entry| *entry.key() == self.settled + 1) {
            self.settled += 1;
            match entry.remove() {
                Some(DeliveryVerdict::Ack) => acked = Some((self.settled, acked.is_some())),
                Some(verdict) => settlements.push((self.settled, verdict, false)),
                None => {}
            }
        }
        // The last tag that an acknowledgement covers must not be settled already.
        if let Some((tag, several)) = acked {
            settlements.push((tag, DeliveryVerdict::Ack, several));
        }
        for (tag, verdict) in &mut self.later {
            if let Some(verdict) = verdict.take() {
                settlements.push((*tag, verdict, false));
            }
        }
        settlements
    }
}

#[cfg(test)]
mod tests {
    use super::DeliveryVerdict::{Ack, Reject, Requeue};
    use super::*;

    #[track_caller]
    fn check(plan: &mut AckPlan, verdicts: &[(u64, DeliveryVerdict)], expected: &[Settlement]) {
        verdicts.iter().for_each(|verdict| plan.add(*verdict));
        assert_eq!(plan.settlements(), expected);
    }

    #[test]
    fn acknowledgements_are_combined() {
        let mut plan = AckPlan::default();
        check(&mut plan, &[(1, Ack)], &[(1, Ack, false)]);
        check(&mut plan, &[(3, Ack), (2, Ack), (4, Ack)], &[(4, Ack, true)]);
        check(&mut plan, &[(7, Ack), (6, Ack)], &[(6, Ack, false), (7, Ack, false)]);
        check(
            &mut plan,
            &[(5, Reject), (8, Ack), (9, Requeue)],
            &[(5, Reject, false), (9, Requeue, false), (8, Ack, false)],
        );
        check(&mut plan, &[(10, Ack), (12, Ack), (11, Reject)], &[(11, Reject, false), (12, Ack, true)]);
        check(&mut plan, &[], &[]);
        assert!(plan.later.is_empty());
    }

    /// In whatever order and portions the verdicts come, each tag is settled once, by its own verdict.
    #[test]
    fn every_delivery_is_settled_once() {
        arbtest::arbtest(|choices| {
            let count = choices.int_in_range(1..=40_u64)?;
            let mut tags: Vec<u64> = (1..=count).collect();
            let (mut plan, mut verdicts, mut settled) = (AckPlan::default(), BTreeMap::new(), BTreeMap::new());
            while !tags.is_empty() {
                for _ in 0..choices.int_in_range(1..=tags.len())? {
                    let tag = tags.swap_remove(choices.choose_index(tags.len())?);
                    let verdict = if choices.ratio(3, 4)? { Ack } else { Reject };
                    verdicts.insert(tag, verdict);
                    plan.add((tag, verdict));
                }
                for (tag, verdict, multiple) in plan.settlements() {
                    if multiple {
                        for earlier in 1..tag {
                            assert!(verdicts.contains_key(&earlier), "{earlier} has no verdict, and is acknowledged");
                            settled.entry(earlier).or_insert(Ack);
                        }
                    }
                    assert_eq!(settled.insert(tag, verdict), None);
                }
            }
            assert_eq!(settled, verdicts);
            Ok(())
        });
    }
}
