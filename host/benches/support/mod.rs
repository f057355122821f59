//! Shared by the benches: a cage in this process, its guests, medians.

#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wasmcage::host::{Host, HostOptions};
use wasmcage_core::telemetry::{self, TerminalOptions};

/// A running host in a directory of its own. Dropping it stops the host.
pub struct BenchCage {
    host: Option<Host>,
    pub runtime: tokio::runtime::Runtime,
    root: tempfile::TempDir,
}

impl BenchCage {
    /// Starts the cage `bench` with these guests as modules and this `cage.toml`; none if a guest is not built.
    pub fn start(modules: &[(&str, &str)], toml: &str) -> Option<Self> {
        telemetry::install(TerminalOptions::off());
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("bench")).unwrap();
        std::fs::write(root.path().join("bench/cage.toml"), toml).unwrap();
        for (guest, module) in modules {
            let file = root.path().join("bench").join(format!("{module}.wasm"));
            std::fs::copy(guest_file(guest)?, file).unwrap();
        }
        Some(Self::start_in(root))
    }

    pub fn start_in(root: tempfile::TempDir) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut options = HostOptions::new(root.path(), ["bench"], wasmcage_bin::protocols());
        options.compiler = Some(target().join("wasmcage").into());
        options.cache = Some(target().join("guests/bench-cache"));
        let host = runtime.block_on(Host::start(options)).unwrap();
        Self { host: Some(host), runtime, root }
    }

    pub fn host(&self) -> &Host {
        self.host.as_ref().unwrap()
    }

    pub fn directory(&self) -> PathBuf {
        self.root.path().join("bench")
    }

    /// The address of the only interface.
    pub fn address(&self) -> std::net::SocketAddr {
        let serving = self.host().serving();
        serving[0].address.trim_start_matches("http://").trim_end_matches('/').parse().unwrap()
    }
}

impl Drop for BenchCage {
    fn drop(&mut self) {
        self.runtime.block_on(self.host.take().unwrap().stop());
    }
}

pub fn guest_file(name: &str) -> Option<PathBuf> {
    let file = target().join("guests/guests").join(format!("{name}.wasm"));
    file.is_file().then_some(file)
}

/// The directory `target/release`; a bench binary is in its `deps`.
pub fn target() -> PathBuf {
    let binary = std::env::current_exe().unwrap();
    binary.parent().and_then(Path::parent).unwrap().to_owned()
}

pub fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    durations[durations.len() / 2]
}

pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let value = work();
    (value, begun.elapsed())
}
