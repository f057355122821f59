//! `wasmcage new`: creates a package beside the root, and prints what to do next.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use wasmcage_config::{FILE_NAME, is_name};

use super::{CommandError, RootArg, check_cage, config, print};
use crate::supervisor::STOPPED;

/// Path of the guest library in the sources from which this program was built.
const LIBRARY_SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-sdk/rust");

/// Create a module's package, a few lines to start from
///
/// The package is a directory beside the root of the cages. With --cage, cage.toml gets the lines by which `build` and
/// `dev` find it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage new rust interface_web --cage hello && wasmcage build hello
  wasmcage new python report")]
pub(super) struct NewArgs {
    #[arg(value_enum)]
    language: Language,
    /// Name of the module: interface NAME is served by module interface_NAME
    name: String,
    /// The cage that gets the module
    #[arg(long)]
    cage: Option<String>,
    #[command(flatten)]
    root: RootArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Language {
    Rust,
    Python,
}

impl NewArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let root = &self.root.root;
        if !is_name(&self.name) {
            let name = &self.name;
            return Err(CommandError::Usage(format!(
                "{name:?} cannot name a module: a name is 1 to 64 letters, digits, `_` or `-`"
            )));
        }
        let directory = beside(root).join(&self.name);
        if directory.exists() {
            return Err(CommandError::Usage(format!("{} is there already", directory.display())));
        }
        if let Some(cage) = &self.cage {
            check_cage(root, cage)?;
            if config(root, cage)?.modules.contains_key(&self.name) {
                return Err(CommandError::Usage(format!(
                    "cage.toml of cage {cage} has a [modules.{}] already: give it source = {:?} and leave --cage out",
                    self.name,
                    source_of(&self.name)
                )));
            }
        }
        let files = match self.language {
            Language::Rust => rust(&self.name),
            Language::Python => python(),
        };
        for (name, text) in files {
            write(&directory.join(name), &text)?;
        }
        print(format_args!("created {}", directory.display()))?;
        self.print_next_steps()?;
        Ok(STOPPED)
    }

    /// Adds the module to the cage's `cage.toml`, and prints what to do next.
    fn print_next_steps(&self) -> Result<(), CommandError> {
        let lines = format!("[modules.{}]\nsource = {:?}\n", self.name, source_of(&self.name));
        let cage = match &self.cage {
            Some(cage) => {
                append(&self.root.root.join(cage).join(FILE_NAME), &lines)?;
                print(format_args!("added [modules.{}] to cage.toml of cage {cage}", self.name))?;
                cage
            }
            None => {
                print(format_args!("to build it for a cage, add to its cage.toml:\n\n{lines}"))?;
                "CAGE"
            }
        };
        print(format_args!("next: wasmcage build {cage}, or wasmcage dev {cage} to build on every save"))
    }
}

/// Returns the directory of the packages: the one that contains the root.
fn beside(root: &Path) -> PathBuf {
    match root.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => root.join(".."),
    }
}

/// Returns the path of a package relative to a cage's directory.
fn source_of(name: &str) -> String {
    format!("../../{name}")
}

fn rust(name: &str) -> Vec<(&'static str, String)> {
    let library = match fs::canonicalize(LIBRARY_SOURCE) {
        Ok(path) => format!("{{ path = {:?} }}", path.display().to_string()),
        Err(_) => format!("{:?}", env!("CARGO_PKG_VERSION")),
    };
    let manifest = format!(
        "\
[package]
name = {name:?}
version = \"0.1.0\"
edition = \"2024\"

[lib]
crate-type = [\"cdylib\"]

[dependencies]
wasmcage-guest = {library}

# A workspace of its own, wherever this directory lies.
[workspace]
"
    );
    let code = "\
use wasmcage_guest::{Request, Response, Result, handler};

#[handler]
fn handle(_request: Request) -> Result<Response> {
    Ok(Response::html(\"Hello, world !\"))
}
";
    vec![("Cargo.toml", manifest), ("src/lib.rs", code.into()), (".gitignore", "/target\n".into())]
}

fn python() -> Vec<(&'static str, String)> {
    let code = "\
from wit_world import exports
from wit_world.imports.types import Request, Response


class Handler(exports.Handler):
    def handle(self, request: Request) -> Response:
        return Response(200, [(\"content-type\", \"text/html; charset=utf-8\")], b\"Hello, world !\")
";
    let project = "\
[tool.wasmcage]
# full-module when it has functions that other modules call (class Service), service-module when only those.
world = \"handler-module\"
";
    vec![("app.py", code.into()), ("pyproject.toml", project.into()), (".gitignore", "__pycache__/\n".into())]
}

fn write(file: &Path, text: &str) -> Result<(), CommandError> {
    let directory = file.parent().expect("a file in a package has a directory");
    let written = fs::create_dir_all(directory).and_then(|()| fs::write(file, text));
    written.map_err(|error| CommandError::failed(format!("cannot write {}", file.display()), error))
}

/// Appends the lines in one write, so that a running cage never reads half of them.
fn append(file: &Path, lines: &str) -> Result<(), CommandError> {
    let append = || {
        let before = fs::read_to_string(file).unwrap_or_default();
        let gap = match before.as_bytes() {
            [] => "",
            [.., b'\n'] => "\n",
            _ => "\n\n",
        };
        let mut file = fs::OpenOptions::new().append(true).create(true).open(file)?;
        file.write_all(format!("{gap}{lines}").as_bytes())
    };
    append().map_err(|error| CommandError::failed(format!("cannot write {}", file.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_lie_beside_the_root_and_cages_find_them() {
        for (root, expected) in [("cages", "."), ("/srv/cages", "/srv"), ("a/cages", "a")] {
            assert_eq!(beside(Path::new(root)), Path::new(expected), "{root}");
        }
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("cages");
        fs::create_dir_all(root.join("hello")).unwrap();
        fs::write(root.join("hello").join(FILE_NAME), "log_level = \"debug\"").unwrap();
        let args = |language, name: &str| NewArgs {
            language,
            name: name.into(),
            cage: Some("hello".into()),
            root: RootArg { root: root.clone() },
        };
        assert_eq!(args(Language::Rust, "interface_web").execute().unwrap(), STOPPED);
        assert_eq!(args(Language::Python, "report").execute().unwrap(), STOPPED);
        let config = config(&root, "hello").unwrap();
        for name in ["interface_web", "report"] {
            let source = config.modules[name].source.as_ref().unwrap();
            assert_eq!(source.canonicalize().unwrap(), directory.path().join(name).canonicalize().unwrap());
        }
        let manifest = fs::read_to_string(directory.path().join("interface_web/Cargo.toml")).unwrap();
        assert!(toml::from_str::<toml::Table>(&manifest).is_ok(), "{manifest}");
        assert!(args(Language::Rust, "report").execute().unwrap_err().to_string().contains("is there already"));
        fs::remove_dir_all(directory.path().join("report")).unwrap();
        assert!(args(Language::Rust, "report").execute().unwrap_err().to_string().contains("[modules.report]"));
        assert!(args(Language::Rust, "a/b").execute().unwrap_err().to_string().contains("cannot name a module"));
    }
}
