//! Limits concurrent work that is mostly short and sometimes very long, such as starting a module of unknown origin. Work
//! that takes long moves to the slow places, so that it does not delay the rest.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::Semaphore;

/// Places for at most `quick` + `slow` pieces of work at one time.
pub(super) struct Places {
    quick: Semaphore,
    slow: Semaphore,
    /// The time after which work counts as slow.
    slow_after: Duration,
}

impl Places {
    pub(super) fn new(quick: usize, slow: usize, slow_after: Duration) -> Self {
        Self { quick: Semaphore::new(quick), slow: Semaphore::new(slow), slow_after }
    }

    /// Does the work when there is a quick place. After `slow_after` the work takes a slow place instead, as soon as one is
    /// free.
    pub(super) async fn within<T>(&self, work: impl Future<Output = T>) -> T {
        let place = self.quick.acquire().await.expect("the semaphore is never closed");
        let mut work = pin!(work);
        if let Ok(done) = tokio::time::timeout(self.slow_after, &mut work).await {
            return done;
        }
        let slow = tokio::select! {
            biased;
            done = &mut work => return done,
            slow = self.slow.acquire() => slow.expect("the semaphore is never closed"),
        };
        drop(place);
        let done = work.await;
        drop(slow);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn slow_work_does_not_keep_quick_work_waiting() {
        let places = Arc::new(Places::new(2, 12, Duration::from_millis(1)));
        let hung: Vec<_> = (0..12)
            .map(|_| {
                let places = places.clone();
                tokio::spawn(async move { places.within(std::future::pending::<()>()).await })
            })
            .collect();
        tokio::task::yield_now().await;
        // Quick work still gets a place, although all other work hangs.
        tokio::time::timeout(Duration::from_secs(30), places.within(async {})).await.unwrap();
        hung.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn no_more_than_all_places_are_taken() {
        let places = Arc::new(Places::new(2, 3, Duration::from_millis(1)));
        let working = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (places, working) = (places.clone(), working.clone());
                tokio::spawn(async move {
                    let work = async {
                        assert!(working.fetch_add(1, Ordering::SeqCst) < 5);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        working.fetch_sub(1, Ordering::SeqCst);
                    };
                    places.within(work).await;
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
}
