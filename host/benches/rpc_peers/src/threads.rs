//! Threads with a runtime each, so that a connection and its calls stay on one and wake no other.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};

const THREADS: usize = 2;

/// The threads, which end with the process.
pub struct Threads {
    handles: [Handle; THREADS],
    next: AtomicUsize,
}

impl Threads {
    pub const COUNT: usize = THREADS;

    pub fn start() -> std::io::Result<Self> {
        let start = || -> std::io::Result<Handle> {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
            Ok(handle)
        };
        Ok(Self { handles: [start()?, start()?], next: AtomicUsize::new(0) })
    }

    pub fn handle(&self, thread: usize) -> &Handle {
        &self.handles[thread]
    }

    /// The next thread, in turn.
    pub fn next(&self) -> &Handle {
        self.handle(self.next.fetch_add(1, Ordering::Relaxed) % THREADS)
    }
}
