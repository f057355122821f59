//! Expands variables in the texts of a configuration: `${VAR}` and `${VAR:-default}` from the environment, `${cage}`,
//! `${node}` and `${cage_dir}` from the host; `$${` stands for `${`. This is done after the files are overlaid, so that a value
//! that is overridden may use a variable that is not set.

use std::path::Path;

use super::error::{Problem, push};
use super::protocols::{OmittedProtocol, ProtocolInfo};
use super::source::{Node, TomlTable, TomlValue, join, shortened};

/// Longest text after its variables are expanded.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Shortest value from the environment that is hidden as a secret. Hiding shorter ones would only garble messages.
const SECRET_BYTES_MIN: usize = 4;

/// Everything besides the files that the configuration depends on.
pub struct Environment<'a> {
    pub cage: &'a str,
    pub node: &'a str,
    /// The cage's directory, where relative paths start.
    pub directory: &'a Path,
    /// The protocols that `protocol = ".."` may name.
    pub protocols: &'a [ProtocolInfo],
    /// Protocols that another build of the program has.
    pub left_out: &'a [OmittedProtocol],
    /// Looks up an environment variable.
    pub variables: &'a dyn Fn(&str) -> Option<String>,
}

/// A value from the environment, and the variable as it is written, which may be shown.
pub(super) struct Secret {
    pub(super) value: String,
    pub(super) written: String,
}

/// Secrets and mistakes that `expand` has found.
#[derive(Default)]
pub(super) struct ExpandOutput {
    pub(super) secrets: Vec<Secret>,
    pub(super) problems: Vec<Problem>,
}

/// Expands all texts in `table`.
pub(super) fn expand(table: &mut TomlTable, path: &str, environment: &Environment, output: &mut ExpandOutput) {
    for (key, node) in table {
        expand_node(node, &join(path, key), environment, output);
    }
}

fn expand_node(node: &mut Node, path: &str, environment: &Environment, output: &mut ExpandOutput) {
    match &mut node.item {
        TomlValue::Text(text) if text.value.contains("${") => {
            match expand_text(&text.value, environment, &mut output.secrets) {
                Ok(value) => text.written = Some(std::mem::replace(&mut text.value, value)),
                Err(text) => {
                    let (file, line) = (node.location.file.to_path_buf(), node.location.line);
                    push(&mut output.problems, Problem { file, line, key: path.to_owned(), text });
                }
            }
        }
        TomlValue::Array(nodes) => {
            for (index, node) in nodes.iter_mut().enumerate() {
                expand_node(node, &format!("{path}[{index}]"), environment, output);
            }
        }
        TomlValue::Table(table) => expand(table, path, environment, output),
        TomlValue::Text(_) | TomlValue::Integer(_) | TomlValue::Float(_) | TomlValue::Flag(_) | TomlValue::Time(_) => {}
    }
}

fn expand_text(text: &str, environment: &Environment, secrets: &mut Vec<Secret>) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let Some((inside, after)) = after.split_once('}') else {
            return Err("`${` is not closed by `}`; write `$${` for the two characters themselves".to_owned());
        };
        expanded.push_str(&variable(inside, environment, secrets)?);
        if expanded.len() > TEXT_BYTES_MAX {
            return Err(format!("longer than {TEXT_BYTES_MAX} bytes with its variables put in"));
        }
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Returns the value of `${inside}`. As in a shell, a default is used when the variable is not set or empty.
fn variable(inside: &str, environment: &Environment, secrets: &mut Vec<Secret>) -> Result<String, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !starts || !bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        let name = shortened(name);
        return Err(format!("`${{{name}}}` names no variable; write `$${{` for the two characters `${{` themselves"));
    }
    let value = match name {
        "cage" => return Ok(environment.cage.to_owned()),
        "node" => return Ok(environment.node.to_owned()),
        "cage_dir" => return Ok(environment.directory.display().to_string()),
        name => (environment.variables)(name),
    };
    match (value, default) {
        (Some(value), default) if !value.is_empty() || default.is_none() => {
            if value.len() >= SECRET_BYTES_MIN && !secrets.iter().any(|secret| secret.value == value) {
                secrets.push(Secret { value: value.clone(), written: format!("${{{name}}}") });
            }
            Ok(value)
        }
        (_, Some(default)) => Ok(default.to_owned()),
        (_, None) => Err(format!(
            "the environment variable {name} is not set; set it, or write a default as in `${{{name}:-default}}`"
        )),
    }
}
