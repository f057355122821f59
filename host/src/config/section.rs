//! A table of `cage.toml` being read: each `section.kind(key, ..)` takes one key, and every mistake is kept, so that all of
//! them are told together. Keys that nobody took are mistakes, too.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::document::{Item, Origin, Table, Value};
use super::{ConfigError, Problem};

/// Names much like each other score above this.
const ALIKE: f64 = 0.8;

pub struct Section {
    /// `interfaces.web`; empty for the file itself.
    path: String,
    origin: Origin,
    table: Arc<Table>,
    /// Relative paths in the file are relative to this.
    directory: Arc<Path>,
    /// Keys that were asked for, and so are known.
    asked: BTreeSet<String>,
    problems: Arc<Mutex<Vec<Problem>>>,
    /// Unknown keys were looked for.
    checked: bool,
}

impl Clone for Section {
    /// The same table and the keys asked for so far, with no mistakes yet: to be read again.
    fn clone(&self) -> Self {
        Self {
            path: self.path.clone(),
            origin: self.origin.clone(),
            table: self.table.clone(),
            directory: self.directory.clone(),
            asked: self.asked.clone(),
            problems: Arc::default(),
            // What is cloned is kept to be read again, not read now.
            checked: false,
        }
    }
}

impl PartialEq for Section {
    fn eq(&self, other: &Self) -> bool {
        self.table == other.table
    }
}

impl std::fmt::Debug for Section {
    /// Without the values, which may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}] {:?}", self.path, self.table.keys())
    }
}

impl Section {
    pub(super) fn root(table: Table, origin: Origin, directory: &Path) -> Self {
        Self {
            path: String::new(),
            origin,
            table: Arc::new(table),
            directory: directory.into(),
            asked: BTreeSet::new(),
            problems: Arc::default(),
            checked: false,
        }
    }

    /// The name of this table's last part.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    /// The directory of the cage.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn keys(&self) -> Vec<String> {
        self.table.keys().cloned().collect()
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub fn string(&mut self, key: &str, default: &str) -> String {
        self.optional_string(key).unwrap_or_else(|| default.to_owned())
    }

    pub fn optional_string(&mut self, key: &str) -> Option<String> {
        self.take(key, "a string", |value| match value {
            Value::String(text) => Some(text.clone()),
            _ => None,
        })
    }

    pub fn integer(&mut self, key: &str, default: u64, allowed: RangeInclusive<u64>) -> u64 {
        self.optional_integer(key, allowed).unwrap_or(default)
    }

    pub fn optional_integer(&mut self, key: &str, allowed: RangeInclusive<u64>) -> Option<u64> {
        let integer = self.take(key, "an integer", |value| match value {
            Value::Integer(integer) => Some(*integer),
            _ => None,
        })?;
        let fit = u64::try_from(integer).ok().filter(|integer| allowed.contains(integer));
        if fit.is_none() {
            self.problem(key, format!("{integer} is not within {} and {}", allowed.start(), allowed.end()));
        }
        fit
    }

    /// A duration; the key ends in `_ms`.
    pub fn milliseconds(&mut self, key: &str, default: u64, allowed: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.integer(key, default, allowed))
    }

    pub fn optional_milliseconds(&mut self, key: &str, allowed: RangeInclusive<u64>) -> Option<Duration> {
        self.optional_integer(key, allowed).map(Duration::from_millis)
    }

    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        let flag = self.take(key, "true or false", |value| match value {
            Value::Boolean(boolean) => Some(*boolean),
            _ => None,
        });
        flag.unwrap_or(default)
    }

    /// One of a few words.
    pub fn choice(&mut self, key: &str, allowed: &[&str], default: &str) -> String {
        let Some(chosen) = self.optional_string(key) else { return default.to_owned() };
        if !allowed.contains(&chosen.as_str()) {
            let hint = did_you_mean(&chosen, allowed.iter().copied());
            self.problem(key, format!("{chosen:?} is none of {}{hint}", allowed.join(", ")));
            return default.to_owned();
        }
        chosen
    }

    pub fn strings(&mut self, key: &str, default: &[&str]) -> Vec<String> {
        self.optional_strings(key).unwrap_or_else(|| default.iter().map(|&text| text.to_owned()).collect())
    }

    pub fn optional_strings(&mut self, key: &str) -> Option<Vec<String>> {
        let strings = |item: &Item| match &item.value {
            Value::String(text) => Some(text.clone()),
            _ => None,
        };
        self.take(key, "an array of strings", |value| match value {
            Value::Array(items) => items.iter().map(strings).collect(),
            _ => None,
        })
    }

    /// A path, made absolute from the cage's directory.
    pub fn path(&mut self, key: &str) -> Option<PathBuf> {
        let path = self.optional_string(key)?;
        Some(self.directory.join(path))
    }

    /// A table within this one. Its unknown keys are looked for when it is dropped.
    pub fn table(&mut self, key: &str) -> Option<Section> {
        let table = self.take(key, "a table", |value| match value {
            Value::Table(table) => Some(table.clone()),
            _ => None,
        })?;
        let origin = self.table.get(key).map_or_else(|| self.origin.clone(), |item| item.origin.clone());
        Some(self.child(key, origin, table))
    }

    /// An array of tables within this one.
    pub fn tables(&mut self, key: &str) -> Vec<Section> {
        let tables = |item: &Item| match &item.value {
            Value::Table(table) => Some((item.origin.clone(), table.clone())),
            _ => None,
        };
        let found = self.take(key, "an array of tables", |value| match value {
            Value::Array(items) => items.iter().map(tables).collect::<Option<Vec<_>>>(),
            _ => None,
        });
        found.into_iter().flatten().map(|(origin, table)| self.child(key, origin, table)).collect()
    }

    /// Names and tables within this one, all of them.
    pub fn all_tables(&mut self) -> Vec<(String, Section)> {
        self.keys().into_iter().filter_map(|key| Some((key.clone(), self.table(&key)?))).collect()
    }

    /// A table of any values, as JSON.
    pub fn json(&mut self, key: &str) -> serde_json::Map<String, serde_json::Value> {
        let json = self.take(key, "a table", |value| match (value, value.to_json()) {
            (Value::Table(_), serde_json::Value::Object(object)) => Some(object),
            _ => None,
        });
        json.unwrap_or_default()
    }

    /// Says what is wrong with a key's value, or with the section when it has no such key.
    pub fn problem(&mut self, key: &str, text: impl Into<String>) {
        let origin = self.table.get(key).map_or(&self.origin, |item| &item.origin);
        let problem = Problem::new(origin, &self.full(key), text.into());
        self.problems.lock().push(problem);
    }

    /// # Errors
    /// All mistakes found in this section and in those within it.
    pub fn finish(mut self) -> Result<(), ConfigError> {
        self.check_unknown();
        let problems = std::mem::take(&mut *self.problems.lock());
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::of(problems)) }
    }

    /// Kept to be read later by somebody else: what was not asked for yet is no mistake now.
    pub(super) fn set_aside(mut self) -> Self {
        self.checked = true;
        self.clone()
    }

    fn child(&self, key: &str, origin: Origin, table: Table) -> Self {
        Self {
            path: self.full(key),
            origin,
            table: Arc::new(table),
            directory: self.directory.clone(),
            asked: BTreeSet::new(),
            problems: self.problems.clone(),
            checked: false,
        }
    }

    fn full(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    fn take<T>(&mut self, key: &str, expected: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        self.asked.insert(key.to_owned());
        let table = self.table.clone();
        let item = table.get(key)?;
        let taken = read(&item.value);
        if taken.is_none() {
            self.problem(key, format!("expected {expected}, found {}", item.value.kind()));
        }
        taken
    }

    fn check_unknown(&mut self) {
        if std::mem::replace(&mut self.checked, true) {
            return;
        }
        let unknown: Vec<_> = self.table.keys().filter(|key| !self.asked.contains(*key)).cloned().collect();
        for key in unknown {
            let hint = did_you_mean(&key, self.asked.iter().map(String::as_str));
            let known = self.asked.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            self.problem(&key, format!("unknown key{hint}; known are {known}"));
        }
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        // A section set aside, or cloned and never read, asked for nothing.
        if !self.asked.is_empty() {
            self.check_unknown();
        }
    }
}

/// `; did you mean "x"?` when there is a name much like it.
pub fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let scored = known.map(|known| (strsim::jaro_winkler(known, name), known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score >= ALIKE);
    best.map_or_else(String::new, |(_, known)| format!(", did you mean {known:?}?"))
}
