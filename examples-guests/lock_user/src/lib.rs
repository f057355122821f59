//! Holds locks in all the ways that a module can let go of them, and uses queues in memory.

use std::cell::RefCell;
use std::time::Duration;

use wasmcage_guest::lock::{self, Held};
use wasmcage_guest::{Error, Payload, Result, module, service};

thread_local! {
    /// A handle that is kept beyond its request, which the lock is not.
    static KEPT: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
}

fn acquire(name: &str, mode: &str, timeout_ms: Option<u64>) -> Result<Held> {
    let lock = lock::named(name);
    let lock = timeout_ms.map_or(lock, |timeout| lock.timeout(Duration::from_millis(timeout)));
    Ok(if mode == "read" { lock.read()? } else { lock.write()? })
}

#[service]
mod lock_user {
    use super::*;

    /// Takes a lock and lets go of it.
    pub fn touch(name: &str, mode: &str, timeout_ms: Option<u64>) -> Result<()> {
        drop(acquire(name, mode, timeout_ms)?);
        Ok(())
    }

    /// Takes a lock, and then `traps`, `loops` until the deadline, `fails`, or `keeps` the handle.
    pub fn hold(name: &str, mode: &str, end: &str) -> Result<String> {
        let held = acquire(name, mode, None)?;
        let mode = format!("{:?}", held.mode());
        match end {
            "traps" => std::process::abort(),
            "loops" => loop {
                std::hint::black_box(&held);
            },
            "fails" => return Err(Error::failed("while it holds the lock")),
            "sleeps" => std::thread::sleep(Duration::from_secs(600)),
            _ => KEPT.with_borrow_mut(|kept| kept.push(held)),
        }
        Ok(mode)
    }

    /// Lets go of what earlier requests kept; how many handles that were.
    pub fn let_go() -> usize {
        KEPT.take().len()
    }

    /// Takes a lock, and has another module ask for it, too.
    pub fn call_holding(name: &str, mode: &str, callee: &str, callee_mode: &str) -> Result<()> {
        let _held = acquire(name, mode, None)?;
        Ok(module(callee).call("touch", (name, callee_mode))?)
    }

    /// Has another module take a lock and keep the handle, and then takes it itself.
    pub fn take_after(callee: &str, name: &str) -> Result<()> {
        let _mode: String = module(callee).call("hold", (name, "write", "keeps"))?;
        drop(acquire(name, "write", Some(0))?);
        Ok(())
    }

    /// The queue's length afterwards.
    pub fn push(queue: &str, text: &str) -> Result<u32> {
        Ok(lock::queue(queue).push(&text)?)
    }

    pub fn push_bytes(queue: &str, length: usize) -> Result<u32> {
        Ok(lock::queue(queue).push_raw(&Payload::Bytes(vec![0; length]))?)
    }

    pub fn pop(queue: &str, timeout_ms: u64) -> Result<Option<String>> {
        Ok(lock::queue(queue).pop(Duration::from_millis(timeout_ms))?)
    }

    pub fn length(queue: &str) -> u32 {
        lock::queue(queue).length()
    }
}
