//! Who may be in work: up to `concurrency` requests, and up to `queue` waiting, the earliest deadline first. A full queue
//! answers at once; a request that expires while it waits is never run. Used by the dispatcher, and by pools of connections
//! for their places.

use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::request::Deadline;

pub(crate) struct Admission {
    concurrency: AtomicUsize,
    queue: AtomicUsize,
    in_work: AtomicUsize,
    /// Waiters that have not given up. Written under the lock of `heap`, read without it.
    waiting: AtomicUsize,
    heap: Mutex<Heap>,
}

#[derive(Default)]
struct Heap {
    waiters: BinaryHeap<Waiter>,
    arrivals: u64,
}

struct Waiter {
    deadline: Deadline,
    /// Among equal deadlines the first come goes first.
    arrival: u64,
    place: oneshot::Sender<Place>,
}

/// A place in work; given on to the next waiter when it is dropped.
pub struct Place(Arc<Admission>);

#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue was full: so many were waiting.
    Full(usize),
    /// The deadline passed before there was a place.
    Expired,
}

impl Admission {
    pub(crate) fn new(concurrency: usize, queue: usize) -> Arc<Self> {
        Arc::new(Self {
            concurrency: AtomicUsize::new(concurrency),
            queue: AtomicUsize::new(queue),
            in_work: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            heap: Mutex::default(),
        })
    }

    /// New limits; who is in work or waiting already stays.
    pub(crate) fn set_limits(self: &Arc<Self>, concurrency: usize, queue: usize) {
        self.concurrency.store(concurrency, SeqCst);
        self.queue.store(queue, SeqCst);
        self.admit_waiting();
    }

    pub(crate) fn in_work(&self) -> usize {
        self.in_work.load(SeqCst)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// # Errors
    /// At once when the queue is full, or at the deadline.
    pub(crate) async fn enter(self: &Arc<Self>, deadline: Deadline) -> Result<Place, Refusal> {
        if let Some(place) = self.try_enter() {
            return Ok(place);
        }
        let (place_tx, place_rx) = oneshot::channel();
        {
            let mut heap = self.heap.lock();
            let waiting = self.waiting.load(SeqCst);
            if waiting >= self.queue.load(SeqCst) {
                return Err(Refusal::Full(waiting));
            }
            self.waiting.store(waiting + 1, SeqCst);
            heap.forget_departed(waiting);
            let arrival = heap.arrivals;
            heap.arrivals += 1;
            heap.waiters.push(Waiter { deadline, arrival, place: place_tx });
        }
        let _waiting = Waiting(self);
        // A place may have become free between the first look and the entry into the queue.
        self.admit_waiting();
        match timeout_at(deadline.instant(), place_rx).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(Refusal::Expired),
        }
    }

    /// A place, if one is free now.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Place> {
        let concurrency = self.concurrency.load(SeqCst);
        let taken = self.in_work.fetch_update(SeqCst, SeqCst, |in_work| (in_work < concurrency).then_some(in_work + 1));
        taken.is_ok().then(|| Place(self.clone()))
    }

    /// Gives free places to waiters, the earliest deadline first.
    fn admit_waiting(self: &Arc<Self>) {
        while self.waiting.load(SeqCst) > 0 {
            let mut heap = self.heap.lock();
            heap.drop_departed();
            if heap.waiters.is_empty() {
                return;
            }
            let Some(place) = self.try_enter() else { return };
            let waiter = heap.waiters.pop();
            drop(heap);
            // One that has just left gives the place back by dropping it, which comes here again for the next.
            if let Some(waiter) = waiter {
                let _ = waiter.place.send(place);
            }
        }
    }
}

impl Heap {
    /// Removes who gave up from the front.
    fn drop_departed(&mut self) {
        while self.waiters.peek().is_some_and(|waiter| waiter.place.is_closed() || waiter.deadline.passed()) {
            self.waiters.pop();
        }
    }

    /// Keeps the heap's size within twice the number that really waits.
    fn forget_departed(&mut self, waiting: usize) {
        if self.waiters.len() > 2 * waiting + 64 {
            self.waiters.retain(|waiter| !waiter.place.is_closed());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_work.fetch_sub(1, SeqCst);
        self.0.admit_waiting();
    }
}

/// Counts a waiter out, however it ends.
struct Waiting<'a>(&'a Arc<Admission>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let _heap = self.0.heap.lock();
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

impl PartialEq for Waiter {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for Waiter {}

impl PartialOrd for Waiter {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiter {
    /// The greatest is served first, so an earlier deadline is greater.
    fn cmp(&self, other: &Self) -> Order {
        (other.deadline, other.arrival).cmp(&(self.deadline, self.arrival))
    }
}

#[cfg(test)]
mod tests {
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
}
