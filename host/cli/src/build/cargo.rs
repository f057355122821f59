//! Builds Rust sources: one call of cargo for the packages of a workspace that need the same stack. cargo's own output
//! goes to the terminal; its JSON messages name the artifacts.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::super::progress;
use super::BuildError;

const TARGET: &str = "wasm32-wasip2";
/// Default stack of a guest in KiB. It is small because the memory of a fresh instance is reset for every use.
const STACK_KB: u32 = 64;

/// Settings passed by `--config`, so that a guest's manifest need not have them: small and fast code, a trap in place of
/// unwinding, and names of functions, which make traps readable.
const PROFILE: [&str; 5] = [
    "profile.release.lto=\"fat\"",
    "profile.release.codegen-units=1",
    "profile.release.opt-level=3",
    "profile.release.panic=\"abort\"",
    "profile.release.strip=\"debuginfo\"",
];

/// A package in the output of `cargo metadata`.
#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    id: String,
    manifest_path: PathBuf,
    /// The table `[package.metadata]`; null if there is none.
    metadata: serde_json::Value,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
}

/// A package to build.
#[derive(Debug)]
struct BuildUnit {
    source: PathBuf,
    name: String,
    id: String,
    workspace: PathBuf,
    stack_kb: u32,
}

/// Builds the packages in these directories.
pub(super) fn build(sources: &[PathBuf]) -> Vec<(PathBuf, Result<PathBuf, BuildError>)> {
    let mut results = Vec::new();
    let mut groups: BTreeMap<(PathBuf, u32), Vec<BuildUnit>> = BTreeMap::new();
    for source in sources {
        match unit(source) {
            Ok(unit) => groups.entry((unit.workspace.clone(), unit.stack_kb)).or_default().push(unit),
            Err(error) => results.push((source.clone(), Err(error))),
        }
    }
    for units in groups.into_values() {
        let names: Vec<_> = units.iter().map(|unit| unit.name.as_str()).collect();
        progress(format_args!("building {}", names.join(", ")));
        match ensure_target(&units[0].source).and_then(|()| run(&units)) {
            Ok(mut built) => results.extend(units.into_iter().map(|unit| {
                let artifact = built.artifacts.remove(&unit.id).ok_or_else(|| missing(&unit, built.success));
                (unit.source, artifact)
            })),
            Err(error) => {
                let text = wasmcage_core::telemetry::error_chain(&error);
                results.extend(units.into_iter().map(|unit| (unit.source, Err(BuildError::Tool(text.clone())))));
            }
        }
    }
    results
}

fn missing(unit: &BuildUnit, success: bool) -> BuildError {
    let name = &unit.name;
    BuildError::Failed(if success {
        format!("cargo made no component of package {name}: its Cargo.toml needs [lib] crate-type = [\"cdylib\"]")
    } else {
        format!("package {name} does not compile, cargo says why above")
    })
}

/// Returns the directories to watch for changes of this package: its own and those of its path dependencies.
pub(in super::super) fn watched(source: &Path) -> Vec<PathBuf> {
    let mut directories = vec![source.to_owned()];
    let Ok(metadata) = metadata(source) else { return directories };
    let mut index = 0;
    while index < directories.len() {
        let manifest = directories[index].join("Cargo.toml");
        let package = metadata.packages.iter().find(|package| package.manifest_path == manifest);
        for dependency in package.into_iter().flat_map(|package| &package.dependencies) {
            let path = dependency.path.as_ref().and_then(|path| path.canonicalize().ok());
            directories.extend(path.filter(|path| !directories.contains(path)));
        }
        index += 1;
    }
    directories
}

fn unit(source: &Path) -> Result<BuildUnit, BuildError> {
    let metadata = metadata(source)?;
    let manifest = source.join("Cargo.toml");
    let same = |package: &&Package| package.manifest_path == manifest;
    let package = metadata.packages.iter().find(same).ok_or_else(|| {
        BuildError::Source(format!("{} is a workspace without a package; name a package's directory", source.display()))
    })?;
    Ok(BuildUnit {
        source: source.to_owned(),
        name: package.name.clone(),
        id: package.id.clone(),
        workspace: metadata.workspace_root,
        stack_kb: stack_kb(package)?,
    })
}

fn stack_kb(package: &Package) -> Result<u32, BuildError> {
    match &package.metadata["wasmcage"]["stack_kb"] {
        serde_json::Value::Null => Ok(STACK_KB),
        value => match value.as_u64() {
            Some(kb @ 4..=1_048_576) => Ok(kb as u32),
            _ => Err(BuildError::Source(format!(
                "{}: package.metadata.wasmcage.stack_kb is {value}, expected a number from 4 to 1048576",
                package.manifest_path.display()
            ))),
        },
    }
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn run_error(source: std::io::Error) -> BuildError {
    match source.kind() {
        std::io::ErrorKind::NotFound => {
            BuildError::Tool("cargo is missing: install Rust, see https://rustup.rs".into())
        }
        _ => BuildError::Run { program: "cargo".into(), source },
    }
}

fn metadata(source: &Path) -> Result<Metadata, BuildError> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version=1", "--manifest-path"])
        .arg(source.join("Cargo.toml"))
        .current_dir(source)
        .output()
        .map_err(run_error)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(BuildError::Source(text.trim().trim_start_matches("error: ").to_owned()));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| BuildError::Failed(format!("cargo metadata cannot be understood: {error}")))
}

/// Adds the target when the toolchain of this directory lacks it.
fn ensure_target(source: &Path) -> Result<(), BuildError> {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(source)
        .output()
        .map_err(run_error)?;
    let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if output.status.success() && libraries.is_dir() {
        return Ok(());
    }
    progress(format_args!("the Rust target {TARGET} is missing: rustup target add {TARGET}"));
    let by_hand = format!("the Rust target {TARGET} is missing");
    match Command::new("rustup").args(["target", "add", TARGET]).current_dir(source).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(BuildError::Tool(format!("{by_hand}, and `rustup target add {TARGET}` ended with {status}"))),
        Err(_) => Err(BuildError::Tool(format!(
            "{by_hand}, and there is no rustup to add it: install it from https://rustup.rs, or the target by the means \
             of your distribution"
        ))),
    }
}

/// The result of a call of cargo.
struct CargoOutput {
    /// The components by package id.
    artifacts: BTreeMap<String, PathBuf>,
    /// No package failed.
    success: bool,
}

fn run(units: &[BuildUnit]) -> Result<CargoOutput, BuildError> {
    let first = &units[0];
    let stack = format!("link-arg=-zstack-size={}", u64::from(first.stack_kb) * 1024);
    let mut command = cargo();
    command.args([
        "build",
        "--release",
        "--target",
        TARGET,
        "--message-format=json-render-diagnostics",
        "--keep-going",
    ]);
    command.current_dir(&first.source);
    for unit in units {
        command.args(["--package", &unit.id]);
    }
    for setting in PROFILE {
        command.args(["--config", setting]);
    }
    match std::env::var("RUSTFLAGS") {
        // The variable has precedence over the configuration, so the option is added to it.
        Ok(flags) if !flags.is_empty() => {
            command.env("RUSTFLAGS", format!("{flags} -C {stack}"));
        }
        _ => {
            command.arg("--config").arg(format!("target.{TARGET}.rustflags=[\"-C\", {stack:?}]"));
        }
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(run_error)?;
    let stdout = child.stdout.take().expect("the command has a pipe");
    let mut artifacts = BTreeMap::new();
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if let Some((package, file)) = artifact(&line) {
            artifacts.insert(package, file);
        }
    }
    // With --keep-going, some packages may have been built although others failed.
    let success = child.wait().map_err(run_error)?.success();
    Ok(CargoOutput { artifacts, success })
}

/// Parses a message about a finished component: returns the package and the file.
fn artifact(line: &str) -> Option<(String, PathBuf)> {
    #[derive(Deserialize)]
    struct CargoMessage {
        reason: String,
        package_id: Option<String>,
        #[serde(default)]
        filenames: Vec<PathBuf>,
    }
    let message: CargoMessage = serde_json::from_str(line).ok()?;
    let component = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "wasm");
    let file = message.filenames.into_iter().find(component)?;
    (message.reason == "compiler-artifact").then_some((message.package_id?, file))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn artifacts_are_found_in_messages() {
        let message = |reason: &str, file: &str| {
            json!({ "reason": reason, "package_id": "path+file:///x#work@0.1.0", "filenames": ["/t/libwork.rlib", file] }).to_string()
        };
        let expected = Some(("path+file:///x#work@0.1.0".to_owned(), PathBuf::from("/t/work.wasm")));
        assert_eq!(artifact(&message("compiler-artifact", "/t/work.wasm")), expected);
        assert_eq!(artifact(&message("compiler-artifact", "/t/work.rmeta")), None);
        assert_eq!(artifact(&message("build-script-executed", "/t/work.wasm")), None);
        assert_eq!(artifact("{\"reason\":\"build-finished\",\"success\":true}"), None);
        assert_eq!(artifact("not JSON"), None);
    }

    #[test]
    fn a_package_may_set_its_stack() {
        let package = |metadata| Package {
            name: "work".into(),
            id: "id".into(),
            manifest_path: "/x/Cargo.toml".into(),
            metadata,
            dependencies: vec![],
        };
        assert_eq!(stack_kb(&package(json!(null))).unwrap(), STACK_KB);
        assert_eq!(stack_kb(&package(json!({ "wasmcage": { "stack_kb": 256 } }))).unwrap(), 256);
        for bad in [json!("256"), json!(0), json!(-1), json!(1.5), json!(99_999_999)] {
            let error = stack_kb(&package(json!({ "wasmcage": { "stack_kb": bad } }))).unwrap_err();
            assert!(error.to_string().contains("stack_kb"), "{error}");
        }
    }
}
