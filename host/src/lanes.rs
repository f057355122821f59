//! Where guests run: one thread with its own single-threaded runtime per core. A connection stays on one lane, and a
//! request is served there from its first byte to its last without waking another thread; warm instances are kept per
//! lane. Everything else (watching, compiling, control) runs on the process's ordinary runtime.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

#[derive(Debug)]
pub struct Lanes {
    handles: Box<[Handle]>,
    next: AtomicUsize,
    stop: CancellationToken,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Lanes {
    /// How many lanes a machine gets: one per core it lets this process use.
    pub fn default_count() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// # Errors
    /// The operating system's, when a thread or a runtime cannot be had.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut handles = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let stop = stop.clone();
            threads.push(std::thread::Builder::new().name(format!("lane-{index}")).spawn(move || {
                CURRENT.set(index);
                runtime.block_on(stop.cancelled());
                // A guest that never yields must not hold up the process's end.
                runtime.shutdown_background();
            })?);
        }
        Ok(Self { handles: handles.into(), next: AtomicUsize::new(0), stop, threads })
    }

    pub fn count(&self) -> usize {
        self.handles.len()
    }

    pub fn handle(&self, lane: usize) -> &Handle {
        &self.handles[lane]
    }

    /// The lanes in turn, for work that has no lane yet.
    pub fn next(&self) -> &Handle {
        &self.handles[self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len()]
    }

    /// Ends everything that runs on them, as the end of a process would.
    #[cfg(test)]
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Index of the lane that the caller runs on; 0 off the lanes.
    pub fn current() -> usize {
        CURRENT.get()
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop.cancel();
        let here = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != here) {
            // A lane that panicked has told so already.
            let _ = thread.join();
        }
    }
}
