//! The command line of the host: one file per subcommand, `supervisor/` for the two processes of `run`, `control` for the
//! sockets by which commands talk to them. `main` is given the protocols; this crate knows none. Only `main` prints a
//! command's error; a command prints its own results.

mod build;
mod cage_toml;
mod call;
mod check;
mod compile;
mod completion;
mod control;
mod dev;
mod doctor;
mod keys;
mod logs;
mod new;
mod ps;
mod retry;
mod run;
mod secondary;
mod state;
mod stop;
mod supervisor;

use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

pub use self::cage_toml::REFERENCE;
use clap::{Args, Parser, Subcommand};
use clap_complete::engine::{ArgValueCompleter, PathCompleter};
use wasmcage::Protocols;
use wasmcage::cage::load_config;
use wasmcage::host::host_name;
use wasmcage_config::{CageConfig, ConfigError, nearest};
use wasmcage_core::directories::Directories;

use crate::control::ControlError;
use crate::supervisor::pid_lock::{self, LockHolder, PidLockError};
use crate::supervisor::secondary::ServeError;
use crate::supervisor::{FAILED, MISCONFIGURED, STOPPED, SuperviseError};

/// The protocols that were given to `main`: every command that reads a `cage.toml` needs them.
static PROTOCOLS: OnceLock<Protocols> = OnceLock::new();

fn protocols() -> &'static Protocols {
    PROTOCOLS.get_or_init(Protocols::default)
}

/// Runs the program: parses the command line, executes it and prints an error. Returns the exit code.
///
/// # Panics
/// It is called twice.
pub fn main(known: Protocols) -> ExitCode {
    PROTOCOLS.set(known).expect("a program has one command line");
    // The program starts itself as /proc/self/exe; without this, `ps` and `pkill` would know it as `exe`.
    let _ = rustix::thread::set_name(c"wasmcage");
    wasmcage_core::task::install_panic_hook();
    completion::complete();
    let done = execute(Cli::parse());
    wasmcage_core::telemetry::flush();
    match done {
        Ok(code) => code,
        Err(error) => {
            let code = error.exit_code();
            report(error);
            ExitCode::from(code)
        }
    }
}

/// Prints the error and its causes, each once.
fn report(error: CommandError) {
    // The reader of the output has closed it, and needs no message.
    if matches!(error, CommandError::OutputClosed) {
        return;
    }
    let error = anyhow::Error::from(error);
    let mut text = format!("error: {error}\n");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !last.ends_with(&cause) {
            // Each mistake of a configuration is on a line of its own.
            text += &format!("  caused by: {}\n", cause.replace('\n', "\n    "));
        }
        last = cause;
    }
    // A failure cannot be reported anywhere.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Longest name of a cage.
const CAGE_NAME_CHARACTERS_MAX: usize = 32;

/// Runs cages: named directories of WebAssembly components that serve, and are swapped while they serve.
///
/// Exit codes: 0 done or stopped, 1 failed, 2 wrong arguments or configuration.
#[derive(Debug, Parser)]
#[command(name = "wasmcage", version, arg_required_else_help = true, max_term_width = 110, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

const EXAMPLES: &str = "\
Examples:
  mkdir -p cages/hello && wasmcage run hello     an empty directory is a cage
  wasmcage new rust interface_web --cage hello   a module to start from
  wasmcage dev hello                             serve, rebuild on every save
  wasmcage run runner worker --build             two cages in one process
  wasmcage call worker work.handle /             call a function
  wasmcage state list hello                      what its modules keep
  wasmcage logs hello -f                         follow the log
  wasmcage help cage.toml                        everything that cage.toml may say";

#[derive(Debug, Subcommand)]
enum CliCommand {
    Run(run::RunArgs),
    Dev(dev::DevArgs),
    Stop(stop::StopArgs),
    Ps(ps::PsArgs),
    Call(call::CallArgs),
    State(state::StateArgs),
    Retry(retry::RetryArgs),
    Logs(logs::LogsArgs),
    Check(check::CheckArgs),
    New(new::NewArgs),
    Build(build::BuildArgs),
    Keys(keys::KeysArgs),
    Doctor(doctor::DoctorArgs),
    #[command(name = "cage.toml")]
    CageToml(cage_toml::CageTomlArgs),
    Completions(completion::CompletionsArgs),
    #[command(hide = true)]
    Secondary(secondary::SecondaryArgs),
    #[command(hide = true)]
    Compile(compile::CompileArgs),
}

const ROOT_VARIABLE: &str = "WASMCAGE_ROOT";
const DEFAULT_ROOT: &str = "cages";

/// The directory of the cages.
#[derive(Clone, Debug, Args)]
struct RootArg {
    /// Directory of the cages
    #[arg(long, value_name = "DIR", env = ROOT_VARIABLE, default_value = DEFAULT_ROOT)]
    #[arg(add = ArgValueCompleter::new(PathCompleter::dir()))]
    root: PathBuf,
}

/// Executes a command.
///
/// # Errors
/// The command could not be done. A negative result, such as that of `check`, is an exit code instead.
fn execute(cli: Cli) -> Result<ExitCode, CommandError> {
    let code = match cli.command {
        CliCommand::Run(args) => args.execute()?,
        CliCommand::Dev(args) => args.execute()?,
        CliCommand::Stop(args) => args.execute()?,
        CliCommand::Ps(args) => args.execute()?,
        CliCommand::Call(args) => args.execute()?,
        CliCommand::State(args) => args.execute()?,
        CliCommand::Retry(args) => args.execute()?,
        CliCommand::Logs(args) => args.execute()?,
        CliCommand::Check(args) => args.execute()?,
        CliCommand::New(args) => args.execute()?,
        CliCommand::Build(args) => args.execute()?,
        CliCommand::Keys(args) => args.execute()?,
        CliCommand::Doctor(args) => args.execute()?,
        CliCommand::CageToml(args) => args.execute()?,
        CliCommand::Completions(args) => args.execute()?,
        CliCommand::Secondary(args) => args.execute()?,
        CliCommand::Compile(args) => return Ok(args.execute()),
    };
    Ok(ExitCode::from(code))
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The command line is wrong, or a directory that it names.
    #[error("{0}")]
    Usage(String),
    #[error("cage.toml of cage {cage} has mistakes")]
    Config {
        cage: String,
        #[source]
        source: ConfigError,
    },
    #[error("{text}")]
    Failed {
        text: String,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("{0}")]
    Refused(String),
    /// A cage refused or failed the request, with this code and text.
    #[error("{text} ({code})")]
    Call { code: String, text: String },
    #[error(transparent)]
    Lock(#[from] PidLockError),
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The reader of standard output has closed it.
    #[error("the output is closed")]
    OutputClosed,
}

impl CommandError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config { .. } => MISCONFIGURED,
            Self::Serve(error) => error.exit_code(),
            Self::Failed { .. }
            | Self::Refused(_)
            | Self::Call { .. }
            | Self::Lock(_)
            | Self::Supervise(_)
            | Self::Control(_) => FAILED,
            Self::OutputClosed => STOPPED,
        }
    }

    fn failed(text: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed { text: text.into(), source: source.into() }
    }
}

/// Writes a result to standard output.
fn print(text: impl Display) -> Result<(), CommandError> {
    print_bytes(format!("{text}\n").as_bytes())
}

/// Writes a result to standard output without an end of line.
fn print_bytes(bytes: &[u8]) -> Result<(), CommandError> {
    let mut stdout = io::stdout();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CommandError::OutputClosed,
        _ => CommandError::failed("cannot write to standard output", error),
    })
}

/// Prints on standard error what is being done.
fn progress(text: impl Display) {
    // The work goes on if nobody can read it.
    let _ = writeln!(io::stderr(), "{text}");
}

fn is_cage_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=CAGE_NAME_CHARACTERS_MAX).contains(&name.len()) && name.bytes().all(fits)
}

/// Returns the names of the cages in `root`, sorted.
fn cages_in(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = directories.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| is_cage_name(name));
    names.sort();
    names
}

/// Checks that the name is valid and that the cage has a directory.
fn check_cage(root: &Path, name: &str) -> Result<(), CommandError> {
    if !is_cage_name(name) {
        return Err(CommandError::Usage(format!(
            "{name:?} cannot name a cage: a name is 1 to {CAGE_NAME_CHARACTERS_MAX} letters, digits, `_` or `-`"
        )));
    }
    let directory = root.join(name);
    if directory.is_dir() {
        return Ok(());
    }
    if !root.is_dir() {
        return Err(CommandError::Usage(format!(
            "there is no directory {}, where the cages should be: create it, or name another by --root",
            root.display()
        )));
    }
    let known = cages_in(root);
    let hint = match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => "it has no cages".to_owned(),
        None => format!("it has {}", shortened(&known)),
    };
    Err(CommandError::Usage(format!("there is no cage {name} in {}: {hint}", root.display())))
}

/// Returns the first names of a list, and how many more there are.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

fn check_cages(root: &Path, names: &[String]) -> Result<(), CommandError> {
    for (index, name) in names.iter().enumerate() {
        check_cage(root, name)?;
        if names[..index].contains(name) {
            return Err(CommandError::Usage(format!("cage {name} is named twice")));
        }
    }
    Ok(())
}

/// Returns the named cages, or all cages in `root` if there are no names.
fn selected(root: &Path, names: &[String]) -> Result<Vec<String>, CommandError> {
    check_cages(root, names)?;
    if names.is_empty() { Ok(cages_in(root)) } else { Ok(names.to_vec()) }
}

fn config(root: &Path, cage: &str) -> Result<CageConfig, CommandError> {
    load_config(root, cage, &host_name(), protocols())
        .map_err(|source| CommandError::Config { cage: cage.to_owned(), source })
}

fn holder(root: &Path, cage: &str) -> Result<LockHolder, CommandError> {
    let failed = |error| CommandError::failed(format!("cannot find out whether cage {cage} is running"), error);
    pid_lock::lock_holder(&directories(root).run(cage)).map_err(failed)
}

/// Returns the directories of the cages in `root`.
fn directories(root: &Path) -> Directories {
    Directories::from_environment(root)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[track_caller]
    fn check(line: &str, expected: Result<fn(&CliCommand) -> bool, &str>) {
        match (Cli::try_parse_from(line.split_whitespace()), expected) {
            (Ok(cli), Ok(expected)) => assert!(expected(&cli.command), "{:?}", cli.command),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, _) => panic!("{line}: {got:?}"),
        }
    }

    #[test]
    fn lines_are_understood() {
        check("wasmcage run a b --build --lanes 2 --root x", Ok(|command| matches!(command, CliCommand::Run(_))));
        check("wasmcage run", Err("CAGE"));
        check("wasmcage run a --lanes 0", Err("lanes"));
        check("wasmcage logs a -f -n 5", Ok(|command| matches!(command, CliCommand::Logs(_))));
        check("wasmcage build", Ok(|command| matches!(command, CliCommand::Build(_))));
        check("wasmcage build --root r guests", Ok(|command| matches!(command, CliCommand::Build(_))));
        check("wasmcage new ruby x", Err("rust"));
        check("wasmcage keys init --renew", Ok(|command| matches!(command, CliCommand::Keys(_))));
        check(
            "wasmcage keys issue a --days 30 --out d --flock f",
            Ok(|command| matches!(command, CliCommand::Keys(_))),
        );
        check("wasmcage keys issue a --days 0", Err("days"));
        check("wasmcage keys init --flock A", Err("lower-case"));
        check("wasmcage biuld a", Err("build"));
        check(
            "wasmcage call a b.c -5 x=-1 --timeout 500ms --all",
            Ok(|command| matches!(command, CliCommand::Call(_))),
        );
        check("wasmcage call a b.c -- --x", Ok(|command| matches!(command, CliCommand::Call(_))));
        check("wasmcage call a c", Err("MODULE.FUNCTION"));
        check("wasmcage call a b.c --timeout soon", Err("such as 5s"));
        check("wasmcage call a b.c 1 --bytes-from f", Err("cannot be used with"));
        check("wasmcage state list a m --prefix p -n 5", Ok(|command| matches!(command, CliCommand::State(_))));
        check("wasmcage state set a m k -5", Ok(|command| matches!(command, CliCommand::State(_))));
        check("wasmcage state set a m k", Err("VALUE"));
        check("wasmcage state exprt a", Err("export"));
        check("wasmcage call a b.c 1 --retried --id x --queue q", Ok(|command| matches!(command, CliCommand::Call(_))));
        check("wasmcage call a b.c --id x", Err("--retried"));
        check("wasmcage retry list a --dead --queue q", Ok(|command| matches!(command, CliCommand::Retry(_))));
        check("wasmcage retry run a", Err("ID"));
        check("wasmcage retry drop a x --queue q", Err("cannot be used with"));
        check("wasmcage retry move a x --to q", Ok(|command| matches!(command, CliCommand::Retry(_))));
        check("wasmcage compile", Ok(|command| matches!(command, CliCommand::Compile(_))));
        check(
            "wasmcage secondary --root r --lanes 1 --log-format json -- a",
            Ok(|command| matches!(command, CliCommand::Secondary(_))),
        );
        check("wasmcage run a --log-format yaml", Err("text or json"));
    }

    #[test]
    fn cages_are_checked_before_anything_is_started() {
        let root = tempfile::tempdir().unwrap();
        ["runner", "worker", ".shared", "not a cage"]
            .iter()
            .for_each(|name| fs::create_dir(root.path().join(name)).unwrap());
        fs::write(root.path().join("file"), "").unwrap();
        assert_eq!(cages_in(root.path()), ["runner", "worker"]);
        let check = |names: &[&str], expected: Option<&str>| {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            match (check_cages(root.path(), &names), expected) {
                (Ok(()), None) => {}
                (Err(error), Some(part)) => {
                    assert!(error.to_string().contains(part), "{error}");
                    assert_eq!(error.exit_code(), MISCONFIGURED);
                }
                (got, _) => panic!("{names:?}: {got:?}"),
            }
        };
        check(&["runner", "worker"], None);
        check(&["runer"], Some("did you mean runner?"));
        check(&["file"], Some("it has runner, worker"));
        check(&["runner", "runner"], Some("twice"));
        check(&[".shared"], Some("cannot name a cage"));
        check(&["../runner"], Some("cannot name a cage"));
        check(&[&"x".repeat(33)], Some("1 to 32"));
        check(&[""], Some("cannot name a cage"));
        let missing = root.path().join("missing");
        assert!(check_cage(&missing, "a").unwrap_err().to_string().contains("--root"));
    }
}
