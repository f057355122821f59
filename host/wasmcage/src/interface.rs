//! An interface of a cage that is kept running: restarted when it fails, until it is drained.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use wasmcage_config::{ConfigError, InterfaceConfig};
use wasmcage_core::backoff::Backoff;
use wasmcage_core::drain::Drain;
use wasmcage_core::readings::ReadingsSnapshot;
use wasmcage_core::{task, telemetry};
use wasmcage_protocol::{Endpoint, Interface, InterfaceContext, Protocols};

/// First pause before an interface that has failed is restarted; it doubles up to `RETRY_MAX`.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// An interface that is kept running.
pub(crate) struct RunningInterface {
    pub(crate) config: InterfaceConfig,
    pub(crate) drain: Drain,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) error: Arc<Mutex<Option<String>>>,
}

/// Makes the interface that a section describes.
///
/// # Errors
/// All mistakes of the section.
///
/// # Panics
/// When there is no such protocol, which the configuration has checked.
pub(crate) fn build(interface: &InterfaceConfig, protocols: &Protocols) -> Result<Box<dyn Interface>, ConfigError> {
    let protocol = protocols.find(&interface.protocol).expect("the configuration names known protocols only");
    protocol.interface(interface.section.clone())
}

/// Resolves when none of these interfaces listens any more, or after a timeout. The successor then fails and is retried.
pub(crate) async fn wait_until_all_closed(leaving: Vec<Arc<Endpoint>>) {
    let let_go = futures_util::future::join_all(leaving.iter().map(|endpoint| endpoint.wait_until_closed()));
    let _ = tokio::time::timeout(RETRY_FIRST, let_go).await;
}

/// Runs an interface until it is drained. A failure is logged, and the interface restarted.
pub(crate) async fn run_until_drained(
    config: InterfaceConfig,
    protocols: Protocols,
    cx: InterfaceContext,
    error: Arc<Mutex<Option<String>>>,
) {
    let (cage, interface) = (cx.endpoint.cage.clone(), cx.endpoint.interface.clone());
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        let started = Instant::now();
        let built = build(&config, &protocols).expect("the section was checked when the configuration was read");
        let ended = tokio::select! {
            ended = task::catch_panic_async(built.run(cx.clone())) => ended,
            () = cx.drain.forcing() => Ok(Ok(())),
        };
        let pause = backoff.pause_after(started.elapsed());
        let text = match ended {
            Ok(Ok(())) => {
                tracing::info!(%cage, %interface, "interface has stopped");
                return;
            }
            Ok(Err(failure)) => {
                let text = telemetry::error_chain(&failure);
                tracing::error!(%cage, %interface, error = %text, retry_s = pause.as_secs(), "interface failed");
                text
            }
            Err(panic) => {
                cx.tasks.report(&format!("interface {interface}"), &panic);
                panic.to_string()
            }
        };
        *error.lock() = Some(text);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cx.drain.stopping() => return,
        }
    }
}

impl RunningInterface {
    /// Returns whether the interface has an address, a status or an error.
    pub(crate) fn has_settled(&self) -> bool {
        !self.endpoint.addresses().is_empty() || self.endpoint.status().is_some() || self.error.lock().is_some()
    }

    pub(crate) fn snapshot(&self, name: &str) -> InterfaceSnapshot {
        let addresses: Vec<_> = self.endpoint.addresses().iter().map(|address| address.text().to_owned()).collect();
        let status = self.endpoint.status();
        InterfaceSnapshot {
            interface: name.to_owned(),
            protocol: self.config.protocol.clone(),
            module: self.endpoint.module.to_string(),
            error: if addresses.is_empty() && status.is_none() { self.error.lock().clone() } else { None },
            addresses,
            status,
            readings: self.endpoint.readings.snapshot(),
        }
    }
}

/// State of an interface, for operators.
#[derive(Debug, Serialize)]
pub struct InterfaceSnapshot {
    pub interface: String,
    pub protocol: String,
    pub module: String,
    pub addresses: Vec<String>,
    /// What the interface reports, such as the time it waits for.
    pub status: Option<String>,
    /// Why it does not serve now.
    pub error: Option<String>,
    pub readings: ReadingsSnapshot,
}
