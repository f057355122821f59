//! Runs any statement on any database it was granted, and tells all that is known of the result or the error.

use wasmcage_guest::service;

#[service]
mod sql_user {
    use std::time::Duration;

    use serde_json::{Value as Json, json};
    use wasmcage_guest::sql::{self, Caching, Database, Error, Isolation, Statements, Value, sql};
    use wasmcage_guest::{Result, params};

    /// Statements with their values, in one transaction. `begin` may be `read-only` or `serializable`.
    pub fn run(db: &str, statements: Vec<(String, Vec<(String, Value)>)>, begin: Option<String>) -> Json {
        let mut operation = Statements::new();
        for (text, values) in &statements {
            operation = operation.add(text, values.iter().map(|(name, value)| (name.as_str(), value.clone())));
        }
        told(begun(db, begin).run(&operation).map(|results| {
            let result = |rows: sql::Rows| json!({"columns": rows.columns, "rows": rows.rows, "affected": rows.affected, "last_id": rows.last_id});
            results.into_iter().map(result).collect()
        }))
    }

    /// One number, from the cache of reads if it is there: kept until `reads` is written, so many milliseconds at most.
    pub fn cached(db: &str, statement: &str, reads: &str, key: Option<String>, ttl_ms: Option<u64>) -> Result<i64> {
        let mut caching = Caching::new().reads(reads);
        if let Some(key) = &key {
            caching = caching.key(key);
        }
        if let Some(ms) = ttl_ms {
            caching = caching.ttl(Duration::from_millis(ms));
        }
        Ok(sql(db).caching(caching).query(statement, params! {})?.one()?)
    }

    /// A statement that changes what `cached` reads.
    pub fn write(db: &str, statement: &str, writes: &str) -> Result<u64> {
        Ok(sql(db).caching(Caching::new().writes(writes)).execute(statement, params! {})?)
    }

    /// Sums up the first column of a streamed result; stops after so many rows.
    pub fn sum(db: &str, statement: &str, most: Option<usize>) -> Json {
        let sum = || {
            let rows = sql(db).stream::<i64>(statement, params! {})?;
            rows.take(most.unwrap_or(usize::MAX)).sum::<Result<i64, Error>>().map(Json::from)
        };
        told(sum())
    }

    /// So many times a statement without values.
    pub fn repeat(db: &str, statement: &str, times: u32) -> Result<u32> {
        let db = sql(db);
        for _ in 0..times {
            db.query(statement, params! {})?;
        }
        Ok(times)
    }

    fn begun(db: &str, begin: Option<String>) -> Database<'_> {
        match begin.as_deref() {
            Some("read-only") => sql(db).read_only(),
            Some("serializable") => sql(db).isolation(Isolation::Serializable),
            _ => sql(db),
        }
    }

    fn told(result: Result<Json, Error>) -> Json {
        match result {
            Ok(value) => json!({"ok": value}),
            Err(Error::Database(error)) => json!({
                "code": error.code, "text": error.text, "phase": format!("{:?}", error.phase), "recoverable": error.recoverable,
                "terminal": error.terminal,
            }),
            Err(error) => json!({"code": "", "text": error.to_string()}),
        }
    }
}
