//! A future that is finished even if its caller is gone. The dispatcher wraps requests in it, so that a client that hangs up
//! does not interrupt a guest's work.

use std::pin::Pin;
use std::task::{Context, Poll};

/// A future that is run to its end by a task of its own if it is dropped before it is ready.
#[must_use = "it does nothing until it is polled or dropped"]
pub struct RunToEnd<T: Send + 'static>(Option<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T: Send + 'static> RunToEnd<T> {
    pub fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<T: Send + 'static> Future for RunToEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Taken out, so that a future that panics is not polled again by the task that `drop` spawns.
        let mut future = self.0.take().expect("polled again after it was ready");
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            self.0 = Some(future);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for RunToEnd<T> {
    fn drop(&mut self) {
        if let (Some(future), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(future);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use super::*;
    use crate::task;

    #[tokio::test]
    async fn what_was_begun_ends_although_nobody_waits_for_it() {
        let (sender, done) = tokio::sync::oneshot::channel();
        let mut work = RunToEnd::new(async move {
            tokio::task::yield_now().await;
            sender.send(()).expect("the test waits");
        });
        assert!(Pin::new(&mut work).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(work);
        done.await.expect("it ran to its end");
    }

    #[tokio::test]
    async fn what_has_panicked_is_not_begun_again() {
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = polls.clone();
        let panicking = std::future::poll_fn(move |_| -> Poll<()> {
            counted.fetch_add(1, Ordering::Relaxed);
            panic!("once")
        });
        task::catch_panic_async(RunToEnd::new(panicking)).await.expect_err("a panic");
        tokio::task::yield_now().await;
        assert_eq!(polls.load(Ordering::Relaxed), 1);
    }
}
