//! The protocols of the program `wasmcage`. A new protocol is a crate, a feature, and one line here.

use wasmcage::Protocols;
use wasmcage_protocol::Protocol;

/// Builds the list. The arguments are the protocols that can be left out, each with the feature of the same name.
macro_rules! protocols {
    ($($name:literal: $protocol:expr),* $(,)?) => {{
        let known = [
            boxed(wasmcage_fabric::RpcProtocol),
            boxed(wasmcage_fabric::ReverseRpcProtocol),
            $(#[cfg(feature = $name)] boxed($protocol),)*
        ];
        let left_out = [$(#[cfg(not(feature = $name))] wasmcage_config::OmittedProtocol { protocol: $name, feature: $name },)*];
        Protocols::new(known.into()).without(left_out.into())
    }};
}

/// Returns every protocol of this build, and the names of those that were left out.
pub fn protocols() -> Protocols {
    protocols! {
        "amqp": wasmcage_amqp::AmqpProtocol,
        "file": wasmcage_file::FileProtocol,
        "http": wasmcage_http::HttpProtocol,
        "retry": wasmcage_retry::RetryProtocol,
        "schedule": wasmcage_schedule::ScheduleProtocol,
        "sql": wasmcage_sql::SqlProtocol,
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
