//! Parses the command line of `call`: the function, its arguments as JSON, bytes, durations.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use serde::de::IgnoredAny;

use super::{CONTENT_BYTES_MAX, CommandError};

/// The longest duration, such as for `--timeout`.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// A function as `MODULE.FUNCTION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FunctionName {
    pub(super) module: String,
    pub(super) function: String,
}

impl FunctionName {
    /// Splits at the first dot: the name of a module has none, that of a function may.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('.') {
            Some((module, function)) if !module.is_empty() && !function.is_empty() => {
                Ok(Self { module: module.to_owned(), function: function.to_owned() })
            }
            Some(_) | None => Err("expected MODULE.FUNCTION, such as work.handle".into()),
        }
    }
}

/// Builds `{"args": [..], "kwargs": {..}}` from the words on the command line.
///
/// # Errors
/// A name is given twice.
pub(super) fn json(words: &[String]) -> Result<String, String> {
    let (mut positional, mut named) = (Vec::new(), Vec::<(&str, String)>::new());
    for word in words {
        match word.split_once('=').filter(|(name, _)| is_name(name)) {
            Some((name, _)) if named.iter().any(|(known, _)| *known == name) => {
                return Err(format!("argument {name} is given twice"));
            }
            Some((name, value)) => named.push((name, value_of(value))),
            None => positional.push(value_of(word)),
        }
    }
    let named: Vec<_> = named.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    Ok(format!("{{\"args\":[{}],\"kwargs\":{{{}}}}}", positional.join(","), named.join(",")))
}

fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    text.starts_with(|first: char| first.is_ascii_lowercase()) && text.bytes().all(fits)
}

/// Returns the word as JSON: as it was typed if it is JSON, so that numbers keep all digits, otherwise as a string.
pub(crate) fn value_of(word: &str) -> String {
    match serde_json::from_str::<IgnoredAny>(word) {
        Ok(_) => word.to_owned(),
        Err(_) => serde_json::Value::from(word).to_string(),
    }
}

/// Reads a file, or standard input for `-`.
///
/// # Errors
/// It cannot be read, or is longer than the control socket can carry.
pub(crate) fn bytes(file: &Path) -> Result<Vec<u8>, CommandError> {
    let failed = |error| CommandError::failed(format!("cannot read {}", file.display()), error);
    let input: Box<dyn io::Read> = match file.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(file).map_err(failed)?),
    };
    let mut bytes = Vec::new();
    input.take(CONTENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > CONTENT_BYTES_MAX {
        return Err(CommandError::Usage(format!(
            "{} is longer than the {CONTENT_BYTES_MAX} bytes that can be carried",
            file.display()
        )));
    }
    Ok(bytes)
}

/// Parses a duration: `5s`, `500ms`, `1.5m`, or seconds without a unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)];
    let (number, seconds) = units
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?.trim_end(), seconds)))
        .expect("the last unit fits every text");
    let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let parsed = number.parse::<f64>().ok().filter(|_| plain);
    let parsed = parsed.and_then(|number| Duration::try_from_secs_f64(number * seconds).ok());
    match parsed {
        Some(parsed) if parsed < Duration::from_millis(1) => Err("the shortest is 1ms".into()),
        Some(parsed) if parsed > TIMEOUT_MAX => Err("the longest is 24h".into()),
        Some(parsed) => Ok(parsed),
        None => Err("expected a duration, such as 5s, 500ms or 2m".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_arguments() {
        let check = |words: &[&str], expected: Result<&str, &str>| {
            let words: Vec<_> = words.iter().map(ToString::to_string).collect();
            assert_eq!(json(&words).as_deref(), expected.map_err(str::to_owned).as_deref(), "{words:?}");
        };
        check(&[], Ok(r#"{"args":[],"kwargs":{}}"#));
        check(&["/", r#""/""#, "", "007", "a\"\n"], Ok(r#"{"args":["/","/","","007","a\"\n"],"kwargs":{}}"#));
        check(
            &["7", "-0.50", "null", "true", r#"[1, "x"]"#, r#"{"b": 1, "a": 2}"#, "18446744073709551616"],
            Ok(r#"{"args":[7,-0.50,null,true,[1, "x"],{"b": 1, "a": 2},18446744073709551616],"kwargs":{}}"#),
        );
        check(
            &["limit=10", "1", "max-size=[]", "note=", "to_=a=b"],
            Ok(r#"{"args":[1],"kwargs":{"limit":10,"max-size":[],"note":"","to_":"a=b"}}"#),
        );
        // These are no names of parameters.
        check(&["A=1", "=x", "/?a=b", "2x=3"], Ok(r#"{"args":["A=1","=x","/?a=b","2x=3"],"kwargs":{}}"#));
        check(&[r#""a=b""#], Ok(r#"{"args":["a=b"],"kwargs":{}}"#));
        check(&["a=1", "a=2"], Err("argument a is given twice"));
    }

    #[test]
    fn functions_have_a_module() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let found = FunctionName::parse(text).ok();
            let found = found.as_ref().map(|found| (found.module.as_str(), found.function.as_str()));
            assert_eq!(found, expected, "{text}");
        };
        check("work.handle", Some(("work", "handle")));
        check("work.acme:api/x@0.1.0#f", Some(("work", "acme:api/x@0.1.0#f")));
        check("work", None);
        check(".handle", None);
        check("work.", None);
    }

    #[test]
    fn durations_have_units() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(duration(text).ok().map(|found| found.as_millis() as u64), expected, "{text}");
        };
        check("5s", Some(5_000));
        check("500ms", Some(500));
        check("1.5m", Some(90_000));
        check("24h", Some(86_400_000));
        check("7", Some(7_000));
        check("0.25", Some(250));
        check("0", None);
        check("25h", None);
        check("-1s", None);
        check("1e3", None);
        check("inf", None);
        check("s", None);
        check("5 days", None);
    }

    #[test]
    fn files_are_read_up_to_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        std::fs::write(&file, [0, 255]).unwrap();
        assert_eq!(bytes(&file).unwrap(), [0, 255]);
        File::create(&file).unwrap().set_len(CONTENT_BYTES_MAX as u64 + 1).unwrap();
        assert!(bytes(&file).unwrap_err().to_string().contains("longer"));
        assert!(bytes(&directory.path().join("none")).unwrap_err().to_string().contains("cannot read"));
    }
}
