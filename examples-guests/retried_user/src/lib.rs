//! Asks for retried calls, and is called by them: each attempt leaves a line in `/data/attempts`.

use wasmcage_guest::service;

#[service]
mod retried_user {
    use std::fs::OpenOptions;
    use std::io::Write as _;
    use std::time::{Duration, UNIX_EPOCH};

    use wasmcage_guest::state::{self, StateError};
    use wasmcage_guest::{Args, Error, Result, cage, context, module};

    /// Has `work(text, then)` be called in the background.
    #[expect(clippy::too_many_arguments, reason = "a parameter for each option")]
    pub fn ask(
        text: &str,
        then: &str,
        of: Option<String>,
        queue: Option<String>,
        id: Option<String>,
        expires_ms: Option<u64>,
        not_before_ms: Option<u64>,
        attempts_max: Option<u32>,
        priority: Option<i8>,
    ) -> Result<String> {
        let own = context::module();
        let callee = match &of {
            Some(name) => cage(name).module(&own),
            None => module(&own),
        };
        let mut call = callee.retried().priority(priority.unwrap_or(0));
        if let Some(queue) = &queue {
            call = call.queue(queue);
        }
        if let Some(id) = &id {
            call = call.id(id);
        }
        if let Some(ms) = expires_ms {
            call = call.expires(Duration::from_millis(ms));
        }
        if let Some(ms) = not_before_ms {
            call = call.not_before(Duration::from_millis(ms));
        }
        if let Some(attempts_max) = attempts_max {
            call = call.attempts_max(attempts_max);
        }
        Ok(call.call("work", (text, then))?)
    }

    /// Has `work(text, "ok")` be called unless the key is taken, and takes the key: both, or nothing. The call's id, if so.
    pub fn ask_if_free(key: &str, text: &str) -> Result<Option<String>> {
        let mut steps = state::transaction();
        let id = steps.retried(module(&context::module()).retried(), "work", (text, "ok"));
        steps.check(key, None::<&String>);
        steps.set(key, text);
        match steps.commit() {
            Ok(mut done) => Ok(Some(done.take(id)?)),
            Err(StateError::Conflict(1)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks for many at once, without waiting for one before the next is asked for.
    pub fn ask_many(
        prefix: &str,
        count: u32,
        of: Option<String>,
        then: Option<String>,
        queue: Option<String>,
    ) -> Result<()> {
        let own = context::module();
        let callee = of.as_ref().map_or_else(|| module(&own), |name| cage(name).module(&own));
        let call = callee.retried().queue(queue.as_deref().unwrap_or("retry"));
        for number in 0..count {
            call.call("work", (format!("{prefix}{number}"), then.as_deref().unwrap_or("ok")))?;
        }
        Ok(())
    }

    /// `then`: `ok`, `fail`, `fail until 3` (attempts), `refuse`, `misread`, `panic`, `hang`, `sleep 50` (milliseconds), or `steps`:
    /// asks for a call of its own, and fails the first time.
    pub fn work(text: &str, then: &str) -> Result<()> {
        let attempt = context::attempt().ok_or_else(|| Error::refused("this is no retried call"))?;
        let started = attempt.first_started.duration_since(UNIX_EPOCH).map_err(Error::failed)?.as_millis();
        let line = format!("{text} {} {} {started} {}\n", attempt.number, attempt.id, attempt.expires.is_some());
        let mut file = OpenOptions::new().append(true).create(true).open("/data/attempts")?;
        file.write_all(line.as_bytes())?;
        match then.split_once(' ').unwrap_or((then, "")) {
            ("ok", _) => Ok(()),
            ("fail", "") => Err(Error::failed(format!("{text} fails"))),
            ("fail", until) => match attempt.number < until.trim_start_matches("until ").parse()? {
                true => Err(Error::failed(format!("{text} fails"))),
                false => Ok(()),
            },
            ("refuse", _) => Err(Error::refused(format!("{text} is refused"))),
            ("misread", _) => Err(Error::bad_arguments(format!("{text} is misread"))),
            ("panic", _) => panic!("{text} panics"),
            ("hang", _) => loop {
                std::hint::spin_loop();
            },
            ("sleep", ms) => {
                std::thread::sleep(Duration::from_millis(ms.parse()?));
                Ok(())
            }
            ("steps", _) => {
                module(&context::module()).retried().id("step").call("work", (format!("{text}-step"), "ok"))?;
                match attempt.number {
                    1 => Err(Error::failed("the first time")),
                    _ => Ok(()),
                }
            }
            _ => Err(Error::bad_arguments("what then?")),
        }
    }

    /// Has `work` be called with an argument that it does not take.
    pub fn ask_amiss(of: Option<String>) -> Result<String> {
        let own = context::module();
        let callee = of.as_ref().map_or_else(|| module(&own), |name| cage(name).module(&own));
        Ok(callee.retried().call("work", Args::new().named("text", 7).named("then", "ok"))?)
    }

    /// Who asked for the call.
    pub fn facts() -> Vec<(String, String)> {
        context::facts()
    }
}
