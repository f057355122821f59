//! Spawned tasks whose panics are reported. A panic in a task that nobody awaits would end that task silently. Here it is
//! logged with its location, counted for its cage and shown by `wasmcage ps`; a part that has to keep running is restarted.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use crate::backoff::Backoff;

/// First pause before a part that panicked is restarted; it doubles up to `PAUSE_MAX`.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Longest text of a panic, in bytes. It is cut because it may quote hostile input.
const TEXT_MAX: usize = 1_024;

thread_local! {
    /// Number of nested `catch_panic` calls on this thread.
    static CATCH_DEPTH: Cell<usize> = const { Cell::new(0) };
    /// The panic that is being unwound, as the hook has recorded it.
    static LAST_PANIC: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// A panic that was caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    pub text: String,
    /// File, line and column; none unless the hook is installed.
    pub location: Option<String>,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(location) => write!(f, "panicked at {location}: {}", self.text),
            None => write!(f, "panicked: {}", self.text),
        }
    }
}

impl std::error::Error for Panic {}

impl Panic {
    fn new(payload: &(dyn std::any::Any + Send), location: Option<String>) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)");
        Self { text: text[..text.floor_char_boundary(TEXT_MAX)].to_owned(), location }
    }
}

/// Installs a hook that records panics inside of `catch_panic`, with their location, instead of printing them. The program
/// calls this once; without it the present hook prints a caught panic, and its location is not known here.
pub fn install_panic_hook() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        if CATCH_DEPTH.get() == 0 {
            return previous(info);
        }
        let panic = Panic::new(info.payload(), info.location().map(ToString::to_string));
        LAST_PANIC.with_borrow_mut(|noted| *noted = Some(panic));
    }));
}

/// Runs code and catches its panic.
///
/// # Errors
/// The panic.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    CATCH_DEPTH.set(CATCH_DEPTH.get() + 1);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    CATCH_DEPTH.set(CATCH_DEPTH.get() - 1);
    done.map_err(|payload| {
        let noted = LAST_PANIC.with_borrow_mut(Option::take);
        noted.unwrap_or_else(|| Panic::new(&*payload, None))
    })
}

/// Runs a future and catches its panic, wherever it is polled.
///
/// # Errors
/// The panic.
pub async fn catch_panic_async<T>(work: impl Future<Output = T>) -> Result<T, Panic> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| match catch_panic(|| work.as_mut().poll(context)) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => std::task::Poll::Ready(Err(panic)),
    })
    .await
}

/// Spawns a cage's tasks and counts their panics. Clones share the count.
#[derive(Clone, Debug)]
pub struct Tasks {
    cage: Arc<str>,
    panics: Arc<Mutex<PanicSnapshot>>,
    /// `PAUSE_FIRST`, except in tests.
    pause_first: Duration,
}

/// The panics of a cage's tasks, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PanicSnapshot {
    pub count: u64,
    /// Part, location and text of the last one.
    pub last: Option<String>,
}

impl Tasks {
    pub fn new(cage: &str) -> Self {
        Self { cage: cage.into(), panics: Arc::default(), pause_first: PAUSE_FIRST }
    }

    pub fn snapshot(&self) -> PanicSnapshot {
        self.panics.lock().clone()
    }

    /// Logs a panic of the named part and counts it.
    pub fn report(&self, part: &str, panic: &Panic) {
        tracing::error!(cage = %self.cage, part, error = %panic, "a part of the host panicked");
        self.count(part, panic);
    }

    /// Counts a panic of the named part, which the caller logs.
    pub fn count(&self, part: &str, panic: &Panic) {
        let mut panics = self.panics.lock();
        panics.count = panics.count.saturating_add(1);
        panics.last = Some(format!("{part} {panic}"));
    }

    /// Wraps work that is done once, for any `spawn`. A panic is reported, and the result is none then.
    pub fn run_once<W: Future>(&self, part: &str, work: W) -> impl Future<Output = Option<W::Output>> + use<W> {
        let (tasks, part) = (self.clone(), part.to_owned());
        async move { catch_panic_async(work).await.map_err(|panic| tasks.report(&part, &panic)).ok() }
    }

    /// Wraps work that has to keep running, for any `spawn`. Each panic is reported, and after a pause `start` makes the work anew.
    pub fn keep_running<W: Future, S: FnMut() -> W>(
        &self,
        part: &str,
        mut start: S,
    ) -> impl Future<Output = W::Output> + use<W, S> {
        let (tasks, part) = (self.clone(), part.to_owned());
        async move {
            let mut backoff = Backoff::new(tasks.pause_first, PAUSE_MAX);
            loop {
                let started = Instant::now();
                // `start` itself may panic, too.
                let panic = match catch_panic_async(async { start().await }).await {
                    Ok(output) => return output,
                    Err(panic) => panic,
                };
                tasks.report(&part, &panic);
                tokio::time::sleep(backoff.pause_after(started.elapsed())).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_with_its_text_and_its_location() {
        install_panic_hook();
        let panic = catch_panic(|| panic!("no {}", "luck")).expect_err("a panic");
        assert_eq!(panic.text, "no luck");
        let location = panic.location.expect("a location");
        assert!(location.contains("task.rs:"), "{location}");
    }

    #[test]
    fn a_panic_that_was_caught_before_is_not_taken_for_the_next() {
        install_panic_hook();
        let inner = || {
            assert_eq!(catch_panic(|| panic!("inner")).expect_err("a panic").text, "inner");
            panic!("outer")
        };
        assert_eq!(catch_panic(inner).expect_err("a panic").text, "outer");
        assert_eq!(catch_panic(|| 7), Ok(7));
    }

    #[test]
    fn the_text_of_a_panic_is_bounded() {
        let panic = catch_panic(|| panic!("{}", "ü".repeat(TEXT_MAX))).expect_err("a panic");
        assert_eq!(panic.text.len(), TEXT_MAX);
    }

    #[tokio::test]
    async fn a_part_that_panics_is_counted_and_started_anew() {
        let tasks = Tasks { pause_first: Duration::from_millis(1), ..Tasks::new("test") };
        let mut starts = 0;
        let work = tasks.keep_running("part", || {
            starts += 1;
            let start = starts;
            async move {
                tokio::task::yield_now().await;
                assert!(start > 2, "start {start}");
                start
            }
        });
        assert_eq!(work.await, 3);
        let snapshot = tasks.snapshot();
        assert_eq!(snapshot.count, 2);
        let last = snapshot.last.expect("the last panic");
        assert!(last.starts_with("part panicked") && last.contains("start 2"), "{last}");
    }

    #[tokio::test]
    async fn work_that_is_done_once_reports_its_panic() {
        let tasks = Tasks::new("test");
        assert_eq!(tasks.run_once("fine", async { 1 }).await, Some(1));
        let broken = tokio::spawn(tasks.run_once("broken", async { panic!("broken") }));
        assert_eq!(broken.await.expect("no panic ends the task"), None::<()>);
        assert_eq!(tasks.snapshot().count, 1);
    }
}
