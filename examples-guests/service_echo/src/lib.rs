//! A service with one function for every way in which a call can end.

use wasmcage_guest::service;

#[service]
mod service_echo {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use serde_json::Value;
    use wasmcage_guest::{Args, Error, Payload, Result, cage, context, log, module};

    pub fn echo(x: Value) -> Value {
        x
    }

    /// JSON or bytes, as they came.
    pub fn echo_raw(x: Payload) -> Payload {
        x
    }

    pub fn add(a: i64, b: i64) -> Result<i64> {
        a.checked_add(b).ok_or_else(|| Error::refused("the sum is too large"))
    }

    pub fn greet(name: &str, greeting: Option<String>) -> String {
        format!("{}, {name} !", greeting.unwrap_or("Hello".into()))
    }

    pub fn nothing() {}

    /// What a function says that reads its arguments by itself.
    pub fn misread(text: String) -> Result<()> {
        Err(Error::bad_arguments(text))
    }

    pub fn refuse(text: String) -> Result<()> {
        Err(Error::refused(text))
    }

    pub fn fail(text: String) -> Result<()> {
        Err(Error::failed(text))
    }

    pub fn panic(text: String) {
        panic!("{text}");
    }

    /// Keeps the processor busy for so many milliseconds.
    pub fn slow(ms: u64) -> u64 {
        let (started, busy) = (Instant::now(), Duration::from_millis(ms));
        let mut rounds = 0;
        while started.elapsed() < busy {
            rounds += 1;
        }
        rounds
    }

    /// Writes a line into the log, after so many milliseconds.
    pub fn log(level: &str, text: &str, after_ms: Option<u64>) -> Result<()> {
        std::thread::sleep(Duration::from_millis(after_ms.unwrap_or(0)));
        log!(level.parse()?, "{text}");
        Ok(())
    }

    /// Calls another function on; a chain of these makes cycles of calls.
    pub fn forward(cage_name: Option<String>, module_name: &str, function: &str, args: Vec<Value>) -> Result<Value> {
        let callee = match &cage_name {
            Some(name) => cage(name).module(module_name),
            None => module(module_name),
        };
        let args = args.into_iter().fold(Args::new(), |args, arg| args.arg(arg));
        Ok(callee.call(function, args)?)
    }

    /// What is known of the call.
    pub fn context() -> BTreeMap<String, String> {
        let mut known: BTreeMap<_, _> = context::facts().into_iter().collect();
        known.insert("request_id".into(), context::request_id());
        known.insert("deadline_left_ms".into(), context::deadline_left().as_millis().to_string());
        known.insert("cage".into(), context::cage());
        known.insert("module".into(), context::module());
        known
    }
}
