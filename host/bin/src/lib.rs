//! The protocols of the program `wasmcage`. A new one is a crate, a feature, and one line here.

use wasmcage::Protocols;
use wasmcage_config::LeftOut;
use wasmcage_protocol::Protocol;

/// Every protocol that this build has, and the names of those that it was built without.
pub fn protocols() -> Protocols {
    let mut known: Vec<Box<dyn Protocol>> = Vec::new();
    let mut left_out: Vec<LeftOut> = Vec::new();
    macro_rules! protocol {
        ($feature:literal, $name:literal, $protocol:expr) => {
            #[cfg(feature = $feature)]
            known.push(Box::new($protocol));
            #[cfg(not(feature = $feature))]
            left_out.push(LeftOut { protocol: $name, feature: $feature });
        };
    }
    known.push(Box::new(wasmcage_fabric::Rpc));
    known.push(Box::new(wasmcage_fabric::ReverseRpc));
    protocol!("http", "http", wasmcage_http::Http);
    protocol!("retry", "retry", wasmcage_retry::Retry);
    protocol!("schedule", "schedule", wasmcage_schedule::Schedule);
    protocol!("sql", "sql", wasmcage_sql::Sql);
    protocol!("file", "file", wasmcage_file::File);
    protocol!("amqp", "amqp", wasmcage_amqp::Amqp);
    Protocols::new(known).without(left_out)
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
