//! The processes that the bench measures. They are started with arguments, print their address, and are ended when
//! dropped.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::load::Load;
use wasmcage_benches::target;

/// One kind of echo service.
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    program: PathBuf,
    kind: &'static str,
    directory: PathBuf,
    address: String,
    _server: Server,
}

impl Contestant {
    /// Starts the server. `directory` has its keys.
    pub(crate) fn start(
        name: &'static str,
        program: &Path,
        kind: &'static str,
        directory: PathBuf,
        url: Option<&str>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(["serve", kind]).arg(&directory).args(url);
        let (server, address) = Server::start(command);
        Self { name, program: program.to_owned(), kind, directory, address, _server: server }
    }

    pub(crate) fn load(&self, load: Load) -> Measured {
        let mut command = Command::new(&self.program);
        let seconds = load.duration.as_secs_f64().to_string();
        let numbers = [load.body_bytes.to_string(), load.callers.to_string(), seconds];
        let beside = [load.beside.to_string(), load.beside_body_bytes.to_string()];
        command.args(["load", self.kind]).arg(&self.directory).arg(&self.address).args(numbers).args(beside);
        let figures = json(command);
        let figure = |name: &str| figures[name].as_f64().unwrap();
        Measured {
            per_second: figure("calls_per_second"),
            p50_us: figure("p50_us"),
            p99_us: figure("p99_us"),
            cpu_us: figure("cpu_us_per_call_client"),
        }
    }
}

/// The `Figures` of the load, as this bench reads them.
#[derive(Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// The processor time of the client's process for each call.
    pub(crate) cpu_us: f64,
}

/// A process that prints a line when it is ready, and ends when its input is closed.
pub(crate) struct Server {
    process: Child,
    input: Option<ChildStdin>,
}

impl Server {
    /// Starts the process, and returns it with its line.
    pub(crate) fn start(mut command: Command) -> (Self, String) {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take(), process.stdout.take().unwrap());
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{command:?} ended early");
        (Self { process, input }, line.trim_end().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        self.process.wait().unwrap();
    }
}

/// A NATS server for this bench; dropping it ends the server.
pub(crate) struct NatsServer {
    process: Child,
    pub(crate) url: String,
    _directory: tempfile::TempDir,
}

impl NatsServer {
    /// Starts the program that `NATS_SERVER` names; none if it cannot be started.
    pub(crate) fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let program = std::env::var("NATS_SERVER").unwrap_or_else(|_| "nats-server".into());
        let mut command = Command::new(program);
        command.args(["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir"]).arg(directory.path());
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let file = directory.path().join(format!("nats-server_{}.ports", process.id()));
        let url = loop {
            let ports = std::fs::read_to_string(&file).ok();
            let ports = ports.and_then(|text| serde_json::from_str::<Value>(&text).ok());
            match ports.and_then(|ports| Some(ports["nats"][0].as_str()?.to_owned())) {
                Some(url) => break url,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        Some(Self { process, url, _directory: directory })
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// This binary, to be started as another process of the bench.
pub(crate) fn this() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// Runs a process, and reads the line of JSON that it prints.
pub(crate) fn json(mut command: Command) -> Value {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?} failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Builds the program of the peers beside this one; none if that fails.
pub(crate) fn peers() -> Option<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/rpc_peers/Cargo.toml");
    let built = target().with_file_name("rpc-peers");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--release", "--locked", "--quiet", "--manifest-path"]).arg(manifest);
    let status = command.arg("--target-dir").arg(&built).stdin(Stdio::null()).status();
    status.is_ok_and(|status| status.success()).then(|| built.join("release/rpc_peers"))
}
