//! One table of `cage.toml`. A protocol gets one for each of its interfaces and resources. Reading a key never fails: a mistake
//! is recorded, a default is returned, and `finish` reports all mistakes together, with the keys that nobody has read.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::error::{ConfigError, PROBLEMS_MAX, Problem, push};
use super::expand::{Environment, ExpandOutput, Secret, expand};
use super::nearest::nearest;
use super::source::{Location, Node, TomlTable, TomlValue, join};

/// Names of keys in other programs' configurations, and here.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("address", "listen"),
    ("bind", "listen"),
    ("host", "listen"),
    ("interval", "every"),
    ("level", "log_level"),
    ("memory", "memory_mb"),
    ("port", "listen"),
    ("timeout", "timeout_ms"),
    ("type", "protocol"),
    ("uri", "url"),
    ("username", "user"),
];

/// A table of the configuration.
pub struct Section {
    /// The table's full name, as in `interfaces.my_http`; empty for a whole file.
    path: String,
    name: String,
    location: Location,
    pub(super) table: TomlTable,
    shared: Arc<SharedSettings>,
    requested: Mutex<BTreeSet<String>>,
    /// Shared with the sections below, so that the outermost `finish` reports their mistakes, too.
    problems: Arc<Mutex<Vec<Problem>>>,
}

/// What all sections of one configuration share.
struct SharedSettings {
    directory: PathBuf,
    secrets: Vec<Secret>,
    /// False when a syntax error kept a part of the files from being read, so that a missing key may be there.
    is_whole: bool,
}

/// A clone has no mistakes of the original, but remembers the keys that were read.
impl Clone for Section {
    fn clone(&self) -> Self {
        Self {
            path: self.path.clone(),
            name: self.name.clone(),
            location: self.location.clone(),
            table: self.table.clone(),
            shared: self.shared.clone(),
            requested: Mutex::new(self.requested.lock().clone()),
            problems: Arc::default(),
        }
    }
}

/// Compares values, wherever they are written.
impl PartialEq for Section {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path && self.table == other.table && self.shared.directory == other.shared.directory
    }
}

/// Shows texts as they are written, without values from the environment.
impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Section").field("path", &self.path).field("table", &self.table).finish_non_exhaustive()
    }
}

/// Scalars and lists. Each method records a mistake when the value has another type or is out of range, and returns the
/// default, or none.
impl Section {
    pub fn string(&self, key: &str, default: &str) -> String {
        self.optional_string(key).unwrap_or_else(|| default.to_owned())
    }

    pub fn optional_string(&self, key: &str) -> Option<String> {
        self.get(key, "a string", |item| item.text().map(str::to_owned))
    }

    /// Returns an empty text, and records a mistake, when the key is not set.
    pub fn required_string(&self, key: &str) -> String {
        self.require(key, "a string");
        self.string(key, "")
    }

    /// The range is in the unit that the key names.
    pub fn integer(&self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.optional_integer(key, range).unwrap_or(default)
    }

    pub fn optional_integer(&self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        self.get(key, &expected, |item| {
            match item {
                TomlValue::Integer(integer) => u64::try_from(*integer).ok(),
                // Only texts can contain variables: `port = "${PORT}"`.
                TomlValue::Text(text) if text.written.is_some() => text.value.parse().ok(),
                _ => None,
            }
            .filter(|integer| range.contains(integer))
        })
    }

    /// Reads a duration in milliseconds; `range` is in milliseconds, too.
    pub fn milliseconds(&self, key: &str, default: Duration, range: RangeInclusive<u64>) -> Duration {
        self.optional_milliseconds(key, range).unwrap_or(default)
    }

    pub fn optional_milliseconds(&self, key: &str, range: RangeInclusive<u64>) -> Option<Duration> {
        self.optional_integer(key, range).map(Duration::from_millis)
    }

    pub fn flag(&self, key: &str, default: bool) -> bool {
        let flag = self.get(key, "true or false", |item| match item {
            TomlValue::Flag(flag) => Some(*flag),
            TomlValue::Text(text) if text.written.is_some() => text.value.parse().ok(),
            _ => None,
        });
        flag.unwrap_or(default)
    }

    /// Reads one of the named values.
    pub fn choice<T: Clone>(&self, key: &str, choices: &[(&str, T)], default: T) -> T {
        let Some(text) = self.optional_string(key) else { return default };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => value.clone(),
            None => {
                self.record_not_allowed(key, "a choice", choices.iter().map(|(name, _)| *name));
                default
            }
        }
    }

    pub fn strings(&self, key: &str, default: &[&str]) -> Vec<String> {
        let default = || default.iter().map(|text| (*text).to_owned()).collect();
        self.list(key, "a string", |text| Some(text.to_owned())).unwrap_or_else(default)
    }

    /// Reads a string that `T` can parse; `what` describes it, as in "an address such as 127.0.0.1:8080".
    pub fn parsed<T: FromStr>(&self, key: &str, default: T, what: &str) -> T {
        self.optional_parsed(key, what).unwrap_or(default)
    }

    pub fn optional_parsed<T: FromStr>(&self, key: &str, what: &str) -> Option<T> {
        self.get(key, what, |item| item.text()?.parse().ok())
    }

    /// Returns none, and records a mistake, when the key is not set.
    pub fn required_parsed<T: FromStr>(&self, key: &str, what: &str) -> Option<T> {
        self.require(key, what);
        self.optional_parsed(key, what)
    }

    /// Reads a list of such strings.
    pub fn parsed_list<T: FromStr>(&self, key: &str, default: Vec<T>, what: &str) -> Vec<T> {
        self.list(key, what, |text| text.parse().ok()).unwrap_or(default)
    }

    /// Reads a path, relative to the cage's directory unless absolute.
    pub fn path(&self, key: &str) -> Option<PathBuf> {
        let path =
            self.get(key, "a path", |item| item.text().filter(|text| !text.is_empty() && !text.contains('\0')))?;
        Some(self.shared.directory.join(path))
    }

    /// Reads a table whose values are all strings.
    pub fn pairs(&self, key: &str) -> Vec<(String, String)> {
        let Some(table) = self.table(key) else { return Vec::new() };
        let names: Vec<&String> = table.table.keys().collect();
        names.into_iter().filter_map(|name| Some((name.clone(), table.optional_string(name)?))).collect()
    }
}

/// Tables within the table.
impl Section {
    /// Reads a table as JSON, for values whose types only the caller can check; empty when not set.
    pub fn json_table(&self, key: &str) -> serde_json::Map<String, serde_json::Value> {
        self.table(key).map(|table| table.json()).unwrap_or_default()
    }

    pub fn table(&self, key: &str) -> Option<Section> {
        self.get(key, "a table", |item| match item {
            TomlValue::Table(table) => Some(table),
            _ => None,
        })
        .map(|table| self.child(join(&self.path, key), key, &self.table[key].location, table))
    }

    /// Reads an array of tables, `[[key]]`; empty when not set.
    pub fn tables(&self, key: &str) -> Vec<Section> {
        let Some(nodes) = self.array(key, "an array of tables") else { return Vec::new() };
        let mut sections = Vec::with_capacity(nodes.len());
        for (index, node) in nodes.iter().enumerate() {
            let path = format!("{}[{index}]", join(&self.path, key));
            match &node.item {
                TomlValue::Table(table) => sections.push(self.child(path, key, &node.location, table)),
                item => self.record(&node.location, path, format!("expected a table, got {}", item.described())),
            }
        }
        sections
    }

    /// Reads the tables `[key.NAME]`, each with its name.
    pub fn sections(&self, key: &str) -> Vec<(String, Section)> {
        let Some(outer) = self.table(key) else { return Vec::new() };
        outer.table.keys().filter_map(|name| Some((name.clone(), outer.table(name)?))).collect()
    }

    /// An empty section in place of `[key.NAME]`, which is not written.
    pub(super) fn absent(&self, key: &str, name: &str) -> Section {
        self.child(join(key, name), name, &self.location, &TomlTable::new())
    }

    /// Returns all keys, for tables whose keys are names.
    pub fn keys(&self) -> Vec<String> {
        self.table.keys().cloned().collect()
    }

    fn child(&self, path: String, name: &str, location: &Location, table: &TomlTable) -> Section {
        Section {
            path,
            name: name.to_owned(),
            location: location.clone(),
            table: table.clone(),
            shared: self.shared.clone(),
            requested: Mutex::default(),
            problems: self.problems.clone(),
        }
    }
}

/// Mistakes and the end.
impl Section {
    /// The last part of the table's name: that of the interface or resource.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The table's full name.
    pub fn full_name(&self) -> &str {
        &self.path
    }

    /// The cage's directory.
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// Returns whether the key is there, with any value.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Records a mistake that the caller has found. Values from the environment are hidden in it.
    pub fn problem(&self, key: &str, text: impl Into<String>) {
        let location = self.table.get(key).map_or(&self.location, |node| &node.location);
        self.record(location, join(&self.path, key), self.without_secrets(text.into()));
    }

    /// Records a mistake if `key` is a URL with another scheme than those allowed, and returns whether it is. A text that is no
    /// URL is left to the caller.
    pub fn has_wrong_scheme(&self, key: &str, allowed: &[&str]) -> bool {
        const SCHEME_CHARACTERS_MAX: usize = 20;
        let text = self.table.get(key).and_then(|node| node.item.text()).unwrap_or_default();
        let Some((scheme, _)) = text.split_once("://") else { return false };
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        let is_scheme = (1..=SCHEME_CHARACTERS_MAX).contains(&scheme.len()) && scheme.bytes().all(fits);
        if !is_scheme || allowed.iter().any(|known| known.eq_ignore_ascii_case(scheme)) {
            return false;
        }
        let allowed: Vec<_> = allowed.iter().map(|known| format!("{known}://")).collect();
        self.problem(key, format!("the URL's scheme {scheme}:// is none of {}", allowed.join(", ")));
        true
    }

    /// Records a mistake of the whole table.
    pub fn refuse(&self, text: impl Into<String>) {
        self.record(&self.location, self.path.clone(), self.without_secrets(text.into()));
    }

    /// Ends the reading of this table with this as its only mistake.
    pub fn refused(self, text: impl Into<String>) -> ConfigError {
        let text = self.without_secrets(text.into());
        Problem { file: self.location.file.to_path_buf(), line: self.location.line, key: self.path, text }.into()
    }

    /// Ends the reading of this table. The result of a table within another may be dropped: the outer `finish` reports its
    /// mistakes, too.
    ///
    /// # Errors
    /// All mistakes of this table and of those in it.
    pub fn finish(self) -> Result<(), ConfigError> {
        let requested = self.requested.lock();
        // The limit on reported mistakes also limits the work of finding similar keys.
        for (key, node) in self.table.iter().filter(|(key, _)| !requested.contains(*key)).take(PROBLEMS_MAX + 1) {
            let other_name = OTHER_NAMES.iter().find(|(other, known)| other == key && requested.contains(*known));
            let near = other_name.map(|(_, known)| *known);
            let meant = match near.or_else(|| nearest(key, requested.iter().map(String::as_str))) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => String::new(),
            };
            let allowed = requested.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            self.record(&node.location, join(&self.path, key), format!("unknown key{meant} (allowed: {allowed})"));
        }
        let problems = self.problems.lock();
        let own = |problem: &&Problem| self.path.is_empty() || is_beneath(&problem.key, &self.path);
        let error: ConfigError = problems.iter().filter(own).cloned().collect();
        error.into_result(())
    }
}

impl Section {
    /// Makes the outermost section, with variables expanded in all texts.
    pub(super) fn root(mut node: Node, environment: &Environment, is_whole: bool) -> Self {
        let mut found = ExpandOutput::default();
        let mut table = match &mut node.item {
            TomlValue::Table(table) => std::mem::take(table),
            _ => TomlTable::new(),
        };
        expand(&mut table, "", environment, &mut found);
        // The longest secrets come first, because one secret may be a part of another.
        found.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.value.len()));
        Self {
            path: String::new(),
            name: String::new(),
            location: node.location,
            table,
            shared: Arc::new(SharedSettings {
                directory: environment.directory.to_owned(),
                secrets: found.secrets,
                is_whole,
            }),
            requested: Mutex::default(),
            problems: Arc::new(Mutex::new(found.problems)),
        }
    }

    /// Records that the text of `key` is not allowed.
    pub(super) fn record_not_allowed<'a>(&self, key: &str, what: &str, allowed: impl Iterator<Item = &'a str> + Clone) {
        let Some(node) = self.table.get(key) else { return };
        let text = node.item.text().unwrap_or_default();
        let meant = nearest(text, allowed.clone()).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
        let allowed: Vec<String> = allowed.map(|allowed| format!("{allowed:?}")).collect();
        let got = node.item.described();
        self.record(
            &node.location,
            join(&self.path, key),
            format!("{got} is not {what}{meant} (allowed: {})", allowed.join(", ")),
        );
    }

    fn get<'a, T>(&'a self, key: &str, expected: &str, read: impl FnOnce(&'a TomlValue) -> Option<T>) -> Option<T> {
        self.requested.lock().insert(key.to_owned());
        let node = self.table.get(key)?;
        let value = read(&node.item);
        if value.is_none() {
            let text = format!("expected {expected}, got {}", node.item.described());
            self.record(&node.location, join(&self.path, key), text);
        }
        value
    }

    fn array(&self, key: &str, expected: &str) -> Option<&[Node]> {
        self.get(key, expected, |item| match item {
            TomlValue::Array(nodes) => Some(nodes.as_slice()),
            _ => None,
        })
    }

    fn list<T>(&self, key: &str, what: &str, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
        let nodes = self.array(key, &format!("a list, each {what}"))?;
        let mut values = Vec::with_capacity(nodes.len());
        for (index, node) in nodes.iter().enumerate() {
            match node.item.text().and_then(&read) {
                Some(value) => values.push(value),
                None => self.record(
                    &node.location,
                    format!("{}[{index}]", join(&self.path, key)),
                    format!("expected {what}, got {}", node.item.described()),
                ),
            }
        }
        Some(values)
    }

    fn require(&self, key: &str, what: &str) {
        if !self.has(key) {
            self.missing(key, &format!("expected {what}"));
        }
    }

    /// Records that a required key is not set.
    pub(super) fn missing(&self, key: &str, expected: &str) {
        if self.shared.is_whole {
            self.problem(key, format!("required and not set; {expected}"));
        }
    }

    pub(super) fn record(&self, location: &Location, key: String, text: String) {
        push(&mut self.problems.lock(), Problem { file: location.file.to_path_buf(), line: location.line, key, text });
    }

    fn without_secrets(&self, mut text: String) -> String {
        for secret in &self.shared.secrets {
            // The text may show the secret in quotes, with some characters escaped.
            for hidden in [&secret.value, &secret.value.escape_debug().to_string()] {
                if text.contains(hidden) {
                    text = text.replace(hidden, &secret.written);
                }
            }
        }
        text
    }
}

fn is_beneath(key: &str, path: &str) -> bool {
    key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}
