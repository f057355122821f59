//! The harness: a real cage in this process, real sockets on loopback ports that the system picks, real components.
//!
//! `TestCage::new().module("echo", "interface_web").http("web").start().await` reads as a sentence; the cage's log is
//! printed when its test fails.

mod client;
mod databases;
mod gate;
mod guests;
mod load;
mod machines;
mod need;
mod peer;
mod rabbitmq;
mod raw_amqp;
mod root;
mod streamed_request;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use wasmcage::Protocols;
use wasmcage::host::{Host, HostOptions, HostSnapshot, StartError};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_runtime::dispatcher::OperatorCall;
use wasmcage_runtime::module::slot::ModuleSnapshot;

pub use client::{Answer, Client, check_call_error, query, raw};
pub use databases::{DatabaseServer, PASSWORD};
pub use gate::Gate;
pub use guests::{cache, component, fixture, guest, guest_source, has_guest, program};
pub use load::{CallOutcome, Load, length};
pub use machines::{CagePlan, Machine, Machines};
pub use need::{Need, missing, require_superuser};
pub use peer::{Peer, postage};
pub use rabbitmq::RabbitMq;
pub use raw_amqp::RawPeer;
pub use root::Root;
pub use streamed_request::{StreamedRequest, Version};

/// The timeout of `eventually`.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One or several cages in a directory of their own, not started yet.
pub struct TestCage {
    root: TempDir,
    names: Vec<String>,
    lanes: usize,
    toml: Vec<String>,
    /// The directory by which running cages find each other; one of its own if none.
    meeting: Option<PathBuf>,
    /// The directory of compiled files; the one that all tests share if none.
    cache: Option<PathBuf>,
    /// The program that compiles; the host's own if none.
    compiler: Option<PathBuf>,
    /// The protocols that its interfaces and resources may have; those of the program `wasmcage` if none.
    protocols: Option<Protocols>,
}

impl Default for TestCage {
    fn default() -> Self {
        Self::new()
    }
}

impl TestCage {
    /// A cage with a name of its own, so that parallel tests do not share a log.
    pub fn new() -> Self {
        Self::named(&unique_name("cage"))
    }

    /// A cage that others call by its name.
    pub fn named(name: &str) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        Self {
            root,
            names: vec![],
            lanes: 2,
            toml: vec![],
            meeting: None,
            cache: None,
            compiler: None,
            protocols: None,
        }
        .cage(name)
    }

    /// Finds the cages of other processes by this directory.
    #[must_use]
    pub fn meeting_at(mut self, directory: &Path) -> Self {
        // The host makes it, for this user only.
        self.meeting = Some(directory.join("meeting"));
        self
    }

    /// Keeps compiled files in this directory.
    #[must_use]
    pub fn cache(mut self, directory: &Path) -> Self {
        self.cache = Some(directory.to_owned());
        self
    }

    /// Compiles everything anew, by the gate's program.
    #[must_use]
    pub fn compiler(mut self, gate: &Gate) -> Self {
        self.cache = Some(gate.cache());
        self.compiler = Some(gate.program());
        self
    }

    /// Knows these protocols and no others.
    #[must_use]
    pub fn protocols(mut self, protocols: Protocols) -> Self {
        self.protocols = Some(protocols);
        self
    }

    /// Another cage of the same process; what follows belongs to it.
    #[must_use]
    pub fn cage(mut self, name: &str) -> Self {
        fs::create_dir_all(self.root.path().join(name)).expect("a directory for the cage");
        self.names.push(name.to_owned());
        self.toml.push(String::new());
        self
    }

    /// Puts a built guest into the cage as `<module>.wasm`.
    #[must_use]
    pub fn module(self, guest: &str, module: &str) -> Self {
        fs::copy(guests::guest(guest), self.directory().join(format!("{module}.wasm"))).expect("a guest to copy");
        self
    }

    /// Puts any bytes into the cage as `<module>.wasm`.
    #[must_use]
    pub fn file(self, module: &str, bytes: &[u8]) -> Self {
        fs::write(self.directory().join(format!("{module}.wasm")), bytes).expect("a module file");
        self
    }

    /// Adds an http interface on a port that the system picks.
    #[must_use]
    pub fn http(self, interface: &str) -> Self {
        self.config(&format!("[interfaces.{interface}]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n"))
    }

    /// Adds lines to the cage's `cage.toml`. Top-level keys go first.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        let config = self.toml.last_mut().expect("a cage");
        config.push_str(toml);
        config.push('\n');
        self
    }

    #[must_use]
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.lanes = lanes;
        self
    }

    /// Directory of the cage named last.
    pub fn directory(&self) -> PathBuf {
        self.root.path().join(self.names.last().expect("a cage"))
    }

    pub fn name(&self) -> &str {
        self.names.last().expect("a cage")
    }

    /// # Errors
    /// The host's.
    pub async fn try_start(self) -> Result<RunningCage, StartError> {
        wasmcage_core::telemetry::install(wasmcage_core::telemetry::TerminalOptions::off());
        for (name, toml) in self.names.iter().zip(&self.toml) {
            fs::write(self.root.path().join(name).join("cage.toml"), toml).expect("a cage.toml");
        }
        let protocols = self.protocols.unwrap_or_else(wasmcage_bin::protocols);
        let mut options = HostOptions::new(self.root.path(), self.names.clone(), protocols);
        options.lanes = Some(self.lanes);
        options.runtime_directory = Some(self.meeting.unwrap_or_else(|| self.root.path().join(".meeting")));
        options.compiler = Some(self.compiler.unwrap_or_else(guests::program).into());
        options.cache = Some(self.cache.unwrap_or_else(guests::cache));
        let host = Host::start(options).await?;
        Ok(RunningCage { host: Some(host), names: self.names, root: self.root })
    }

    pub async fn start(self) -> RunningCage {
        self.try_start().await.unwrap_or_else(|error| panic!("the cage did not start: {error:?}"))
    }
}

/// Cages that serve. Their logs are shown when the test panics.
pub struct RunningCage {
    host: Option<Host>,
    names: Vec<String>,
    root: TempDir,
}

impl RunningCage {
    pub fn host(&self) -> &Host {
        self.host.as_ref().expect("the host runs")
    }

    pub fn name(&self) -> &str {
        &self.names[0]
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Directory of the first cage.
    pub fn directory(&self) -> PathBuf {
        self.root.path().join(&self.names[0])
    }

    pub fn snapshot(&self) -> HostSnapshot {
        self.host().snapshot()
    }

    /// Where an interface listens, as `127.0.0.1:port`.
    pub fn address(&self, interface: &str) -> String {
        let serving = self.host().serving();
        let line = serving.iter().find(|line| line.interface == interface);
        let line = line.unwrap_or_else(|| panic!("interface {interface} does not serve: {serving:?}\n{}", self.log()));
        line.address.split("://").last().expect("an address").trim_end_matches('/').to_owned()
    }

    /// A client of an interface.
    pub fn client(&self, interface: &str) -> Client {
        Client::new(&self.address(interface))
    }

    /// Replaces a module's file the way a careful deployer does: write beside it, rename.
    pub fn deploy(&self, module: &str, bytes: &[u8]) {
        let file = self.directory().join(format!("{module}.wasm"));
        let temporary = self.directory().join(format!(".{module}.{}", unique_name("new")));
        fs::write(&temporary, bytes).expect("a new module file");
        fs::rename(temporary, file).expect("the rename");
    }

    /// Replaces the first cage's `cage.toml`, by a rename.
    pub fn configure(&self, toml: &str) {
        let temporary = self.directory().join(unique_name(".cage.toml."));
        fs::write(&temporary, toml).expect("a new cage.toml");
        fs::rename(temporary, self.directory().join("cage.toml")).expect("the rename");
    }

    /// The snapshot of a module of the first cage.
    pub fn module(&self, module: &str) -> Option<ModuleSnapshot> {
        self.snapshot().cages.swap_remove(0).modules.into_iter().find(|known| known.module == module)
    }

    /// Instances of a module's version that serves, in use or idle.
    pub fn instances(&self, module: &str) -> usize {
        self.module(module).and_then(|module| module.version).map_or(0, |version| version.instances)
    }

    /// Calls `module.function` of the first cage, with an array of arguments.
    ///
    /// # Errors
    /// The dispatcher's.
    pub async fn call(&self, function: &str, arguments: Value) -> Result<Value, DispatchError> {
        self.call_cage(self.name(), function, arguments).await
    }

    /// Calls `module.function` of a cage.
    ///
    /// # Errors
    /// The dispatcher's.
    pub async fn call_cage(&self, cage: &str, function: &str, arguments: Value) -> Result<Value, DispatchError> {
        let json = self.call_text(cage, function, serde_json::json!({ "args": arguments }).to_string()).await?;
        Ok(serde_json::from_str(&json).expect("a result is JSON"))
    }

    /// Calls with arguments as JSON text, which may be such that no `Value` can hold it.
    ///
    /// # Errors
    /// The dispatcher's.
    pub async fn call_text(&self, cage: &str, function: &str, arguments: String) -> Result<String, DispatchError> {
        let (module, function) = function.split_once('.').expect("module.function");
        let call = OperatorCall {
            cage: cage.to_owned(),
            module: module.to_owned(),
            function: function.to_owned(),
            arguments: Payload::Json(arguments),
            timeout: TIMEOUT,
            idempotent: false,
        };
        let dispatcher = self.host().cage(cage).expect("a cage of this process").dispatcher().clone();
        // Guests run on the lanes.
        let called = self.host().lanes().next().spawn(async move { dispatcher.call_for_operator(call).await });
        match called.await.expect("the call does not panic")? {
            Payload::Json(json) => Ok(json),
            other => panic!("JSON was expected: {other:?}"),
        }
    }

    /// Waits until no cage has a request in work or in its queue.
    pub async fn quiet(&self) {
        let busy = |snapshot: &HostSnapshot| snapshot.cages.iter().any(|cage| cage.in_work + cage.waiting > 0);
        eventually("the end of all work", || (!busy(&self.snapshot())).then_some(())).await;
    }

    /// Everything logged by the first cage.
    pub fn log(&self) -> String {
        self.log_of(&self.names[0])
    }

    pub fn log_of(&self, cage: &str) -> String {
        if let Some(host) = &self.host {
            host.flush_logs();
        }
        let entries = fs::read_dir(self.root.path().join(cage).join("logs")).into_iter().flatten().flatten();
        let mut files: Vec<_> =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|x| x == "log")).collect();
        files.sort();
        files.iter().map(|file| String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()).collect()
    }

    /// Waits until the log holds `text`.
    pub async fn logged(&self, text: &str) -> String {
        eventually(&format!("{text:?} in the log"), || Some(self.log()).filter(|log| log.contains(text))).await
    }

    /// The number of the version that serves a module; none when there is none.
    pub fn version(&self, module: &str) -> Option<u64> {
        Some(self.module(module)?.version?.number)
    }

    /// Why a module's file was not taken.
    pub fn refusal(&self, module: &str) -> Option<String> {
        self.module(module)?.refused
    }

    /// Waits until a module's file was refused, and says why.
    pub async fn refused(&self, module: &str) -> String {
        eventually(&format!("a refusal of {module}"), || self.refusal(module)).await
    }

    /// Waits until a module is served by another version than `old`.
    pub async fn swapped(&self, module: &str, old: Option<u64>) -> u64 {
        eventually(&format!("a new version of {module}"), || self.version(module).filter(|new| Some(*new) != old)).await
    }

    /// Drains and stops. True when nothing had to be cut off.
    pub async fn stop(mut self) -> bool {
        self.end().await
    }

    /// The same, and keeps the directories, so that the logs can still be read.
    pub async fn end(&mut self) -> bool {
        self.host.take().expect("the host runs").stop().await
    }
}

impl Drop for RunningCage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in &self.names {
                eprintln!("--- log of cage {name} ---\n{}", self.log_of(name));
            }
        }
    }
}

/// Polls `found` until it gives something, and panics after a minute.
pub async fn eventually<T>(what: &str, found: impl FnMut() -> Option<T>) -> T {
    eventually_within(TIMEOUT, what, found).await
}

/// Does what `eventually` does, with another timeout.
pub async fn eventually_within<T>(timeout: Duration, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + timeout;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(tokio::time::Instant::now() < until, "waited {timeout:?} for {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Polls `ask`, which asks another process, until its answer is something, and panics after a minute.
pub async fn eventually_async<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "no {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `prefix` with a number that no other call in this process gets.
pub fn unique_name(prefix: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!("{prefix}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
