//! Does on resources what its caller says, and tells how it ended: for tests.

use wasmcage_guest::service;

#[service]
mod resource_user {
    use std::cell::RefCell;

    use serde_json::{Value, json};
    use wasmcage_guest::resource::{Caching, Operation, ResourceError, resource};
    use wasmcage_guest::sql::Statements;
    use wasmcage_guest::state::{self, Outcomes};
    use wasmcage_guest::transaction::{Pending, Results, Running, Transaction, transaction};
    use wasmcage_guest::{Error, Result, params};

    thread_local! {
        /// What a guest should not keep.
        static KEPT: RefCell<Option<Running>> = const { RefCell::new(None) };
    }

    fn told(error: &ResourceError) -> Value {
        let ResourceError { participant, index, code, text, recoverable, terminal, phase } = error;
        let phase = format!("{phase:?}");
        json!({ "participant": participant, "index": index, "code": code, "text": text, "recoverable": recoverable,
            "terminal": terminal, "phase": phase })
    }

    fn statement(sql: &str) -> Result<Operation> {
        Ok(Statements::new().add(sql, params! {}).operation()?)
    }

    /// One statement; with names that it reads or writes, through the cache.
    pub fn run(name: &str, sql: &str, reads: Option<Vec<String>>, writes: Option<Vec<String>>) -> Result<Value> {
        let mut used = resource(name);
        if reads.is_some() || writes.is_some() {
            let caching = reads.iter().flatten().fold(Caching::new(), |caching, name| caching.reads(name));
            used = used.caching(writes.iter().flatten().fold(caching, |caching, name| caching.writes(name)));
        }
        Ok(match used.execute(statement(sql)?) {
            Ok(reply) => serde_json::from_slice(&reply.body)?,
            Err(error) => told(&error),
        })
    }

    /// A transaction of such parts: `{"db": "insert .."}`, `{"add": "key"}`, `{"absent": "key"}`, `{"call": "module.function"}`.
    fn build(parts: &[Value]) -> Result<(Transaction, Vec<Part>)> {
        let mut all = transaction();
        let mut pending = Vec::new();
        for part in parts {
            let Some((kind, value)) = part.as_object().and_then(|part| part.iter().next()) else {
                return Err(Error::bad_arguments("a part is an object"));
            };
            let value = value.as_str().unwrap_or_default();
            pending.push(match kind.as_str() {
                "add" => {
                    let mut steps = state::transaction();
                    let sum = steps.increment(value, 1);
                    Part::Sum(all.state(steps)?, sum)
                }
                "absent" => {
                    let mut steps = state::transaction();
                    steps.check(value, None::<&()>);
                    Part::Absent(all.state(steps)?)
                }
                "call" => {
                    let (module, function) = value.split_once('.').unwrap_or_default();
                    Part::Call(all.call(None, module, function, ())?)
                }
                name => Part::Reply(all.operation(name, statement(value)?)),
            });
        }
        Ok((all, pending))
    }

    enum Part {
        Reply(Pending<wasmcage_guest::resource::Reply>),
        Sum(Pending<Outcomes>, state::Pending<i64>),
        Absent(Pending<Outcomes>),
        Call(Pending<Value>),
    }

    fn shown(results: &mut Results, pending: Vec<Part>) -> Vec<Value> {
        let shown = pending.into_iter().map(|part| {
            let shown = match part {
                Part::Reply(pending) => results.take(pending).map(|_| json!("reply")),
                Part::Sum(pending, sum) => {
                    results.take(pending).map(|mut outcomes| json!(outcomes.take(sum).expect("a number")))
                }
                Part::Absent(pending) => results.take(pending).map(|_| json!("absent")),
                Part::Call(pending) => results.take(pending),
            };
            shown.unwrap_or_else(|error| told(&error))
        });
        shown.collect()
    }

    pub fn transact(parts: Vec<Value>, policy: &str) -> Result<Value> {
        let (all, pending) = build(&parts)?;
        let results = match policy {
            "all" => all.execute(),
            "unawaited" => all.without_waiting_for_commits().execute(),
            "first" => all.first(),
            quorum => all.quorum(quorum.parse()?),
        };
        Ok(match results {
            Ok(mut results) => json!(shown(&mut results, pending)),
            Err(error) => told(&error),
        })
    }

    /// Has all parts done, and ends as it is told: `commit`, `rollback`, `drop`, `panic`, `keep` until the next call, or beyond.
    pub fn decide(parts: Vec<Value>, end: &str) -> Result<Value> {
        let (all, pending) = build(&parts)?;
        let mut running = all.begin();
        while running.next()?.is_some() {}
        match end {
            "commit" => {
                let committed = running.commit().map(|mut results| json!(shown(&mut results, pending)));
                return Ok(committed.unwrap_or_else(|error| told(&error)));
            }
            "rollback" => drop(running.rollback()),
            "drop" => drop(running),
            "keep" => KEPT.set(Some(running)),
            other => panic!("{other}"),
        }
        Ok(Value::Null)
    }

    /// Tries to commit what an earlier request left.
    pub fn commit_kept() -> Result<Value> {
        let kept = KEPT.take().ok_or_else(|| Error::failed("nothing was kept"))?;
        Ok(kept.commit().map_or_else(|error| told(&error), |_| json!("committed")))
    }
}
