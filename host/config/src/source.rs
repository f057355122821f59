//! Parses the texts of configuration files into one tree of values, each with its file and line. No key has a meaning here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml_parser::lexer::TokenKind;

use super::FILE_BYTES_MAX;
use super::error::{ConfigError, Problem, push};
use super::mistake::Mistake;

/// Deepest nesting of tables and arrays, so that reading and dropping them stays cheap.
const DEPTH_MAX: usize = 32;
/// Most syntax errors that are reported for a file: later ones are mostly consequences of the first.
const SYNTAX_PROBLEMS_MAX: usize = 10;

/// Where a value is written.
#[derive(Clone, Debug)]
pub(super) struct Location {
    pub(super) file: Arc<Path>,
    /// From 1.
    pub(super) line: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) item: TomlValue,
    pub(super) location: Location,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TomlValue {
    Text(TextValue),
    Integer(i128),
    Float(f64),
    Flag(bool),
    /// The time as it is written.
    Time(String),
    Array(Vec<Node>),
    Table(TomlTable),
}

pub(super) type TomlTable = BTreeMap<String, Node>;

#[derive(Clone)]
pub(super) struct TextValue {
    pub(super) value: String,
    /// The text as it is written, if variables were expanded in `value`. Only this may be shown.
    pub(super) written: Option<String>,
}

/// Compares values, wherever they are written.
impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.item == other.item
    }
}

impl PartialEq for TextValue {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl TextValue {
    pub(super) fn shown(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.value)
    }
}

impl std::fmt::Debug for TextValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.shown(), f)
    }
}

impl TomlValue {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(&text.value),
            _ => None,
        }
    }

    /// Describes kind and value; texts are shortened, and secrets are not shown.
    pub(super) fn described(&self) -> String {
        match self {
            Self::Text(text) => format!("the string {:?}", shortened(text.shown())),
            Self::Integer(integer) => format!("the integer {integer}"),
            Self::Float(float) => format!("the float {float}"),
            Self::Flag(flag) => format!("the boolean {flag}"),
            Self::Time(time) => format!("the time {time}"),
            Self::Array(_) => "an array".to_owned(),
            Self::Table(_) => "a table".to_owned(),
        }
    }
}

/// All files as one tree, as far as they could be parsed.
pub(super) struct Merged {
    pub(super) root: Node,
    pub(super) syntax: SyntaxErrors,
}

/// Mistakes that keep parts of files from being parsed.
pub(super) struct SyntaxErrors(ConfigError);

impl SyntaxErrors {
    pub(super) fn is_empty(&self) -> bool {
        self.0.problems().is_empty()
    }

    /// Merges these with other mistakes. In files with syntax errors only mistakes before the first of those are kept, since
    /// later ones may be its consequences.
    pub(super) fn with(self, others: ConfigError) -> ConfigError {
        let before = |problem: &&Problem| {
            let mut syntax = self.0.problems().iter().filter(|syntax| syntax.file == problem.file);
            syntax.all(|syntax| problem.line < syntax.line)
        };
        let others = others.problems().iter().filter(before).cloned().collect();
        self.0.merge(others)
    }
}

/// Parses all texts. Later ones overlay earlier ones: tables key by key, other values as a whole.
pub(super) fn merged(sources: &[(PathBuf, String)]) -> Merged {
    let last = sources.last().map_or(Path::new(super::FILE_NAME), |(file, _)| file);
    let mut root = Node { item: TomlValue::Table(TomlTable::new()), location: Location { file: last.into(), line: 1 } };
    let mut error = ConfigError::default();
    for (file, text) in sources {
        let mut reader = TomlReader::new(file, text);
        match reader.document() {
            Some(table) => {
                let location = root.location.clone();
                overlay(&mut root, Node { item: TomlValue::Table(table), location });
            }
            None => debug_assert!(!reader.problems.is_empty(), "a text without a table has a problem"),
        }
        error = error.merge(reader.problems.into_iter().collect());
    }
    Merged { root, syntax: SyntaxErrors(error) }
}

fn overlay(below: &mut Node, above: Node) {
    let location = above.location;
    match (&mut below.item, above.item) {
        (TomlValue::Table(below), TomlValue::Table(above)) => {
            for (key, node) in above {
                match below.get_mut(&key) {
                    Some(old) => overlay(old, node),
                    None => drop(below.insert(key, node)),
                }
            }
        }
        (item, above) => *item = above,
    }
    below.location = location;
}

/// Parses one text into nodes.
struct TomlReader<'a> {
    file: Arc<Path>,
    text: &'a str,
    /// Byte offset of each line's start.
    lines: Vec<usize>,
    problems: Vec<Problem>,
}

impl<'a> TomlReader<'a> {
    fn new(file: &Path, text: &'a str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file: file.into(), text, lines, problems: Vec::new() }
    }

    /// Parses the text. None when it cannot be parsed at all; `problems` says why.
    fn document(&mut self) -> Option<TomlTable> {
        if self.text.len() > FILE_BYTES_MAX {
            self.problem(0, "", format!("longer than {FILE_BYTES_MAX} bytes"));
            return None;
        }
        if let Some(offset) = deep_key(self.text) {
            let line = self.line(offset);
            self.problem(line, "", format!("a key of more than {DEPTH_MAX} parts"));
            return None;
        }
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in errors.into_iter().take(SYNTAX_PROBLEMS_MAX) {
            let (line, key, text) = Mistake::new(self.text, error.message(), error.span()).describe();
            self.problem(line, &key, text);
        }
        Some(self.table("", document.into_inner(), 0))
    }

    fn table(&mut self, path: &str, table: DeTable<'_>, depth: usize) -> TomlTable {
        let mut nodes = TomlTable::new();
        for (key, value) in table {
            let line = self.line(key.span().start);
            let name = key.into_inner().into_owned();
            let path = join(path, &name);
            if let Some(node) = self.node(&path, value, line, depth + 1) {
                nodes.insert(name, node);
            }
        }
        nodes
    }

    fn node(&mut self, path: &str, value: Spanned<DeValue<'_>>, line: usize, depth: usize) -> Option<Node> {
        if depth > DEPTH_MAX {
            self.problem(line, path, format!("nested deeper than {DEPTH_MAX} levels"));
            return None;
        }
        let item = match value.into_inner() {
            DeValue::String(text) => TomlValue::Text(TextValue { value: text.into_owned(), written: None }),
            DeValue::Integer(integer) => match i128::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(integer) => TomlValue::Integer(integer),
                Err(_) => {
                    self.problem(line, path, "an integer of more than 128 bits".to_owned());
                    return None;
                }
            },
            DeValue::Float(float) => match float.as_str().parse() {
                Ok(float) => TomlValue::Float(float),
                Err(_) => {
                    self.problem(line, path, "not a number".to_owned());
                    return None;
                }
            },
            DeValue::Boolean(flag) => TomlValue::Flag(flag),
            DeValue::Datetime(time) => TomlValue::Time(time.to_string()),
            DeValue::Array(array) => {
                let mut nodes = Vec::with_capacity(array.len());
                for (index, value) in array.into_iter().enumerate() {
                    let line = self.line(value.span().start);
                    nodes.extend(self.node(&format!("{path}[{index}]"), value, line, depth + 1));
                }
                TomlValue::Array(nodes)
            }
            DeValue::Table(table) => TomlValue::Table(self.table(path, table, depth)),
        };
        Some(Node { item, location: Location { file: self.file.clone(), line } })
    }

    fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset).max(1)
    }

    fn problem(&mut self, line: usize, key: &str, text: String) {
        push(&mut self.problems, Problem { file: self.file.to_path_buf(), line, key: key.to_owned(), text });
    }
}

/// Returns the offset of a dotted key with too many parts. The parser limits the nesting of brackets, but not this; each part
/// is a table within a table, and dropping hundreds of thousands of them would overflow the stack.
fn deep_key(text: &str) -> Option<usize> {
    let mut dots = 0;
    for token in toml_parser::Source::new(text).lex() {
        match token.kind() {
            TokenKind::Dot => dots += 1,
            TokenKind::Newline | TokenKind::Equals | TokenKind::Comma | TokenKind::LeftCurlyBracket => dots = 0,
            TokenKind::LeftSquareBracket | TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => dots = 0,
            _ => {}
        }
        if dots >= DEPTH_MAX {
            return Some(token.span().start());
        }
    }
    None
}

/// The full name of `key` in the table at `path`, quoted where TOML requires it.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let dot = if path.is_empty() { "" } else { "." };
    if !key.is_empty() && key.bytes().all(bare) {
        format!("{path}{dot}{key}")
    } else {
        format!("{path}{dot}{:?}", shortened(key))
    }
}

/// Shortens a text to 60 characters.
pub(super) fn shortened(text: &str) -> String {
    const CHARACTERS_MAX: usize = 60;
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}
