//! `wasmcage doctor`: what it finds out about the ways between cages, stopped or running.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use wasmcage_tests::{eventually, program};

/// A root with the cage `worker`, and a place of its own where cages meet.
struct DoctorRoot(TempDir);

impl DoctorRoot {
    fn new() -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(root.0.path().join("cages/worker")).unwrap();
        root.configure("");
        root
    }

    /// Without multicast: what the network of the test's machine does with it is not ours to say.
    fn configure(&self, rpc: &str) {
        let toml = format!("[interfaces.rpc]\nmulticast = false\n{rpc}\n");
        fs::write(self.0.path().join("cages/worker/cage.toml"), toml).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(program());
        command.args(line.split_whitespace()).current_dir(self.0.path()).env_remove("WASMCAGE_ROOT");
        command.env("WASMCAGE_RUNTIME_DIR", self.0.path().join("run")).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn done(&self, line: &str) -> Output {
        let output = self.command(line).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        output
    }

    /// The worker's findings. `expected` are some of them: check, verdict, a part of the text.
    #[track_caller]
    fn check(&self, code: i32, expected: &[(&str, &str, &str)]) {
        let output = self.command("doctor worker --json").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = answer["findings"].as_array().unwrap();
        for (check, verdict, part) in expected {
            let fits = |finding: &Value| {
                let text = finding["text"].as_str().unwrap();
                finding["check"] == *check && finding["verdict"] == *verdict && text.contains(part)
            };
            assert!(findings.iter().any(fits), "{check}, {verdict}, {part:?} not in {answer:#}");
        }
    }
}

/// A cage that runs as long as this lives.
struct WorkerProcess(Child);

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_missing_is_told_with_what_to_do() {
    let root = DoctorRoot::new();
    root.check(
        0,
        &[
            ("clock", "ok", "T"),
            ("runtime directory", "ok", "will be made"),
            ("multicast", "ok", "not used"),
            ("keys", "ok", "this machine only"),
            ("listen", "ok", "not set"),
        ],
    );
    assert!(!root.0.path().join("run").exists());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    root.configure(&format!("listen = \"{address}\""));
    root.check(1, &[("keys", "fail", "other machines"), ("listen", "fail", "in use")]);
    root.done("keys init");
    root.done("keys issue worker --days 5");
    drop(taken);
    root.check(
        0,
        &[("keys", "ok", "of cage worker of flock default"), ("keys", "warn", "ends in"), ("listen", "warn", "free")],
    );
    fs::write(root.0.path().join("cages/worker/keys/cert.pem"), "nonsense").unwrap();
    root.check(1, &[("keys", "fail", "cert.pem")]);
    root.configure("multicsat = true");
    root.check(1, &[("cage.toml", "fail", "multicsat")]);
    root.configure("enabled = false");
    root.check(0, &[("interfaces.rpc", "warn", "not enabled")]);
    let told = String::from_utf8(root.command("doctor").output().unwrap().stdout).unwrap();
    assert!(told.starts_with("machine\n  ok ") && told.contains("\ncage worker\n  warn "), "{told}");
}

#[tokio::test]
async fn peers_are_tried() {
    let root = DoctorRoot::new();
    root.done("keys init");
    root.done("keys issue worker");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent_address = silent.local_addr().unwrap();
    root.configure(&format!("peers = {{ a = [\"{closed}\"], b = [\"{silent_address}\"] }}"));
    root.check(1, &[("peer a", "fail", "refuses"), ("peer b", "fail", "does not answer")]);
}

#[test]
fn an_interface_that_serves_in_reverse_is_looked_at() {
    let root = DoctorRoot::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let inward = |more: &str| {
        root.configure(&format!(
            "[interfaces.inward]\nprotocol = \"reverse-rpc\"\nserve = [\"front\"]\nmulticast = false\n{more}"
        ));
    };
    inward("");
    root.check(1, &[("inward: keys", "fail", "other machines"), ("inward: peer front", "fail", "no address")]);
    root.done("keys init");
    root.done("keys issue worker");
    inward(&format!("peers = {{ front = [\"{closed}\"] }}"));
    root.check(1, &[("inward: peer front", "fail", "refuses")]);
    inward("serv = 1");
    root.check(1, &[("cage.toml", "fail", "serv")]);
}

#[tokio::test]
async fn a_running_cage_is_recognized() {
    let root = DoctorRoot::new();
    root.done("keys init");
    root.done("keys issue worker");
    root.configure("listen = \"127.0.0.1:0\"");
    let mut command = root.command("run worker");
    let _run = WorkerProcess(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let address = eventually("the cage's address", || {
        let output = root.command("ps --json").output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        let interfaces = answer["processes"][0]["cages"][0]["interfaces"].as_array()?;
        let rpc = interfaces.iter().find(|interface| interface["interface"] == "rpc")?;
        let addresses = rpc["addresses"].as_array()?;
        addresses.iter().find_map(|address| Some(address.as_str()?.strip_prefix("tls://")?.to_owned()))
    })
    .await;
    root.check(
        0,
        &[
            ("runtime directory", "ok", "belongs"),
            ("flock default", "ok", "running here: worker"),
            ("running", "ok", "can call it"),
            ("listen", "warn", "the running cage listens"),
        ],
    );
    // Another cage, which has it for a peer, and one that takes it for somebody else.
    for (cage, peer) in [("front", "worker"), ("back", "other")] {
        let directory = root.0.path().join("cages").join(cage);
        fs::create_dir(&directory).unwrap();
        let toml = format!("[interfaces.rpc]\nmulticast = false\npeers = {{ {peer} = [\"{address}\"] }}\n");
        fs::write(directory.join("cage.toml"), toml).unwrap();
        root.done(&format!("keys issue {cage}"));
    }
    let output = root.done("doctor front");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains(&format!("{address} is cage worker")), "{told}");
    let output = root.command("doctor back").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && told.contains("cage other was expected"), "{told}");
    // Where this command looks for it, it is not.
    let elsewhere = root.command("doctor worker").env("WASMCAGE_RUNTIME_DIR", root.0.path().join("other")).output();
    let elsewhere = elsewhere.unwrap();
    let told = String::from_utf8_lossy(&elsewhere.stdout);
    assert!(elsewhere.status.code() == Some(1) && told.contains("is not to be found in"), "{told}");
}
