//! `wasmcage call --flock`: this process joins a flock for one call. It finds the cages that run on this machine by the
//! sockets in the user's runtime directory, as cages find each other, and cannot be called itself.

use std::sync::Arc;

use serde_json::Value;
use wasmcage::host::{host_name, runtime_directory};
use wasmcage_core::call::{COMMAND_LINE, Call, Remote as _};
use wasmcage_core::error::DispatchError;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::Payload;
use wasmcage_core::task::Tasks;
use wasmcage_fabric::LanConfig;
use wasmcage_fabric::fabric::{CallLimits, CopyId, LocalCopy};
use wasmcage_fabric::lan::Lan;

use super::CommandError;
use crate::control::CommandRefusal;
use crate::control::call::{CallRequest, answer_all, answer_one};

/// Makes the call. Returns what a cage's control socket would answer.
pub(super) fn call(flock: &str, request: CallRequest) -> Result<Value, CommandError> {
    let failed = |error| CommandError::failed("cannot set up a runtime", error);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(failed)?;
    let lanes = Arc::new(Lanes::start(1).map_err(failed)?);
    let refused = |CommandRefusal { code, text }| CommandError::Call { code, text };
    let all = request.all;
    let call = request.into_call().map_err(refused)?.by_command_line();
    let answer = runtime.block_on(async {
        let lan = join(flock, lanes).await?;
        let answer = match all {
            true => call_all(&lan, call).await.map_err(CommandRefusal::from).and_then(answer_all),
            false => lan.call(call, None).await.map_err(CommandRefusal::from).and_then(answer_one),
        };
        answer.map_err(refused)
    });
    // The call has ended, so nothing has to be waited for.
    runtime.shutdown_background();
    answer
}

async fn join(flock: &str, lanes: Arc<Lanes>) -> Result<Lan, CommandError> {
    let local = LocalCopy {
        flock: flock.into(),
        // Sockets of the same user accept this name, and each cage permits it what it permits itself.
        cage: COMMAND_LINE.into(),
        copy: CopyId::random(),
        node: host_name().into(),
    };
    let directory = runtime_directory();
    let config = LanConfig::of_client(&directory);
    let tasks = Tasks::new(COMMAND_LINE);
    let lan = Lan::open(local, COMMAND_LINE, config, CallLimits::default(), &directory, lanes, tasks).await;
    lan.map_err(|error| CommandError::failed(format!("cannot join flock {flock}"), error))
}

async fn call_all(lan: &Lan, call: Call) -> Result<Vec<(String, Result<Payload, DispatchError>)>, DispatchError> {
    let copies = lan.copies(&call.cage);
    if copies.is_empty() {
        return Err(DispatchError::NoSuchCage(format!("no running copy of cage {} is known", call.cage)));
    }
    let calls = copies.into_iter().map(|copy| {
        let call = call.clone();
        async move {
            let result = lan.call(call, Some(&copy)).await;
            (copy, result)
        }
    });
    Ok(futures_util::future::join_all(calls).await)
}
