//! Finds the built guests and the host's binary. `tests/run` builds them and names their places by environment variables; by
//! hand, `tests/run guests` builds them.

use std::path::{Path, PathBuf};

/// The file of a built guest, by the name of its folder in `examples-guests`.
///
/// # Panics
/// When it was not built.
pub fn guest(name: &str) -> PathBuf {
    let file = directory().join(format!("{name}.wasm"));
    assert!(file.is_file(), "{} is not built; `tests/run guests` builds the guests", file.display());
    file
}

/// Says whether a guest was built.
pub fn has_guest(name: &str) -> bool {
    directory().join(format!("{name}.wasm")).is_file()
}

/// The folder of a guest's source.
pub fn guest_source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples-guests").join(name)
}

/// The host's binary.
///
/// # Panics
/// When it was not built.
pub fn program() -> PathBuf {
    let program = match std::env::var_os("WASMCAGE_PROGRAM") {
        Some(program) => program.into(),
        None => target().join("wasmcage"),
    };
    assert!(program.is_file(), "{} is not built; `cargo build --release` builds it", program.display());
    program
}

/// The directory of compiled files, which are kept between runs; `wasmcage check guests` puts them there, too.
pub fn cache() -> PathBuf {
    directory().with_file_name(".cache")
}

/// A component written as text.
///
/// # Panics
/// When the text is wrong.
pub fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
}

/// A component, or something like one, that is kept as text in `tests/fixtures`.
///
/// # Panics
/// When there is no such file, or it is wrong.
pub fn fixture(name: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(format!("{name}.wat"));
    component(&std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())))
}

fn directory() -> PathBuf {
    match std::env::var_os("WASMCAGE_GUESTS") {
        Some(directory) => directory.into(),
        None => target().join("guests/guests"),
    }
}

/// The folder of this profile's artifacts: the test binary is in its `deps`.
fn target() -> PathBuf {
    let binary = std::env::current_exe().expect("a running program has a file");
    binary.parent().and_then(Path::parent).expect("target/<profile>/deps/<binary>").to_owned()
}
