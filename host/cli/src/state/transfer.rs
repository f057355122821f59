//! `wasmcage state export` and `import`: writes and reads keys and queues as lines of JSON.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Write};
use std::path::PathBuf;

use clap::Args;
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, PathCompleter};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::access::Access;
use super::list::check_module;
use crate::control::call::EncodedPayload;
use crate::control::state::{EntryPage, ModuleLine, PutItem, QueueLine, StateRequest};
use crate::supervisor::STOPPED;
use crate::{CommandError, RootArg, completion, progress};

/// Entries in one page.
const PAGE_ENTRIES: usize = 1_000;
/// Lines of one batch of an import, and their bytes.
const BATCH_LINES: usize = 1_000;
const BATCH_BYTES: usize = 8 << 20;
/// Longest line of an import: values have at most 16 MiB.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Write keys and queues as lines of JSON
///
/// A line is {"module": "m", "key": "k", "json": VALUE}; queues have "queue" in place of "key", one line for each entry;
/// bytes are in "base64" in place of "json". What a running cage writes meanwhile may be in it or not. Retried calls are
/// not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage state export shop > shop.jsonl
  wasmcage state export shop orders --out orders.jsonl")]
pub(super) struct ExportArgs {
    /// Name of the cage
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cage: String,
    /// Names of modules [default: all]
    #[arg(value_name = "MODULE")]
    modules: Vec<String>,
    /// Write to this file instead of standard output
    #[arg(long, value_name = "FILE", add = ArgValueCompleter::new(PathCompleter::file()))]
    out: Option<PathBuf>,
    #[command(flatten)]
    root: RootArg,
}

/// Import keys and queues from an export
///
/// Keys that are there are overwritten, entries of queues are added. Lines are written in groups of up to 1,000, each of
/// them whole or not at all; an error tells how far it came.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage state import shop shop.jsonl
  wasmcage state export shop | wasmcage state import shop2")]
pub(super) struct ImportArgs {
    /// Name of the cage
    #[arg(value_name = "CAGE", add = ArgValueCandidates::new(completion::cages))]
    cage: String,
    /// The file; - is standard input
    #[arg(value_name = "FILE", default_value = "-", add = ArgValueCompleter::new(PathCompleter::file().stdio()))]
    file: PathBuf,
    #[command(flatten)]
    root: RootArg,
}

/// A line of an export: a key with its value, or an entry of a queue.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportLine {
    module: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    json: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl ExportArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let access = Access::new(&self.root.root, &self.cage)?;
        let modules = match self.modules.is_empty() {
            true => {
                access.ask::<Vec<ModuleLine>>(StateRequest::Modules {})?.into_iter().map(|line| line.module).collect()
            }
            false => {
                self.modules.iter().try_for_each(|module| check_module(&access, module))?;
                self.modules
            }
        };
        match &self.out {
            None => export(&access, &modules, io::stdout().lock())?,
            Some(path) => {
                let file = File::create(path)
                    .map_err(|error| CommandError::failed(format!("cannot write {}", path.display()), error))?;
                export(&access, &modules, file)?;
            }
        }
        Ok(STOPPED)
    }
}

fn export(access: &Access, modules: &[String], out: impl Write) -> Result<(), CommandError> {
    let mut out = BufWriter::new(out);
    for module in modules {
        let page =
            |cursor| StateRequest::Keys { module: module.clone(), prefix: String::new(), limit: PAGE_ENTRIES, cursor };
        pages(access, page, |key, value| write_line(&mut out, ExportLine::new(module, Some(key), None, value)?))?;
        for QueueLine { queue, .. } in access.ask::<Vec<QueueLine>>(StateRequest::Queues { module: module.clone() })? {
            let page = |cursor| StateRequest::Queue {
                module: module.clone(),
                queue: queue.clone(),
                limit: PAGE_ENTRIES,
                cursor,
            };
            pages(access, page, |_, entry| {
                write_line(&mut out, ExportLine::new(module, None, Some(queue.clone()), entry)?)
            })?;
        }
    }
    out.flush().map_err(write_error)
}

/// Calls `each` for the entries of all pages.
fn pages(
    access: &Access,
    page: impl Fn(Option<String>) -> StateRequest,
    mut each: impl FnMut(String, EncodedPayload) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let mut cursor = None;
    loop {
        let found: EntryPage = access.ask(page(cursor))?;
        found.entries.into_iter().try_for_each(|(name, value)| each(name, value))?;
        cursor = found.next;
        if cursor.is_none() {
            return Ok(());
        }
    }
}

fn write_line(out: &mut impl Write, line: ExportLine) -> Result<(), CommandError> {
    let text =
        serde_json::to_string(&line).map_err(|error| CommandError::failed("a value cannot be written", error))?;
    writeln!(out, "{text}").map_err(write_error)
}

fn write_error(error: io::Error) -> CommandError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CommandError::OutputClosed,
        _ => CommandError::failed("cannot write the export", error),
    }
}

impl ExportLine {
    fn new(
        module: &str,
        key: Option<String>,
        queue: Option<String>,
        value: EncodedPayload,
    ) -> Result<Self, CommandError> {
        let (json, base64) = match value {
            EncodedPayload::Json(json) => {
                // Ends of lines can only be between the tokens of a value, where they are equal to a space.
                let line = json.replace(['\n', '\r'], " ");
                let raw = RawValue::from_string(line);
                (Some(raw.map_err(|error| CommandError::failed("a value is no JSON", error))?), None)
            }
            EncodedPayload::Base64(text) => (None, Some(text)),
        };
        Ok(Self { module: module.to_owned(), key, queue, json, base64 })
    }

    /// Converts the line to an item.
    ///
    /// # Errors
    /// The line has not exactly one key or queue, and exactly one value.
    fn item(self) -> Result<(String, PutItem), &'static str> {
        let value = match (self.json, self.base64) {
            (Some(json), None) => EncodedPayload::Json(json.get().to_owned()),
            (None, Some(base64)) => EncodedPayload::Base64(base64),
            _ => return Err("a line has either \"json\" or \"base64\""),
        };
        match (self.key, self.queue) {
            (Some(key), None) => Ok((self.module, PutItem::Key { key, value })),
            (None, Some(queue)) => Ok((self.module, PutItem::Queue { queue, entry: value })),
            _ => Err("a line has either \"key\" or \"queue\""),
        }
    }
}

impl ImportArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let access = Access::new(&self.root.root, &self.cage)?;
        let input: Box<dyn io::Read> = match self.file.as_os_str() == "-" {
            true => Box::new(io::stdin()),
            false => Box::new(File::open(&self.file).map_err(|error| self.failed(error))?),
        };
        let mut import =
            Import { access: &access, module: String::new(), items: Vec::new(), bytes: 0, read: 0, done: 0 };
        let all = import.lines(BufReader::new(input)).and_then(|()| import.flush());
        match &all {
            Ok(()) => progress(format_args!("imported {}", lines(import.done))),
            Err(_) => progress(format_args!("stopped after {}; the others are not imported", lines(import.done))),
        }
        all.map(|()| STOPPED)
    }

    fn failed(&self, error: io::Error) -> CommandError {
        CommandError::failed(format!("cannot read {}", self.file.display()), error)
    }
}

/// An import in progress.
struct Import<'a> {
    access: &'a Access<'a>,
    /// Module of the current batch.
    module: String,
    items: Vec<PutItem>,
    bytes: usize,
    /// Number of lines that were read, and that were stored.
    read: usize,
    done: usize,
}

impl Import<'_> {
    fn lines(&mut self, mut input: impl BufRead) -> Result<(), CommandError> {
        loop {
            let mut line = String::new();
            let length = (&mut input).take(LINE_BYTES_MAX).read_line(&mut line);
            let length =
                length.map_err(|error| CommandError::failed(format!("cannot read line {}", self.read + 1), error))?;
            if length == 0 {
                return Ok(());
            }
            let number = self.read + 1;
            let wrong =
                |why: &dyn std::fmt::Display| CommandError::Usage(format!("line {number} is none of an export: {why}"));
            if length as u64 == LINE_BYTES_MAX {
                return Err(wrong(&format_args!("it has more than {LINE_BYTES_MAX} bytes")));
            }
            if !line.trim().is_empty() {
                let parsed: ExportLine = serde_json::from_str(&line).map_err(|error| wrong(&error))?;
                let (module, item) = parsed.item().map_err(|why| wrong(&why))?;
                self.add(module, item, length)?;
            }
            self.read += 1;
        }
    }

    fn add(&mut self, module: String, item: PutItem, bytes: usize) -> Result<(), CommandError> {
        let full = self.items.len() >= BATCH_LINES || self.bytes + bytes > BATCH_BYTES;
        if full || self.module != module {
            self.flush()?;
        }
        self.module = module;
        self.items.push(item);
        self.bytes += bytes;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CommandError> {
        let items = std::mem::take(&mut self.items);
        if !items.is_empty() {
            self.access.ask::<()>(StateRequest::Put { module: self.module.clone(), items })?;
        }
        (self.bytes, self.done) = (0, self.read);
        Ok(())
    }
}

fn lines(count: usize) -> String {
    if count == 1 { "1 line".into() } else { format!("{count} lines") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Result<&str, &str>) {
        let parsed: Result<ExportLine, _> = serde_json::from_str(line);
        let found = parsed
            .map_err(|error| error.to_string())
            .and_then(|line| line.item().map(|(module, item)| format!("{module}: {item:?}")).map_err(str::to_owned));
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
            _ => panic!("{line}: {found:?}"),
        }
    }

    #[test]
    fn lines_are_keys_or_entries() {
        check(
            r#"{"module":"m","key":"k","json":{"a": 1.50}}"#,
            Ok(r#"m: Key { key: "k", value: Json("{\"a\": 1.50}") }"#),
        );
        check(r#"{"module":"m","queue":"q","base64":"AA=="}"#, Ok(r#"m: Queue { queue: "q", entry: Base64("AA==") }"#));
        check(r#"{"module":"m","key":"k"}"#, Err("either \"json\" or"));
        check(r#"{"module":"m","key":"k","queue":"q","json":1}"#, Err("either \"key\" or"));
        check(r#"{"module":"m","key":"k","jsn":1}"#, Err("jsn"));
        check(r#"{"key":"k","json":1}"#, Err("module"));
    }

    #[test]
    fn a_value_stays_on_its_line() {
        let line = ExportLine::new("m", Some("k".into()), None, EncodedPayload::Json("[1,\n\"a\\n\"]".into())).unwrap();
        assert_eq!(serde_json::to_string(&line).unwrap(), r#"{"module":"m","key":"k","json":[1, "a\n"]}"#);
    }
}
