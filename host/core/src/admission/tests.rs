//! Tests of admission: the order of waiters, bulkheads, and that no permit is lost.

use std::time::Duration;

use super::*;

fn within(millis: u64) -> Deadline {
    Deadline::after(Duration::from_millis(millis))
}

#[tokio::test]
async fn the_earliest_deadline_is_served_first() {
    let admission = Admission::new(1, 10);
    let permit = admission.enter(within(10_000)).await.ok();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (name, millis) in [("late", 30_000), ("early", 10_000), ("middle", 20_000)] {
        let (admission, order) = (admission.clone(), order.clone());
        tasks.push(tokio::spawn(async move {
            let _permit = admission.enter(within(millis)).await.ok().unwrap();
            order.lock().push(name);
        }));
    }
    while admission.waiting() < 3 {
        tokio::task::yield_now().await;
    }
    drop(permit);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock(), ["early", "middle", "late"]);
    assert_eq!((admission.in_work(), admission.waiting()), (0, 0));
}

#[tokio::test]
async fn a_full_queue_answers_at_once_and_an_expired_waiter_leaves() {
    let admission = Admission::new(1, 1);
    let permit = admission.enter(within(10_000)).await.ok();
    let waiter = tokio::spawn({
        let admission = admission.clone();
        async move { admission.enter(within(50)).await.err() }
    });
    while admission.waiting() < 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(admission.enter(within(10_000)).await.err(), Some(AdmissionError::Full(1)));
    assert_eq!(waiter.await.unwrap(), Some(AdmissionError::Expired));
    assert_eq!(admission.waiting(), 0);
    drop(permit);
    assert!(admission.enter(within(10)).await.is_ok());
}

#[tokio::test]
async fn an_abandoned_waiter_does_not_keep_the_permit() {
    let admission = Admission::new(1, 10);
    let permit = admission.enter(within(10_000)).await.ok();
    let abandoned = tokio::spawn({
        let admission = admission.clone();
        async move { admission.enter(within(10_000)).await.err() }
    });
    while admission.waiting() < 1 {
        tokio::task::yield_now().await;
    }
    abandoned.abort();
    assert!(abandoned.await.is_err());
    drop(permit);
    assert!(admission.enter(within(10_000)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_permit_is_lost_under_contention() {
    let admission = Admission::new(3, 1_000);
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let admission = admission.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    let permit = admission.enter(within(60_000)).await.ok().unwrap();
                    assert!(admission.in_work() <= 3);
                    tokio::task::yield_now().await;
                    drop(permit);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!((admission.in_work(), admission.waiting()), (0, 0));
}

fn bulkheads<const N: usize>(admission: &Arc<Admission>, max: usize) -> [Arc<Bulkhead>; N] {
    std::array::from_fn(|_| Bulkhead::new(admission.clone(), max))
}

/// Enters in a task of its own, and returns when that is in its queue.
async fn waiting(
    bulkhead: &Arc<Bulkhead>,
    entry: EntryKind,
    millis: u64,
) -> tokio::task::JoinHandle<Result<Permit, AdmissionError>> {
    let before = bulkhead.admission.waiting.load(SeqCst);
    let theirs = bulkhead.clone();
    let task = tokio::spawn(async move { theirs.enter(entry, within(millis)).await });
    while bulkhead.admission.waiting.load(SeqCst) == before {
        tokio::task::yield_now().await;
    }
    task
}

#[tokio::test]
async fn whoever_waits_for_a_busy_module_takes_no_permit_from_other_modules() {
    let admission = Admission::new(3, 100);
    let [slow, fast] = bulkheads(&admission, 2);
    let slow_permits =
        [slow.enter(EntryKind::Outside, within(10_000)).await, slow.enter(EntryKind::Outside, within(10_000)).await];
    let mut tasks = Vec::new();
    for _ in 0..10 {
        tasks.push(waiting(&slow, EntryKind::Outside, 10_000).await);
    }
    assert_eq!((admission.in_work(), admission.waiting()), (2, 10));
    for _ in 0..10 {
        assert!(fast.enter(EntryKind::Outside, within(10_000)).await.is_ok());
    }
    drop(slow_permits);
    for task in tasks {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!((admission.in_work(), admission.waiting(), slow.in_work.load(SeqCst)), (0, 0, 0));
}

#[tokio::test]
async fn the_earliest_deadline_goes_first_among_modules_and_within_requests() {
    let admission = Admission::new(1, 100);
    let [one, other] = bulkheads(&admission, 1);
    let permit = one.enter(EntryKind::Outside, within(10_000)).await.unwrap();
    let late = waiting(&one, EntryKind::Outside, 30_000).await;
    let middle = waiting(&one, EntryKind::Within, 20_000).await;
    let early = waiting(&other, EntryKind::Outside, 10_000).await;
    drop(permit);
    // The module and the cage have room again, for one each: a call within a request needs none of the cage's.
    let (early, middle) = (early.await.unwrap().unwrap(), middle.await.unwrap().unwrap());
    assert_eq!((admission.in_work(), admission.waiting()), (1, 1));
    drop(early);
    assert!(!late.is_finished());
    drop(middle);
    assert!(late.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_full_queue_takes_from_the_longest_queue_for_a_shorter_one() {
    let admission = Admission::new(1, 3);
    let [many, few] = bulkheads(&admission, 1);
    let permit = many.enter(EntryKind::Outside, within(10_000)).await.unwrap();
    let mut line = Vec::new();
    for millis in [20_000, 40_000, 30_000] {
        line.push(waiting(&many, EntryKind::Outside, millis).await);
    }
    assert_eq!(many.enter(EntryKind::Outside, within(10_000)).await.err(), Some(AdmissionError::Full(3)));
    let theirs = few.clone();
    let newcomer = tokio::spawn(async move { theirs.enter(EntryKind::Outside, within(50_000)).await });
    // The latest deadline of the longest queue has left.
    assert_eq!(line.remove(1).await.unwrap().err(), Some(AdmissionError::Full(3)));
    assert_eq!(admission.waiting(), 3);
    // Queues of two and one: nobody is displaced any more.
    assert_eq!(few.enter(EntryKind::Outside, within(10_000)).await.err(), Some(AdmissionError::Full(3)));
    drop(permit);
    // Each gives its permit to the next.
    for task in line.into_iter().chain([newcomer]) {
        assert!(task.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_closed_bulkhead_tells_who_waits_and_lets_nobody_in() {
    let admission = Admission::new(10, 10);
    let [bulkhead] = bulkheads(&admission, 1);
    let permit = bulkhead.enter(EntryKind::Within, within(10_000)).await.unwrap();
    let tasks =
        [waiting(&bulkhead, EntryKind::Outside, 10_000).await, waiting(&bulkhead, EntryKind::Within, 10_000).await];
    bulkhead.close();
    for task in tasks {
        assert_eq!(task.await.unwrap().err(), Some(AdmissionError::Closed));
    }
    assert_eq!(bulkhead.enter(EntryKind::Outside, within(10_000)).await.err(), Some(AdmissionError::Closed));
    drop(permit);
    assert_eq!(bulkhead.enter(EntryKind::Within, within(10_000)).await.err(), Some(AdmissionError::Closed));
    assert_eq!((admission.in_work(), admission.waiting(), bulkhead.in_work.load(SeqCst)), (0, 0, 0));
}

#[tokio::test]
async fn an_expired_waiter_is_told_whether_its_module_or_the_cage_was_busy() {
    let admission = Admission::new(1, 10);
    let [busy, free] = bulkheads(&admission, 1);
    let _permit = busy.enter(EntryKind::Outside, within(10_000)).await.unwrap();
    assert_eq!(busy.enter(EntryKind::Outside, within(10)).await.err(), Some(AdmissionError::ModuleBusy));
    assert_eq!(free.enter(EntryKind::Outside, within(10)).await.err(), Some(AdmissionError::Expired));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_permit_of_a_module_or_cage_is_lost_under_contention() {
    let admission = Admission::new(4, 1_000);
    let all: [_; 3] = bulkheads(&admission, 2);
    let tasks: Vec<_> = (0..200)
        .map(|number| {
            let (bulkhead, admission) = (all[number % 3].clone(), admission.clone());
            let entry = if number % 5 == 0 { EntryKind::Within } else { EntryKind::Outside };
            tokio::spawn(async move {
                for round in 0..50 {
                    // Some give up soon, some in the middle of being let in.
                    let millis = if round % 10 == 9 { 1 } else { 60_000 };
                    match bulkhead.enter(entry, within(millis)).await {
                        Ok(permit) => {
                            assert!(admission.in_work() <= 4 && bulkhead.in_work.load(SeqCst) <= 2);
                            tokio::task::yield_now().await;
                            drop(permit);
                        }
                        Err(AdmissionError::Expired | AdmissionError::ModuleBusy) => assert_eq!(millis, 1),
                        Err(other) => panic!("{other:?}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!((admission.in_work(), admission.waiting(), admission.waiting.load(SeqCst)), (0, 0, 0));
    assert!(all.iter().all(|bulkhead| bulkhead.in_work.load(SeqCst) == 0));
}
