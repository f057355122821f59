//! The invariants of `host/ARCHITECTURE.md` that can be seen in the source.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use wasmcage_tests::Need;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file of the host's crates beneath `place` in `host/`, or that file, with its text.
fn sources(place: &str) -> Vec<(PathBuf, String)> {
    sources_in(&format!("host/{place}"))
}

/// Every Rust file beneath `place` in the repository but the benches, or that file, with its text.
fn sources_in(place: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut open = vec![repository().join(place)];
    while let Some(path) = open.pop() {
        if path.is_dir() && !path.ends_with("host/benches") {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            files.push((path, text));
        }
    }
    assert!(!files.is_empty(), "nothing at {place}");
    files
}

/// The crates of the host, and which of the others each may use.
const GRAPH: &[(&str, &[&str])] = &[
    ("wasmcage-core", &[]),
    ("wasmcage-config", &["core"]),
    ("wasmcage-store", &["core"]),
    ("wasmcage-web-client", &["config", "core"]),
    ("wasmcage-resource", &["config", "core", "store"]),
    ("wasmcage-protocol", &["config", "core", "resource", "store"]),
    ("wasmcage-test-util", &["config", "core", "protocol", "store"]),
    ("wasmcage-fabric", &["config", "core", "protocol", "store"]),
    ("wasmcage-runtime", &["config", "core", "protocol", "resource", "store", "web-client"]),
    ("wasmcage", &["config", "core", "protocol", "resource", "runtime", "store"]),
    ("wasmcage-cli", &["", "config", "core", "fabric", "runtime", "store"]),
    ("zmtp", &[]),
];
/// The crates that each protocol may use.
const PROTOCOL_USES: &[&str] = &["config", "core", "protocol", "resource", "store", "web-client"];
/// Libraries, and who alone may use them.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("wasmtime", &["wasmcage-runtime"]),
    ("redb", &["wasmcage-store", "wasmcage-benches"]),
    ("sqlx", &["wasmcage-sql", "wasmcage-benches"]),
    ("lapin", &["wasmcage-amqp", "wasmcage-benches"]),
    ("async-nats", &["wasmcage-fabric", "wasmcage-benches"]),
    ("clap", &["wasmcage-cli"]),
    ("crypto_box", &["zmtp"]),
];

/// The host's crates as cargo knows them: the name, the folder below `host/`, what it uses outside of tests.
fn crates() -> Vec<(String, String, BTreeSet<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let host = repository().join("host");
    let packages = metadata["packages"].as_array().unwrap().iter().filter_map(|package| {
        let folder = Path::new(package["manifest_path"].as_str()?).parent()?.strip_prefix(&host).ok()?;
        let used = package["dependencies"].as_array()?.iter().filter(|dependency| dependency["kind"] != "dev");
        let used = used.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect();
        Some((package["name"].as_str()?.to_owned(), folder.to_str()?.to_owned(), used))
    });
    let packages: Vec<_> = packages.collect();
    assert!(packages.len() > GRAPH.len(), "{packages:?}");
    packages
}

#[test]
fn crates_use_what_is_beneath_them_and_nothing_else() {
    for (name, folder, used) in crates() {
        if ["bin", "benches"].contains(&&*folder) {
            continue;
        }
        let allowed = match folder.strip_prefix("protocols/") {
            Some(_) => PROTOCOL_USES,
            None => {
                GRAPH.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name} is not in the graph")).1
            }
        };
        let allowed: BTreeSet<_> = allowed.iter().map(|short| format!("wasmcage-{short}")).collect();
        let own = |used: &&String| used.starts_with("wasmcage");
        let full = |used: &String| if used == "wasmcage" { "wasmcage-".to_owned() } else { used.clone() };
        let wrong: Vec<_> = used.iter().filter(own).filter(|used| !allowed.contains(&full(used))).collect();
        assert!(wrong.is_empty(), "{name} uses {wrong:?}");
    }
}

#[test]
fn a_library_is_used_where_it_belongs() {
    for (name, _, used) in crates() {
        for (library, users) in LIBRARIES {
            assert!(!used.contains(*library) || users.contains(&&*name), "{name} uses {library}");
        }
    }
}

#[test]
fn requests_know_no_wire_format() {
    for (path, text) in sources("core/src/request.rs") {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for word in ["http::", "hyper", "serde"] {
                assert!(!code.contains(word), "{}:{}: has {word:?}: {line}", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn unsafe_occurs_once() {
    let found: Vec<_> =
        sources("").into_iter().filter(|(_, text)| text.contains("unsafe {")).map(|(path, _)| path).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].ends_with("module/compiler.rs"));
}

#[test]
fn every_file_says_what_it_is() {
    for (path, text) in sources("") {
        assert!(text.starts_with("//!"), "{} has no first line that says what it is", path.display());
    }
}

#[test]
fn every_import_that_guests_have_is_one_file_of_the_host() {
    let world = fs::read_to_string(repository().join("wit/world.wit")).unwrap();
    let imports: BTreeSet<_> =
        world.lines().filter_map(|line| line.trim().strip_prefix("import ")?.strip_suffix(';')).collect();
    assert!(imports.len() >= 4);
    for import in imports {
        let file = repository().join("host/runtime/src/host_api").join(format!("{import}.rs"));
        assert!(file.is_file(), "{} is missing", file.display());
        assert!(repository().join("wit").join(format!("{import}.wit")).is_file());
    }
}

#[test]
fn every_example_guest_has_a_test() {
    let tests: String = sources_in("tests/all").into_iter().map(|(_, text)| text).collect();
    for entry in fs::read_dir(repository().join("examples-guests")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(tests.contains(&format!("\"{name}\"")), "no test uses the guest {name}");
    }
}

/// A test that finds nothing to run with fails, by `wasmcage_tests::missing` here and by a panic in a crate's own tests.
#[test]
fn no_test_passes_without_having_run() {
    // In two parts, so that this file has none of them.
    let forbidden = [
        (concat!("\"not", " run: "), &["host", "tests"][..]),
        (concat!("\"NOT", " RUN: "), &["host", "tests"]),
        (concat!("else { ", "return };"), &["tests/all"]),
    ];
    for (words, places) in forbidden {
        for (path, text) in places.iter().copied().flat_map(sources_in) {
            assert!(!text.contains(words), "{} has {words:?}", path.display());
        }
    }
}

#[test]
fn tests_of_what_is_missing_can_be_left_out() {
    let run = fs::read_to_string(repository().join("tests/run")).unwrap();
    for need in Need::ALL {
        let filter = need.filter();
        assert!(run.contains(&format!("| {filter} ")), "tests/run has no line for {need:?}");
        let has_part = |path: &Path, text: &str| path.to_string_lossy().contains(filter) || text.contains(filter);
        assert!(sources_in("tests/all").iter().any(|(path, text)| has_part(path, text)), "no test is named {filter}");
    }
}
