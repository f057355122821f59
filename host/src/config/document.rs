//! A `cage.toml` as a tree of values that know where they stand: parsed, overlaid, variables expanded. Says nothing of
//! what the keys mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Number;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Problem, Variables};

/// Of one file; a few of the first tell enough.
const SYNTAX_ERRORS_SHOWN: usize = 10;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// TOML has four kinds; nothing here uses one but a module's own `config`, as text.
    Datetime(String),
    Array(Vec<Item>),
    Table(Table),
}

pub type Table = BTreeMap<String, Item>;

/// Where a value stands.
#[derive(Clone, Debug)]
pub struct Origin {
    pub file: Arc<Path>,
    /// Counts from 1.
    pub line: usize,
}

#[derive(Clone, Debug)]
pub struct Item {
    pub value: Value,
    pub origin: Origin,
}

impl PartialEq for Item {
    /// A value that has moved to another line is the same value.
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Value {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date or time",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
        }
    }

    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::String(text) | Self::Datetime(text) => text.as_str().into(),
            Self::Integer(integer) => (*integer).into(),
            Self::Float(float) => Number::from_f64(*float).map_or_else(|| float.to_string().into(), Into::into),
            Self::Boolean(boolean) => (*boolean).into(),
            Self::Array(items) => items.iter().map(|item| item.value.to_json()).collect(),
            Self::Table(table) => table
                .iter()
                .map(|(key, item)| (key.clone(), item.value.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

/// One file's text.
pub fn parse(file: &Path, text: &str, problems: &mut Vec<Problem>) -> Table {
    let file: Arc<Path> = file.into();
    let lines = Lines::of(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors.iter().take(SYNTAX_ERRORS_SHOWN) {
        let line = lines.at(error.span().map_or(0, |span| span.start));
        let origin = Origin { file: file.clone(), line };
        problems.push(Problem::new(&origin, "", error.message().replace('\n', ", ")));
    }
    convert_table(root.get_ref(), &file, &lines, problems)
}

fn convert_table(table: &DeTable<'_>, file: &Arc<Path>, lines: &Lines, problems: &mut Vec<Problem>) -> Table {
    let items = table
        .iter()
        .map(|(key, value)| (key.get_ref().to_string(), convert(value, key.span().start, file, lines, problems)));
    items.collect()
}

fn convert(
    value: &Spanned<DeValue<'_>>,
    at: usize,
    file: &Arc<Path>,
    lines: &Lines,
    problems: &mut Vec<Problem>,
) -> Item {
    let origin = Origin { file: file.clone(), line: lines.at(at) };
    let mut unfit = |text: String| problems.push(Problem::new(&origin, "", text));
    let value = match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
        DeValue::Integer(integer) => {
            Value::Integer(i64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or_else(|_| {
                unfit(format!("integer {} does not fit 64 bits", integer.as_str()));
                0
            }))
        }
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or_else(|_| {
            unfit(format!("{} is not a float", float.as_str()));
            0.0
        })),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| convert(item, item.span().start, file, lines, problems)).collect())
        }
        DeValue::Table(table) => Value::Table(convert_table(table, file, lines, problems)),
    };
    Item { value, origin }
}

/// Key by key; a table is overlaid, anything else replaced.
pub fn overlay(base: &mut Table, over: Table) {
    for (key, item) in over {
        match (base.get_mut(&key), item) {
            (Some(Item { value: Value::Table(base), .. }), Item { value: Value::Table(over), .. }) => {
                overlay(base, over)
            }
            (_, item) => {
                base.insert(key, item);
            }
        }
    }
}

/// Replaces `${..}` in every string.
pub fn expand(table: &mut Table, variables: &Variables, problems: &mut Vec<Problem>) {
    for (key, item) in table.iter_mut() {
        expand_item(key, item, variables, problems);
    }
}

fn expand_item(key: &str, item: &mut Item, variables: &Variables, problems: &mut Vec<Problem>) {
    match &mut item.value {
        Value::String(text) => match expand_text(text, variables) {
            Ok(expanded) => *text = expanded,
            Err(reason) => problems.push(Problem::new(&item.origin, key, reason)),
        },
        Value::Array(items) => items.iter_mut().for_each(|item| expand_item(key, item, variables, problems)),
        Value::Table(table) => expand(table, variables, problems),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

/// `${NAME}`, `${NAME:-default}`; `$${` stands for `${`.
fn expand_text(text: &str, variables: &Variables) -> Result<String, String> {
    let (mut expanded, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("${") {
        let (before, found) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &found[2..];
            continue;
        }
        expanded.push_str(before);
        let end = found.find('}').ok_or("${ without its }; write $${ for a plain ${")?;
        let inside = &found[2..end];
        let (name, default) = inside.split_once(":-").map_or((inside, None), |(name, default)| (name, Some(default)));
        match (variables(name), default) {
            (Some(value), _) => expanded.push_str(&value),
            (None, Some(default)) => expanded.push_str(default),
            (None, None) => return Err(format!("variable {name} is not set; ${{{name}:-default}} gives it a default")),
        }
        rest = &found[end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Byte offsets to line numbers.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}

impl Origin {
    pub fn of_file(file: PathBuf) -> Self {
        Self { file: file.into(), line: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let variables = |name: &str| (name == "SET").then(|| "value".to_owned());
        match (expand_text(text, &variables), expected) {
            (Ok(expanded), Ok(expected)) => assert_eq!(expanded, expected),
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (got, expected) => panic!("{text}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn variables_are_expanded() {
        check("plain $ text", Ok("plain $ text"));
        check("a ${SET} b ${SET}", Ok("a value b value"));
        check("${UNSET:-dflt}${UNSET:-}", Ok("dflt"));
        check("$${SET}", Ok("${SET}"));
        check("${UNSET}", Err("variable UNSET is not set"));
        check("${SET", Err("without its }"));
    }
}
