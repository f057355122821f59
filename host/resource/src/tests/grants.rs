//! Tests of grants, and of the errors of modules that lack one.

use std::sync::Arc;

use super::super::fake::{Script, pool, resource};
use super::super::{Resource, ResourceError, Resources};
use wasmcage_config::{ConfigError, Grants, Section};
use wasmcage_core::telemetry::{Level, LevelCell};

fn no_protocol(_: &str, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
    Err(section.refused("nothing is made here"))
}

#[tokio::test]
async fn a_module_uses_what_it_was_granted_and_is_told_what_to_write_otherwise() {
    let resources = Resources::new("runner", Arc::new(LevelCell::new(Level::Error)), Arc::new(no_protocol));
    let script = Script::new();
    for name in ["orders", "secrets"] {
        resources.by_name.write().insert(name.into(), resource(name, &script, pool(1), None));
    }
    let grants = Grants { resources: vec!["orders".into(), "gone".into()], ..Grants::default() };
    let ask = |name: &str| resources.granted(name, "work", &grants).map(|found| found.name().to_owned());
    let check = |name: &str, code: &str, text: &str| {
        let error = ask(name).unwrap_err();
        assert!(error.recoverable && !error.terminal, "{error:?}");
        assert_eq!((&*error.participant, &*error.code), (name, code));
        assert!(error.text.contains(text), "{error}");
    };
    assert_eq!(ask("orders").unwrap(), "orders");
    check("secrets", ResourceError::NOT_PERMITTED, "allow = { resources = [..] } of [modules.work]");
    check("order", ResourceError::NO_SUCH_RESOURCE, "did you mean `orders`?");
    check("gone", ResourceError::NO_SUCH_RESOURCE, "there is no [resources.gone] in the cage.toml of cage runner");
    // Errors name no resources that the module was not granted.
    assert!(!ask("secret").unwrap_err().text.contains("secrets"));
}
