//! `wasmcage keys`: what is made, for whom it is readable, what is never overwritten, and what a renewed CA leaves trusted.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use wasmcage_fabric::keys::{CageKeys, Identity};
use wasmcage_tests::program;

struct KeysRoot(TempDir);

impl KeysRoot {
    /// With the directories of some cages.
    fn new(cages: &[&str]) -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        cages.iter().for_each(|cage| fs::create_dir_all(root.path("cages").join(cage)).unwrap());
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        let mut command = Command::new(program());
        command.args(line.split_whitespace()).current_dir(self.0.path()).env_remove("WASMCAGE_ROOT");
        command.stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn done(&self, line: &str, parts: &[&str]) {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
        told(line, &output.stdout, parts);
    }

    #[track_caller]
    fn refused(&self, line: &str, code: i32, parts: &[&str]) {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
        told(line, &output.stderr, parts);
    }

    /// The certificates that `keys show` knows.
    fn shown(&self, code: i32) -> Vec<Value> {
        let output = self.run("keys show --json");
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["certificates"].as_array().unwrap().clone()
    }

    #[track_caller]
    fn load(&self, directory: &str, flock: &str, cage: &str) -> CageKeys {
        CageKeys::load(&self.path(directory), &Identity::new(flock, cage)).unwrap().expect("keys are there")
    }
}

#[track_caller]
fn told(line: &str, output: &[u8], parts: &[&str]) {
    let text = String::from_utf8_lossy(output);
    parts.iter().for_each(|part| assert!(text.contains(part), "{line}: {part:?} is not in {text}"));
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_made_for_cages_here_and_elsewhere_and_only_their_owner_reads_them() {
    let root = KeysRoot::new(&["worker"]);
    root.done("keys show", &["wasmcage keys init"]);
    root.refused("keys issue worker", 2, &["flock default has no CA here", "wasmcage keys init"]);
    root.done("keys init", &["made the CA of flock default", "keep it secret", "next: wasmcage keys issue CAGE"]);
    root.done("keys issue worker", &["cage worker of flock default", "cages/worker/keys", "[interfaces.rpc]"]);
    root.done("keys issue far_away --days 20 --out out/far", &["cages/far_away/keys/", "delete out/far"]);
    for (path, expected) in [
        ("cages/.keys", 0o700),
        ("cages/.keys/default", 0o700),
        ("cages/.keys/default/ca-key.pem", 0o600),
        ("cages/worker/keys", 0o700),
        ("cages/worker/keys/key.pem", 0o600),
        ("out/far", 0o700),
        ("out/far/key.pem", 0o600),
    ] {
        assert_eq!(mode(&root.path(path)), expected, "{path}");
    }
    root.load("cages/worker/keys", "default", "worker");
    root.load("out/far", "default", "far_away");
    let shown = root.shown(0);
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert_eq!((&shown[0]["kind"], &shown[1]["cage"]), (&"ca".into(), &"worker".into()));
    assert_eq!(shown[1]["issuer"], shown[0]["name"]);
    root.done("keys show worker", &["cage worker", "default", "good"]);
}

#[test]
fn nothing_is_overwritten_unasked() {
    let root = KeysRoot::new(&["worker"]);
    root.done("keys init", &[]);
    root.done("keys issue worker", &[]);
    let files = ["cages/.keys/default/ca-key.pem", "cages/worker/keys/key.pem"].map(|file| root.path(file));
    let before = files.clone().map(|file| fs::read(file).unwrap());
    root.refused("keys init", 2, &["ca.pem is there already", "--renew"]);
    root.refused("keys issue worker", 2, &["cert.pem is there already", "--renew"]);
    root.refused("keys issue other --out cages/worker/keys", 2, &["is there already"]);
    assert_eq!(files.clone().map(|file| fs::read(file).unwrap()), before);
    root.done("keys issue worker --renew", &["a running cage takes them"]);
    assert_ne!(fs::read(&files[1]).unwrap(), before[1]);
    assert_eq!(mode(&files[1]), 0o600);
}

#[test]
fn a_renewed_ca_leaves_the_old_one_trusted() {
    let root = KeysRoot::new(&["old", "new"]);
    root.done("keys init", &[]);
    root.done("keys issue old", &[]);
    let before = root.load("cages/old/keys", "default", "old").info().clone();
    root.done("keys init --renew", &["2 CAs", "updated cages/old/keys/ca.pem", "copy cages/.keys/default/ca.pem over"]);
    root.done("keys issue new", &[]);
    // Each is checked against its own ca.pem as it is loaded; the two are the same.
    let (old, new) = (root.load("cages/old/keys", "default", "old"), root.load("cages/new/keys", "default", "new"));
    assert_eq!(old.info().fingerprint, before.fingerprint);
    assert_ne!(old.info().issuer, new.info().issuer);
    let bundle = |cage: &str| fs::read(root.path("cages").join(cage).join("keys/ca.pem")).unwrap();
    assert_eq!(bundle("old"), bundle("new"));
    let shown = root.shown(0);
    let states: Vec<_> = shown.iter().map(|shown| shown["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["good", "replaced, good", "good", "good"]);
}

#[test]
fn flocks_are_apart_and_a_cage_has_the_one_its_configuration_names() {
    let root = KeysRoot::new(&["worker"]);
    fs::write(root.path("cages/worker/cage.toml"), "flock = \"plant-2\"\n").unwrap();
    root.done("keys init", &[]);
    root.refused("keys issue worker", 2, &["flock plant-2 has no CA", "keys init --flock plant-2"]);
    root.refused("keys issue worker --flock default", 2, &["of flock plant-2, not default"]);
    root.done("keys init --flock plant-2", &["keys issue CAGE --flock plant-2"]);
    root.done("keys issue worker", &["cage worker of flock plant-2"]);
    root.load("cages/worker/keys", "plant-2", "worker");
    // Its configuration changes and its keys do not.
    fs::write(root.path("cages/worker/cage.toml"), "").unwrap();
    let problems = root.shown(1).into_iter().find(|shown| shown["cage"] == "worker").unwrap()["problems"].to_string();
    assert!(problems.contains("of flock plant-2") && problems.contains("keys of cage worker of flock default"));
    root.refused("keys init --flock Plant", 2, &["lower-case"]);
    root.refused("keys issue a/b --out x", 2, &["cannot name a cage"]);
}

#[test]
fn what_ends_soon_or_is_readable_by_others_is_told() {
    let root = KeysRoot::new(&["worker"]);
    root.done("keys init", &[]);
    root.done("keys issue worker --days 10", &[]);
    fs::set_permissions(root.path("cages/worker/keys/key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    root.done("keys show", &["ends in 9 days", "wasmcage keys issue worker --renew", "chmod 600"]);
    fs::remove_file(root.path("cages/worker/keys/ca.pem")).unwrap();
    let output = root.run("keys show worker");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    told("keys show worker", &output.stdout, &["ca.pem is missing"]);
}
