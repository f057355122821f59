//! `wasmcage state list`: lists the modules that have data, or the keys and queues of one.

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use serde_json::json;
use wasmcage_config::nearest;

use super::access::Access;
use crate::control::call::EncodedPayload;
use crate::control::state::{EntryPage, ModuleLine, QueueLine, StateRequest};
use crate::supervisor::STOPPED;
use crate::{CommandError, RootArg, completion, print};

/// Keys in one page.
const PAGE_KEYS: usize = 1_000;

/// List the modules that have data, or the keys and queues of one
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage state list shop
  wasmcage state list shop orders
  wasmcage state list shop orders --prefix 2026-11- -n 1000")]
pub(super) struct ListArgs {
    /// Name of the cage
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cage: String,
    /// Name of the module
    #[arg(value_name = "MODULE")]
    module: Option<String>,
    /// Only keys with this prefix
    #[arg(long, value_name = "TEXT", default_value = "", requires = "module")]
    prefix: String,
    /// How many keys at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
    /// For programs: [{"module", ..}], or {"keys": [..], "more": BOOL, "queues": [..]}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    root: RootArg,
}

impl ListArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let access = Access::new(&self.root.root, &self.cage)?;
        match &self.module {
            None => self.modules(&access)?,
            Some(module) => self.module(&access, module)?,
        }
        Ok(STOPPED)
    }

    fn modules(&self, access: &Access) -> Result<(), CommandError> {
        let modules: Vec<ModuleLine> = access.ask(StateRequest::Modules {})?;
        if self.json {
            return print(serde_json::to_value(&modules).expect("lines have text keys only"));
        }
        if modules.is_empty() {
            return print(format_args!("no module of cage {} keeps anything", self.cage));
        }
        print("   ENTRIES         BYTES  MODULE")?;
        modules
            .iter()
            .try_for_each(|line| print(format_args!("{:10}  {:12}  {}", line.entries, line.bytes, line.module)))
    }

    fn module(&self, access: &Access, module: &str) -> Result<(), CommandError> {
        check_module(access, module)?;
        let queues: Vec<QueueLine> = access.ask(StateRequest::Queues { module: module.into() })?;
        if !self.json {
            print("     BYTES  KIND   KEY")?;
        }
        let (mut keys, mut cursor, mut left) = (Vec::new(), None, self.lines as usize);
        loop {
            let (module, prefix, limit) = (module.to_owned(), self.prefix.clone(), left.min(PAGE_KEYS));
            let page: EntryPage = access.ask(StateRequest::Keys { module, prefix, limit, cursor })?;
            left -= page.entries.len().min(left);
            for (key, value) in page.entries {
                let (kind, bytes) = kind(&value);
                match self.json {
                    true => keys.push(json!({ "key": key, "kind": kind, "bytes": bytes })),
                    false => print(format_args!("{bytes:10}  {kind:5}  {}", key.escape_debug()))?,
                }
            }
            cursor = page.next;
            if cursor.is_none() || left == 0 {
                break;
            }
        }
        match self.json {
            true => print(json!({ "keys": keys, "more": cursor.is_some(), "queues": queues })),
            false => self.print_rest(cursor.is_some(), &queues),
        }
    }

    /// Prints what follows the keys in a table: whether there are more, and the queues.
    fn print_rest(&self, more: bool, queues: &[QueueLine]) -> Result<(), CommandError> {
        if more {
            print(format_args!("and more: -n shows more than {}, --prefix only those with a prefix", self.lines))?;
        }
        if !queues.is_empty() {
            print("\n    LENGTH  QUEUE")?;
        }
        queues.iter().try_for_each(|line| print(format_args!("{:10}  {}", line.length, line.queue.escape_debug())))
    }
}

fn kind(value: &EncodedPayload) -> (&'static str, usize) {
    match value {
        EncodedPayload::Json(json) => ("json", json.len()),
        EncodedPayload::Base64(base64) => {
            let padding = base64.bytes().rev().take_while(|byte| *byte == b'=').count();
            ("bytes", (base64.len() / 4 * 3).saturating_sub(padding))
        }
    }
}

/// Checks that a module has data.
///
/// # Errors
/// It has none.
pub(super) fn check_module(access: &Access, module: &str) -> Result<(), CommandError> {
    let known: Vec<ModuleLine> = access.ask(StateRequest::Modules {})?;
    let mut names = known.iter().map(|line| line.module.as_str());
    if names.any(|name| name == module) {
        return Ok(());
    }
    let names = known.iter().map(|line| line.module.as_str());
    let hint = nearest(module, names).map_or_else(String::new, |near| format!("; did you mean {near}?"));
    Err(CommandError::Refused(format!("module {module} of cage {} keeps nothing{hint}", access.cage())))
}

/// Returns a hint with the key that was probably meant.
pub(super) fn hint(access: &Access, module: &str, key: &str) -> Result<String, CommandError> {
    let prefix: String = key.chars().take(1).collect();
    let request = StateRequest::Keys { module: module.into(), prefix, limit: PAGE_KEYS, cursor: None };
    let page: EntryPage = access.ask(request)?;
    let near = nearest(key, page.entries.iter().map(|(key, _)| key.as_str()));
    Ok(near.map_or_else(String::new, |near| format!("; did you mean {}?", near.escape_debug())))
}
