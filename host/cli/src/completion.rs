//! Completion of names in the user's shell, by this program itself: `source <(COMPLETE=bash wasmcage)`, after which the
//! shell runs it with the words typed so far. Knows what directories and running cages tell; whatever it cannot learn
//! at once it leaves out, and it never prints an error.

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
use crate::supervisor::pid_lock::Holder;

/// A cage that takes longer to answer is left out: somebody waits with a finger on the key.
const PATIENCE: Duration = Duration::from_millis(500);
/// Options of `call` whose value is the next word.
const WITH_VALUE: [&str; 7] = ["--root", "--via", "--timeout", "--bytes-from", "--id", "--queue", "--expires"];

const HOW: &str = "\
Commands, options, names of cages, modules and functions are completed once the shell knows how. Add to

  ~/.bashrc                   source <(COMPLETE=bash wasmcage)
  ~/.zshrc                    source <(COMPLETE=zsh wasmcage)
  ~/.config/fish/config.fish  COMPLETE=fish wasmcage | source
  ~/.elvish/rc.elv            eval (E:COMPLETE=elvish wasmcage | slurp)";

/// Tell how a shell completes names
#[derive(Debug, Args)]
#[command(after_help = HOW)]
pub(super) struct CompletionsArgs {}

impl CompletionsArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        print(HOW)?;
        Ok(STOPPED)
    }
}

/// Ends the process when it was started by a shell that wants to complete a word.
pub(crate) fn complete() {
    CompleteEnv::with_factory(Cli::command).complete();
}

/// Cages of the root.
pub(super) fn cages() -> Vec<CompletionCandidate> {
    candidates(cages_in(&Words::typed().root()))
}

/// Cages of the root, and those elsewhere that they know.
pub(super) fn callable_cages() -> Vec<CompletionCandidate> {
    let words = Words::typed();
    let own = cages_in(&words.root());
    let members: BTreeSet<String> =
        own.iter().filter_map(|cage| words.ask(cage)).flat_map(|cage| members(&cage)).collect();
    candidates(own.into_iter().chain(members).collect::<BTreeSet<_>>())
}

/// Functions of the cage that was typed before, when it runs in the root.
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

/// `module.function`; a function of an interface by its short name only.
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
    /// The shell passes it after `--`.
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

    /// The first word after `call` that is neither an option nor an option's value.
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

    /// What a running cage of the root says of itself.
    fn ask(&self, cage: &str) -> Option<Value> {
        let root = self.root();
        if holder(&root, cage).ok()? == Holder::None {
            return None;
        }
        let process = control::ask_patiently(&directories(&root).run(cage), cage, "ps", Value::Null, PATIENCE).ok()?;
        Some(process["cages"][0].clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_typed_words_tell_root_and_cage() {
        let check = |line: &str, root: &str, called: Option<&str>| {
            let words = Words::after_dashes(line.split_whitespace().map(OsString::from));
            assert_eq!((words.root(), words.called().as_deref()), (PathBuf::from(root), called), "{line}");
        };
        check("wasmcage -- wasmcage call --root r --via a worker wo", "r", Some("worker"));
        check("wasmcage -- wasmcage call --all --root=r worker", "r", Some("worker"));
        check("wasmcage -- wasmcage --root r", "r", None);
    }

    #[test]
    fn a_cage_tells_what_can_be_called() {
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
