//! A nightly job: `[interfaces.nightly] protocol = "schedule", cron = "0 0 3 * * *", module = "nightly"` in `cage.toml` has
//! it run at three. `config = { takes_ms = 1000 }` makes it a long one.

use std::time::Duration;

use wasmcage_guest::{Request, Response, Result, config, handler, info};

#[handler]
fn handle(request: Request) -> Result<Response> {
    let at = request.header("scheduled-time").unwrap_or("no time at all");
    let missed = request.header("missed").unwrap_or("0");
    info!("{} of {at} begins, {missed} missed", request.target);
    std::thread::sleep(Duration::from_millis(config::value("takes_ms")?.unwrap_or(0)));
    info!("{} of {at} is done", request.target);
    Ok(().into())
}
