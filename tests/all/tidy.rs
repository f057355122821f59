//! The invariants of `host/ARCHITECTURE.md` that can be seen in the source.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file beneath a folder of `host/src`, or that file, with its text.
fn sources(place: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut open = vec![repository().join("host/src").join(place)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            files.push((path, text));
        }
    }
    assert!(!files.is_empty(), "nothing at {place}");
    files
}

#[track_caller]
fn absent(places: &[&str], words: &[&str]) {
    for (path, text) in places.iter().flat_map(|place| sources(place)) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for word in words {
                assert!(!code.contains(word), "{}:{}: has {word:?}: {line}", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn interfaces_never_see_wasmtime() {
    absent(&["protocol"], &["wasmtime"]);
}

#[test]
fn files_above_the_protocols_name_none() {
    let above = [
        "admission.rs",
        "cage.rs",
        "dispatcher",
        "drain.rs",
        "host.rs",
        "lanes.rs",
        "request.rs",
        "readings",
        "resource",
        "services.rs",
        "transaction",
    ];
    absent(&above, &["protocol::http", "\"http\"", "protocol::rpc", "\"rpc\"", "nats"]);
}

#[test]
fn the_client_of_servers_outside_knows_neither_protocols_nor_guests() {
    absent(&["web_client"], &["crate::protocol", "wasmtime"]);
}

#[test]
fn requests_know_no_wire_format() {
    absent(&["request.rs"], &["http::", "hyper", "serde"]);
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
        let file = repository().join("host/src/host_api").join(format!("{import}.rs"));
        assert!(file.is_file(), "{} is missing", file.display());
        assert!(repository().join("wit").join(format!("{import}.wit")).is_file());
    }
}

#[test]
fn every_example_guest_has_a_test() {
    let tests: String = fs::read_dir(repository().join("tests/all"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    for entry in fs::read_dir(repository().join("examples-guests")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(tests.contains(&format!("\"{name}\"")), "no test uses the guest {name}");
    }
}
