//! Which functions a message goes to: the table `handlers`, from keys such as `rpc/command/echo` to functions of `service`
//! modules, each behind filters: `"checks.urgent > work.echo"`.

use std::collections::HashMap;

use serde_json::Value;

use crate::config::Section;

const KEY: &str = "expected a key such as message/command/NAME, message/status/NAME or rpc/command/NAME";
const FUNCTION: &str = "expected MODULE.FUNCTION, with filters before it: \"MODULE.FILTER > MODULE.FUNCTION\"";
/// For one key, and filters of one handler.
const HANDLERS_MAX: usize = 100;

/// A function of a module of this cage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) module: String,
    pub(super) name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handler {
    /// In this order; each may change the message or refuse it.
    pub(super) filters: Vec<Function>,
    pub(super) function: Function,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Handlers(HashMap<String, Vec<Handler>>);

impl std::fmt::Display for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

impl Handlers {
    /// None: a `handler` module answers. Mistakes are recorded in `section`.
    pub(super) fn read(section: &Section) -> Option<Self> {
        let table = section.json_table("handlers");
        if !section.has("handlers") {
            return None;
        }
        let mut handlers = HashMap::new();
        for (key, value) in table {
            match read_one(&key, value) {
                Ok(read) => {
                    handlers.insert(key, read);
                }
                Err(text) => section.problem("handlers", format!("{key:?}: {text}")),
            }
        }
        Some(Self(handlers))
    }

    /// Empty: nobody.
    pub(super) fn of(&self, key: &str) -> &[Handler] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }
}

fn read_one(key: &str, value: Value) -> Result<Vec<Handler>, String> {
    let is_rpc = key.strip_prefix("rpc/command/").is_some_and(|name| !name.is_empty());
    let is_message = key.strip_prefix("message/").is_some_and(|rest| rest.contains('/'));
    if !is_rpc && !is_message {
        return Err(KEY.into());
    }
    let texts = match value {
        Value::String(text) => vec![text],
        Value::Array(values) => {
            let texts = values.iter().map(|value| value.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or(FUNCTION)?
        }
        _ => return Err(FUNCTION.into()),
    };
    match texts.len() {
        0 => return Err("at least one function is needed".into()),
        1 => {}
        2..=HANDLERS_MAX if !is_rpc => {}
        _ if is_rpc => return Err("one function answers an rpc".into()),
        _ => return Err(format!("at most {HANDLERS_MAX} functions")),
    }
    texts.iter().map(|text| handler(text)).collect()
}

fn handler(text: &str) -> Result<Handler, String> {
    let functions: Option<Vec<Function>> = text
        .split('>')
        .map(|part| {
            let (module, name) = part.trim().split_once('.')?;
            let function = Function { module: module.to_owned(), name: name.to_owned() };
            (!module.is_empty() && !name.is_empty()).then_some(function)
        })
        .collect();
    let mut filters = functions.filter(|functions| functions.len() <= HANDLERS_MAX).ok_or(FUNCTION)?;
    let function = filters.pop().ok_or(FUNCTION)?;
    Ok(Handler { filters, function })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn functions_and_filters_are_read() {
        let function = |module: &str, name: &str| Function { module: module.into(), name: name.into() };
        let read = read_one("message/command/x", json!(["a.f > b.g", "c.h"])).unwrap();
        assert_eq!(read[0], Handler { filters: vec![function("a", "f")], function: function("b", "g") });
        assert_eq!(read[1], Handler { filters: vec![], function: function("c", "h") });
        assert!(read_one("rpc/command/x", json!("a.f")).is_ok());
    }

    #[test]
    fn mistakes_are_told() {
        let check = |key: &str, value: Value, text: &str| {
            let told = read_one(key, value).unwrap_err();
            assert!(told.contains(text), "{told}");
        };
        check("echo", json!("a.f"), "expected a key such as");
        check("rpc/status/x", json!("a.f"), "expected a key such as");
        check("rpc/command/x", json!(["a.f", "a.g"]), "one function answers an rpc");
        check("message/command/x", json!([]), "at least one");
        check("message/command/x", json!("f"), "MODULE.FUNCTION");
        check("message/command/x", json!("a.f >"), "MODULE.FUNCTION");
        check("message/command/x", json!(1), "MODULE.FUNCTION");
    }
}
