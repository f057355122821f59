//! Spawned tasks whose panics somebody sees. A panic in a task that nobody awaits ends that task in silence; here it is
//! logged with its place, counted for its cage, shown by `wasmcage ps`, and a part that has to go on is started anew.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use crate::backoff::Backoff;

/// Pauses before a part that panicked is started anew.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The longest text of a panic that is kept, in bytes: it may quote hostile input.
const TEXT_MAX: usize = 1_024;

thread_local! {
    /// How many `caught` calls the code that runs on this thread is inside of.
    static CATCHERS: Cell<usize> = const { Cell::new(0) };
    /// What the hook has noted of the panic that is being unwound.
    static NOTED: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// A panic that was caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    pub text: String,
    /// File, line and column; none unless the hook is installed.
    pub place: Option<String>,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "panicked at {place}: {}", self.text),
            None => write!(f, "panicked: {}", self.text),
        }
    }
}

impl std::error::Error for Panic {}

impl Panic {
    fn new(payload: &(dyn std::any::Any + Send), place: Option<String>) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)");
        Self { text: text[..text.floor_char_boundary(TEXT_MAX)].to_owned(), place }
    }
}

/// Has panics inside of `caught` noted with their place instead of printed. The program installs it once; without it a
/// caught panic is printed by the hook that is there, and its place is not known here.
pub fn install_panic_hook() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        if CATCHERS.get() == 0 {
            return previous(info);
        }
        let panic = Panic::new(info.payload(), info.location().map(ToString::to_string));
        NOTED.with_borrow_mut(|noted| *noted = Some(panic));
    }));
}

/// Runs code and catches its panic.
///
/// # Errors
/// The panic.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    CATCHERS.set(CATCHERS.get() + 1);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    CATCHERS.set(CATCHERS.get() - 1);
    done.map_err(|payload| {
        let noted = NOTED.with_borrow_mut(Option::take);
        noted.unwrap_or_else(|| Panic::new(&*payload, None))
    })
}

/// Runs a future and catches its panic, wherever it is polled.
///
/// # Errors
/// The panic.
pub async fn caught_async<T>(work: impl Future<Output = T>) -> Result<T, Panic> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| match caught(|| work.as_mut().poll(context)) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => std::task::Poll::Ready(Err(panic)),
    })
    .await
}

/// The panics of one cage's tasks. A clone counts into the same.
#[derive(Clone, Debug)]
pub struct Tasks {
    cage: Arc<str>,
    panics: Arc<Mutex<PanicSnapshot>>,
    /// `PAUSE_FIRST`, except in tests.
    pause_first: Duration,
}

/// What an operator sees of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PanicSnapshot {
    pub count: u64,
    /// Part, place and text of the last one.
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
        let mut panics = self.panics.lock();
        panics.count = panics.count.saturating_add(1);
        panics.last = Some(format!("{part} {panic}"));
    }

    /// Work that is done once, for any `spawn`; resolves to none when it panicked, which has been reported then.
    pub fn watched<W: Future>(&self, part: &str, work: W) -> impl Future<Output = Option<W::Output>> + use<W> {
        let (tasks, part) = (self.clone(), part.to_owned());
        async move { caught_async(work).await.map_err(|panic| tasks.report(&part, &panic)).ok() }
    }

    /// Work that has to go on, for any `spawn`: each panic is reported, and after a pause `start` makes the work anew.
    pub fn kept<W: Future, S: FnMut() -> W>(
        &self,
        part: &str,
        mut start: S,
    ) -> impl Future<Output = W::Output> + use<W, S> {
        let (tasks, part) = (self.clone(), part.to_owned());
        async move {
            let mut backoff = Backoff::new(tasks.pause_first, PAUSE_MAX);
            loop {
                let started = Instant::now();
                // The work may panic while it is made, too.
                let panic = match caught_async(async { start().await }).await {
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
    fn a_panic_is_caught_with_its_text_and_its_place() {
        install_panic_hook();
        let panic = caught(|| panic!("no {}", "luck")).expect_err("a panic");
        assert_eq!(panic.text, "no luck");
        let place = panic.place.expect("a place");
        assert!(place.contains("task.rs:"), "{place}");
    }

    #[test]
    fn a_panic_that_was_caught_before_is_not_taken_for_the_next() {
        install_panic_hook();
        let inner = || {
            assert_eq!(caught(|| panic!("inner")).expect_err("a panic").text, "inner");
            panic!("outer")
        };
        assert_eq!(caught(inner).expect_err("a panic").text, "outer");
        assert_eq!(caught(|| 7), Ok(7));
    }

    #[test]
    fn the_text_of_a_panic_is_bounded() {
        let panic = caught(|| panic!("{}", "ü".repeat(TEXT_MAX))).expect_err("a panic");
        assert_eq!(panic.text.len(), TEXT_MAX);
    }

    #[tokio::test]
    async fn a_part_that_panics_is_counted_and_started_anew() {
        let tasks = Tasks { pause_first: Duration::from_millis(1), ..Tasks::new("test") };
        let mut starts = 0;
        let work = tasks.kept("part", || {
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
        assert_eq!(tasks.watched("fine", async { 1 }).await, Some(1));
        let broken = tokio::spawn(tasks.watched("broken", async { panic!("broken") }));
        assert_eq!(broken.await.expect("no panic ends the task"), None::<()>);
        assert_eq!(tasks.snapshot().count, 1);
    }
}
