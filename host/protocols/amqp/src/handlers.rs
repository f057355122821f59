//! The table `handlers`: it maps keys such as `rpc/command/echo` to functions of `service` modules, each with filters
//! in front of it: `"checks.urgent > work.echo"`. A function gets the message's content, or the whole message: `{
//! function = "audit.note", pass = "message" }`.

use std::collections::HashMap;

use serde_json::Value;

use wasmcage_config::Section;

const KEY: &str = "expected a key such as message/command/NAME, message/status/NAME or rpc/command/NAME";
const FUNCTION: &str = "expected MODULE.FUNCTION, with filters before it: \"MODULE.FILTER > MODULE.FUNCTION\", or \
                        { function = \"..\", pass = \"content\" or \"message\" }";
/// The most handlers of one key, and filters of one handler.
const HANDLERS_MAX: usize = 100;

/// A function of a module of this cage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModuleFunction {
    pub(super) module: String,
    pub(super) name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handler {
    /// They are called in this order; each may change the message or refuse it.
    pub(super) filters: Vec<ModuleFunction>,
    pub(super) function: ModuleFunction,
    /// The functions get the whole message, not only its content.
    pub(super) whole: bool,
}

/// The handlers by the messages' keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Handlers(HashMap<String, Vec<Handler>>);

impl std::fmt::Display for ModuleFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

impl ModuleFunction {
    /// Parses `MODULE.FUNCTION`.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (module, name) = text.trim().split_once('.')?;
        (!module.is_empty() && !name.is_empty()).then(|| Self { module: module.to_owned(), name: name.to_owned() })
    }
}

impl Handlers {
    /// Reads the table; none if it is missing, so that the interface's `handler` module gets all messages. `whole` is
    /// the default for handlers without `pass`. Mistakes are recorded in `section`.
    pub(super) fn read(section: &Section, whole: bool) -> Option<Self> {
        let table = section.json_table("handlers");
        if !section.has("handlers") {
            return None;
        }
        let mut handlers = HashMap::new();
        for (key, value) in table {
            match handlers_of_key(&key, value, whole) {
                Ok(read) => {
                    handlers.insert(key, read);
                }
                Err(text) => section.problem("handlers", format!("{key:?}: {text}")),
            }
        }
        Some(Self(handlers))
    }

    /// The handlers of a key; empty if it has none.
    pub(super) fn of(&self, key: &str) -> &[Handler] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }
}

fn handlers_of_key(key: &str, value: Value, whole: bool) -> Result<Vec<Handler>, String> {
    let is_rpc = key.strip_prefix("rpc/command/").is_some_and(|name| !name.is_empty());
    let is_message = key.strip_prefix("message/").is_some_and(|rest| rest.contains('/'));
    if !is_rpc && !is_message {
        return Err(KEY.into());
    }
    let values = match value {
        Value::Array(values) => values,
        value => vec![value],
    };
    match values.len() {
        0 => return Err("at least one function is needed".into()),
        1 => {}
        2..=HANDLERS_MAX if !is_rpc => {}
        _ if is_rpc => return Err("one function answers an rpc".into()),
        _ => return Err(format!("at most {HANDLERS_MAX} functions")),
    }
    values.iter().map(|value| handler(value, whole)).collect()
}

fn handler(value: &Value, whole: bool) -> Result<Handler, String> {
    let (text, whole) = match value {
        Value::String(text) => (text.as_str(), whole),
        Value::Object(table) => {
            if let Some(key) = table.keys().find(|key| !matches!(key.as_str(), "function" | "pass")) {
                return Err(format!("unknown key `{key}` (allowed: function, pass)"));
            }
            let whole = match table.get("pass").map(Value::as_str) {
                None => whole,
                Some(Some("content")) => false,
                Some(Some("message")) => true,
                Some(_) => return Err("pass: expected \"content\" or \"message\"".into()),
            };
            (table.get("function").and_then(Value::as_str).ok_or(FUNCTION)?, whole)
        }
        _ => return Err(FUNCTION.into()),
    };
    let functions: Option<Vec<ModuleFunction>> = text.split('>').map(ModuleFunction::read).collect();
    let mut filters = functions.filter(|functions| functions.len() <= HANDLERS_MAX).ok_or(FUNCTION)?;
    let function = filters.pop().ok_or(FUNCTION)?;
    Ok(Handler { filters, function, whole })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn function(module: &str, name: &str) -> ModuleFunction {
        ModuleFunction { module: module.into(), name: name.into() }
    }

    #[test]
    fn functions_and_filters_are_read() {
        let read = handlers_of_key("message/command/x", json!(["a.f > b.g", "c.h"]), false).unwrap();
        assert_eq!(read[0], Handler { filters: vec![function("a", "f")], function: function("b", "g"), whole: false });
        assert_eq!(read[1], Handler { filters: vec![], function: function("c", "h"), whole: false });
        assert!(handlers_of_key("rpc/command/x", json!("a.f"), false).is_ok());
    }

    #[test]
    fn each_handler_may_choose_between_content_and_message() {
        let mixed = json!(["a.f", { "function": "a.g > b.h", "pass": "message" }, { "function": "a.i" }]);
        let whole = |default| {
            let read = handlers_of_key("message/command/x", mixed.clone(), default).unwrap();
            read.iter().map(|handler| handler.whole).collect::<Vec<_>>()
        };
        assert_eq!(whole(false), [false, true, false]);
        assert_eq!(whole(true), [true, true, true]);
        let read = handlers_of_key("rpc/command/x", json!({ "function": "a.f", "pass": "content" }), true).unwrap();
        assert_eq!(read, [Handler { filters: vec![], function: function("a", "f"), whole: false }]);
    }

    #[test]
    fn mistakes_are_reported() {
        let check = |key: &str, value: Value, text: &str| {
            let error = handlers_of_key(key, value, false).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        check("echo", json!("a.f"), "expected a key such as");
        check("rpc/status/x", json!("a.f"), "expected a key such as");
        check("rpc/command/x", json!(["a.f", "a.g"]), "one function answers an rpc");
        check("message/command/x", json!([]), "at least one");
        check("message/command/x", json!("f"), "MODULE.FUNCTION");
        check("message/command/x", json!("a.f >"), "MODULE.FUNCTION");
        check("message/command/x", json!(1), "MODULE.FUNCTION");
        check("message/command/x", json!({ "pass": "message" }), "MODULE.FUNCTION");
        check("message/command/x", json!({ "function": "a.f", "pass": "all" }), "pass: expected");
        check("message/command/x", json!({ "function": "a.f", "pas": "message" }), "unknown key `pas`");
    }
}
