//! Files of a running cage are moved, removed or replaced: it stays the only one, can be reached, and acknowledges nothing
//! that is lost.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Child;
use wasmcage_tests::{Root, cache, eventually, eventually_async, guest, require_superuser};

fn root() -> Root {
    Root::new(&[("shop", &["state_user"])])
}

/// Until commands reach the cage again.
async fn reached(root: &Root) {
    eventually_async("a cage that is reached", async || {
        let output = root.output(&["ps", "--json", "shop"]).await;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        answer["processes"][0]["pid"].is_number().then_some(())
    })
    .await;
}

/// The cage is the only one, and `stop` stops it.
async fn still_the_only_one(root: &Root, mut run: Child) {
    reached(root).await;
    let told = root.failure(1, &["run", "shop"]).await;
    assert!(told.contains("is running already"), "{told}");
    assert_eq!(root.done(&["stop", "shop"]).await, "shop has stopped\n");
    let ended = tokio::time::timeout(Duration::from_secs(60), run.wait()).await.expect("it ends");
    assert_eq!(ended.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn tidying_the_logs_lets_no_second_process_in() {
    for moved in [false, true] {
        let root = root();
        let run = root.run("shop").await;
        let logs = root.cage("shop").join("logs");
        match moved {
            true => fs::rename(&logs, logs.with_extension("old")).unwrap(),
            false => fs::remove_dir_all(&logs).unwrap(),
        }
        let told = root.failure(1, &["run", "shop"]).await;
        assert!(told.contains("is running already"), "{told}");
        // It has refused the second one, and logs that it is stopped into a directory of its own.
        still_the_only_one(&root, run).await;
        let files: Vec<_> = fs::read_dir(&logs).unwrap().flatten().collect();
        let log: String = files.iter().map(|file| fs::read_to_string(file.path()).unwrap()).collect();
        assert!(log.contains("properly shut down"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_and_sockets_that_are_removed_are_made_again() {
    let root = root();
    let run = root.run("shop").await;
    let directory = root.cage("shop").join(".run");
    for file in ["primary.pid", "primary.sock", "control.sock"] {
        fs::remove_file(directory.join(file)).unwrap();
    }
    eventually("a new lock", || directory.join("primary.pid").exists().then_some(())).await;
    reached(&root).await;
    fs::remove_dir_all(&directory).unwrap();
    eventually("a new lock", || directory.join("primary.pid").exists().then_some(())).await;
    still_the_only_one(&root, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_directory_that_is_replaced_is_followed_with_all_that_is_in_it() {
    let root = root();
    let run = root.run("shop").await;
    assert_eq!(root.call("shop", &["state_user.increment", "n", "1"]).await, 1);
    let (cage, new) = (root.cage("shop"), root.path().join("new"));
    fs::create_dir(&new).unwrap();
    fs::copy(guest("state_user"), new.join("state_user.wasm")).unwrap();
    fs::rename(&cage, root.path().join("old")).unwrap();
    fs::rename(&new, &cage).unwrap();
    eventually("a new lock", || cage.join(".run/primary.pid").exists().then_some(())).await;
    reached(&root).await;
    // What was acknowledged is in the old directory: nothing is acknowledged here before a restart.
    let told = root.failure(1, &["call", "shop", "state_user.increment", "n", "1"]).await;
    assert!(told.contains("moved away or removed") && told.contains("restart"), "{told}");
    still_the_only_one(&root, run).await;
    let run = root.run("shop").await;
    assert_eq!(root.call("shop", &["state_user.increment", "n", "1"]).await, 1);
    still_the_only_one(&root, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_behind_a_link_that_is_switched_is_followed() {
    let root = Root::new(&[]);
    let (v1, v2) = (root.path().join("v1"), root.path().join("v2"));
    for version in [&v1, &v2] {
        fs::create_dir_all(version.join("shop")).unwrap();
        fs::copy(guest("state_user"), version.join("shop/state_user.wasm")).unwrap();
        symlink(cache(), version.join(".cache")).unwrap();
    }
    let link = root.path().join("current");
    symlink("v1", &link).unwrap();
    let link = link.to_str().unwrap();
    let mut run =
        root.command(&["run", "shop", "--root", link]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let running = async |root: &Root| {
        let output = root.output(&["ps", "--json", "shop", "--root", link]).await;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        answer["processes"][0]["cages"][0]["modules"].is_array().then_some(())
    };
    eventually_async("a cage that is reached", async || running(&root).await).await;
    symlink("v2", root.path().join("next")).unwrap();
    fs::rename(root.path().join("next"), link).unwrap();
    eventually("a new lock", || v2.join("shop/.run/primary.pid").exists().then_some(())).await;
    eventually_async("a cage that is reached", async || running(&root).await).await;
    assert_eq!(root.done(&["stop", "shop", "--root", link]).await, "shop has stopped\n");
    assert_eq!(run.wait().await.unwrap().code(), Some(0));
    let logs = fs::read_dir(v2.join("shop/logs")).unwrap().flatten();
    let log: String = logs.map(|file| fs::read_to_string(file.path()).unwrap()).collect();
    assert!(log.contains("properly shut down"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_runtime_directory_comes_back_and_cages_find_each_other_again() {
    let root = Root::new(&[("front", &["service_echo"]), ("worker", &["service_echo"])]);
    let (mut front, mut worker) = (root.run("front").await, root.run("worker").await);
    let call = async || {
        let output = root.output(&["call", "worker", "service_echo.add", "2", "3", "--via", "front"]).await;
        output.status.success().then_some(())
    };
    eventually_async("a call", &call).await;
    fs::remove_dir_all(root.path().join(".runtime")).unwrap();
    let sockets = || fs::read_dir(root.path().join(".runtime/default")).into_iter().flatten().count();
    eventually("both sockets", || (sockets() == 2).then_some(())).await;
    eventually_async("a call", &call).await;
    root.stop("front").await;
    root.stop("worker").await;
    front.wait().await.unwrap();
    worker.wait().await.unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cage_writes_is_its_users_alone() {
    let root = root();
    let mut run = root.run("shop").await;
    root.call("shop", &["state_user.increment", "n", "1"]).await;
    let cage = root.cage("shop");
    for directory in ["state", "logs", ".run"] {
        assert_eq!(mode(&cage.join(directory)), 0o700, "{directory}");
        for file in fs::read_dir(cage.join(directory)).unwrap().flatten() {
            assert_eq!(mode(&file.path()), 0o600, "{}", file.path().display());
        }
    }
    root.stop("shop").await;
    run.wait().await.unwrap();
}

/// Every path beneath a directory.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&entry.path()));
        }
        found.push(entry.path());
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_cannot_be_written_needs_three_variables() {
    let root = Root::new(&[("shop", &["state_user", "service_echo"])]);
    fs::remove_file(root.path().join(".cache")).unwrap();
    let before = tree(root.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let directory = |name: &str| elsewhere.path().join("var").join(name);
    let command = |arguments: &[&str]| {
        let mut command = root.command(arguments);
        for (variable, name) in
            [("WASMCAGE_STATE_DIR", "state"), ("WASMCAGE_LOGS_DIR", "logs"), ("WASMCAGE_CACHE_DIR", "cache")]
        {
            command.env(variable, directory(name));
        }
        command.env("WASMCAGE_RUNTIME_DIR", directory("run"));
        command
    };
    let done = async |arguments: &[&str]| {
        let output = command(arguments).output().await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut run = command(&["run", "shop"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually_async("a cage that is reached", async || {
        let output = command(&["call", "shop", "service_echo.add", "2", "3"]).output().await.unwrap();
        output.status.success().then_some(())
    })
    .await;
    assert_eq!(done(&["call", "shop", "state_user.increment", "n", "1"]).await, "1\n");
    assert_eq!(done(&["state", "get", "shop", "state_user", "n"]).await, "1\n");
    assert!(done(&["ps"]).await.contains("state_user"));
    assert!(done(&["logs", "shop", "-n", "100"]).await.contains("cage has started"));
    assert_eq!(done(&["stop", "shop"]).await, "shop has stopped\n");
    assert_eq!(run.wait().await.unwrap().code(), Some(0));
    assert_eq!(done(&["state", "get", "shop", "state_user", "n"]).await, "1\n");
    done(&["check", "shop"]).await;
    assert!(directory("state").join("shop/store.redb").exists() && directory("cache").is_dir());
    assert_eq!(tree(root.path()), before, "nothing was written in the root");
}

mod as_superuser {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_root_makes_in_a_cage_belongs_to_the_cages_owner() {
        const OWNER: u32 = 64_124;
        require_superuser();
        let root = root();
        std::os::unix::fs::chown(root.cage("shop"), Some(OWNER), Some(OWNER)).unwrap();
        root.done(&["state", "set", "shop", "state_user", "n", "1"]).await;
        let mut run = root.run("shop").await;
        assert_eq!(root.call("shop", &["state_user.increment", "n", "1"]).await, 2);
        let mut paths: Vec<PathBuf> =
            ["state", "logs", ".run"].iter().map(|name| root.cage("shop").join(name)).collect();
        for directory in paths.clone() {
            paths.extend(fs::read_dir(directory).unwrap().flatten().map(|file| file.path()));
        }
        assert!(paths.len() >= 8, "{paths:?}");
        for path in paths {
            assert_eq!(fs::symlink_metadata(&path).unwrap().uid(), OWNER, "{}", path.display());
        }
        root.stop("shop").await;
        run.wait().await.unwrap();
    }
}
