//! Every operation on durable state, as functions to call: one line each.

use wasmcage_guest::{Result, handover, service, state, warn};

#[service]
mod state_user {
    use serde_json::Value;
    use wasmcage_guest::state::{self, StateError};
    use wasmcage_guest::{Payload, Result};

    type Entry = (String, Value);

    pub fn get(key: &str) -> Result<Option<Value>> {
        Ok(state::get(key)?)
    }

    /// Reads a key so many times.
    pub fn get_repeatedly(key: &str, times: u32) -> Result<()> {
        for _ in 0..times {
            state::get_raw(key)?;
        }
        Ok(())
    }

    /// Sets so many keys beneath one to so many bytes.
    pub fn set_repeatedly(key: &str, length: usize, times: u32) -> Result<()> {
        let value = vec![b'x'; length];
        for number in 0..times {
            state::set_bytes(&format!("{key}/{number}"), value.as_slice())?;
        }
        Ok(())
    }

    pub fn get_raw(key: &str) -> Result<Payload> {
        Ok(state::get_raw(key)?.unwrap_or(Payload::Json("null".into())))
    }

    pub fn set(key: &str, value: Value) -> Result<()> {
        Ok(state::set(key, &value)?)
    }

    /// So many bytes `x`.
    pub fn set_bytes(key: &str, length: usize) -> Result<()> {
        Ok(state::set_bytes(key, vec![b'x'; length])?)
    }

    pub fn set_text(key: &str, json: String) -> Result<()> {
        Ok(state::set_raw(key, &Payload::Json(json))?)
    }

    pub fn delete(key: &str) -> Result<bool> {
        Ok(state::delete(key)?)
    }

    pub fn compare_and_set(key: &str, expected: Option<Value>, value: Option<Value>) -> Result<bool> {
        Ok(state::compare_and_set(key, expected.as_ref(), value.as_ref())?)
    }

    pub fn increment(key: &str, by: i64) -> Result<i64> {
        Ok(state::increment(key, by)?)
    }

    /// Increments by read and compare-and-set.
    pub fn update(key: &str) -> Result<Option<i64>> {
        Ok(state::update(key, |count: Option<i64>| Some(count.unwrap_or(0) + 1))?)
    }

    /// The keys of a range, fetched in pages.
    pub fn keys(
        prefix: &str,
        from: Option<String>,
        to: Option<String>,
        descending: Option<bool>,
        page: Option<u32>,
    ) -> Result<Vec<String>> {
        let mut scan = state::scan(prefix).page(page.unwrap_or(1_000));
        if let Some(from) = &from {
            scan = scan.from(from);
        }
        if let Some(to) = &to {
            scan = scan.to(to);
        }
        if descending == Some(true) {
            scan = scan.descending();
        }
        Ok(scan.keys().collect::<Result<_, _>>()?)
    }

    /// One page of entries, and where the next begins.
    pub fn page(prefix: &str, limit: u32, cursor: Option<String>) -> Result<(Vec<Entry>, Option<String>)> {
        let mut scan = state::scan(prefix).page(limit);
        if let Some(cursor) = &cursor {
            scan = scan.after(cursor);
        }
        let mut entries = scan.entries();
        let found = entries.by_ref().take(limit as usize).collect::<Result<_, _>>()?;
        Ok((found, entries.cursor().map(str::to_owned)))
    }

    pub fn push(queue: &str, entry: Value) -> Result<u64> {
        Ok(state::queue(queue).push(&entry)?)
    }

    pub fn pop(queue: &str) -> Result<Option<Value>> {
        Ok(state::queue(queue).pop()?)
    }

    pub fn peek(queue: &str, limit: u32) -> Result<Vec<Value>> {
        Ok(state::queue(queue).peek(limit)?)
    }

    pub fn length(queue: &str) -> Result<u64> {
        Ok(state::queue(queue).len()?)
    }

    /// Moves an amount from one key to another, unless too little is left.
    pub fn transfer(from: &str, to: &str, amount: i64) -> Result<(i64, i64)> {
        let before: Option<i64> = state::get(from)?;
        let mut transfer = state::transaction();
        transfer.check(from, before.as_ref());
        let (from, to) = (transfer.increment(from, -amount), transfer.increment(to, amount));
        transfer.push("transfers", &amount);
        let mut done = transfer.commit()?;
        Ok((done.take(from)?, done.take(to)?))
    }

    /// Every kind of step, and what each gave.
    pub fn every_step() -> Result<Value> {
        let mut steps = state::transaction();
        steps.check("t/new", None::<&Value>);
        steps.set("t/new", "a");
        let read = steps.get::<String>("t/new");
        let sum = steps.increment("t/sum", 5);
        let (first, second) = (steps.push("t", &1), steps.push("t", &2));
        let popped = steps.pop::<u8>("t");
        let length = steps.queue_len("t");
        let deleted = steps.delete("t/new");
        let mut done = steps.commit()?;
        Ok(serde_json::json!([
            done.take(read)?,
            done.take(sum)?,
            done.take(first)?,
            done.take(second)?,
            done.take(popped)?,
            done.take(length)?,
            done.take(deleted)?,
        ]))
    }

    /// Sets a key, then checks another, which must not be there: the number of the step that conflicts.
    pub fn conflict(key: &str, taken: &str) -> Result<Option<usize>> {
        let mut steps = state::transaction();
        steps.set(key, &true);
        steps.check(taken, None::<&Value>);
        match steps.commit() {
            Ok(_) => Ok(None),
            Err(StateError::Conflict(step)) => Ok(Some(step)),
            Err(error) => Err(error.into()),
        }
    }
}

handover!(save, restore);

fn save() -> Vec<u8> {
    Vec::new()
}

/// While it is being loaded, there is no request, and no state.
fn restore(_saved: Vec<u8>) -> Result<()> {
    if let Err(error) = state::get_raw("a") {
        warn!("at the start: {error}");
    }
    Ok(())
}
