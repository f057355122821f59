//! The module's own settings: `[modules.NAME] config = { .. }` in `cage.toml`.
//!
//! ```no_run
//! # use wasmcage_guest::{Result, config, serde};
//! # fn f() -> Result<()> {
//! let greeting = config::get("greeting").unwrap_or("hello".into());
//! let retries: Option<u32> = config::value("retries")?;
//!
//! #[derive(serde::Deserialize)]
//! # #[serde(crate = "wasmcage_guest::serde")]
//! struct Settings {
//!     greeting: String,
//!     retries: u32,
//! }
//! let settings: Settings = config::all()?;
//! # Ok(()) }
//! ```

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::arguments::Pairs;
use crate::bindings::imports::wasmcage::cage::config;
use crate::error::{Error, Result};

/// Returns a setting as text, or as JSON if it is no text; none when it is not set.
pub fn get(key: &str) -> Option<String> {
    config::get(key)
}

/// Returns a setting; none when it is not set.
///
/// # Errors
/// `Failed` when it does not fit `T`; the text names the key.
pub fn value<T: DeserializeOwned>(key: &str) -> Result<Option<T>> {
    find(&config::all(), key)
}

/// Returns all settings as one value, usually a struct.
///
/// # Errors
/// `Failed` when they do not fit `T`; the text names the key.
pub fn all<T: DeserializeOwned>() -> Result<T> {
    serde_json::from_str(&config::all())
        .map_err(|error| Error::failed(format_args!("the module's config in cage.toml: {error}")))
}

fn find<T: DeserializeOwned>(all: &str, key: &str) -> Result<Option<T>> {
    let settings: Pairs<'_> = serde_json::from_str(all)?;
    let Some((_, value)) = settings.0.into_iter().find(|(known, _)| known == key) else { return Ok(None) };
    let value: &RawValue = value;
    serde_json::from_str(value.get())
        .map(Some)
        .map_err(|error| Error::failed(format_args!("the module's config in cage.toml: {key}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_setting_is_found_by_key_and_type() {
        let all = r#"{"greeting": "5", "retries": 5, "nested": {"a": [1]}}"#;
        assert_eq!(find(all, "greeting"), Ok(Some("5".to_string())));
        assert_eq!(find(all, "retries"), Ok(Some(5)));
        assert_eq!(find::<u8>(all, "other"), Ok(None));
        let error = find::<u8>(all, "greeting").unwrap_err();
        assert!(error.text().contains("greeting: invalid type: string \"5\", expected u8"), "{error}");
    }
}
