//! Implements `wasmcage:cage/config` and drafts of `wasi:config`: a module reads its own settings from `cage.toml`.

use serde_json::Value;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Linker, Lower};

use super::GuestState;
use super::bindings::config::Host;
use super::text::Name;
use wasmcage_config::ModuleConfig;

impl Host for GuestState {
    fn get(&mut self, key: String) -> Option<String> {
        text(&self.home.settings, &key)
    }

    fn all(&mut self) -> String {
        Value::Object(self.home.settings.config.clone()).to_string()
    }
}

/// The version that wasmtime implements.
const CANDIDATE: &str = "wasi:config/store@0.2.0-rc.1";
/// The drafts that toolchains still use. They differ from the release candidate by their names only.
const DRAFTS: [&str; 3] =
    ["wasi:config/store@0.2.0-draft", "wasi:config/store@0.2.0-draft-2024-09-27", "wasi:config/runtime@0.2.0-draft"];

/// The type `error` or `config-error` of `wasi:config`, which is never returned here.
#[derive(ComponentType, Lower)]
#[component(variant)]
#[expect(dead_code, reason = "the settings are in memory, and reading them cannot fail")]
enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

/// Adds the drafts, and replaces wasmtime's `get`, which copies a key before its length is checked.
///
/// # Errors
/// wasmtime returns an error when an interface is defined twice, which is a bug of the host.
pub(super) fn add_drafts(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    type Store<'a> = StoreContextMut<'a, GuestState>;
    let get = |store: Store<'_>, (key,): (Name,)| {
        Ok((Ok::<_, ConfigError>(text(&store.data().home.settings, &key.into_name())),))
    };
    linker.allow_shadowing(true);
    linker.instance(CANDIDATE)?.func_wrap("get", get)?;
    linker.allow_shadowing(false);
    for name in DRAFTS {
        let mut instance = linker.instance(name)?;
        instance.func_wrap("get", get)?;
        instance.func_wrap("get-all", |store: Store<'_>, (): ()| {
            let settings = &store.data().home.settings;
            let pairs = settings.config.keys().filter_map(|key| Some((key.clone(), text(settings, key)?)));
            Ok((Ok::<_, ConfigError>(pairs.collect::<Vec<_>>()),))
        })?;
    }
    Ok(())
}

/// Returns a setting: a text as it is, any other value as JSON. None if there is no such setting.
pub(super) fn text(settings: &ModuleConfig, key: &str) -> Option<String> {
    Some(match settings.config.get(key)? {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}
