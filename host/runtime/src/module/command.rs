//! Runs commands, which are components that export `wasi:cli/run` and are called with words like a program.

use serde::Deserialize;
use serde_json::value::RawValue;
use wasmtime::Store;
use wasmtime::component::{Func, Val};
use wasmtime_wasi::I32Exit;

use crate::host_api::GuestState;

/// The arguments of a call, `{"args": [..]}`. Named arguments are refused, because a command takes words.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments<'a> {
    #[serde(default, borrow)]
    args: Vec<&'a RawValue>,
    #[serde(default)]
    kwargs: serde_json::Map<String, serde_json::Value>,
}

/// Returns the words of a command: the module's name, as for programs, then the arguments. Strings are taken as they are, and
/// all other values as JSON.
///
/// # Errors
/// Returns the reason why the arguments are refused.
pub(super) fn words(module: &str, json: &str) -> Result<Vec<String>, String> {
    if json.len() > super::value::JSON_BYTES_MAX {
        return Err(format!("arguments of {} bytes, more than {}", json.len(), super::value::JSON_BYTES_MAX));
    }
    let arguments: Arguments<'_> =
        serde_json::from_str(json).map_err(|error| format!("arguments cannot be read: {error}"))?;
    if let Some(name) = arguments.kwargs.keys().next() {
        return Err(format!(
            "a command takes words, and no argument by name as `{name}`; write \"{name}=..\" as one word"
        ));
    }
    let word = |raw: &&RawValue| serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
    let words: Vec<_> = std::iter::once(module.to_owned()).chain(arguments.args.iter().map(word)).collect();
    match words.iter().find(|word| word.contains('\0')) {
        Some(word) => Err(format!("the word {word:?} has a NUL, which no program can be given")),
        None => Ok(words),
    }
}

/// Runs the command until it returns or calls `exit`, and returns its status, which is 0 for success.
///
/// # Errors
/// Returns the error of a trap.
pub(super) async fn run(func: Func, store: &mut Store<GuestState>) -> wasmtime::Result<i32> {
    let mut results = [Val::Bool(false)];
    match func.call_async(store, &[], &mut results).await {
        Ok(()) => Ok(i32::from(matches!(results, [Val::Result(Err(_))]))),
        Err(error) => match error.downcast_ref() {
            Some(I32Exit(status)) => Ok(*status),
            None => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_words() {
        #[track_caller]
        fn check(json: &str, expected: Result<&[&str], &str>) {
            match (words("tool", json), expected) {
                (Ok(words), Ok(expected)) => assert_eq!(words, expected),
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (got, expected) => panic!("{got:?}, expected {expected:?}"),
            }
        }
        check("{}", Ok(&["tool"]));
        check(
            r#"{"args":["-v","a b",7,0.50,null,{"b":1}],"kwargs":{}}"#,
            Ok(&["tool", "-v", "a b", "7", "0.50", "null", "{\"b\":1}"]),
        );
        check(r#"{"args":[],"kwargs":{"if":"x"}}"#, Err("no argument by name as `if`"));
        check(r#"{"args":["\u0000"]}"#, Err("NUL"));
        check(r#"{"args":7}"#, Err("arguments cannot be read"));
        check(r#"{"arg":[]}"#, Err("arguments cannot be read"));
    }
}
