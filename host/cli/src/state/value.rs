//! `wasmcage state get`, `set` and `delete`: the value of one key.

use std::path::Path;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use serde::de::IgnoredAny;
use serde_json::json;
use wasmcage_config::{SHARED_DIRECTORY, nearest};

use super::access::Access;
use super::list::{check_module, hint};
use crate::control::call::EncodedPayload;
use crate::control::state::{ModuleLine, PutItem, StateRequest};
use crate::supervisor::STOPPED;
use crate::{CommandError, RootArg, call, completion, config, print};

/// Names a key.
#[derive(Debug, Args)]
struct KeyArgs {
    /// Name of the cage
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cage: String,
    /// Name of the module
    #[arg(value_name = "MODULE")]
    module: String,
    /// The key, as the module wrote it
    #[arg(value_name = "KEY", allow_hyphen_values = true)]
    key: String,
}

/// Print the value of a key
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage state get shop orders last
  wasmcage state get shop images logo --raw > logo.png")]
pub(super) struct GetArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// Print a string without quotes, and bytes even on a terminal; no end of line is added
    #[arg(long)]
    raw: bool,
    /// For programs: {"json": TEXT} or {"base64": TEXT}
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    #[command(flatten)]
    root: RootArg,
}

/// Set the value of a key
///
/// A VALUE is JSON; one that is not is kept as a string, so that `red` and '"red"' are the same. @FILE is what is in the
/// file, @- standard input; it must be JSON, unless it is kept as bytes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage state set shop orders last '{\"id\": 7}'
  wasmcage state set shop orders limit 10
  wasmcage state set shop orders rules @rules.json
  wasmcage state set shop images logo @logo.png --bytes")]
pub(super) struct SetArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// The value: JSON is kept as JSON, anything else as bytes
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    value: String,
    /// Store the value as bytes, also if it is JSON
    #[arg(long)]
    bytes: bool,
    #[command(flatten)]
    root: RootArg,
}

/// Delete a key
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage state delete shop orders last")]
pub(super) struct DeleteArgs {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    root: RootArg,
}

impl GetArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let KeyArgs { cage, module, key } = self.key;
        let access = Access::new(&self.root.root, &cage)?;
        let value: Option<EncodedPayload> =
            access.ask(StateRequest::Get { module: module.clone(), key: key.clone() })?;
        let Some(value) = value else { return Err(no_such_key(&access, &module, &key)?) };
        match self.json {
            true => print(json!(value))?,
            false => call::print_one(value, self.raw)?,
        }
        Ok(STOPPED)
    }
}

impl SetArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let KeyArgs { cage, module, key } = self.key;
        let access = Access::new(&self.root.root, &cage)?;
        let value = value(&self.value, self.bytes)?;
        check_name(&access, &module)?;
        let items = vec![PutItem::Key { key, value }];
        access.ask::<()>(StateRequest::Put { module, items })?;
        Ok(STOPPED)
    }
}

impl DeleteArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let KeyArgs { cage, module, key } = self.key;
        let access = Access::new(&self.root.root, &cage)?;
        match access.ask(StateRequest::Delete { module: module.clone(), key: key.clone() })? {
            true => Ok(STOPPED),
            false => Err(no_such_key(&access, &module, &key)?),
        }
    }
}

/// Reads the value to store from the command line.
fn value(text: &str, bytes: bool) -> Result<EncodedPayload, CommandError> {
    let Some(file) = text.strip_prefix('@') else {
        return Ok(match bytes {
            true => EncodedPayload::bytes(text.as_bytes()),
            false => EncodedPayload::Json(call::value_of(text)),
        });
    };
    let content = call::bytes(Path::new(file))?;
    if bytes {
        return Ok(EncodedPayload::bytes(&content));
    }
    match serde_json::from_slice::<IgnoredAny>(&content) {
        Ok(_) => Ok(EncodedPayload::Json(String::from_utf8_lossy(&content).trim().to_owned())),
        Err(error) => Err(CommandError::Usage(format!("{file} is no JSON ({error}): add --bytes to keep it as it is"))),
    }
}

/// Returns the error for a missing key, with the name of a similar one.
fn no_such_key(access: &Access, module: &str, key: &str) -> Result<CommandError, CommandError> {
    check_module(access, module)?;
    let hint = hint(access, module, key)?;
    let key = key.escape_debug();
    Ok(CommandError::Refused(format!("module {module} of cage {} has no key {key}{hint}", access.cage())))
}

/// Checks that there is a module of that name: a file, a section of `cage.toml`, or a module with data.
fn check_name(access: &Access, module: &str) -> Result<(), CommandError> {
    let mut names: Vec<String> = config(access.root(), access.cage())?.modules.into_keys().collect();
    let lines: Vec<ModuleLine> = access.ask(StateRequest::Modules {})?;
    names.extend(lines.into_iter().map(|line| line.module));
    for directory in [access.cage(), SHARED_DIRECTORY] {
        let files = std::fs::read_dir(access.root().join(directory)).into_iter().flatten().flatten();
        let files = files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".wasm")?.to_owned()));
        names.extend(files);
    }
    if names.iter().any(|name| name == module) {
        return Ok(());
    }
    let hint = match nearest(module, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near}?"),
        None => "`wasmcage state import` brings data of modules to come".to_owned(),
    };
    Err(CommandError::Usage(format!("cage {} has no module {module}: {hint}", access.cage())))
}
