//! Measures calls within the process: of the host to a `service`, of a guest to another, and of a typed export through
//! a binding.
//!
//! `cargo bench -p wasmcage-benches --bench calls` after `tests/run guests`. Calls run one after the other on one
//! thread; the figures are medians.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first thing that is wrong, and prints"
)]

use std::sync::Arc;
use std::time::Duration;

use wasmcage_benches::{BenchCage, median};
use wasmcage_core::request::{Facts, Payload, RequestContext};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CALLS: usize = 20_000;

fn main() {
    let modules = [
        ("service_echo", "caller"),
        ("service_echo", "callee"),
        ("calculator", "calculator"),
        ("calculator_user", "bound"),
    ];
    let imports = "[modules.bound.imports]\n\"acme:calculator/echoes\" = \"calculator\"\n\
                   \"acme:calculator/arithmetic\" = \"calculator\"";
    let Some(cage) = BenchCage::start(&modules, imports) else {
        println!("not run: the guests are not built");
        return;
    };
    let text = "x".repeat(1024);
    let echo = format!("{{\"args\":[\"{text}\"]}}");
    let forward = format!("{{\"args\":[null,\"callee\",\"echo\",[\"{text}\"]]}}");
    println!("| call, 1 KiB each way | median us |\n|---|---|");
    let direct = measure(&cage, "callee", "echo", Payload::Json(echo.clone()));
    println!("| host to service | {:.1} |", direct.as_secs_f64() * 1e6);
    let bytes = measure(&cage, "callee", "echo_raw", Payload::Bytes(text.clone().into()));
    println!("| host to service, bytes | {:.1} |", bytes.as_secs_f64() * 1e6);
    let through = measure(&cage, "caller", "forward", Payload::Json(forward));
    println!("| host to service to service | {:.1} |", through.as_secs_f64() * 1e6);
    println!("| the inner call's share | {:.1} |", through.saturating_sub(direct).as_secs_f64() * 1e6);
    let bound = measure(&cage, "bound", "echo", Payload::Json(echo));
    println!("| host to service to a module it is bound to | {:.1} |", bound.as_secs_f64() * 1e6);
}

fn measure(cage: &BenchCage, module: &str, function: &str, arguments: Payload) -> Duration {
    let dispatcher = cage.host().cage("bench").unwrap().dispatcher().clone();
    let context = || RequestContext::new("bench".into(), "bench", Duration::from_secs(10), Arc::new(Facts::default()));
    cage.runtime.block_on(async {
        let mut durations = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            let context = Arc::new(context());
            let call = dispatcher.call(context, module, function.to_owned(), arguments.clone());
            let begun = std::time::Instant::now();
            call.await.unwrap();
            durations.push(begun.elapsed());
        }
        median(durations)
    })
}
