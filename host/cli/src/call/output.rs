//! Prints the result of a call on standard output: JSON, on a terminal on several lines; bytes as they are.

use std::io::{self, IsTerminal as _};

use wasmcage_core::request::Payload;

use super::{CommandError, CopyAnswer, EncodedPayload};
use crate::control::{CommandRefusal, CommandResult};
use crate::supervisor::{FAILED, STOPPED};
use crate::{print, print_bytes};

/// Prints one result.
pub(crate) fn print_one(result: EncodedPayload, raw: bool) -> Result<(), CommandError> {
    let terminal = io::stdout().is_terminal();
    let result = result.payload().map_err(|error| CommandError::failed("the result cannot be read", error))?;
    match result {
        Payload::Json(json) => match serde_json::from_str::<String>(&json) {
            Ok(text) if raw => print_bytes(text.as_bytes()),
            Ok(_) | Err(_) if raw => print_bytes(json.as_bytes()),
            Ok(_) | Err(_) => print(shown(json, terminal)),
        },
        Payload::Bytes(bytes) if terminal && !raw => Err(CommandError::Usage(format!(
            "the result is {} bytes and no JSON: redirect the output, or add --raw to have them on the terminal",
            bytes.len()
        ))),
        Payload::Bytes(bytes) => print_bytes(&bytes),
        // `EncodedPayload` never has component values.
        Payload::Values(values) => print_bytes(&values.bytes()),
    }
}

/// Prints the answer of each copy. The exit code is 0 if all of them have a result.
pub(super) fn print_all(answers: Vec<CopyAnswer>) -> Result<u8, CommandError> {
    let failed = answers.iter().any(|answer| matches!(answer.result, CommandResult::Error(_)));
    let answers: Vec<_> = answers.into_iter().map(copy).collect();
    print(shown(format!("[{}]", answers.join(",")), io::stdout().is_terminal()))?;
    Ok(if failed { FAILED } else { STOPPED })
}

fn copy(answer: CopyAnswer) -> String {
    let text = |text: String| serde_json::Value::from(text).to_string();
    let result = match answer.result {
        CommandResult::Ok(EncodedPayload::Json(json)) => format!("\"ok\":{json}"),
        CommandResult::Ok(EncodedPayload::Base64(base64)) => format!("\"ok\":{{\"base64\":{}}}", text(base64)),
        CommandResult::Error(CommandRefusal { code, text: why }) => {
            format!("\"error\":{{\"code\":{},\"text\":{}}}", text(code), text(why))
        }
    };
    format!("{{\"copy\":{},{result}}}", text(answer.copy))
}

fn shown(json: String, terminal: bool) -> String {
    if terminal { laid_out(&json) } else { json }
}

/// Formats JSON on several lines. It works on the text, so that numbers keep their digits and objects their order.
fn laid_out(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    let mut characters = json.chars().peekable();
    while let Some(character) = characters.next() {
        if in_string {
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
            out.push(character);
            continue;
        }
        match character {
            '{' | '[' => {
                while characters.next_if(char::is_ascii_whitespace).is_some() {}
                out.push(character);
                match characters.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        new_line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(character);
            }
            ',' => {
                out.push(',');
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            space if space.is_ascii_whitespace() => {}
            other => {
                in_string = other == '"';
                out.push(other);
            }
        }
    }
    out
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_laid_out_as_it_is() {
        let check = |json: &str, expected: &str| assert_eq!(laid_out(json), expected);
        check("1.50", "1.50");
        check(r#""a\"[{,:\\""#, r#""a\"[{,:\\""#);
        check("[]", "[]");
        check("{ }", "{}");
        check(
            r#"{"b":[1, 2],"a":{"c":"}"} }"#,
            "{\n  \"b\": [\n    1,\n    2\n  ],\n  \"a\": {\n    \"c\": \"}\"\n  }\n}",
        );
    }

    #[test]
    fn each_copy_is_one_object() {
        let json = CopyAnswer { copy: "local".into(), result: CommandResult::Ok(EncodedPayload::Json("[1.0]".into())) };
        assert_eq!(copy(json), r#"{"copy":"local","ok":[1.0]}"#);
        let bytes = CopyAnswer { copy: "0a".into(), result: CommandResult::Ok(EncodedPayload::bytes(&[0])) };
        assert_eq!(copy(bytes), r#"{"copy":"0a","ok":{"base64":"AA=="}}"#);
        let refusal = CommandRefusal { code: "lost".into(), text: "lost: \"x\"".into() };
        let error = CopyAnswer { copy: "0b".into(), result: CommandResult::Error(refusal) };
        assert_eq!(copy(error), r#"{"copy":"0b","error":{"code":"lost","text":"lost: \"x\""}}"#);
    }
}
