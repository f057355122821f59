//! The two processes of a cage: what stops them, what starts the one again, and that nobody else is harmed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::{Child, Command};
use wasmcage_tests::{Client, Root, eventually, eventually_async, guest, program, require_superuser};

const WEB: &str = "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n";

/// A cage whose interface `web` can be told to take its time.
fn slow_root() -> Root {
    let root = Root::new(&[("shop", &["state_user"])]);
    fs::copy(guest("hostile"), root.cage("shop").join("interface_web.wasm")).unwrap();
    root.configure("shop", WEB);
    root
}

/// The status of the running cage by its own word.
async fn process(root: &Root) -> Value {
    eventually_async("a cage that answers", async || {
        let output = root.output(&["ps", "--json", "shop"]).await;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let process = answer["processes"][0].clone();
        process["cages"][0]["modules"].is_array().then_some(process)
    })
    .await
}

/// Where interface `web` listens, as host and port.
fn address(process: &Value) -> String {
    let interfaces = process["cages"][0]["interfaces"].as_array().unwrap();
    let web = interfaces.iter().find(|interface| interface["interface"] == "web").unwrap();
    let address = web["addresses"][0].as_str().unwrap();
    address.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

fn signal(name: &str, pids: &[&Value]) {
    let pids = pids.iter().map(|pid| pid.to_string());
    let done = std::process::Command::new("kill").arg(format!("-{name}")).args(pids).status().unwrap();
    assert!(done.success());
}

fn is_alive(pid: &Value) -> bool {
    // A zombie has no memory any more.
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| status.contains("VmSize"))
}

fn log(root: &Root) -> String {
    let files = fs::read_dir(root.cage("shop").join("logs")).into_iter().flatten().flatten();
    files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect()
}

async fn logged(root: &Root, text: &str) {
    eventually(&format!("{text:?} in the log"), || log(root).contains(text).then_some(())).await;
}

/// A request that is in work when this returns, with its answer to come.
async fn in_work(root: &Root, ms: u32) -> tokio::task::JoinHandle<u16> {
    let address = address(&process(root).await);
    let client = Client::new(&address);
    let answer = tokio::spawn(async move { client.get(&format!("/sleep?ms={ms}")).await.status.as_u16() });
    eventually_async("request in work", async || (process(root).await["cages"][0]["in_work"] == 1).then_some(())).await;
    answer
}

async fn exit_code(child: &mut Child) -> Option<i32> {
    tokio::time::timeout(Duration::from_secs(60), child.wait()).await.expect("it ends").unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_harms_nobody_whose_number_is_in_the_pid_file() {
    let root = slow_root();
    let mut run = root.run("shop").await;
    let mut bystander = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    for file in [".run/primary.pid", "logs/shop.pid"] {
        fs::write(root.cage("shop").join(file), format!("{}\n", bystander.id())).unwrap();
    }
    root.stop("shop").await;
    assert_eq!(exit_code(&mut run).await, Some(0));
    assert!(bystander.try_wait().unwrap().is_none(), "it was signalled");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert_eq!(root.done(&["stop", "shop"]).await, "shop is not running\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_both_processes_is_one_drain() {
    for pause_ms in [0, 5, 100] {
        let root = slow_root();
        let mut run = root.run("shop").await;
        let answer = in_work(&root, 1_500).await;
        let process = process(&root).await;
        for pid in [&process["primary_pid"], &process["pid"]] {
            signal("TERM", &[pid]);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
        assert_eq!(answer.await.unwrap(), 200, "{pause_ms}\n{}", log(&root));
        assert_eq!(exit_code(&mut run).await, Some(0), "{pause_ms}\n{}", log(&root));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_hangups_is_one_drain_and_a_later_interrupt_forces() {
    let root = slow_root();
    let mut run = root.run("shop").await;
    let answer = in_work(&root, 3_000).await;
    let process = process(&root).await;
    for _ in 0..8 {
        signal("HUP", &[&process["primary_pid"], &process["pid"]]);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(answer.await.unwrap(), 200);
    assert_eq!(exit_code(&mut run).await, Some(0));

    let mut run = root.run("shop").await;
    let _cut_off = in_work(&root, 60_000).await;
    let primary = self::process(&root).await["primary_pid"].clone();
    signal("TERM", &[&primary]);
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let begun = Instant::now();
    signal("INT", &[&primary]);
    assert_eq!(exit_code(&mut run).await, Some(1));
    assert!(begun.elapsed() < Duration::from_secs(8), "the request has 10 s to be finished in");
}

/// `pkill wasmcage` and a look at `ps` find both.
#[tokio::test(flavor = "multi_thread")]
async fn both_processes_are_called_like_the_program() {
    let root = slow_root();
    let _run = root.run("shop").await;
    let process = process(&root).await;
    for pid in ["primary_pid", "pid"] {
        let command = std::fs::read(format!("/proc/{}/cmdline", process[pid])).unwrap();
        let name = command.split(|byte| *byte == 0).next().and_then(|name| name.rsplit(|byte| *byte == b'/').next());
        assert_eq!(name, Some(b"wasmcage".as_slice()), "{pid}");
    }
    root.done(&["stop", "shop"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hangups_that_are_ignored_at_the_start_stay_ignored() {
    let root = slow_root();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(program()).args(["run", "shop"]);
    command.env("WASMCAGE_ROOT", root.path()).env("WASMCAGE_RUNTIME_DIR", root.path().join(".runtime"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut run = command.spawn().unwrap();
    let before = process(&root).await;
    for _ in 0..3 {
        signal("HUP", &[&before["primary_pid"], &before["pid"]]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let client = Client::new(&address(&before));
    assert_eq!(client.get("/sleep?ms=1").await.status, 200);
    assert_eq!(process(&root).await["pid"], before["pid"]);
    signal("TERM", &[&before["primary_pid"]]);
    assert_eq!(exit_code(&mut run).await, Some(0));
}

/// A program of its own that can be replaced.
fn own_program(root: &Root) -> PathBuf {
    let own = root.path().join("program/wasmcage");
    fs::create_dir(own.parent().unwrap()).unwrap();
    // By a process of its own: a child that another test forks meanwhile would inherit the file open for writing, and a program
    // that somebody writes cannot be run.
    let copied = std::process::Command::new("cp").arg(program()).arg(&own).status().unwrap();
    assert!(copied.success());
    own
}

/// A component that was never compiled before, as an upload.
fn upload(root: &Root, module: &str) {
    let mut bytes = fs::read(guest("echo")).unwrap();
    let name = wasmcage_tests::unique_name("v");
    let length = u8::try_from(1 + name.len()).unwrap();
    // A custom section: id, size, length of its name, name.
    bytes.extend_from_slice(&[0, length, length - 1]);
    bytes.extend_from_slice(name.as_bytes());
    fs::write(root.cage("shop").join(format!("{module}.wasm")), bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_the_program_was_replaced_is_recovered_from() {
    let replace: [fn(&Path); 2] = [
        |program| {
            let other = program.with_extension("new");
            fs::write(&other, "#!/bin/sh\nexit 7\n").unwrap();
            fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            fs::rename(other, program).unwrap();
        },
        |program| fs::remove_file(program).unwrap(),
    ];
    for replace in replace {
        let root = slow_root();
        let own = own_program(&root);
        let mut command = Command::new(&own);
        command.args(["run", "shop"]).env("WASMCAGE_ROOT", root.path());
        command.env("WASMCAGE_RUNTIME_DIR", root.path().join(".runtime")).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut run = command.spawn().unwrap();
        let first = process(&root).await;
        replace(&own);
        signal("KILL", &[&first["pid"]]);
        let second = eventually_async("another process", async || {
            let now = process(&root).await;
            (now["pid"] != first["pid"]).then_some(now)
        })
        .await;
        assert_eq!(second["primary_pid"], first["primary_pid"]);
        assert_eq!(Client::new(&address(&second)).get("/sleep?ms=1").await.status, 200);
        // The compiler is the same program, too.
        upload(&root, "late");
        eventually_async("a module that was never compiled before", async || {
            let modules = process(&root).await["cages"][0]["modules"].clone();
            let mut modules = modules.as_array().unwrap().iter();
            modules.any(|module| module["module"] == "late" && module["version"].is_object()).then_some(())
        })
        .await;
        for pid in [&second["pid"], &second["primary_pid"]] {
            assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "wasmcage\n", "for `pkill`");
        }
        root.stop("shop").await;
        assert_eq!(exit_code(&mut run).await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_hangs_is_replaced() {
    let root = slow_root();
    let mut run = root.run("shop").await;
    let first = process(&root).await;
    signal("STOP", &[&first["pid"]]);
    logged(&root, "it sent no heartbeat for 10 s").await;
    let second = process(&root).await;
    assert_ne!(second["pid"], first["pid"]);
    assert_eq!(Client::new(&address(&second)).get("/sleep?ms=1").await.status, 200);
    root.stop("shop").await;
    assert_eq!(exit_code(&mut run).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_process_that_hangs() {
    let root = slow_root();
    let mut run = root.run("shop").await;
    signal("STOP", &[&process(&root).await["pid"]]);
    let begun = Instant::now();
    root.stop("shop").await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(exit_code(&mut run).await, Some(1), "it had to be killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_stop_cuts_off_what_is_in_work() {
    let root = slow_root();
    let mut run = root.run("shop").await;
    let _cut_off = in_work(&root, 60_000).await;
    let begun = Instant::now();
    root.done(&["stop", "shop", "--force"]).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "the request has 10 s to be finished in");
    assert_eq!(exit_code(&mut run).await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_hangs_is_killed_by_force_only_and_by_the_number_that_the_kernel_tells() {
    let root = slow_root();
    let mut run = root.run("shop").await;
    let process = process(&root).await;
    fs::write(root.cage("shop").join(".run/primary.pid"), "1\n").unwrap();
    signal("STOP", &[&process["primary_pid"]]);
    let told = root.failure(1, &["stop", "shop"]).await;
    assert!(told.contains("its primary process does not answer") && told.contains("--force"), "{told}");
    assert!(is_alive(&process["pid"]));
    root.done(&["stop", "shop", "--force"]).await;
    assert_eq!(exit_code(&mut run).await, None, "it was killed");
    eventually("the end of the process that serves", || (!is_alive(&process["pid"])).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cages_of_one_process_stop_together_only() {
    let root = Root::new(&[("shop", &["state_user"]), ("bank", &["state_user"])]);
    let run = root.command(&["run", "shop", "bank"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut run = run.unwrap();
    root.serving("shop").await;
    let told = root.failure(2, &["stop", "bank"]).await;
    assert!(told.contains("wasmcage stop shop bank"), "{told}");
    root.serving("bank").await;
    assert_eq!(root.done(&["stop", "bank", "shop"]).await, "bank has stopped\nshop has stopped\n");
    assert_eq!(exit_code(&mut run).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_primary_serves_while_the_process_of_a_killed_one_drains() {
    let root = slow_root();
    let mut run = root.run("shop").await;
    assert_eq!(root.call("shop", &["state_user.increment", "n", "41"]).await, 41);
    let answer = in_work(&root, 6_000).await;
    run.kill().await.unwrap();
    let mut second = root.run("shop").await;
    let fresh = Client::new(&address(&process(&root).await));
    assert_eq!(fresh.get("/sleep?ms=1").await.status, 200);
    assert!(!answer.is_finished(), "the old process has not finished its request yet");
    // The store is one process's at a time: whoever needs it waits until the old one ends.
    assert_eq!(root.call("shop", &["state_user.increment", "n", "1"]).await, 42);
    assert_eq!(answer.await.unwrap(), 200);
    root.stop("shop").await;
    assert_eq!(exit_code(&mut second).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_hangs_without_a_primary_is_killed_by_the_next() {
    let root = slow_root();
    let mut run = root.run("shop").await;
    assert_eq!(root.call("shop", &["state_user.increment", "n", "41"]).await, 41);
    let _cut_off = in_work(&root, 60_000).await;
    let hung = process(&root).await["pid"].clone();
    run.kill().await.unwrap();
    // The system has it go on when it loses its parent, so that it is stopped after that.
    logged(&root, "supervising process has gone").await;
    signal("STOP", &[&hung]);
    let mut second = root.run("shop").await;
    // It has the store.
    eventually("the end of the process that hangs", || (!is_alive(&hung)).then_some(())).await;
    assert_eq!(root.call("shop", &["state_user.increment", "n", "1"]).await, 42);
    root.stop("shop").await;
    assert_eq!(exit_code(&mut second).await, Some(0));
}

mod as_superuser {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn too_few_threads_are_told_in_one_line_and_waited_for() {
        // Root's processes are not counted; those of a user that nobody else is, are.
        const LIMITED: &str = "ulimit -u \"$1\" && shift && exec \"$@\"";
        require_superuser();
        let root = Root::new(&[("shop", &[])]);
        // The directory of the built program may be root's alone.
        let own_program = own_program(&root);
        let within = |limit: &str, arguments: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=64123", "--clear-groups", "bash", "-c", LIMITED, "bash", limit]).arg(&own_program);
            command.args(arguments).env("WASMCAGE_ROOT", root.path()).stdin(Stdio::null()).kill_on_drop(true);
            command.env("WASMCAGE_RUNTIME_DIR", root.path().join(".runtime")).env("RUST_BACKTRACE", "1");
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        fs::remove_file(root.path().join(".cache")).unwrap();
        for path in [root.path().to_owned(), root.cage("shop")] {
            std::os::unix::fs::chown(&path, Some(64_123), Some(64_123)).unwrap();
        }
        let version = within("100", &["--version"]).output().await.unwrap();
        assert!(version.status.success(), "the program runs as another user: {version:?}");
        let mut run = within("12", &["run", "shop"]).spawn().unwrap();
        logged(&root, "the system gives it too few threads").await;
        signal("TERM", &[&run.id().into()]);
        assert_eq!(exit_code(&mut run).await, Some(0));
        let printed = run.wait_with_output().await.unwrap();
        let printed = String::from_utf8_lossy(&printed.stderr).into_owned();
        assert!(printed.contains("TasksMax"), "{printed}");
        assert!(!printed.contains("backtrace") && !printed.contains("panicked"), "{printed}");
    }
}
