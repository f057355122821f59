//! The queue on a disk that fails, or loses power, at each change: what was accepted is there, what is done is not made again,
//! order is kept, and both sides of a hand-over agree.

use super::*;
use crate::crash::{Disk, Workload, crash_everywhere};

const NOW_MS: u64 = START_MS;
const CALLS: usize = 6;

/// What its caller was told of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    #[default]
    Nothing,
    InDoubt,
    Yes,
}

fn told<T>(result: &Result<T, StoreError>) -> Told {
    match result {
        Ok(_) => Told::Yes,
        Err(StoreError::Unavailable(_) | StoreError::TimedOut) => Told::InDoubt,
        Err(error) => panic!("{error}"),
    }
}

fn patience() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn name(number: usize) -> String {
    format!("c{number}")
}

async fn accept(store: &Store, id: &str) -> Result<String, StoreError> {
    let call = call(id);
    store.write(patience(), move |writer| accept_at(writer, &call, NOW_MS)).await
}

async fn begin(store: &Store, rules: Rules) -> Result<Option<(u64, CallEntry)>, StoreError> {
    let begun = store.write(patience(), move |writer| {
        Working { writer, queue: "q", rules: &rules, now_ms: NOW_MS }.begin(&BTreeSet::new(), &BTreeMap::new(), 1)
    });
    Ok(begun.await?.pop().map(|begun| match begun {
        Begun::Attempt { sequence, entry } => (sequence, entry),
        Begun::GivenUp(given_up) => panic!("{given_up:?}"),
    }))
}

async fn finish(store: &Store, rules: Rules, sequence: u64, end: End) -> Result<Finished, StoreError> {
    let work = move |writer: &mut Writer<'_>| {
        Working { writer, queue: "q", rules: &rules, now_ms: NOW_MS }.finish(sequence, &end)
    };
    store.write(patience(), work).await
}

/// Names of the pending calls in their order; every table must say the same of them.
fn pending(store: &Store) -> Result<Vec<String>, StoreError> {
    store.read(|reader| {
        let entries = reader.entries("q", false, 0, usize::MAX)?;
        let due = Source::range(reader, Space::CallsDue, &(vec![], vec![0xff; 64]), usize::MAX, false)?;
        let mut expected: Vec<_> =
            entries.iter().map(|(sequence, entry)| keys::due("q", *sequence, entry).unwrap()).collect();
        expected.sort();
        assert_eq!(due.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), expected);
        assert_eq!(reader.counts("q")?, Counts { pending: entries.len() as u64, dead: 0 });
        for (sequence, entry) in &entries {
            let seen = reader.seen(&entry.id)?.expect("a pending call has its name");
            assert_eq!((seen.sequence, seen.forget_ms), (*sequence, None));
            assert_eq!(reader.get(Space::Calls, &keys::message(*sequence))?.as_deref(), Some(entry.id.as_bytes()));
        }
        Ok(entries.into_iter().map(|(_, entry)| entry.id).collect())
    })
}

/// Accepts calls, some twice, makes them, some twice, in turns.
struct Making {
    rules: Rules,
    step: usize,
    accepted: [Told; CALLS],
    done: [Told; CALLS],
}

impl Making {
    fn new(keep_order: bool) -> Self {
        let rules = Rules { keep_order, ..RULES };
        Self { rules, step: 0, accepted: Default::default(), done: Default::default() }
    }
}

impl Workload for Making {
    async fn step(&mut self, store: &Store) -> bool {
        let (turn, number) = (self.step % 3, self.step / 3);
        self.step += 1;
        if turn == 0 && number < CALLS {
            // Whoever is not told asks again.
            for _ in 0..2 {
                let result = accept(store, &name(number)).await;
                self.accepted[number] = self.accepted[number].max(told(&result));
            }
            return true;
        }
        let Ok(Some((sequence, entry))) = begin(store, self.rules).await else { return self.step < 6 * CALLS };
        let made: usize = entry.id[1..].parse().unwrap();
        assert_ne!(self.done[made], Told::Yes, "{} is made again", entry.id);
        if self.rules.keep_order {
            let before =
                (0..made).find(|before| self.accepted[*before] == Told::Yes && self.done[*before] == Told::Nothing);
            assert_eq!(before, None, "before {}", entry.id);
        }
        if turn == 1 && entry.attempts == 1 {
            let _ = finish(store, self.rules, sequence, later(NOW_MS)).await;
        } else {
            self.done[made] = self.done[made].max(told(&finish(store, self.rules, sequence, End::Done).await));
        }
        self.step < 6 * CALLS
    }

    fn check(&mut self, store: &Store) -> Result<(), StoreError> {
        let pending = pending(store)?;
        for number in 0..CALLS {
            let is_pending = pending.contains(&name(number));
            match (self.accepted[number], self.done[number]) {
                (Told::Nothing, _) | (_, Told::Yes) => assert!(!is_pending, "{number}"),
                (Told::Yes, Told::Nothing) => assert!(is_pending, "call {number} is lost"),
                (Told::InDoubt, Told::Nothing) => {
                    self.accepted[number] = if is_pending { Told::Yes } else { Told::Nothing };
                }
                (_, Told::InDoubt) => self.done[number] = if is_pending { Told::Nothing } else { Told::Yes },
            }
        }
        if self.rules.keep_order {
            assert!(pending.is_sorted(), "{pending:?}");
        }
        Ok(())
    }
}

/// Hands calls over from one store to another, one of which is on the disk that fails.
struct HandingOver {
    source_fails: bool,
    /// The one that does not fail.
    other: Store,
    step: usize,
    accepted: [Told; CALLS],
}

impl HandingOver {
    fn new(source_fails: bool) -> Self {
        Self { source_fails, other: Disk::new(1).store(), step: 0, accepted: Default::default() }
    }

    fn sides<'a>(&'a self, store: &'a Store) -> (&'a Store, &'a Store) {
        if self.source_fails { (store, &self.other) } else { (&self.other, store) }
    }
}

impl Workload for HandingOver {
    async fn step(&mut self, store: &Store) -> bool {
        let (turn, number) = (self.step % 2, self.step / 2);
        self.step += 1;
        let (source, target) = self.sides(store);
        if turn == 0 && number < CALLS {
            let result = accept(source, &name(number)).await;
            self.accepted[number] = told(&result);
            return true;
        }
        if let Ok(Some((sequence, entry))) = begin(source, RULES).await {
            let end = match accept(target, &entry.id).await {
                Ok(_) => End::Done,
                Err(error) => End::Later { error: error.to_string(), due_ms: NOW_MS },
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
                Told::Nothing => assert!(!somewhere, "{id}"),
                Told::InDoubt => *accepted = if somewhere { Told::Yes } else { Told::Nothing },
                Told::Yes => assert!(somewhere, "{id} is on neither side"),
            }
            assert!(taken.iter().filter(|taken| **taken == id).count() <= 1, "{id} was taken twice");
        }
        if self.step >= 5 * CALLS && !self.source_fails {
            assert!(settled.iter().all(|accepted| *accepted == Told::Yes));
        }
        self.accepted = settled;
        Ok(())
    }
}

#[tokio::test]
async fn no_accepted_call_is_lost_and_none_that_is_done_is_made_again() {
    let points = crash_everywhere(|| Making::new(false)).await + crash_everywhere(|| Making::new(true)).await;
    println!("{points} crash points");
    assert!(points >= 500, "{points}");
}

#[tokio::test]
async fn both_sides_of_a_hand_over_agree() {
    let points = crash_everywhere(|| HandingOver::new(true)).await + crash_everywhere(|| HandingOver::new(false)).await;
    println!("{points} crash points");
    assert!(points >= 500, "{points}");
}
