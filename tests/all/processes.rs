//! The program as a whole: `run` and its two processes, `stop`, `ps`, `logs`, `check`, `new`, exit codes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use wasmcage_tests::{Client, cache, eventually, guest, program};

/// A root with one cage, `runner`, and what `wasmcage` does there.
struct RunnerRoot {
    directory: TempDir,
}

impl RunnerRoot {
    fn new() -> Self {
        let root = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir(root.cage()).unwrap();
        // Compiled files of all tests together, so that each guest is compiled once.
        std::os::unix::fs::symlink(cache(), root.path().join(".cache")).unwrap();
        root
    }

    fn serving() -> Self {
        let root = Self::new();
        fs::copy(guest("hello"), root.cage().join("interface_web.wasm")).unwrap();
        root.configure("[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n");
        root
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn cage(&self) -> PathBuf {
        self.path().join("runner")
    }

    fn configure(&self, toml: &str) {
        fs::write(self.cage().join("cage.toml"), toml).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("WASMCAGE_ROOT", self.path())
            .env("WASMCAGE_RUNTIME_DIR", self.path().join(".run"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.unwrap()
    }

    /// The process that serves, once it does.
    async fn ready(&self) -> Value {
        loop {
            let output = self.output(&["ps", "--json"]).await;
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let process = &answer["processes"][0];
            if address(process).is_some() {
                return process.clone();
            }
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        let entries = fs::read_dir(self.cage().join("logs")).into_iter().flatten().flatten();
        let logs = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|is| is == "log"));
        logs.map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    async fn logged(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || self.log().contains(text).then_some(())).await;
    }
}

/// Where interface `web` listens.
fn address(process: &Value) -> Option<&str> {
    let interfaces = process["cages"][0]["interfaces"].as_array()?;
    interfaces.iter().find(|interface| interface["interface"] == "web")?["addresses"][0].as_str()
}

fn client(process: &Value) -> Client {
    let address = address(process).unwrap();
    Client::new(address.trim_start_matches("http://").trim_end_matches('/'))
}

fn signal(name: &str, pid: &Value) {
    let done = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(done.success());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn exit_code(mut child: Child) -> Option<i32> {
    child.wait().await.unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_runs_serves_and_stops_on_term() {
    let root = RunnerRoot::serving();
    let run = root.command(&["run", "runner"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let process = root.ready().await;
    assert_eq!(client(&process).get("/").await.text(), "Hello, world !");
    let pid = fs::read_to_string(root.cage().join(".run/primary.pid")).unwrap();
    assert_eq!(pid.trim(), process["primary_pid"].to_string(), "the pid file holds the primary's");
    assert_ne!(process["pid"], process["primary_pid"]);
    signal("TERM", &process["primary_pid"]);
    assert_eq!(exit_code(run).await, Some(0));
    assert!(root.log().contains("cage has been properly shut down"), "{}", root.log());
    let logs = root.output(&["logs", "runner", "-n", "1"]).await;
    assert!(text(&logs.stdout).contains("shut down"), "{logs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_drains_and_a_second_run_is_refused() {
    let root = RunnerRoot::serving();
    let run = root.command(&["run", "runner"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let process = root.ready().await;
    let second = root.output(&["run", "runner"]).await;
    let complaint = text(&second.stderr);
    assert_ne!(second.status.code(), Some(0));
    assert!(complaint.contains("runner") && complaint.contains(&process["primary_pid"].to_string()), "{complaint}");
    // The refused one took nothing from the first.
    assert_eq!(client(&process).get("/").await.status, 200);
    assert!(root.output(&["stop", "runner"]).await.status.success());
    assert_eq!(exit_code(run).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_secondary_is_restarted_and_serves_again() {
    let root = RunnerRoot::serving();
    let run = root.command(&["run", "runner"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let first = root.ready().await;
    signal("KILL", &first["pid"]);
    root.logged("cage process failed and is restarted").await;
    let second = loop {
        let process = root.ready().await;
        if process["pid"] != first["pid"] {
            break process;
        }
    };
    assert_eq!(second["primary_pid"], first["primary_pid"]);
    assert_eq!(client(&second).get("/").await.text(), "Hello, world !");
    assert!(root.output(&["stop", "runner"]).await.status.success());
    assert_eq!(exit_code(run).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secondary_without_its_primary_drains_and_frees_the_cage() {
    let root = RunnerRoot::serving();
    let run = root.command(&["run", "runner"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let first = root.ready().await;
    signal("KILL", &first["primary_pid"]);
    exit_code(run).await;
    root.logged("supervising process has gone").await;
    root.logged("cage has been properly shut down").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_the_configuration_end_it_with_2_and_all_of_them_are_told() {
    let root = RunnerRoot::new();
    root.configure("queue = -1\n[interfaces.web]\nprotocol = \"htpp\"\n");
    let run = root.output(&["run", "runner"]).await;
    let told = text(&run.stderr) + &root.log();
    assert_eq!(run.status.code(), Some(2), "{told}");
    assert!(told.contains("cage.toml:1") && told.contains("queue"), "{told}");
    assert!(told.contains("cage.toml:3") && told.contains("http"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_cage_or_command_is_told_with_the_nearest() {
    let root = RunnerRoot::new();
    for (arguments, part) in [(vec!["run", "runer"], "runner"), (vec!["buidl", "runner"], "'build'")] {
        let output = root.output(&arguments).await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains(part), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_a_module_needs_and_why_it_would_be_refused() {
    let root = RunnerRoot::new();
    let good = root.output(&["check", guest("hello").to_str().unwrap()]).await;
    assert!(good.status.success(), "{good:?}");
    assert!(text(&good.stdout).contains("wasmcage:cage/handler"), "{good:?}");
    let file = root.path().join("unknown.wasm");
    let fixture = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/unknown_import.wat")).unwrap();
    fs::write(&file, wasmcage_tests::component(&fixture)).unwrap();
    let bad = root.output(&["check", file.to_str().unwrap()]).await;
    assert_eq!(bad.status.code(), Some(1), "{bad:?}");
    assert!((text(&bad.stdout) + &text(&bad.stderr)).contains("nobody provides it"), "{bad:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unwritable_log_directory_keeps_nothing_from_serving() {
    let root = RunnerRoot::serving();
    let run = root.command(&["run", "runner"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let process = root.ready().await;
    // Root may write anywhere, so the directory is replaced by a file.
    let logs = root.cage().join("logs");
    fs::rename(&logs, root.cage().join("logs-before")).unwrap();
    fs::write(&logs, "").unwrap();
    let client = client(&process);
    for _ in 0..10 {
        assert_eq!(client.get("/").await.status, 200);
    }
    signal("TERM", &process["primary_pid"]);
    assert_eq!(exit_code(run).await, Some(0));
}

/// The process that serves, without the one that watches over it.
fn secondary(root: &RunnerRoot, cages: &[&str]) -> Child {
    let mut command = root.command(&["secondary", "--root"]);
    command.arg(root.path()).arg("--").args(cages);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Where interface `web` of the first process listens, as its log tells.
async fn logged_address(root: &RunnerRoot) -> String {
    let found = || Some(root.log().split_once("address=http://")?.1.split('/').next()?.to_owned());
    eventually("interface web to listen", found).await
}

/// A request that is in work for a while, with its answer to come.
async fn in_work(address: String) -> tokio::task::JoinHandle<u16> {
    let client = Client::new(&address);
    let answer = tokio::spawn(async move { client.get("/sleep?ms=1500").await.status.as_u16() });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signal_that_follows_the_end_of_the_primary_does_not_force() {
    // Whoever stops both processes at once: the end of the primary is seen first, then comes the signal.
    let root = RunnerRoot::serving();
    fs::copy(guest("hostile"), root.cage().join("interface_web.wasm")).unwrap();
    let mut process = secondary(&root, &["runner"]);
    let answer = in_work(logged_address(&root).await).await;
    drop(process.stdin.take());
    root.logged("supervising process has gone").await;
    signal("TERM", &process.id().into());
    assert_eq!(answer.await.unwrap(), 200);
    assert_eq!(exit_code(process).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_stopped_while_it_starts_finishes_what_it_has_taken() {
    let root = RunnerRoot::serving();
    fs::copy(guest("hostile"), root.cage().join("interface_web.wasm")).unwrap();
    // The second cage's modules take long: none was compiled before, each has a hash of its own.
    let slow = root.path().join("slow");
    fs::create_dir(&slow).unwrap();
    let unique = std::process::id().to_le_bytes();
    for number in 0..64 {
        let mut bytes = fs::read(guest("echo")).unwrap();
        bytes.extend_from_slice(&[0, 7, 1, b'v', number]);
        bytes.extend_from_slice(&unique);
        fs::write(slow.join(format!("module{number}.wasm")), bytes).unwrap();
    }
    let process = secondary(&root, &["runner", "slow"]);
    let answer = in_work(logged_address(&root).await).await;
    signal("TERM", &process.id().into());
    assert_eq!(answer.await.unwrap(), 200);
    assert_eq!(exit_code(process).await, Some(0));
    let log = fs::read_dir(slow.join("logs")).unwrap().flatten().map(|file| fs::read_to_string(file.path()).unwrap());
    assert!(!log.collect::<String>().contains("cage has started"), "it was to be stopped while it started");
}
