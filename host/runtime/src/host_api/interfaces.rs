//! Lists the interfaces that a module may import, with their versions. They are compared with a component's imports before it
//! is linked, so that the errors can name what is missing.

use crate::module::exports::compatible_version;
use wasmcage_config::nearest;

const CAGE: &[&str] = &["0.1.0"];
const WASI_2: &[&str] = &["0.2.12"];
const WASI_3: &[&str] = &["0.3.0"];
const WASI: &[&str] = &["0.2.12", "0.3.0"];
const CONFIG: &[&str] = &["0.2.0-rc.1", "0.2.0-draft", "0.2.0-draft-2024-09-27"];
const CONFIG_RUNTIME: &[&str] = &["0.2.0-draft"];
const KEYVALUE: &[&str] = &["0.2.0-draft", "0.2.0-draft2"];
/// The versions of `wasi:logging`. Components also import the proposal without a version.
const LOGGING: &[&str] = &["", "0.1.0-draft"];

/// The served interfaces, each with its versions. A version also serves imports of versions that are compatible with it by
/// semantic versioning.
const INTERFACES: &[(&str, &[&str])] = &[
    ("wasmcage:cage/types", CAGE),
    ("wasmcage:cage/log", CAGE),
    ("wasmcage:cage/context", CAGE),
    ("wasmcage:cage/call", CAGE),
    ("wasmcage:cage/config", CAGE),
    ("wasmcage:cage/state", CAGE),
    ("wasmcage:cage/lock", CAGE),
    ("wasmcage:cage/resources", CAGE),
    ("wasmcage:cage/transaction", CAGE),
    ("wasi:cli/environment", WASI),
    ("wasi:cli/exit", WASI),
    ("wasi:cli/stdin", WASI),
    ("wasi:cli/stdout", WASI),
    ("wasi:cli/stderr", WASI),
    ("wasi:cli/terminal-input", WASI),
    ("wasi:cli/terminal-output", WASI),
    ("wasi:cli/terminal-stdin", WASI),
    ("wasi:cli/terminal-stdout", WASI),
    ("wasi:cli/terminal-stderr", WASI),
    ("wasi:cli/types", WASI_3),
    ("wasi:clocks/monotonic-clock", WASI),
    ("wasi:clocks/system-clock", WASI_3),
    ("wasi:clocks/wall-clock", WASI_2),
    ("wasi:clocks/types", WASI_3),
    ("wasi:config/store", CONFIG),
    ("wasi:config/runtime", CONFIG_RUNTIME),
    ("wasi:filesystem/preopens", WASI),
    ("wasi:filesystem/types", WASI),
    ("wasi:http/types", WASI),
    ("wasi:http/outgoing-handler", WASI_2),
    ("wasi:http/client", WASI_3),
    ("wasi:io/error", WASI_2),
    ("wasi:io/poll", WASI_2),
    ("wasi:io/streams", WASI_2),
    ("wasi:keyvalue/store", KEYVALUE),
    ("wasi:keyvalue/atomics", KEYVALUE),
    ("wasi:keyvalue/batch", KEYVALUE),
    ("wasi:logging/logging", LOGGING),
    ("wasi:random/random", WASI),
    ("wasi:random/insecure", WASI),
    ("wasi:random/insecure-seed", WASI),
    ("wasi:sockets/instance-network", WASI_2),
    ("wasi:sockets/ip-name-lookup", WASI),
    ("wasi:sockets/network", WASI_2),
    ("wasi:sockets/tcp", WASI_2),
    ("wasi:sockets/tcp-create-socket", WASI_2),
    ("wasi:sockets/types", WASI_3),
    ("wasi:sockets/udp", WASI_2),
    ("wasi:sockets/udp-create-socket", WASI_2),
];

/// The interfaces for outgoing HTTP requests, each of which needs a grant of its host.
const OUTGOING_HTTP: [&str; 2] = ["wasi:http/outgoing-handler", "wasi:http/client"];

/// How far the host serves an import.
#[derive(Debug, PartialEq, Eq)]
pub enum Known {
    Served,
    /// The interface is served in other versions only, which the text lists.
    OtherVersions(String),
    /// The interface is not served. The name is that of a similar one, if there is one.
    Unknown(Option<&'static str>),
}

pub fn known(import: &str) -> Known {
    let (name, version) = import.split_once('@').unwrap_or((import, ""));
    let Some(versions) = versions(name) else {
        return Known::Unknown(nearest(name, INTERFACES.iter().map(|(name, _)| *name)));
    };
    let wanted = compatible_version(version);
    let serves = |served: &&str| **served == *version || (wanted.is_some() && compatible_version(served) == wanted);
    if versions.iter().any(serves) { Known::Served } else { Known::OtherVersions(versions_text(versions)) }
}

/// Returns the served versions of an imported interface, such as `0.2.12, 0.3.0`. None if the interface is unknown.
pub fn served_versions(import: &str) -> Option<String> {
    let (name, _) = import.split_once('@').unwrap_or((import, ""));
    versions(name).map(versions_text)
}

/// Returns a warning about an interface that a module may import although the host denies its use.
pub fn caveat(import: &str, hosts_granted: bool) -> Option<&'static str> {
    let (name, _) = import.split_once('@').unwrap_or((import, ""));
    if OUTGOING_HTTP.contains(&name) && !hosts_granted {
        return Some("each request is denied; name its host in allow = { http = [\"host:port\"] } of cage.toml");
    }
    name.starts_with("wasi:sockets/").then_some("each use is denied: a module has no sockets")
}

fn versions(name: &str) -> Option<&'static [&'static str]> {
    INTERFACES.iter().find(|(known, _)| *known == name).map(|(_, versions)| *versions)
}

fn versions_text(versions: &[&str]) -> String {
    let shown = versions.iter().map(|version| if version.is_empty() { "none" } else { version });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use wasmtime::component::Component;

    use super::*;
    use crate::host_api::linker;
    use crate::module::engine::{EngineKind, Engines};

    #[test]
    fn an_import_is_served_known_in_other_versions_or_unknown() {
        let check = |import: &str, expected: Known| assert_eq!(known(import), expected, "{import}");
        check("wasmcage:cage/log@0.1.0", Known::Served);
        check("wasi:cli/environment@0.2.3", Known::Served);
        check("wasi:cli/environment@0.2.99", Known::Served);
        check("wasi:cli/environment@0.3.0", Known::Served);
        check("wasi:logging/logging", Known::Served);
        check("wasi:keyvalue/store@0.2.0-draft2", Known::Served);
        let other = |versions: &str| Known::OtherVersions(versions.to_owned());
        check("wasi:cli/environment@0.3.0-rc-2025-09-16", other("0.2.12, 0.3.0"));
        check("wasi:cli/environment@0.4.0", other("0.2.12, 0.3.0"));
        check("wasi:cli/environment", other("0.2.12, 0.3.0"));
        check("wasi:http/outgoing-handler@0.3.0", other("0.2.12"));
        check("wasi:keyvalue/store@0.2.0-rc.1", other("0.2.0-draft, 0.2.0-draft2"));
        check("wasi:logging/logging@0.2.0", other("none, 0.1.0-draft"));
        check("wasmcage:cage/logs@0.1.0", Known::Unknown(Some("wasmcage:cage/log")));
        check("spin:key-value/key-value@2.0.0", Known::Unknown(None));
    }

    /// One function of each tested interface, which all served versions of the interface have.
    const FUNCTIONS: &[(&str, &str)] = &[
        ("wasi:cli/environment", "get-arguments"),
        ("wasi:cli/exit", "exit"),
        ("wasi:clocks/system-clock", "now"),
        ("wasi:clocks/wall-clock", "now"),
        ("wasi:config/store", "get-all"),
        ("wasi:config/runtime", "get-all"),
        ("wasi:filesystem/preopens", "get-directories"),
        ("wasi:io/poll", "poll"),
        ("wasi:keyvalue/store", "open"),
        ("wasi:keyvalue/batch", "get-many"),
        ("wasi:logging/logging", "log"),
        ("wasi:random/random", "get-random-u64"),
        ("wasi:sockets/ip-name-lookup", "resolve-addresses"),
        ("wasi:http/outgoing-handler", "handle"),
        ("wasi:http/client", "send"),
    ];

    #[test]
    fn what_is_named_here_is_linked() {
        let engines = Engines::start().unwrap();
        let engine = engines.get(EngineKind::Concurrent);
        let linker = linker(engine, EngineKind::Concurrent).unwrap();
        let error = |name: &str, version: &str, function: &str| {
            let at = if version.is_empty() { "" } else { "@" };
            // No function has this type: the error for a function that exists differs from that for a missing one.
            let wat = format!(
                "(component (import \"{name}{at}{version}\" (instance (export \"{function}\"
                    (func (param \"a\" u8) (param \"b\" u8) (param \"c\" u8) (param \"d\" u8) (param \"e\" u8))))))"
            );
            let component = Component::new(engine, wat::parse_str(wat).unwrap()).unwrap();
            format!("{:#}", linker.instantiate_pre(&component).err().unwrap())
        };
        for (name, function) in FUNCTIONS {
            for version in versions(name).unwrap() {
                let error = error(name, version, function);
                assert!(!error.contains("implementation is missing"), "{name}@{version} {function}: {error}");
            }
        }
        assert!(error("wasi:cli/environment", "0.4.0", "get-arguments").contains("implementation is missing"));
    }
}
