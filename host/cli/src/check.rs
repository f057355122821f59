//! `wasmcage check`: shows what a component imports and exports, what its cage would grant it, and why it would be
//! refused. The component is not run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use serde_json::json;
use wasmcage::Protocols;
use wasmcage::host::{HostOptions, HostShared};
use wasmcage_config::{CageConfig, InstanceMode, ModuleConfig, SHARED_DIRECTORY};
use wasmcage_core::telemetry::error_chain;
use wasmcage_runtime::module::compiler::CompileError;
use wasmcage_runtime::module::component_file::ComponentFile;
use wasmcage_runtime::module::loader::{ImportReport, Inspection};
use wasmcage_runtime::module::watcher;

use super::{CommandError, RootArg, cages_in, check_cage, completion, config, print};
use crate::supervisor::{FAILED, OWN_PROGRAM, STOPPED};

/// Show what a cage or a module needs and offers, and why it would be refused
///
/// Exits with 1 when something would be refused.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage check hello                         cage.toml and every module of the cage
  wasmcage check cages/hello/work.wasm         a module, with the grants of the cage it lies in
  wasmcage check work.wasm --cage hello        a module that is not in the cage yet")]
pub(super) struct CheckArgs {
    /// A cage, or a file ending in .wasm
    #[arg(value_name = "CAGE | FILE.wasm")]
    subject: String,
    /// The cage whose grants a FILE would get [default: the cage in whose directory it is]
    #[arg(long, value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cage: Option<String>,
    /// For programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    root: RootArg,
}

/// A file, and the result of its inspection.
struct CheckedFile {
    file: PathBuf,
    module: String,
    inspection: Result<Inspection, InspectError>,
}

/// Why a file cannot be inspected.
#[derive(Debug, thiserror::Error)]
enum InspectError {
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A cage does not treat it as a module.
    #[error("{0}")]
    Ignored(&'static str),
}

impl CheckArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let checked = if is_file(&self.subject) {
            let file = PathBuf::from(&self.subject);
            let settings = match self.cage_of(&file)? {
                Some(cage) => settings(&config(&self.root.root, &cage)?, &file),
                None => ModuleConfig::default(),
            };
            inspect(&self.root.root, vec![(file, settings)])?
        } else {
            check_cage(&self.root.root, &self.subject)?;
            let config = config(&self.root.root, &self.subject)?;
            let files = modules(&self.root.root, &self.subject);
            inspect(&self.root.root, files.into_iter().map(|file| (file.clone(), settings(&config, &file))).collect())?
        };
        if self.json {
            let all: Vec<_> = checked.iter().map(CheckedFile::json).collect();
            print(format_args!("{:#}", json!({ "modules": all })))?;
        } else {
            self.show(&checked)?;
        }
        Ok(if checked.iter().all(CheckedFile::accepted) { STOPPED } else { FAILED })
    }

    /// Returns the cage whose configuration applies to a file.
    fn cage_of(&self, file: &Path) -> Result<Option<String>, CommandError> {
        if let Some(cage) = &self.cage {
            check_cage(&self.root.root, cage)?;
            return Ok(Some(cage.clone()));
        }
        let directory = file.canonicalize().ok().and_then(|file| file.parent().map(Path::to_owned));
        let same = |cage: &String| self.root.root.join(cage).canonicalize().ok() == directory;
        Ok(cages_in(&self.root.root).into_iter().find(same).filter(|_| directory.is_some()))
    }

    fn show(&self, checked: &[CheckedFile]) -> Result<(), CommandError> {
        if !is_file(&self.subject) {
            print(format_args!("cage.toml of cage {}: no mistakes", self.subject))?;
        }
        checked.iter().try_for_each(|checked| print(checked.text().trim_end()))
    }
}

fn is_file(subject: &str) -> bool {
    subject.ends_with(".wasm") || subject.contains('/')
}

fn module_name(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn settings(config: &CageConfig, file: &Path) -> ModuleConfig {
    config.module(&module_name(file))
}

/// Returns the files that the cage would serve, or that look as if: its own, and the shared ones that those do not hide.
fn modules(root: &Path, cage: &str) -> Vec<PathBuf> {
    let mut files = BTreeMap::new();
    for directory in [root.join(SHARED_DIRECTORY), root.join(cage)] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            if watcher::module_name(&path).is_some() || watcher::ignored(&path).is_some() {
                files.insert(name, path);
            }
        }
    }
    files.into_values().collect()
}

fn inspect(root: &Path, files: Vec<(PathBuf, ModuleConfig)>) -> Result<Vec<CheckedFile>, CommandError> {
    let scratch = std::env::temp_dir().join(format!("wasmcage-check-{}-{:08x}", std::process::id(), fastrand::u32(..)));
    let mut options = HostOptions::new(root, Vec::<String>::new(), Protocols::default());
    options.lanes = Some(1);
    options.compiler = Some(OWN_PROGRAM.into());
    if !root.is_dir() {
        options.cache = Some(scratch.clone());
    }
    let set_up = |error| CommandError::failed("cannot set up a host to check with", error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(set_up)?;
    let shared =
        HostShared::new(&options).map_err(|error| CommandError::failed("cannot set up a host to check with", error))?;
    let mut checked = Vec::new();
    for (file, settings) in files {
        let inspection = match watcher::ignored(&file) {
            Some(reason) => Err(InspectError::Ignored(reason)),
            None => ComponentFile::open(&file)
                .and_then(|source| runtime.block_on(shared.loader.inspect(source, &settings)))
                .map_err(InspectError::from),
        };
        checked.push(CheckedFile { module: module_name(&file), file, inspection });
    }
    if options.cache.is_some() {
        // If this fails, the directory is left in the system's directory for temporary files.
        let _ = fs::remove_dir_all(scratch);
    }
    Ok(checked)
}

impl CheckedFile {
    fn accepted(&self) -> bool {
        self.inspection.as_ref().is_ok_and(|inspection| inspection.problems.is_empty())
    }

    fn json(&self) -> serde_json::Value {
        let (file, module) = (self.file.display().to_string(), &self.module);
        match &self.inspection {
            Ok(inspection) => {
                json!({ "file": file, "module": module, "accepted": self.accepted(), "inspection": inspection })
            }
            Err(error) => json!({ "file": file, "module": module, "accepted": false, "error": error_chain(error) }),
        }
    }

    fn text(&self) -> String {
        let verdict = match &self.inspection {
            Err(InspectError::Ignored(_)) => "would be ignored",
            _ if self.accepted() => "would be taken",
            _ => "would be refused",
        };
        let mut text = format!("\n{}  {verdict}\n", self.file.display());
        match &self.inspection {
            Ok(inspection) => {
                let sha256 = inspection.sha256.get(..12).unwrap_or(&inspection.sha256);
                text += &format!("  version {sha256}, {} engine\n", inspection.engine);
                text += inspection.mode.map_or("", instances);
                for import in &inspection.imports {
                    let mark = if import.granted { "ok     " } else { "refused" };
                    text += &format!("  import  {mark}  {}{}\n", import.name, remark(import));
                }
                for interface in &inspection.unused_bindings {
                    text += &format!("  binding not used  {interface}\n");
                }
                for export in &inspection.exports {
                    text += &format!("  export           {export}\n");
                }
                for note in &inspection.notes {
                    text += &format!("  note             {note}\n");
                }
                for problem in &inspection.problems {
                    text += &format!("  problem          {problem}\n");
                }
            }
            Err(error) => text += &format!("  {}\n", error_chain(error)),
        }
        text
    }
}

fn instances(mode: InstanceMode) -> &'static str {
    match mode {
        InstanceMode::Reuse => "  instances  serve one request after another (mode reuse)\n",
        InstanceMode::Fresh => "  instances  a new one for each request (mode fresh)\n",
        InstanceMode::Single => "  instances  one in all (mode single)\n",
    }
}

/// Describes an import: its target, why it is refused, or its restriction.
fn remark(import: &ImportReport) -> String {
    match (&import.bound, &import.reason, import.caveat) {
        (_, Some(reason), _) => format!(": {reason}"),
        (Some(target), None, _) => format!(", bound to {target}"),
        (None, None, Some(caveat)) => format!(": {caveat}"),
        (None, None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_modules_are_checked_unless_hidden() {
        let root = tempfile::tempdir().unwrap();
        for file in [".shared/a.wasm", ".shared/b.wasm", "c/b.wasm", "c/.new.wasm", "c/notes.txt", "c/x.y.wasm"] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let expected = [".shared/a.wasm", "c/b.wasm", "c/x.y.wasm"].map(|file| root.path().join(file));
        assert_eq!(modules(root.path(), "c"), expected);
    }
}
