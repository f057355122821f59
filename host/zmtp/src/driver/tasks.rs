//! The tasks of a socket: none ends unseen, and none outlives it.

use std::any::Any;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::lock::Mutex;

#[derive(Debug, Default)]
pub(crate) struct Tasks {
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Those without a handle are just being spawned.
    live: HashMap<u64, Option<AbortHandle>>,
    closed: bool,
}

/// A task that is not yet over; however it ends, this is dropped.
struct Live {
    tasks: Arc<Tasks>,
    number: u64,
}

impl Drop for Live {
    fn drop(&mut self) {
        let mut state = self.tasks.state.lock();
        state.live.remove(&self.number);
        if state.live.is_empty() {
            self.tasks.ended.notify_waiters();
        }
    }
}

impl Tasks {
    /// Runs `future` as a task; `panicked` gets the text of its panic. After [`abort`](Self::abort) nothing is run any more.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        future: impl Future<Output = ()> + Send + 'static,
        panicked: impl FnOnce(String) + Send + 'static,
    ) {
        let number = {
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            state.next += 1;
            let number = state.next;
            state.live.insert(number, None);
            number
        };
        let live = Live { tasks: self.clone(), number };
        // Without the lock: in a runtime that is ending, the future is dropped right here.
        let task = tokio::spawn(async move {
            let _live = live;
            if let Err(text) = contained(future).await {
                panicked(text);
            }
        });
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            task.abort();
        } else if let Some(handle) = state.live.get_mut(&number) {
            *handle = Some(task.abort_handle());
        }
    }

    /// Ends all tasks where they are.
    pub(crate) fn abort(&self) {
        let live: Vec<_> = {
            let mut state = self.state.lock();
            state.closed = true;
            state.live.values().flatten().cloned().collect()
        };
        for task in live {
            task.abort();
        }
    }

    /// Waits until no task is left.
    pub(crate) async fn idle(&self) {
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.state.lock().live.is_empty() {
                return;
            }
            ended.await;
        }
    }
}

/// Runs a future and turns its panic into a text.
pub(crate) async fn contained<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    // After a panic the future is not used again, so nobody sees it broken.
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panic) => Poll::Ready(Err(text(&*panic))),
    })
    .await
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".to_owned())
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_seen_and_tasks_are_waited_for() {
        let tasks = Arc::new(Tasks::default());
        let (seen_tx, seen_rx) = tokio::sync::oneshot::channel();
        tasks.spawn(async { panic!("on purpose") }, |text| seen_tx.send(text).unwrap());
        tasks.spawn(async {}, |_| {});
        assert_eq!(seen_rx.await.unwrap(), "on purpose");
        tasks.idle().await;
        tasks.spawn(pending(), |_| {});
        tasks.abort();
        tasks.idle().await;
        tasks.spawn(pending(), |_| {});
        tasks.idle().await;
    }
}
