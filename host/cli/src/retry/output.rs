//! Formats retried calls as text.

use serde_json::Value;

use crate::ps::{aligned, word};

/// Formats the queues, then the calls.
pub(super) fn table(answer: &Value, dead: bool) -> String {
    let list = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let mut rows = vec![["QUEUE", "PENDING", "IN WORK", "DEAD"].map(str::to_owned)];
    let queues = list("queues");
    rows.extend(queues.iter().map(|queue| ["queue", "pending", "in_work", "dead"].map(|key| word(&queue[key]))));
    let mut text = aligned(&rows);
    let heading = ["ID", "QUEUE", "CALL", "STATE", "ATTEMPTS", if dead { "GIVEN UP" } else { "DUE" }, "WHY"];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(list("calls").iter().map(|call| {
        let when = word(&call[if dead { "given_up" } else { "due" }]);
        let [id, queue, state, attempts, error] =
            ["id", "queue", "state", "attempts", "error"].map(|key| word(&call[key]));
        [id, queue, callee(call), state, attempts, when, first_line(&error)]
    }));
    if !text.is_empty() && rows.len() > 1 {
        text.push('\n');
    }
    text += &aligned(&rows);
    match text.trim_end() {
        "" => "no retried calls".into(),
        text => text.into(),
    }
}

/// Formats everything about one call.
pub(super) fn one(answer: &Value) -> String {
    let call = &answer["call"];
    let mut rows = vec![["call".to_owned(), callee(call)]];
    let keys = call
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !["cage", "module", "function"].contains(&key.as_str()));
    rows.extend(keys.filter(|(_, value)| !value.is_null()).map(|(key, value)| [key.replace('_', " "), word(value)]));
    let arguments = &answer["arguments"];
    rows.push(match arguments["json"].as_str() {
        Some(json) => ["arguments".into(), json.into()],
        None => ["arguments (base64)".into(), word(&arguments["base64"])],
    });
    aligned(&rows).trim_end().into()
}

fn callee(call: &Value) -> String {
    let cage = call["cage"].as_str().map(|cage| format!("{cage}/")).unwrap_or_default();
    format!("{cage}{}.{}", word(&call["module"]), word(&call["function"]))
}

fn first_line(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(CHARACTERS_MAX).collect()
}
