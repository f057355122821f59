//! `wasmcage state`: the durable data of a cage's modules, whether the cage runs or not.

mod access;
mod compact;
mod list;
mod transfer;
mod value;

use clap::{Args, Subcommand};

use super::CommandError;

/// Show and change what modules keep: keys, queues
///
/// Works on a running cage, through its control socket, and on one that is stopped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage state list shop                       modules that keep something
  wasmcage state list shop orders --prefix 2026-
  wasmcage state get shop orders last
  wasmcage state set shop orders last '{\"id\": 7}'
  wasmcage state export shop > shop.jsonl
  wasmcage state import shop shop.jsonl
  wasmcage state compact shop")]
pub(super) struct StateArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(list::ListArgs),
    Get(value::GetArgs),
    Set(value::SetArgs),
    Delete(value::DeleteArgs),
    Export(transfer::ExportArgs),
    Import(transfer::ImportArgs),
    Compact(compact::CompactArgs),
}

impl StateArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        match self.action {
            Action::List(args) => args.execute(),
            Action::Get(args) => args.execute(),
            Action::Set(args) => args.execute(),
            Action::Delete(args) => args.execute(),
            Action::Export(args) => args.execute(),
            Action::Import(args) => args.execute(),
            Action::Compact(args) => args.execute(),
        }
    }
}
