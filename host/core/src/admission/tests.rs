//! What is promised of admission: order, bulkheads, and that no place is lost.

use std::time::Duration;

use super::*;

fn within(millis: u64) -> Deadline {
    Deadline::after(Duration::from_millis(millis))
}

#[tokio::test]
async fn the_earliest_deadline_is_served_first() {
    let admission = Admission::new(1, 10);
    let place = admission.enter(within(10_000)).await.ok();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (name, millis) in [("late", 30_000), ("early", 10_000), ("middle", 20_000)] {
        let (admission, order) = (admission.clone(), order.clone());
        tasks.push(tokio::spawn(async move {
            let _place = admission.enter(within(millis)).await.ok().unwrap();
            order.lock().push(name);
        }));
    }
    while admission.waiting() < 3 {
        tokio::task::yield_now().await;
    }
    drop(place);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock(), ["early", "middle", "late"]);
    assert_eq!((admission.in_work(), admission.waiting()), (0, 0));
}

#[tokio::test]
async fn a_full_queue_answers_at_once_and_an_expired_waiter_leaves() {
    let admission = Admission::new(1, 1);
    let place = admission.enter(within(10_000)).await.ok();
    let waiter = tokio::spawn({
        let admission = admission.clone();
        async move { admission.enter(within(50)).await.err() }
    });
    while admission.waiting() < 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(admission.enter(within(10_000)).await.err(), Some(Refusal::Full(1)));
    assert_eq!(waiter.await.unwrap(), Some(Refusal::Expired));
    assert_eq!(admission.waiting(), 0);
    drop(place);
    assert!(admission.enter(within(10)).await.is_ok());
}

#[tokio::test]
async fn an_abandoned_waiter_does_not_keep_the_place() {
    let admission = Admission::new(1, 10);
    let place = admission.enter(within(10_000)).await.ok();
    let abandoned = tokio::spawn({
        let admission = admission.clone();
        async move { admission.enter(within(10_000)).await.err() }
    });
    while admission.waiting() < 1 {
        tokio::task::yield_now().await;
    }
    abandoned.abort();
    assert!(abandoned.await.is_err());
    drop(place);
    assert!(admission.enter(within(10_000)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_place_is_lost_under_contention() {
    let admission = Admission::new(3, 1_000);
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let admission = admission.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    let place = admission.enter(within(60_000)).await.ok().unwrap();
                    assert!(admission.in_work() <= 3);
                    tokio::task::yield_now().await;
                    drop(place);
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

/// Enters in a task of its own, and waits until it is in line.
async fn waiting(
    bulkhead: &Arc<Bulkhead>,
    entry: Entry,
    millis: u64,
) -> tokio::task::JoinHandle<Result<Place, Refusal>> {
    let before = bulkhead.admission.waiting.load(SeqCst);
    let theirs = bulkhead.clone();
    let task = tokio::spawn(async move { theirs.enter(entry, within(millis)).await });
    while bulkhead.admission.waiting.load(SeqCst) == before {
        tokio::task::yield_now().await;
    }
    task
}

#[tokio::test]
async fn whoever_waits_for_a_busy_module_takes_no_place_from_other_modules() {
    let admission = Admission::new(3, 100);
    let [slow, fast] = bulkheads(&admission, 2);
    let slow_places =
        [slow.enter(Entry::Outside, within(10_000)).await, slow.enter(Entry::Outside, within(10_000)).await];
    let mut tasks = Vec::new();
    for _ in 0..10 {
        tasks.push(waiting(&slow, Entry::Outside, 10_000).await);
    }
    assert_eq!((admission.in_work(), admission.waiting()), (2, 10));
    for _ in 0..10 {
        assert!(fast.enter(Entry::Outside, within(10_000)).await.is_ok());
    }
    drop(slow_places);
    for task in tasks {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!((admission.in_work(), admission.waiting(), slow.in_work.load(SeqCst)), (0, 0, 0));
}

#[tokio::test]
async fn the_earliest_deadline_goes_first_among_modules_and_within_requests() {
    let admission = Admission::new(1, 100);
    let [one, other] = bulkheads(&admission, 1);
    let place = one.enter(Entry::Outside, within(10_000)).await.unwrap();
    let late = waiting(&one, Entry::Outside, 30_000).await;
    let middle = waiting(&one, Entry::Within, 20_000).await;
    let early = waiting(&other, Entry::Outside, 10_000).await;
    drop(place);
    // The module and the cage have room again, for one each: a call within a request needs none of the cage's.
    let (early, middle) = (early.await.unwrap().unwrap(), middle.await.unwrap().unwrap());
    assert_eq!((admission.in_work(), admission.waiting()), (1, 1));
    drop(early);
    assert!(!late.is_finished());
    drop(middle);
    assert!(late.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_full_queue_takes_from_the_longest_line_for_a_shorter_one() {
    let admission = Admission::new(1, 3);
    let [many, few] = bulkheads(&admission, 1);
    let place = many.enter(Entry::Outside, within(10_000)).await.unwrap();
    let mut line = Vec::new();
    for millis in [20_000, 40_000, 30_000] {
        line.push(waiting(&many, Entry::Outside, millis).await);
    }
    assert_eq!(many.enter(Entry::Outside, within(10_000)).await.err(), Some(Refusal::Full(3)));
    let theirs = few.clone();
    let newcomer = tokio::spawn(async move { theirs.enter(Entry::Outside, within(50_000)).await });
    // The latest deadline of the longest line has left.
    assert_eq!(line.remove(1).await.unwrap().err(), Some(Refusal::Full(3)));
    assert_eq!(admission.waiting(), 3);
    // Lines of two and one: nobody is displaced any more.
    assert_eq!(few.enter(Entry::Outside, within(10_000)).await.err(), Some(Refusal::Full(3)));
    drop(place);
    // Each gives its place to the next.
    for task in line.into_iter().chain([newcomer]) {
        assert!(task.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_closed_bulkhead_tells_who_waits_and_lets_nobody_in() {
    let admission = Admission::new(10, 10);
    let [bulkhead] = bulkheads(&admission, 1);
    let place = bulkhead.enter(Entry::Within, within(10_000)).await.unwrap();
    let tasks = [waiting(&bulkhead, Entry::Outside, 10_000).await, waiting(&bulkhead, Entry::Within, 10_000).await];
    bulkhead.close();
    for task in tasks {
        assert_eq!(task.await.unwrap().err(), Some(Refusal::Closed));
    }
    assert_eq!(bulkhead.enter(Entry::Outside, within(10_000)).await.err(), Some(Refusal::Closed));
    drop(place);
    assert_eq!(bulkhead.enter(Entry::Within, within(10_000)).await.err(), Some(Refusal::Closed));
    assert_eq!((admission.in_work(), admission.waiting(), bulkhead.in_work.load(SeqCst)), (0, 0, 0));
}

#[tokio::test]
async fn an_expired_waiter_is_told_whether_its_module_or_the_cage_was_busy() {
    let admission = Admission::new(1, 10);
    let [busy, free] = bulkheads(&admission, 1);
    let _place = busy.enter(Entry::Outside, within(10_000)).await.unwrap();
    assert_eq!(busy.enter(Entry::Outside, within(10)).await.err(), Some(Refusal::ModuleBusy));
    assert_eq!(free.enter(Entry::Outside, within(10)).await.err(), Some(Refusal::Expired));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_place_of_a_module_or_cage_is_lost_under_contention() {
    let admission = Admission::new(4, 1_000);
    let all: [_; 3] = bulkheads(&admission, 2);
    let tasks: Vec<_> = (0..200)
        .map(|number| {
            let (bulkhead, admission) = (all[number % 3].clone(), admission.clone());
            let entry = if number % 5 == 0 { Entry::Within } else { Entry::Outside };
            tokio::spawn(async move {
                for round in 0..50 {
                    // Some give up soon, some in the middle of being let in.
                    let millis = if round % 10 == 9 { 1 } else { 60_000 };
                    match bulkhead.enter(entry, within(millis)).await {
                        Ok(place) => {
                            assert!(admission.in_work() <= 4 && bulkhead.in_work.load(SeqCst) <= 2);
                            tokio::task::yield_now().await;
                            drop(place);
                        }
                        Err(Refusal::Expired | Refusal::ModuleBusy) => assert_eq!(millis, 1),
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
