//! Tells when it is run by a schedule, and when it is done: for tests. `config = { takes_ms = 1000 }` makes it take long.

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
