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
        let future = self.0.as_mut().expect("polled again after it was ready");
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            self.0 = None;
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
