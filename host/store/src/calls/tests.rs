//! Tests of the queue, step by step and against a plain model.

mod crash;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::{Quota, StateValue, Step, StepResult, StoreSettings};

const RULES: QueueRules = QueueRules {
    keep_order: false,
    interval_max: Duration::from_secs(120),
    attempts_max: None,
    retention: Duration::from_secs(3600),
    dead_letters: true,
};
const START_MS: u64 = 1_700_000_000_000;

/// A queue in a store of its own, with a clock that the test sets.
struct TestQueue {
    store: Store,
    rules: QueueRules,
    now_ms: u64,
    in_work: BTreeSet<u64>,
    unconfirmed: BTreeMap<u64, u32>,
    _directory: tempfile::TempDir,
}

impl TestQueue {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new("test", directory.path(), StoreSettings { minimum_free_bytes: 0 });
        Self {
            store,
            rules: RULES,
            now_ms: START_MS,
            in_work: BTreeSet::new(),
            unconfirmed: BTreeMap::new(),
            _directory: directory,
        }
    }

    fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Writer<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.store.write(Deadline::after(Duration::from_secs(60)), work))
    }

    fn accept(&self, call: &NewCall) -> String {
        let (call, now_ms) = (call.clone(), self.now_ms);
        self.write(move |writer| accept_at(writer, &call, now_ms)).unwrap()
    }

    fn begin(&mut self, places: usize) -> Vec<CallStart> {
        let (rules, in_work, unconfirmed, now_ms) =
            (self.rules, self.in_work.clone(), self.unconfirmed.clone(), self.now_ms);
        let begun = self.write(move |writer| {
            QueueWriter { writer, queue: "q", rules: &rules, now_ms }.begin(&in_work, &unconfirmed, places)
        });
        let begun = begun.unwrap();
        self.in_work.extend(begun.iter().filter_map(|begun| match begun {
            CallStart::Attempt { sequence, .. } => Some(*sequence),
            CallStart::GivenUp(_) => None,
        }));
        begun
    }

    /// Starts attempts. Returns id, attempt number and sequence number of their calls.
    fn attempts(&mut self, places: usize) -> Vec<(String, u32, u64)> {
        let begun = self.begin(places).into_iter().map(|begun| match begun {
            CallStart::Attempt { sequence, entry } => (entry.id, entry.attempts, sequence),
            CallStart::GivenUp(given_up) => panic!("{given_up:?}"),
        });
        begun.collect()
    }

    fn names(&mut self, places: usize) -> Vec<String> {
        self.attempts(places).into_iter().map(|(id, ..)| id).collect()
    }

    fn finish(&mut self, sequence: u64, end: AttemptEnd) -> FinishOutcome {
        let (rules, now_ms) = (self.rules, self.now_ms);
        self.in_work.remove(&sequence);
        let finished =
            self.write(move |writer| QueueWriter { writer, queue: "q", rules: &rules, now_ms }.finish(sequence, &end));
        finished.unwrap()
    }

    fn status(&self) -> QueueStatus {
        self.store.read(|reader| super::queue::status(reader, "q", &self.rules, &self.in_work, self.now_ms)).unwrap()
    }

    /// Number of entries in all tables of calls.
    fn entries(&self) -> usize {
        let count = |space| self.store.read(|reader| Reader::range(reader, space, &[], &[0xff; 64], usize::MAX, false));
        [Space::Calls, Space::CallsDue, Space::CallsSeen].map(|space| count(space).unwrap().len()).iter().sum()
    }
}

fn call(id: &str) -> NewCall {
    NewCall {
        queue: "q".into(),
        id: id.into(),
        target: StoredTarget { origin: "here".into(), cage: None, module: "work".into(), function: "handle".into() },
        message: id.as_bytes().to_vec(),
        expires: None,
        not_before: None,
        attempts_max: None,
        priority: 0,
    }
}

fn at(now_ms: u64) -> Option<SystemTime> {
    Some(call_time(now_ms))
}

fn later(due_ms: u64) -> AttemptEnd {
    AttemptEnd::Later { error: "why".into(), due_ms }
}

#[test]
fn a_name_is_accepted_once_until_its_retention_is_over() {
    let mut queue = TestQueue::new();
    assert_eq!(queue.accept(&call("a")), "a");
    assert_eq!(queue.accept(&call("a")), "a");
    let attempts = queue.attempts(10);
    assert_eq!(attempts.len(), 1);
    // Neither while it is being made nor when it is done.
    queue.accept(&call("a"));
    assert_eq!(queue.finish(attempts[0].2, AttemptEnd::Done), FinishOutcome::Done);
    assert_eq!(queue.finish(attempts[0].2, AttemptEnd::Done), FinishOutcome::Gone, "it is recorded once");
    queue.now_ms += 3_599_999;
    queue.accept(&call("a"));
    assert_eq!(queue.names(10), [""; 0]);
    queue.now_ms += 1;
    queue.accept(&call("a"));
    assert_eq!(queue.names(10), ["a"]);
}

#[test]
fn what_is_over_leaves_nothing_behind() {
    let mut queue = TestQueue::new();
    for id in ["a", "b", "c"] {
        queue.accept(&call(id));
    }
    for (_, _, sequence) in queue.attempts(10) {
        queue.finish(sequence, AttemptEnd::Done);
    }
    assert_eq!(queue.entries(), 7, "three names, when to forget them, and the next number");
    queue.now_ms += 4_000_000;
    assert!(queue.status().due, "names are to be forgotten");
    queue.begin(1);
    assert_eq!((queue.entries(), queue.status()), (1, QueueStatus::default()));
}

#[test]
fn priorities_then_age_decide_and_calls_in_work_are_left_alone() {
    let mut queue = TestQueue::new();
    for (id, priority) in [("a", 0), ("b", -128), ("c", 127), ("d", 0)] {
        queue.accept(&NewCall { priority, ..call(id) });
    }
    assert_eq!(queue.names(2), ["c", "a"]);
    queue.accept(&NewCall { priority: 1, ..call("e") });
    assert_eq!(queue.names(2), ["e", "d"]);
    assert_eq!(queue.names(2), ["b"]);
    assert_eq!((queue.names(2).len(), queue.status().due), (0, false));
    // The process that made them is gone.
    queue.in_work.clear();
    assert!(queue.status().due);
    assert_eq!(queue.attempts(1)[0].1, 2, "the attempt that came to nothing counts");
}

#[test]
fn calls_wait_for_their_time() {
    let mut queue = TestQueue::new();
    queue.accept(&NewCall { not_before: at(START_MS + 500), ..call("a") });
    assert_eq!(queue.status(), QueueStatus { due: false, next_ms: Some(START_MS + 500) });
    assert_eq!(queue.names(1), [""; 0]);
    queue.now_ms += 500;
    let sequence = queue.attempts(1)[0].2;
    queue.finish(sequence, later(queue.now_ms + 1_000));
    assert_eq!(queue.status(), QueueStatus { due: false, next_ms: Some(START_MS + 1_500) });
    queue.now_ms += 1_000;
    assert_eq!(queue.attempts(1)[0].1, 2);
}

#[test]
fn a_clock_that_is_set_back_delays_no_attempt_for_longer_than_the_longest_interval() {
    let mut queue = TestQueue::new();
    queue.accept(&call("a"));
    let sequence = queue.attempts(1)[0].2;
    queue.finish(sequence, later(queue.now_ms + 120_000));
    assert!(!queue.status().due);
    queue.now_ms -= 3_600_000;
    assert!(queue.status().due);
    assert_eq!(queue.names(1), ["a"]);
    // In an ordered queue, too.
    queue.rules.keep_order = true;
    queue.finish(sequence, later(queue.now_ms + 120_000));
    assert!(!queue.status().due);
    queue.now_ms -= 3_600_000;
    assert_eq!(queue.names(1), ["a"]);
}

#[test]
fn what_failed_before_a_restart_is_made_at_once() {
    let mut queue = TestQueue::new();
    for id in ["a", "b"] {
        queue.accept(&call(id));
    }
    queue.accept(&NewCall { not_before: at(START_MS + 60_000), ..call("c") });
    for (_, _, sequence) in queue.attempts(2) {
        queue.finish(sequence, later(START_MS + 100_000));
    }
    assert!(!queue.status().due);
    let (rules, now_ms) = (queue.rules, queue.now_ms);
    let all = queue.write(move |writer| QueueWriter { writer, queue: "q", rules: &rules, now_ms }.resume()).unwrap();
    assert!(all);
    assert_eq!(queue.names(10), ["a", "b"]);
}

#[test]
fn the_first_of_an_ordered_queue_holds_up_the_rest() {
    let mut queue = TestQueue::new();
    queue.rules.keep_order = true;
    queue.accept(&call("a"));
    queue.accept(&NewCall { priority: 9, ..call("b") });
    let sequence = queue.attempts(10)[0].2;
    assert_eq!(queue.names(10), [""; 0], "one at a time");
    queue.finish(sequence, later(queue.now_ms + 1_000));
    assert_eq!(queue.status(), QueueStatus { due: false, next_ms: Some(START_MS + 1_000) });
    assert_eq!(queue.names(10), [""; 0]);
    queue.now_ms += 1_000;
    assert_eq!(queue.attempts(10), [("a".into(), 2, sequence)]);
    queue.finish(sequence, AttemptEnd::Done);
    assert_eq!(queue.names(10), ["b"]);
}

#[test]
fn an_attempt_that_is_on_record_but_never_ran_is_begun_again_and_not_counted_twice() {
    let mut queue = TestQueue::new();
    queue.rules.attempts_max = Some(1);
    queue.accept(&call("a"));
    let [(_, 1, sequence)] = queue.attempts(1)[..] else { panic!() };
    // Its caller got no answer: the write is on the disk, but the attempt did not run.
    queue.in_work.clear();
    queue.unconfirmed.insert(sequence, 1);
    assert_eq!(queue.attempts(1), [("a".to_owned(), 1, sequence)]);
    // This time it runs, and fails: that was its only attempt.
    queue.unconfirmed.clear();
    let finished = queue.finish(sequence, later(START_MS));
    assert!(matches!(finished, FinishOutcome::GivenUp(_)), "{finished:?}");

    // An attempt that was refused before it ran is not counted, however often that is reported.
    queue.accept(&call("b"));
    let [(_, 1, sequence)] = queue.attempts(1)[..] else { panic!() };
    let not_run = || AttemptEnd::NotRun { attempt: 1, error: "draining".into(), due_ms: START_MS };
    assert_eq!(queue.finish(sequence, not_run()), FinishOutcome::Later);
    assert_eq!(queue.finish(sequence, not_run()), FinishOutcome::Later);
    assert_eq!(queue.attempts(1), [("b".to_owned(), 1, sequence)]);
}

#[tokio::test]
async fn an_attempt_whose_start_was_not_confirmed_runs_at_the_next_round() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new("test", directory.path(), StoreSettings { minimum_free_bytes: 0 });
    let soon = || Deadline::after(Duration::from_secs(60));
    let rules = QueueRules { attempts_max: Some(1), ..RULES };
    store.accept_call(call("a"), soon()).await.unwrap();
    // The one who asks goes away when the write has been handed over.
    let mut beginning = Box::pin(store.begin_calls("q", rules, 1, soon()));
    assert!(futures_util::poll!(&mut beginning).is_pending());
    store.write(soon(), |_| Ok(())).await.expect("both writes are done");
    drop(beginning);
    let begun = store.begin_calls("q", rules, 1, soon()).await.unwrap();
    let [CallStart::Attempt { entry, .. }] = &begun[..] else { panic!("{begun:?}") };
    assert_eq!(entry.attempts, 1);
    assert!(store.retried_queue("q").unconfirmed().is_empty());
}

#[test]
fn calls_are_given_up_and_kept() {
    let given_up = |queue: &mut TestQueue, part: &str| {
        let [CallStart::GivenUp(GivenUpCall { entry, .. })] = &queue.begin(1)[..] else { panic!("it is not given up") };
        assert!(entry.error.contains(part), "{}", entry.error);
    };
    let mut queue = TestQueue::new();
    queue.accept(&NewCall { expires: at(START_MS + 1_000), ..call("expires") });
    let sequence = queue.attempts(1)[0].2;
    queue.finish(sequence, later(queue.now_ms + 60_000));
    assert_eq!(queue.status().next_ms, Some(START_MS + 1_000), "its end is not slept through");
    queue.now_ms += 1_000;
    given_up(&mut queue, "expired after 1 attempts; last: why");
    queue.accept(&NewCall { attempts_max: Some(1), ..call("attempts") });
    let sequence = queue.attempts(1)[0].2;
    assert!(
        matches!(queue.finish(sequence, later(0)), FinishOutcome::GivenUp(given_up) if given_up.entry.error.contains("failed 1 times"))
    );
    let elsewhere = StoredTarget { cage: Some("far".into()), ..call("").target };
    queue.accept(&NewCall { target: elsewhere, attempts_max: Some(1), ..call("handed over") });
    let sequence = queue.attempts(1)[0].2;
    assert_eq!(queue.finish(sequence, later(queue.now_ms)), FinishOutcome::Later, "attempts count where it is made");
    queue.now_ms += 3_600_000;
    given_up(&mut queue, "cage far did not take it");
    // Their names stay taken.
    queue.now_ms += 100_000_000;
    for id in ["expires", "attempts", "handed over"] {
        queue.accept(&call(id));
    }
    assert_eq!(queue.begin(10), []);
    let counts = queue.store.read(|reader| reader.counts("q")).unwrap();
    assert_eq!(counts, QueueCounts { pending: 0, dead: 3 });
    // Without dead letters, nothing is kept but the name.
    queue.rules.dead_letters = false;
    queue.accept(&call("refused"));
    let sequence = queue.attempts(1)[0].2;
    assert!(matches!(queue.finish(sequence, AttemptEnd::Never("no".into())), FinishOutcome::GivenUp(_)));
    assert_eq!(queue.store.call_message(sequence).unwrap(), None);
    assert_eq!(queue.store.read(|reader| reader.counts("q")).unwrap().dead, 3);
}

#[test]
fn the_oldest_dead_letter_makes_room_and_is_named() {
    let mut queue = TestQueue::new();
    let bury = |queue: &mut TestQueue, id: &str| {
        queue.accept(&call(id));
        let sequence = queue.attempts(1)[0].2;
        match queue.finish(sequence, AttemptEnd::Never("no".into())) {
            FinishOutcome::GivenUp(given_up) => given_up.displaced,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(bury(&mut queue, "first"), None);
    assert_eq!(bury(&mut queue, "second"), None);
    // As if there were many more.
    let full = |writer: &mut Writer<'_>| queue::count(writer, "q", |counts| counts.dead = queue::DEAD_MAX);
    queue.write(full).unwrap();
    assert_eq!(bury(&mut queue, "third").as_deref(), Some("first"));
    assert_eq!(bury(&mut queue, "fourth").as_deref(), Some("second"));
    let left = queue.store.calls(&CallFilter { dead: true, limit: 10, ..CallFilter::default() }).unwrap();
    assert_eq!(left.iter().map(|call| &*call.id).collect::<Vec<_>>(), ["third", "fourth"]);
    assert_eq!(queue.store.read(|reader| reader.counts("q")).unwrap().dead, queue::DEAD_MAX);
}

#[test]
fn dropped_dead_letters_are_reported_once_a_minute() {
    let (queue, start) = (RetriedQueue::default(), std::time::Instant::now());
    let reported: Vec<_> =
        [0, 1, 59, 60, 61, 200].map(|s| queue.count_displaced(start + Duration::from_secs(s))).into();
    assert_eq!(reported, [Some(1), None, None, Some(3), None, Some(2)]);
}

#[tokio::test]
async fn operators_run_move_and_drop() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new("test", directory.path(), StoreSettings { minimum_free_bytes: 0 });
    let soon = || Deadline::after(Duration::from_secs(60));
    store.accept_call(NewCall { attempts_max: Some(1), ..call("a") }, soon()).await.unwrap();
    let begin = async |queue: &str| match store.begin_calls(queue, RULES, 1, soon()).await.unwrap().pop() {
        Some(CallStart::Attempt { sequence, .. }) => Some(sequence),
        Some(CallStart::GivenUp(_)) | None => None,
    };
    let sequence = begin("q").await.unwrap();
    let in_work = store.retried_queue("q").begin(sequence);
    assert!(store.run_call("a", None, soon()).await.unwrap_err().to_string().contains("is being made"));
    drop(in_work);
    let finished = store.finish_call("q", RULES, sequence, AttemptEnd::Never("no".into()), soon()).await.unwrap();
    assert!(matches!(finished, FinishOutcome::GivenUp(_)));
    let dead = |dead| store.calls(&CallFilter { dead, limit: 10, ..CallFilter::default() }).unwrap();
    assert_eq!((dead(true)[0].state, dead(true)[0].error.as_deref(), dead(false).len()), ("dead", Some("no"), 0));
    store.run_call("a", Some("other"), soon()).await.unwrap();
    assert_eq!((&*dead(false)[0].queue, dead(false)[0].attempts, dead(true).len()), ("other", 0, 0));
    assert_eq!(store.find_call("a").unwrap().1, b"a");
    assert_eq!(begin("other").await, Some(sequence));
    store.drop_call("a", soon()).await.unwrap();
    assert!(store.find_call("a").unwrap_err().to_string().contains("still remembered"));
    store.accept_call(call("a"), soon()).await.unwrap();
    assert_eq!((begin("q").await, store.call_queues().unwrap()), (None, vec![]));
    assert!(store.drop_call("b", soon()).await.unwrap_err().to_string().contains("there is no call b"));
}

#[tokio::test]
async fn a_call_is_accepted_with_the_transaction_it_belongs_to_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new("test", directory.path(), StoreSettings { minimum_free_bytes: 0 });
    let soon = || Deadline::after(Duration::from_secs(60));
    let retry = |id: &str| Step::Retry(Box::new(call(id)));
    let set = Step::Set("k".into(), StateValue::Json("1".into()));
    let check = Step::Check("k".into(), Some(StateValue::Json("2".into())));
    let steps = vec![retry("a"), set.clone(), check];
    let refused = store.transact("work", Quota::default(), steps, None, soon()).await;
    assert_eq!(refused, Err(StoreError::Conflict(2)));
    assert_eq!(store.call_queues().unwrap(), []);
    let done = store.transact("work", Quota::default(), vec![set, retry("b")], None, soon()).await.unwrap();
    assert_eq!(done[1], StepResult::Id("b".into()));
    assert_eq!(store.call_queues().unwrap()[0].pending, 1);
}

/// A call in the model of the queue.
#[derive(Clone, Debug)]
struct ModelCall {
    number: u64,
    priority: i8,
    /// None: ready.
    due_ms: Option<u64>,
    expires_ms: Option<u64>,
    attempts: u32,
}

#[test]
fn the_queue_does_what_a_plain_map_does() {
    arbtest::arbtest(|u| {
        let mut queue = TestQueue::new();
        queue.rules.keep_order = u.arbitrary()?;
        queue.rules.attempts_max = u.arbitrary::<bool>()?.then_some(3);
        let keep_order = queue.rules.keep_order;
        let mut pending: BTreeMap<String, ModelCall> = BTreeMap::new();
        let mut seen: BTreeMap<String, Option<u64>> = BTreeMap::new();
        let mut dead = 0;
        let mut next = 1;
        let mut in_work: BTreeMap<u64, String> = BTreeMap::new();
        for _ in 0..u.int_in_range(1..=40)? {
            match u.int_in_range(0..=4)? {
                0 | 1 => {
                    let id = format!("c{}", u.int_in_range(0..=8)?);
                    let in_future = |u: &mut arbtest::arbitrary::Unstructured<'_>| -> arbtest::arbitrary::Result<_> {
                        Ok(u.arbitrary::<bool>()?.then_some(queue.now_ms + u.int_in_range(1..=5_000)?))
                    };
                    let (not_before, expires) = (in_future(u)?, in_future(u)?);
                    let priority = u.int_in_range(-2..=2)?;
                    let asked = NewCall {
                        priority,
                        not_before: not_before.map(call_time),
                        expires: expires.map(call_time),
                        ..call(&id)
                    };
                    queue.accept(&asked);
                    if seen.get(&id).is_none_or(|forget| forget.is_some_and(|at| at <= queue.now_ms)) {
                        seen.insert(id.clone(), None);
                        let due_ms = not_before.map(|at: u64| at.min(expires.unwrap_or(u64::MAX)));
                        let call = ModelCall { number: next, priority, due_ms, expires_ms: expires, attempts: 0 };
                        pending.insert(id, call);
                        next += 1;
                    }
                }
                2 => {
                    let places = u.int_in_range(1..=3)?;
                    let now_ms = queue.now_ms;
                    let mut due: Vec<_> =
                        pending.iter().filter(|(_, call)| !in_work.contains_key(&call.number)).collect();
                    if keep_order {
                        due.sort_by_key(|(_, call)| call.number);
                        due.truncate(usize::from(in_work.is_empty()));
                        due.retain(|(_, call)| {
                            call.due_ms.is_none_or(|at| at <= now_ms) || call.expires_ms.is_some_and(|at| at <= now_ms)
                        });
                    } else {
                        due.retain(|(_, call)| call.due_ms.is_none_or(|at| at <= now_ms));
                        due.sort_by_key(|(_, call)| (-call.priority, call.number));
                        due.truncate(places);
                    }
                    let due: Vec<_> = due.into_iter().map(|(id, _)| id.clone()).collect();
                    // The model makes ready what is due, as the queue does.
                    if !keep_order {
                        for call in pending.values_mut().filter(|call| call.due_ms.is_some_and(|at| at <= now_ms)) {
                            call.due_ms = None;
                        }
                    }
                    let found = queue.begin(places);
                    assert_eq!(found.len(), due.len(), "{found:?} {due:?}");
                    for (begun, id) in found.into_iter().zip(due) {
                        let call = pending.get_mut(&id).unwrap();
                        let ended = call.expires_ms.is_some_and(|at| at <= now_ms);
                        match begun {
                            CallStart::Attempt { sequence, entry } => {
                                assert!(!ended, "{entry:?}");
                                call.attempts += 1;
                                call.due_ms = None;
                                assert_eq!((&entry.id, entry.attempts, sequence), (&id, call.attempts, call.number));
                                in_work.insert(sequence, id);
                            }
                            CallStart::GivenUp(GivenUpCall { entry, .. }) => {
                                assert!(ended && entry.id == id, "{entry:?}");
                                pending.remove(&id);
                                dead += 1;
                            }
                        }
                    }
                }
                3 => {
                    let Some(sequence) = in_work.keys().next().copied() else { continue };
                    let id = in_work.remove(&sequence).unwrap();
                    let retention_ms = 3_600_000;
                    let call = pending[&id].clone();
                    match u.int_in_range(0..=2)? {
                        0 => {
                            assert_eq!(queue.finish(sequence, AttemptEnd::Done), FinishOutcome::Done);
                            seen.insert(id.clone(), Some(queue.now_ms + retention_ms));
                            pending.remove(&id);
                        }
                        1 => {
                            assert!(matches!(
                                queue.finish(sequence, AttemptEnd::Never("no".into())),
                                FinishOutcome::GivenUp(_)
                            ));
                            pending.remove(&id);
                            dead += 1;
                        }
                        _ => {
                            let due_ms = queue.now_ms + u.int_in_range(0..=100_000)?;
                            let over = call.expires_ms.is_some_and(|at| at <= queue.now_ms)
                                || queue.rules.attempts_max.is_some_and(|max| call.attempts >= max);
                            let finished = queue.finish(sequence, later(due_ms));
                            assert_eq!(matches!(finished, FinishOutcome::GivenUp(_)), over, "{finished:?} {call:?}");
                            if over {
                                pending.remove(&id);
                                dead += 1;
                            } else {
                                let due_ms = due_ms.min(call.expires_ms.unwrap_or(u64::MAX));
                                pending.get_mut(&id).unwrap().due_ms = Some(due_ms);
                            }
                        }
                    }
                }
                _ => queue.now_ms += u.int_in_range(0..=4_000_000)?,
            }
            let counts = queue.store.read(|reader| reader.counts("q")).unwrap();
            assert_eq!(counts, QueueCounts { pending: pending.len() as u64, dead });
            let listed = queue.store.calls(&CallFilter { limit: 100, ..CallFilter::default() }).unwrap();
            let mut modelled: Vec<_> = pending.iter().map(|(id, call)| (call.number, id)).collect();
            modelled.sort();
            assert!(listed.iter().map(|view| &view.id).eq(modelled.iter().map(|(_, id)| *id)), "{listed:?}");
        }
        Ok(())
    })
    .budget_ms(5_000);
}
