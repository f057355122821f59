//! The compiler's own process: `wasmcage compile` reads a component from its standard input, writes machine code to its
//! standard output and a report, or an error, to its standard error. It has no files of its own, so nothing is left behind if
//! it is killed.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::str::FromStr;

use rustix::event::{PollFd, PollFlags, poll};
use wasmparser::{Parser, Payload};

use super::component_file::{COMPONENT_BYTES_MAX, ContentHash};
use super::engine::EngineKind;

/// The limit on the address space of the process.
const MEMORY_BYTES_MAX: u64 = 16 << 30;
/// The exit code for an invalid component.
pub(super) const INVALID_EXIT: i32 = 3;
/// The exit code for input that cannot be read, or output that cannot be written.
pub(super) const MACHINE_EXIT: i32 = 4;

/// The report of a compilation, which is written as one line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) kind: EngineKind,
    /// The hash of the component, in hexadecimal digits.
    pub(super) input: String,
    /// The hash of the machine code, in hexadecimal digits.
    pub(super) output: String,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.kind.name(), self.input, self.output)
    }
}

impl FromStr for Report {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let mut words = line.split(' ');
        let (Some(kind), Some(input), Some(output), None) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(());
        };
        let kind = EngineKind::ALL.into_iter().find(|known| known.name() == kind).ok_or(())?;
        Ok(Self { kind, input: input.to_owned(), output: output.to_owned() })
    }
}

/// The reason why nothing was compiled: the component is invalid, or the machine failed.
pub(super) enum Failure {
    Invalid(String),
    Machine(String),
}

/// Compiles standard input to standard output, as the whole work of the process, and returns its exit code.
pub fn compile_worker() -> ExitCode {
    // If these fail, the process compiles without the low priority or the limit on memory.
    let _ = rustix::process::nice(10);
    let memory = rustix::process::Rlimit { current: Some(MEMORY_BYTES_MAX), maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::As, memory);
    // Without this thread the process still compiles.
    let _ = std::thread::Builder::new().name("parent".into()).spawn(end_with_parent);
    let compiled = own(io::stdin().as_fd()).and_then(|input| Ok((input, own(io::stdout().as_fd())?)));
    let compiled = compiled.map_err(|error| Failure::Machine(format!("its streams cannot be used: {error}")));
    let (line, code) = match compiled.and_then(|(input, output)| compile(input, output)) {
        Ok(report) => (report.to_string(), ExitCode::SUCCESS),
        Err(Failure::Invalid(reason)) => (reason, ExitCode::from(INVALID_EXIT as u8)),
        Err(Failure::Machine(reason)) => (reason, ExitCode::from(MACHINE_EXIT as u8)),
    };
    // Writing fails if the parent has ended.
    let _ = writeln!(io::stderr(), "{line}");
    code
}

/// Ends the process when the parent has ended, which closes the other end of standard error, since the result is not needed.
fn end_with_parent() {
    let stderr = io::stderr();
    let mut ends = [PollFd::new(&stderr, PollFlags::empty())];
    loop {
        match poll(&mut ends, None) {
            Ok(_) => std::process::exit(1),
            Err(rustix::io::Errno::INTR) => {}
            // Without the poll the process ends when it has compiled.
            Err(_) => return,
        }
    }
}

/// Reads a component from `input` and writes its machine code to `output`.
pub(super) fn compile(input: File, mut output: File) -> Result<Report, Failure> {
    let machine = |what: &'static str| move |error: io::Error| Failure::Machine(format!("{what}: {error}"));
    let mut wasm = Vec::new();
    input.take(COMPONENT_BYTES_MAX + 1).read_to_end(&mut wasm).map_err(machine("cannot read the component"))?;
    let (kind, code) = precompile(&wasm).map_err(Failure::Invalid)?;
    output.write_all(&code).map_err(machine("cannot write machine code"))?;
    Ok(Report { kind, input: ContentHash::of(&wasm).to_string(), output: ContentHash::of(&code).to_string() })
}

/// Returns a standard stream as a file, without the buffer for text.
fn own(stream: impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

/// Compiles for the plain engine, or for the concurrent one if the component needs it. The plain engine refuses such a
/// component when it validates it, before it compiles anything.
fn precompile(wasm: &[u8]) -> Result<(EngineKind, Vec<u8>), String> {
    let attempt = |kind: EngineKind| {
        let code = kind.compiling().and_then(|engine| engine.precompile_component(wasm));
        code.map(|code| (kind, code))
    };
    let plain = if imports_wasi_3(wasm) { None } else { attempt(EngineKind::Plain).ok() };
    plain.map_or_else(|| attempt(EngineKind::Concurrent), Ok).map_err(|error| format!("{error:#}"))
}

/// Returns whether the component imports an interface of WASI 0.3, none of which the plain engine provides. Bytes that cannot
/// be parsed are left for wasmtime to report.
fn imports_wasi_3(wasm: &[u8]) -> bool {
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(wasm).map_while(Result::ok) {
        match payload {
            // Imports of inner modules and components do not count, since the outer component provides them.
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(imports) if depth == 0 => {
                let is_wasi_3 = |name: &str| name.starts_with("wasi:") && name.contains("@0.3.");
                if imports.into_iter().map_while(Result::ok).any(|import| is_wasi_3(import.name.name)) {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_imports_of_the_component_itself_choose_its_engine() {
        let check = |wat: &str, expected: bool| {
            assert_eq!(imports_wasi_3(&wat::parse_str(wat).unwrap()), expected, "{wat}");
        };
        check(r#"(component (import "wasi:random/random@0.3.0" (instance)))"#, true);
        check(r#"(component (import "wasi:random/random@0.2.3" (instance)))"#, false);
        check(r#"(component (import "acme:work/api@0.3.0" (instance)))"#, false);
        check(r#"(component (core module) (component) (import "wasi:random/random@0.3.0" (instance)))"#, true);
        check(r#"(component (component (import "wasi:random/random@0.3.0" (instance))))"#, false);
        assert!(!imports_wasi_3(b"\0asm and nonsense"));
    }

    #[test]
    fn a_report_is_read_as_it_was_written_and_nothing_else_is_one() {
        let report = Report { kind: EngineKind::Concurrent, input: "ab".into(), output: "cd".into() };
        assert_eq!(report.to_string().parse(), Ok(report));
        for line in ["", "plain", "plain a", "fast a b", "plain a b c"] {
            assert_eq!(line.parse::<Report>(), Err(()), "{line}");
        }
    }
}
