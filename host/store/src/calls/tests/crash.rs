//! The queue on a disk that fails or loses power at each change: accepted calls are there, done ones are not made again, the
//! order is kept, and both sides of a hand-over agree.

use super::*;
use crate::crash::{Disk, Workload, crash_everywhere};

const NOW_MS: u64 = START_MS;
const CALLS: usize = 6;

/// What the caller knows of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum AckState {
    #[default]
    Nothing,
    InDoubt,
    Yes,
}

fn ack_of<T>(result: &Result<T, StoreError>) -> AckState {
    match result {
        Ok(_) => AckState::Yes,
        Err(StoreError::Unavailable(_) | StoreError::TimedOut) => AckState::InDoubt,
        Err(error) => panic!("{error}"),
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn name(number: usize) -> String {
    format!("c{number}")
}

async fn accept(store: &Store, id: &str) -> Result<String, StoreError> {
    let call = call(id);
    store.write(soon(), move |writer| accept_at(writer, &call, NOW_MS)).await
}

async fn begin(store: &Store, rules: QueueRules) -> Result<Option<(u64, CallEntry)>, StoreError> {
    let begun = store.write(soon(), move |writer| {
        QueueWriter { writer, queue: "q", rules: &rules, now_ms: NOW_MS }.begin(&BTreeSet::new(), &BTreeMap::new(), 1)
    });
    Ok(begun.await?.pop().map(|begun| match begun {
        CallStart::Attempt { sequence, entry } => (sequence, entry),
        CallStart::GivenUp(given_up) => panic!("{given_up:?}"),
    }))
}

async fn finish(store: &Store, rules: QueueRules, sequence: u64, end: AttemptEnd) -> Result<FinishOutcome, StoreError> {
    let work = move |writer: &mut Writer<'_>| {
        QueueWriter { writer, queue: "q", rules: &rules, now_ms: NOW_MS }.finish(sequence, &end)
    };
    store.write(soon(), work).await
}

/// Returns the ids of pending calls in their order, and checks that all tables agree.
fn pending(store: &Store) -> Result<Vec<String>, StoreError> {
    store.read(|reader| {
        let entries = reader.entries("q", false, 0, usize::MAX)?;
        let due = CallReads::range(reader, Space::CallsDue, &(vec![], vec![0xff; 64]), usize::MAX, false)?;
        let mut expected: Vec<_> =
            entries.iter().map(|(sequence, entry)| keys::due("q", *sequence, entry).unwrap()).collect();
        expected.sort();
        assert_eq!(due.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), expected);
        assert_eq!(reader.counts("q")?, QueueCounts { pending: entries.len() as u64, dead: 0 });
        for (sequence, entry) in &entries {
            let seen = reader.id_record(&entry.id)?.expect("a pending call has its name");
            assert_eq!((seen.sequence, seen.forget_ms), (*sequence, None));
            assert_eq!(reader.get(Space::Calls, &keys::message(*sequence))?.as_deref(), Some(entry.id.as_bytes()));
        }
        Ok(entries.into_iter().map(|(_, entry)| entry.id).collect())
    })
}

/// Accepts and makes calls by turns, some of them twice.
struct MakeCalls {
    rules: QueueRules,
    step: usize,
    accepted: [AckState; CALLS],
    done: [AckState; CALLS],
}

impl MakeCalls {
    fn new(keep_order: bool) -> Self {
        let rules = QueueRules { keep_order, ..RULES };
        Self { rules, step: 0, accepted: Default::default(), done: Default::default() }
    }
}

impl Workload for MakeCalls {
    async fn step(&mut self, store: &Store) -> bool {
        let (turn, number) = (self.step % 3, self.step / 3);
        self.step += 1;
        if turn == 0 && number < CALLS {
            // A caller without an answer repeats the call.
            for _ in 0..2 {
                let result = accept(store, &name(number)).await;
                self.accepted[number] = self.accepted[number].max(ack_of(&result));
            }
            return true;
        }
        let Ok(Some((sequence, entry))) = begin(store, self.rules).await else { return self.step < 6 * CALLS };
        let made: usize = entry.id[1..].parse().unwrap();
        assert_ne!(self.done[made], AckState::Yes, "{} is made again", entry.id);
        if self.rules.keep_order {
            let before = (0..made)
                .find(|before| self.accepted[*before] == AckState::Yes && self.done[*before] == AckState::Nothing);
            assert_eq!(before, None, "before {}", entry.id);
        }
        if turn == 1 && entry.attempts == 1 {
            let _ = finish(store, self.rules, sequence, later(NOW_MS)).await;
        } else {
            self.done[made] = self.done[made].max(ack_of(&finish(store, self.rules, sequence, AttemptEnd::Done).await));
        }
        self.step < 6 * CALLS
    }

    fn check(&mut self, store: &Store) -> Result<(), StoreError> {
        let pending = pending(store)?;
        for number in 0..CALLS {
            let is_pending = pending.contains(&name(number));
            match (self.accepted[number], self.done[number]) {
                (AckState::Nothing, _) | (_, AckState::Yes) => assert!(!is_pending, "{number}"),
                (AckState::Yes, AckState::Nothing) => assert!(is_pending, "call {number} is lost"),
                (AckState::InDoubt, AckState::Nothing) => {
                    self.accepted[number] = if is_pending { AckState::Yes } else { AckState::Nothing };
                }
                (_, AckState::InDoubt) => {
                    self.done[number] = if is_pending { AckState::Nothing } else { AckState::Yes }
                }
            }
        }
        if self.rules.keep_order {
            assert!(pending.is_sorted(), "{pending:?}");
        }
        Ok(())
    }
}

/// Hands calls over from one store to another. One of the two is on the disk that fails.
struct HandOverCalls {
    source_fails: bool,
    /// The store on the disk that does not fail.
    other: Store,
    step: usize,
    accepted: [AckState; CALLS],
}

impl HandOverCalls {
    fn new(source_fails: bool) -> Self {
        Self { source_fails, other: Disk::new(1).store(), step: 0, accepted: Default::default() }
    }

    fn sides<'a>(&'a self, store: &'a Store) -> (&'a Store, &'a Store) {
        if self.source_fails { (store, &self.other) } else { (&self.other, store) }
    }
}

impl Workload for HandOverCalls {
    async fn step(&mut self, store: &Store) -> bool {
        let (turn, number) = (self.step % 2, self.step / 2);
        self.step += 1;
        let (source, target) = self.sides(store);
        if turn == 0 && number < CALLS {
            let result = accept(source, &name(number)).await;
            self.accepted[number] = ack_of(&result);
            return true;
        }
        if let Ok(Some((sequence, entry))) = begin(source, RULES).await {
            let end = match accept(target, &entry.id).await {
                Ok(_) => AttemptEnd::Done,
                Err(error) => AttemptEnd::Later { error: error.to_string(), due_ms: NOW_MS },
            };
            let _ = finish(source, RULES, sequence, end).await;
        }
        self.step < 5 * CALLS
    }

    fn check(&mut self, store: &Store) -> Result<(), StoreError> {
        let (source, target) = self.sides(store);
        let (kept, taken) = (pending(source)?, pending(target)?);
        let mut settled = self.accepted;
        for (number, accepted) in settled.iter_mut().enumerate() {
            let id = name(number);
            let somewhere = kept.contains(&id) || taken.contains(&id);
            match accepted {
                AckState::Nothing => assert!(!somewhere, "{id}"),
                AckState::InDoubt => *accepted = if somewhere { AckState::Yes } else { AckState::Nothing },
                AckState::Yes => assert!(somewhere, "{id} is on neither side"),
            }
            assert!(taken.iter().filter(|taken| **taken == id).count() <= 1, "{id} was taken twice");
        }
        if self.step >= 5 * CALLS && !self.source_fails {
            assert!(settled.iter().all(|accepted| *accepted == AckState::Yes));
        }
        self.accepted = settled;
        Ok(())
    }
}

#[tokio::test]
async fn no_accepted_call_is_lost_and_none_that_is_done_is_made_again() {
    let points = crash_everywhere(|| MakeCalls::new(false)).await + crash_everywhere(|| MakeCalls::new(true)).await;
    println!("{points} crash points");
    assert!(points >= 500, "{points}");
}

#[tokio::test]
async fn both_sides_of_a_hand_over_agree() {
    let points =
        crash_everywhere(|| HandOverCalls::new(true)).await + crash_everywhere(|| HandOverCalls::new(false)).await;
    println!("{points} crash points");
    assert!(points >= 500, "{points}");
}
