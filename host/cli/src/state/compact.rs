//! `wasmcage state compact`: shrinks the store's file by the space of deleted data.

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use serde_json::json;

use super::access::Access;
use crate::control::state::{CompactionSizes, StateRequest};
use crate::supervisor::STOPPED;
use crate::{CommandError, RootArg, completion, print};

/// Return the space of deleted data to the disk
///
/// The store reuses that space anyway, so this is only needed to make the file smaller. A running cage writes nothing
/// meanwhile.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage state compact shop")]
pub(super) struct CompactArgs {
    /// Name of the cage
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cage: String,
    /// For programs: {"before": BYTES, "after": BYTES}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    root: RootArg,
}

impl CompactArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let CompactionSizes { before, after } =
            Access::new(&self.root.root, &self.cage)?.ask(StateRequest::Compact {})?;
        match self.json {
            true => print(json!({ "before": before, "after": after }))?,
            false => print(format_args!("{before} bytes before, {after} after"))?,
        }
        Ok(STOPPED)
    }
}
