//! Acknowledging: one task for each channel takes the verdicts on deliveries and tells the broker, several at once where it
//! can. The client library takes some 60 microseconds for each acknowledgement that is waited for, whatever it covers.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use tokio::sync::mpsc;

/// Verdicts are told when this part of the prefetch waits, or after `PATIENCE`: while one acknowledgement is on its way few
/// come, and each costs the broker as much as a message.
const TOGETHER_SHARE: u16 = 16;
const PATIENCE: Duration = Duration::from_millis(1);

/// What becomes of a delivery. Of several handlers' verdicts the last in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Ack,
    /// Dead-lettered, or gone.
    Reject,
    /// Back into the queue; counts towards its delivery limit.
    Requeue,
    /// Back into the queue, and not the message's fault. RabbitMQ 3 counts it towards the delivery limit all the same.
    Return,
}

/// Runs until no more verdicts come. Bounded by the prefetch: the broker sends no more than that without verdicts.
pub(super) async fn settle(channel: Channel, mut verdicts: mpsc::UnboundedReceiver<(u64, Verdict)>, prefetch: u16) {
    let together = usize::from(prefetch / TOGETHER_SHARE).max(1);
    let (mut plan, mut batch) = (Plan::default(), Vec::new());
    while verdicts.recv_many(&mut batch, prefetch.into()).await > 0 {
        let mut patience = pin!(tokio::time::sleep(PATIENCE));
        while batch.len() < together {
            let missing = together - batch.len();
            tokio::select! {
                biased;
                more = verdicts.recv_many(&mut batch, missing) => if more == 0 { break },
                () = &mut patience => break,
            }
        }
        batch.drain(..).for_each(|verdict| plan.add(verdict));
        let steps = plan.steps();
        // A channel that has failed returns everything to its queues; its consumer notices.
        let _ = join_all(steps.into_iter().map(|step| take(&channel, step))).await;
    }
}

async fn take(channel: &Channel, (tag, verdict, multiple): Step) -> lapin::Result<()> {
    match verdict {
        Verdict::Ack => channel.basic_ack(tag, BasicAckOptions { multiple }).await,
        Verdict::Reject => channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await,
        Verdict::Requeue => channel.basic_reject(tag, BasicRejectOptions { requeue: true }).await,
        Verdict::Return => channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await,
    }
}

/// Tag, verdict, and whether it is for all earlier ones, too.
type Step = (u64, Verdict, bool);

/// Which acknowledgements can be put together: a channel counts its deliveries from 1, so that all up to one are settled
/// when none is missing.
#[derive(Debug, Default)]
struct Plan {
    /// All up to this one are settled, and told.
    told: u64,
    /// Later ones: those to tell, and those told already.
    later: BTreeMap<u64, Option<Verdict>>,
}

impl Plan {
    fn add(&mut self, (tag, verdict): (u64, Verdict)) {
        self.later.insert(tag, Some(verdict));
    }

    fn steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut acked = None;
        // The others before the one acknowledgement that covers them: a tag is told once.
        while let Some(entry) = self.later.first_entry().filter(|entry| *entry.key() == self.told + 1) {
            self.told += 1;
            match entry.remove() {
                Some(Verdict::Ack) => acked = Some((self.told, acked.is_some())),
                Some(verdict) => steps.push((self.told, verdict, false)),
                None => {}
            }
        }
        // An acknowledgement of several needs one at its end that is still to be told.
        if let Some((tag, several)) = acked {
            steps.push((tag, Verdict::Ack, several));
        }
        for (tag, verdict) in &mut self.later {
            if let Some(verdict) = verdict.take() {
                steps.push((*tag, verdict, false));
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Ack, Reject, Requeue};
    use super::*;

    #[track_caller]
    fn check(plan: &mut Plan, verdicts: &[(u64, Verdict)], expected: &[Step]) {
        verdicts.iter().for_each(|verdict| plan.add(*verdict));
        assert_eq!(plan.steps(), expected);
    }

    #[test]
    fn acknowledgements_are_put_together() {
        let mut plan = Plan::default();
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

    /// Whatever the order and the portions, each tag is told once, by its verdict.
    #[test]
    fn every_delivery_is_told_once() {
        arbtest::arbtest(|choices| {
            let count = choices.int_in_range(1..=40_u64)?;
            let mut tags: Vec<u64> = (1..=count).collect();
            let (mut plan, mut verdicts, mut told) = (Plan::default(), BTreeMap::new(), BTreeMap::new());
            while !tags.is_empty() {
                for _ in 0..choices.int_in_range(1..=tags.len())? {
                    let tag = tags.swap_remove(choices.choose_index(tags.len())?);
                    let verdict = if choices.ratio(3, 4)? { Ack } else { Reject };
                    verdicts.insert(tag, verdict);
                    plan.add((tag, verdict));
                }
                for (tag, verdict, multiple) in plan.steps() {
                    if multiple {
                        for earlier in 1..tag {
                            assert!(verdicts.contains_key(&earlier), "{earlier} is not settled, and acknowledged");
                            told.entry(earlier).or_insert(Ack);
                        }
                    }
                    assert_eq!(told.insert(tag, verdict), None);
                }
            }
            assert_eq!(told, verdicts);
            Ok(())
        });
    }
}
