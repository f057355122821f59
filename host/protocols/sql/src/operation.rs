//! Parses an operation's body: statements and their values. All mistakes that can be found without the database are
//! found here, before anything runs.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use super::statement::{self, Dialect, StatementKind, Template};
use super::value::Value;
use wasmcage_resource::{Operation, Phase, ResourceError};

/// The most statements of one operation.
const STATEMENTS_MAX: usize = 10_000;

type NamedValues = HashMap<String, Value>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OperationBody {
    sql: Option<String>,
    statements: Option<Vec<StatementEntry>>,
    #[serde(default)]
    values: NamedValues,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatementEntry {
    sql: String,
    #[serde(default)]
    values: NamedValues,
}

/// A statement with its values.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) sql: Arc<str>,
    /// Names and values in the order of the placeholders.
    pub(super) arguments: Vec<(String, Value)>,
    pub(super) kind: StatementKind,
}

/// Parses an operation into at least one statement.
///
/// # Errors
/// `BAD_OPERATION`; it is harmless.
pub(super) fn parse(operation: &Operation, dialect: Dialect) -> Result<Vec<Statement>, ResourceError> {
    let bad = |text: String| ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, text);
    if operation.action != "execute" {
        return Err(bad(format!("action {:?}: a database knows `execute` only", operation.action)));
    }
    let body: OperationBody =
        serde_json::from_slice(&operation.body).map_err(|error| bad(format!("the body: {error}")))?;
    let entries = match (body.sql, body.statements) {
        (Some(sql), None) => vec![StatementEntry { sql, values: NamedValues::new() }],
        (None, Some(statements)) => statements,
        _ => return Err(bad("the body: either `sql` or `statements`".into())),
    };
    if entries.is_empty() || entries.len() > STATEMENTS_MAX {
        return Err(bad(format!("{} statements: from 1 to {STATEMENTS_MAX} are possible", entries.len())));
    }
    let several = entries.len() > 1;
    let mut statements = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let statement = statement::parse(&entry.sql, dialect)
            .and_then(|template| bind(template, entry.values, &body.values))
            .map_err(|text| bad(if several { format!("statement {}: {text}", index + 1) } else { text }))?;
        statements.push(statement);
    }
    Ok(statements)
}

fn bind(template: Template, own: NamedValues, shared: &NamedValues) -> Result<Statement, String> {
    let Template { sql, parameters, kind } = template;
    let mut arguments = Vec::with_capacity(parameters.len());
    for name in parameters {
        let Some(value) = own.get(&name).or_else(|| shared.get(&name)).cloned() else {
            let mut known: Vec<&str> = own.keys().chain(shared.keys()).map(String::as_str).collect();
            known.sort_unstable();
            return Err(format!("parameter {{{name}}} has no value (there are: {})", known.join(", ")));
        };
        arguments.push((name, value));
    }
    Ok(Statement { sql: sql.into(), arguments, kind })
}
