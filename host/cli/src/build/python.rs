//! Builds Python sources by componentize-py, with the WIT files that are embedded in this program.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::BuildError;

/// The files of `wit/`, embedded so that a guest can be built anywhere.
const WIT: &[(&str, &str)] = &[
    ("call.wit", include_str!("../../../../wit/call.wit")),
    ("config.wit", include_str!("../../../../wit/config.wit")),
    ("context.wit", include_str!("../../../../wit/context.wit")),
    ("handler.wit", include_str!("../../../../wit/handler.wit")),
    ("handover.wit", include_str!("../../../../wit/handover.wit")),
    ("lock.wit", include_str!("../../../../wit/lock.wit")),
    ("log.wit", include_str!("../../../../wit/log.wit")),
    ("resources.wit", include_str!("../../../../wit/resources.wit")),
    ("service.wit", include_str!("../../../../wit/service.wit")),
    ("state.wit", include_str!("../../../../wit/state.wit")),
    ("transaction.wit", include_str!("../../../../wit/transaction.wit")),
    ("types.wit", include_str!("../../../../wit/types.wit")),
    ("world.wit", include_str!("../../../../wit/world.wit")),
];
const PROGRAM: &str = "componentize-py";
const WORLD: &str = "full-module";

/// A built component in a directory of its own, removed with this value.
#[derive(Debug)]
pub(super) struct Artifact(ScratchDirectory);

impl Artifact {
    pub(super) fn path(&self) -> PathBuf {
        self.0.0.join("component.wasm")
    }
}

#[derive(Debug)]
struct ScratchDirectory(PathBuf);

impl ScratchDirectory {
    fn new() -> std::io::Result<Self> {
        let name = format!("wasmcage-build-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory)?;
        Ok(Self(directory))
    }
}

impl Drop for ScratchDirectory {
    fn drop(&mut self) {
        // If this fails, the directory is left in the system's directory for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The table `[tool.wasmcage]` of a guest's `pyproject.toml`.
#[derive(Debug, PartialEq, Eq)]
struct PythonSettings {
    world: String,
    app: String,
}

pub(super) fn build(source: &Path) -> Result<Artifact, BuildError> {
    let settings = settings(source)?;
    let program = find(source).ok_or_else(|| {
        BuildError::Tool(format!(
            "{PROGRAM} is neither on PATH nor in a virtual environment: `python3 -m venv .venv && .venv/bin/pip install \
             {PROGRAM}` in {} or a directory above it",
            source.display()
        ))
    })?;
    let artifact = Artifact(ScratchDirectory::new().map_err(BuildError::Prepare)?);
    let wit = artifact.0.0.join("wit");
    let unpacked =
        fs::create_dir(&wit).and_then(|()| WIT.iter().try_for_each(|(name, text)| fs::write(wit.join(name), text)));
    unpacked.map_err(BuildError::Prepare)?;
    let status = Command::new(&program)
        .arg("--wit-path")
        .arg(&wit)
        .args(["--world", &settings.world, "componentize", &settings.app, "--python-path", ".", "--output"])
        .arg(artifact.path())
        .current_dir(source)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| BuildError::Run { program: program.display().to_string(), source: error })?;
    if status.success() {
        Ok(artifact)
    } else {
        Err(BuildError::Failed(format!("{PROGRAM} ended with {status} in {}", source.display())))
    }
}

fn settings(source: &Path) -> Result<PythonSettings, BuildError> {
    let file = source.join("pyproject.toml");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(BuildError::Source(format!("cannot read {}: {error}", file.display()))),
    };
    let project: toml::Table =
        text.parse().map_err(|error| BuildError::Source(format!("{}: {error}", file.display())))?;
    let own = project.get("tool").and_then(|tool| tool.get("wasmcage"));
    let setting = |key: &str| match own.and_then(|own| own.get(key)) {
        None => Ok(None),
        Some(toml::Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => {
            Err(BuildError::Source(format!("{}: tool.wasmcage.{key} is {other}, expected a string", file.display())))
        }
    };
    let world = setting("world")?.unwrap_or_else(|| WORLD.into());
    let app = match setting("app")? {
        Some(app) => app,
        None => default_app(source)?,
    };
    Ok(PythonSettings { world, app })
}

/// Returns the name of the app: `app` if there is an `app.py`, otherwise that of the only Python file.
fn default_app(source: &Path) -> Result<String, BuildError> {
    let entries = fs::read_dir(source).into_iter().flatten().flatten().map(|entry| entry.path());
    let python = entries.filter(|path| path.extension().is_some_and(|extension| extension == "py"));
    let names: Vec<_> = python.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    match names.as_slice() {
        names if names.iter().any(|name| name == "app") => Ok("app".into()),
        [only] => Ok(only.clone()),
        _ => Err(BuildError::Source(format!(
            "{} has several Python files and no app.py: say which begins, by app = \"..\" in [tool.wasmcage] of \
             pyproject.toml",
            source.display()
        ))),
    }
}

/// Finds componentize-py in `.venv` beside the source or above it, in the active virtual environment, or in PATH.
fn find(source: &Path) -> Option<PathBuf> {
    let near = source.ancestors().map(|directory| directory.join(".venv/bin"));
    let active = std::env::var_os("VIRTUAL_ENV").map(|directory| PathBuf::from(directory).join("bin"));
    let path: OsString = std::env::var_os("PATH").unwrap_or_default();
    let directories = near.chain(active).chain(std::env::split_paths(&path));
    directories.map(|directory| directory.join(PROGRAM)).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wit_file_is_embedded() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, WIT.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }

    #[test]
    fn a_project_may_name_its_world_and_its_app() {
        #[track_caller]
        fn check(files: &[(&str, &str)], expected: Result<(&str, &str), &str>) {
            let directory = tempfile::tempdir().unwrap();
            files.iter().for_each(|(name, text)| fs::write(directory.path().join(name), text).unwrap());
            match (settings(directory.path()), expected) {
                (Ok(settings), Ok((world, app))) => {
                    assert_eq!(settings, PythonSettings { world: world.into(), app: app.into() });
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (got, _) => panic!("{files:?}: {got:?}"),
            }
        }
        let world = ("pyproject.toml", "[tool.wasmcage]\nworld = \"handler-module\"\n");
        check(&[("app.py", ""), ("other.py", "")], Ok((WORLD, "app")));
        check(&[("only.py", ""), world], Ok(("handler-module", "only")));
        check(&[("a.py", ""), ("b.py", "")], Err("several Python files"));
        check(&[("a.py", ""), ("b.py", ""), ("pyproject.toml", "[tool.wasmcage]\napp = \"b\"\n")], Ok((WORLD, "b")));
        check(&[("app.py", ""), ("pyproject.toml", "[tool.wasmcage]\nworld = 1\n")], Err("tool.wasmcage.world is 1"));
        check(&[("app.py", ""), ("pyproject.toml", "[tool")], Err("pyproject.toml"));
    }
}
