//! Puts variables into the texts of a configuration: `${VAR}` and `${VAR:-default}` from the environment, `${cage}`,
//! `${node}` and `${cage_dir}` from the host; `$${` stands for `${`. Done after the files are overlaid, so that a value
//! that is overridden may name what is not set. Called by `Section::root`.

use std::path::Path;

use super::error::{Problem, push};
use super::protocols::{LeftOut, ProtocolInfo};
use super::source::{Item, Node, Table, join, shortened};

/// A text may not grow beyond this by what is put into it.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// A shorter value from the environment is not taken for a secret: hiding it would only garble what is told.
const SECRET_BYTES_MIN: usize = 4;

/// Where a configuration is read: everything outside the files that has a say in what they mean.
pub struct Environment<'a> {
    pub cage: &'a str,
    pub node: &'a str,
    /// The cage's directory: relative paths start here.
    pub directory: &'a Path,
    /// What `protocol = ".."` may name.
    pub protocols: &'a [ProtocolInfo],
    /// What it might name in another build of the program.
    pub left_out: &'a [LeftOut],
    /// Looks a variable of the environment up.
    pub variables: &'a dyn Fn(&str) -> Option<String>,
}

/// A value from the environment, and how it may be shown.
pub(super) struct Secret {
    pub(super) value: String,
    pub(super) written: String,
}

/// What `expand` found on its way.
#[derive(Default)]
pub(super) struct Found {
    pub(super) secrets: Vec<Secret>,
    pub(super) problems: Vec<Problem>,
}

/// Expands every text beneath `table`.
pub(super) fn expand(table: &mut Table, path: &str, environment: &Environment, found: &mut Found) {
    for (key, node) in table {
        expand_node(node, &join(path, key), environment, found);
    }
}

fn expand_node(node: &mut Node, path: &str, environment: &Environment, found: &mut Found) {
    match &mut node.item {
        Item::Text(text) if text.value.contains("${") => {
            match expand_text(&text.value, environment, &mut found.secrets) {
                Ok(value) => text.written = Some(std::mem::replace(&mut text.value, value)),
                Err(text) => {
                    let (file, line) = (node.place.file.to_path_buf(), node.place.line);
                    push(&mut found.problems, Problem { file, line, key: path.to_owned(), text });
                }
            }
        }
        Item::Array(nodes) => {
            for (index, node) in nodes.iter_mut().enumerate() {
                expand_node(node, &format!("{path}[{index}]"), environment, found);
            }
        }
        Item::Table(table) => expand(table, path, environment, found),
        Item::Text(_) | Item::Integer(_) | Item::Float(_) | Item::Flag(_) | Item::Time(_) => {}
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

/// What `${inside}` stands for. A default is used when the variable is not set or empty, as a shell does it.
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
