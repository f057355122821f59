//! The protocols of the program `wasmcage`. A new one is a crate, a feature, and one line here.

use wasmcage::Protocols;
use wasmcage_protocol::Protocol;

/// Those that can be left out, each after the feature that brings it and is called like it.
macro_rules! protocols {
    ($($name:literal: $protocol:expr),* $(,)?) => {{
        let known = [
            boxed(wasmcage_fabric::Rpc),
            boxed(wasmcage_fabric::ReverseRpc),
            $(#[cfg(feature = $name)] boxed($protocol),)*
        ];
        let left_out = [$(#[cfg(not(feature = $name))] wasmcage_config::OmittedProtocol { protocol: $name, feature: $name },)*];
        Protocols::new(known.into()).without(left_out.into())
    }};
}

/// Every protocol that this build has, and the names of those that it was built without.
pub fn protocols() -> Protocols {
    protocols! {
        "amqp": wasmcage_amqp::Amqp,
        "file": wasmcage_file::File,
        "http": wasmcage_http::Http,
        "retry": wasmcage_retry::Retry,
        "schedule": wasmcage_schedule::Schedule,
        "sql": wasmcage_sql::Sql,
    }
}

fn boxed(protocol: impl Protocol + 'static) -> Box<dyn Protocol> {
    Box::new(protocol)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_reference_is_a_configuration_that_loads() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("hello");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("cage.toml"), wasmcage_cli::REFERENCE).unwrap();
        let config = wasmcage::cage::load_config(root.path(), "hello", "n1", &protocols()).unwrap_or_else(|error| {
            panic!("{}", wasmcage_core::telemetry::error_chain(&error));
        });
        assert_eq!(config.interfaces.len(), 7);
        assert_eq!(config.resources.len(), 5);
        assert_eq!(config.modules.len(), 1);
    }
}
