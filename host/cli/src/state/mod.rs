//! `wasmcage state`: reads and changes the durable data of a cage's modules, whether the cage runs or not.

mod access;
mod compact;
mod list;
mod transfer;
mod value;

use clap::{Args, Subcommand};

use super::CommandError;

/// Show and change the data of modules: keys and queues
///
/// Works on a running cage, through its control socket, and on one that is stopped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage state list shop                       modules that have data
  wasmcage state list shop orders --prefix 2026-
  wasmcage state get shop orders last
  wasmcage state set shop orders last '{\"id\": 7}'
  wasmcage state export shop > shop.jsonl
  wasmcage state import shop shop.jsonl
  wasmcage state compact shop")]
pub(super) struct StateArgs {
    #[command(subcommand)]
    action: StateAction,
}

#[derive(Debug, Subcommand)]
enum StateAction {
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
            StateAction::List(args) => args.execute(),
            StateAction::Get(args) => args.execute(),
            StateAction::Set(args) => args.execute(),
            StateAction::Delete(args) => args.execute(),
            StateAction::Export(args) => args.execute(),
            StateAction::Import(args) => args.execute(),
            StateAction::Compact(args) => args.execute(),
        }
    }
}
