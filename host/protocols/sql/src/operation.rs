//! The body of an operation: statements and their values. All that can be known to be wrong is found here, before anything runs.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use super::statement::{self, Dialect, Kind, Template};
use super::value::Value;
use wasmcage_resource::{Operation, Phase, ResourceError};

/// Statements of one operation.
const STATEMENTS_MAX: usize = 10_000;

type Values = HashMap<String, Value>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    sql: Option<String>,
    statements: Option<Vec<Entry>>,
    #[serde(default)]
    values: Values,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    sql: String,
    #[serde(default)]
    values: Values,
}

/// A statement that has all it needs.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) sql: Arc<str>,
    /// Names and values in the order of the placeholders.
    pub(super) arguments: Vec<(String, Value)>,
    pub(super) kind: Kind,
}

/// At least one statement.
///
/// # Errors
/// `BAD_OPERATION`, harmless.
pub(super) fn parse(operation: &Operation, dialect: Dialect) -> Result<Vec<Statement>, ResourceError> {
    let bad = |text: String| ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, text);
    if operation.action != "execute" {
        return Err(bad(format!("action {:?}: a database knows `execute` only", operation.action)));
    }
    let body: Body = serde_json::from_slice(&operation.body).map_err(|error| bad(format!("the body: {error}")))?;
    let entries = match (body.sql, body.statements) {
        (Some(sql), None) => vec![Entry { sql, values: Values::new() }],
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
            .and_then(|template| bound(template, entry.values, &body.values))
            .map_err(|text| bad(if several { format!("statement {}: {text}", index + 1) } else { text }))?;
        statements.push(statement);
    }
    Ok(statements)
}

fn bound(template: Template, own: Values, shared: &Values) -> Result<Statement, String> {
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
