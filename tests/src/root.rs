//! A root directory for whole programs: cages that `wasmcage run` serves in processes of their own, and other commands
//! beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{cache, guest, program};

/// The interval at which a cage that starts or stops is polled.
const POLL: Duration = Duration::from_millis(20);

/// A root directory with cages, and the commands of `wasmcage` in it.
pub struct Root(TempDir);

impl Root {
    /// Makes each cage with the guests that are its modules.
    ///
    /// # Panics
    /// When the directory cannot be made, or a guest was not built.
    pub fn new(cages: &[(&str, &[&str])]) -> Self {
        let root = Self(tempfile::tempdir().expect("a temporary directory"));
        // Compiled files of all tests together, so that each guest is compiled once.
        std::os::unix::fs::symlink(cache(), root.path().join(".cache")).expect("a link to the cache");
        for (cage, modules) in cages {
            fs::create_dir(root.cage(cage)).expect("a directory for the cage");
            for module in *modules {
                let file = root.cage(cage).join(format!("{module}.wasm"));
                fs::copy(guest(module), file).expect("a guest to copy");
            }
        }
        root
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Directory of a cage.
    pub fn cage(&self, cage: &str) -> PathBuf {
        self.path().join(cage)
    }

    /// # Panics
    /// When the file cannot be written.
    pub fn configure(&self, cage: &str, toml: &str) {
        fs::write(self.cage(cage).join("cage.toml"), toml).expect("a cage.toml");
    }

    /// `wasmcage` in this root, apart from the cages of other tests.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // A test run in the background may have been started with these ignored, and the program would go on to ignore them.
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP,INT,QUIT").arg(program());
        command.env("WASMCAGE_ROOT", self.path()).env("WASMCAGE_RUNTIME_DIR", self.path().join(".runtime"));
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// # Panics
    /// When the program cannot be started.
    pub async fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.expect("the program")
    }

    /// Runs a command that succeeds, and returns its output.
    ///
    /// # Panics
    /// When it fails.
    pub async fn done(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command that fails with this exit code, and returns what it writes to stderr.
    ///
    /// # Panics
    /// When it ends in another way.
    pub async fn failure(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Calls a function of `cage` by `wasmcage call`, and returns its result.
    ///
    /// # Panics
    /// When it has none.
    pub async fn call(&self, cage: &str, arguments: &[&str]) -> Value {
        let result = self.done(&[&["call", cage], arguments].concat()).await;
        serde_json::from_str(&result).unwrap_or_else(|error| panic!("{error}: {result}"))
    }

    /// Starts a cage, and waits until it serves. Its primary is killed when the returned process is dropped.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub async fn run(&self, cage: &str) -> Child {
        let run = self.command(&["run", cage]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let run = run.expect("the program");
        self.serving(cage).await;
        run
    }

    /// Waits until a cage serves, and returns the number of the process that does.
    pub async fn serving(&self, cage: &str) -> i64 {
        loop {
            let output = self.output(&["ps", "--json", cage]).await;
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let process = &answer["processes"][0];
            if let (Some(pid), true) = (process["pid"].as_i64(), process["cages"][0]["modules"].is_array()) {
                return pid;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Drains and stops a cage.
    ///
    /// # Panics
    /// When `wasmcage stop` fails.
    pub async fn stop(&self, cage: &str) {
        self.done(&["stop", cage]).await;
    }
}
