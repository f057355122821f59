//! Explains errors of the TOML parser, with a hint what to write instead. Values are not shown, since they may be secrets.

use std::ops::Range;

/// A syntax error and its position.
pub(super) struct Mistake<'a> {
    text: &'a str,
    message: &'a str,
    span: Option<Range<usize>>,
}

impl<'a> Mistake<'a> {
    pub(super) fn new(text: &'a str, message: &'a str, span: Option<Range<usize>>) -> Self {
        Self { text, message, span }
    }

    /// Returns line (0 when there is none), key (empty when it is not known) and text of the error.
    pub(super) fn describe(&self) -> (usize, String, String) {
        let Some(span) = &self.span else { return (0, String::new(), self.message.to_owned()) };
        let before = self.text.get(..span.start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        if self.message == "duplicate key" {
            let key = self.duplicate(before);
            return (line, key, self.message.to_owned());
        }
        let key = before.rsplit('\n').next().unwrap_or_default().trim_end().strip_suffix('=').map(str::trim);
        match key.filter(|key| key.split('.').all(super::is_name)) {
            Some(key) => (line, within(table_before(before), key), self.value(span.start)),
            None => (line, String::new(), self.message.to_owned()),
        }
    }

    /// Describes what is wrong with the value that begins at `start`.
    fn value(&self, start: usize) -> String {
        let rest = self.text.get(start..).unwrap_or_default();
        let word = rest.split(['\n', '#', ',']).next().unwrap_or_default().trim();
        match word.chars().next() {
            None => "no value after `=`".to_owned(),
            Some(_) if ["true", "false"].iter().any(|flag| flag.eq_ignore_ascii_case(word)) => {
                "true and false are written in small letters".to_owned()
            }
            Some(first) if first.is_alphabetic() => "a text is written in quotes, as in \"text\"".to_owned(),
            Some(_) => self.message.to_owned(),
        }
    }

    /// Returns the full name of a key or table that is there twice.
    fn duplicate(&self, before: &str) -> String {
        let line = before.rsplit('\n').next().unwrap_or_default();
        if line.trim_start().starts_with('[') {
            let rest = self.text.get(before.len() - line.len()..).unwrap_or_default();
            return header(rest.split('\n').next().unwrap_or_default()).unwrap_or_default().to_owned();
        }
        let key = self.span.clone().and_then(|span| self.text.get(span)).filter(|key| super::is_name(key));
        key.map(|key| within(table_before(before), key)).unwrap_or_default()
    }
}

/// Returns the name in the last table header before the mistake; empty when there is none.
fn table_before(text: &str) -> &str {
    text.split('\n').rev().skip(1).find_map(header).unwrap_or_default()
}

/// Returns the name in `[name]` or `[[name]]`.
fn header(line: &str) -> Option<&str> {
    let line = line.split('#').next()?.trim();
    let inside = line.strip_prefix('[')?.strip_suffix(']')?;
    let inside = inside.strip_prefix('[').and_then(|inside| inside.strip_suffix(']')).unwrap_or(inside).trim();
    inside.split('.').all(super::is_name).then_some(inside)
}

fn within(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}
