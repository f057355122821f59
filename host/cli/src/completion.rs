//! Completion of names in the user's shell: `source <(COMPLETE=bash wasmcage)`, after which the shell runs this program
//! with the words typed so far. Candidates come from directories and from running cages; cages that do not answer at
//! once are left out, and errors are never printed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory as _};
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use serde_json::Value;

use super::{Cli, CommandError, DEFAULT_ROOT, ROOT_VARIABLE, cages_in, directories, holder, print};
use crate::control;
use crate::supervisor::STOPPED;
use crate::supervisor::pid_lock::LockHolder;

/// A cage that takes longer to answer is left out, since a user is waiting at the keyboard.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Options of `call` whose value is the next word.
const WITH_VALUE: [&str; 7] = ["--root", "--via", "--timeout", "--bytes-from", "--id", "--queue", "--expires"];

const HOW: &str = "\
Commands, options, names of cages, modules and functions are completed once the shell knows how. Add to

  ~/.bashrc                   source <(COMPLETE=bash wasmcage)
  ~/.zshrc                    source <(COMPLETE=zsh wasmcage)
  ~/.config/fish/config.fish  COMPLETE=fish wasmcage | source
  ~/.elvish/rc.elv            eval (E:COMPLETE=elvish wasmcage | slurp)";

/// Show how to set up completion in a shell
#[derive(Debug, Args)]
#[command(after_help = HOW)]
pub(super) struct CompletionsArgs {}

impl CompletionsArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        print(HOW)?;
        Ok(STOPPED)
    }
}

/// Prints the candidates and ends the process if a shell has started it to complete a word.
pub(crate) fn complete() {
    CompleteEnv::with_factory(Cli::command).complete();
}

/// Returns the cages of the root.
pub(super) fn cages() -> Vec<CompletionCandidate> {
    candidates(cages_in(&Words::typed().root()))
}

/// Returns the cages of the root and the members of the flock that they know.
pub(super) fn callable_cages() -> Vec<CompletionCandidate> {
    let words = Words::typed();
    let own = cages_in(&words.root());
    let members: BTreeSet<String> =
        own.iter().filter_map(|cage| words.ask(cage)).flat_map(|cage| members(&cage)).collect();
    candidates(own.into_iter().chain(members).collect::<BTreeSet<_>>())
}

/// Returns the functions of the cage that was typed before, if it runs in the root.
pub(super) fn functions() -> Vec<CompletionCandidate> {
    let words = Words::typed();
    let cage = words.called().and_then(|cage| words.ask(&cage));
    candidates(cage.iter().flat_map(callable))
}

fn candidates(names: impl IntoIterator<Item = String>) -> Vec<CompletionCandidate> {
    names.into_iter().map(CompletionCandidate::new).collect()
}

fn members(cage: &Value) -> Vec<String> {
    let members = cage["members"].as_array().into_iter().flatten();
    members.filter_map(|member| member["cage"].as_str().map(str::to_owned)).collect()
}

/// Returns the cage's functions as `module.function`; functions of an interface by their short name only.
fn callable(cage: &Value) -> Vec<String> {
    let modules = cage["modules"].as_array().into_iter().flatten();
    let names = modules.flat_map(|module| {
        let name = module["module"].as_str().unwrap_or_default();
        let functions = module["version"]["functions"].as_array().into_iter().flatten();
        let functions = functions.filter_map(Value::as_str).filter(|function| !function.contains('#'));
        functions.map(move |function| format!("{name}.{function}"))
    });
    names.collect()
}

/// The command line that is being typed.
struct Words(Vec<String>);

impl Words {
    /// Takes the words from this process's arguments: the shell passes them after `--`.
    fn typed() -> Self {
        Self::after_dashes(std::env::args_os())
    }

    fn after_dashes(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let words = arguments.into_iter().skip_while(|word| word != "--").skip(1);
        Self(words.map(|word| word.to_string_lossy().into_owned()).collect())
    }

    fn root(&self) -> PathBuf {
        let next = self.0.iter().zip(self.0.iter().skip(1)).find(|(word, _)| *word == "--root");
        let joined = self.0.iter().find_map(|word| word.strip_prefix("--root="));
        let typed = next.map(|(_, root)| root.as_str()).or(joined).map(PathBuf::from);
        typed.or_else(|| std::env::var_os(ROOT_VARIABLE).map(PathBuf::from)).unwrap_or_else(|| DEFAULT_ROOT.into())
    }

    /// Returns the cage to call: the first word after `call` that is neither an option nor an option's value.
    fn called(&self) -> Option<String> {
        let mut words = self.0.iter().skip_while(|word| *word != "call").skip(1);
        while let Some(word) = words.next() {
            if WITH_VALUE.contains(&word.as_str()) {
                words.next();
            } else if !word.starts_with('-') {
                return Some(word.clone());
            }
        }
        None
    }

    /// Asks a running cage of the root for its state.
    fn ask(&self, cage: &str) -> Option<Value> {
        let root = self.root();
        if holder(&root, cage).ok()? == LockHolder::None {
            return None;
        }
        let process =
            control::ask_with_timeout(&directories(&root).run(cage), cage, "ps", Value::Null, ANSWER_TIMEOUT).ok()?;
        Some(process["cages"][0].clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn root_and_cage_are_found_in_the_typed_words() {
        let check = |line: &str, root: &str, called: Option<&str>| {
            let words = Words::after_dashes(line.split_whitespace().map(OsString::from));
            assert_eq!((words.root(), words.called().as_deref()), (PathBuf::from(root), called), "{line}");
        };
        check("wasmcage -- wasmcage call --root r --via a worker wo", "r", Some("worker"));
        check("wasmcage -- wasmcage call --all --root=r worker", "r", Some("worker"));
        check("wasmcage -- wasmcage --root r", "r", None);
    }

    #[test]
    fn functions_and_members_are_read_from_a_cages_answer() {
        let cage = json!({
            "members": [{ "cage": "far" }],
            "modules": [
                { "module": "work", "version": { "functions": ["a:b/c#f", "f", "g"] } },
                { "module": "gone", "version": null },
            ],
        });
        assert_eq!(callable(&cage), ["work.f", "work.g"]);
        assert_eq!(members(&cage), ["far"]);
    }
}
