//! Reads `cage.toml` into a checked `CageConfig`, when a cage starts and whenever a file changes. The cage's own file overlays
//! the shared one key by key, `${VAR}` is expanded, and all mistakes of all files are reported together. This crate depends on
//! no protocol: each protocol reads the keys of its interfaces and resources from the `Section` that it is given.

mod binding;
mod calls;
mod error;
mod expand;
mod files;
mod grant;
mod json;
mod listen;
mod mistake;
mod module;
mod nearest;
mod protocols;
mod section;
mod source;
pub mod testing;
mod web;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use binding::{Binding, BindingTarget};
pub use calls::CallsConfig;
pub use error::{ConfigError, Problem};
pub use expand::Environment;
pub use files::{ConfigSignal, FileStamps, files};
pub use grant::{FileGrant, Grants, HostPattern};
pub use listen::ListenAddress;
pub use module::{InstanceMode, InstancesConfig, ModuleConfig, TABLE_ELEMENTS_MAX};
pub use nearest::nearest;
pub use protocols::{OmittedProtocol, ProtocolInfo, RequestTarget};
pub use section::Section;
pub use web::{Authorities, OutgoingHttp, Proxy, url_port};

use wasmcage_core::store_settings::StoreSettings;
use wasmcage_core::telemetry::{Level, LogFormat, LogSettings};

/// Name of the configuration file in a cage's directory.
pub const FILE_NAME: &str = "cage.toml";
/// Name of the directory with the files that all cages share.
pub const SHARED_DIRECTORY: &str = ".shared";
/// Largest configuration file.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Longest name of a cage, module, interface or resource.
pub const NAME_CHARACTERS_MAX: usize = 64;
/// The flock of a cage that names none.
pub const DEFAULT_FLOCK: &str = "default";
/// Longest name of a flock. It is a part of a host name in certificates.
const FLOCK_NAME_CHARACTERS_MAX: usize = 40;

/// One day: the longest timeout that may be configured, in milliseconds.
const TIMEOUT_MS_MAX: u64 = 24 * 3600 * 1000;

/// The checked content of `cage.toml`, except for the keys of protocols.
#[derive(Clone, PartialEq)]
pub struct CageConfig {
    pub cage: String,
    pub node: String,
    /// Cages of one flock see each other.
    pub flock: String,
    /// Calls between cages.
    pub calls: CallsConfig,
    /// The cage's directory; `load` makes it absolute.
    pub directory: PathBuf,
    pub log_level: Level,
    pub log_format: LogFormat,
    /// How long log files are kept; none: for ever.
    pub log_retention_days: Option<u32>,
    /// Most bytes of log that are written on one day.
    pub log_day_bytes: u64,
    /// Timeout of requests that have no deadline of their own.
    pub request_timeout: Duration,
    /// Most requests in work; further ones wait.
    pub concurrency: usize,
    /// Most waiting requests; further ones fail because the cage is overloaded.
    pub queue: usize,
    /// Most nested calls on behalf of one request.
    pub call_depth: usize,
    /// Memory of all guests together; none: limited only by the process.
    pub guest_memory_bytes: Option<usize>,
    /// Settings of durable data.
    pub store: StoreSettings,
    pub interfaces: BTreeMap<String, InterfaceConfig>,
    pub resources: BTreeMap<String, ResourceConfig>,
    pub modules: BTreeMap<String, ModuleConfig>,
}

/// A named inbound endpoint. Two are equal when their settings are, wherever those are written.
#[derive(Clone, Debug, PartialEq)]
pub struct InterfaceConfig {
    pub name: String,
    pub protocol: String,
    pub enabled: bool,
    /// The module that serves it.
    pub module: String,
    /// Timeout of requests that have no deadline of their own; none: the cage's `request_timeout`.
    pub timeout: Option<Duration>,
    pub export: ExportChoice,
    /// Whether it makes the retried calls of the queue that has its name.
    pub serves_queue: bool,
    /// The protocol's own keys.
    pub section: Section,
}

/// The export of its module that an interface uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportChoice {
    /// The export that fits the protocol; the standard one if there are several.
    Auto,
    Handler,
    WasiHttp,
}

/// A named outbound endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceConfig {
    pub name: String,
    pub protocol: String,
    pub enabled: bool,
    /// Timeout of one operation; the request's deadline holds anyway.
    pub timeout: Option<Duration>,
    /// The protocol's own keys.
    pub section: Section,
}

/// Reads `.shared/cage.toml` and the cage's own under `root`. A file that does not exist is an empty one.
/// # Errors
/// Every mistake of both files.
pub fn load(
    root: &Path,
    cage: &str,
    node: &str,
    protocols: &[ProtocolInfo],
    left_out: &[OmittedProtocol],
) -> Result<CageConfig, ConfigError> {
    if !is_name(cage) {
        return Err(
            Problem { text: format!("{cage:?} cannot name a cage: {NAME_RULE}"), ..Problem::of_file(root) }.into()
        );
    }
    let directory = root.join(cage);
    let mut sources = Vec::new();
    let mut error = ConfigError::default();
    for file in files(root, cage) {
        match files::read(&file) {
            Ok(Some(text)) => sources.push((file, text)),
            Ok(None) => {}
            Err(text) => error.push(Problem { text, ..Problem::of_file(&file) }),
        }
    }
    let environment = Environment {
        cage,
        node,
        directory: &std::path::absolute(&directory).unwrap_or(directory),
        protocols,
        left_out,
        variables: &|name| std::env::var(name).ok(),
    };
    match parse(&sources, &environment) {
        Ok(config) => error.into_result(config),
        Err(more) => Err(error.merge(more)),
    }
}

/// Checks the texts of configuration files, the later overlaying the earlier.
/// # Errors
/// Every mistake of all of them.
pub fn parse(sources: &[(PathBuf, String)], environment: &Environment) -> Result<CageConfig, ConfigError> {
    let source::Merged { root, syntax } = source::merged(sources);
    let section = Section::root(root, environment, syntax.is_empty());
    let config = CageConfig {
        cage: environment.cage.to_owned(),
        node: environment.node.to_owned(),
        flock: calls::flock(&section),
        calls: CallsConfig::read(section.table("rpc")),
        directory: environment.directory.to_owned(),
        log_level: section.choice("log_level", LEVELS, Level::Info),
        log_format: section.choice(
            "log_format",
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            LogFormat::Text,
        ),
        log_retention_days: section.optional_integer("log_retention_days", 1..=36_500).map(|days| days as u32),
        log_day_bytes: section.integer("log_day_mb", 1_024, 1..=1 << 30) << 20,
        request_timeout: section.milliseconds("request_timeout_ms", Duration::from_secs(10), 1..=TIMEOUT_MS_MAX),
        concurrency: section.integer("concurrency", 1_000, 1..=1_000_000) as usize,
        queue: section.integer("queue", 10_000, 0..=10_000_000) as usize,
        call_depth: section.integer("call_depth", 16, 1..=1_000) as usize,
        guest_memory_bytes: megabytes(&section, "guest_memory_mb"),
        store: store(section.table("state")),
        interfaces: interfaces(&section, environment),
        resources: named(&section, "resources", |name, section| ResourceConfig::read(name, section, environment)),
        modules: named(&section, "modules", |_, section| ModuleConfig::read(section)),
    };
    match section.finish() {
        Ok(()) if syntax.is_empty() => Ok(config),
        Ok(()) => Err(syntax.with(ConfigError::default())),
        Err(others) => Err(syntax.with(others)),
    }
}

/// Reads a limit on memory in MiB, and returns it in bytes.
fn megabytes(section: &Section, key: &str) -> Option<usize> {
    section.optional_integer(key, 1..=1 << 30).map(|megabytes| (megabytes as usize) << 20)
}

impl CageConfig {
    /// The configuration of a module; the default one if `cage.toml` does not mention it.
    pub fn module(&self, name: &str) -> ModuleConfig {
        self.modules.get(name).cloned().unwrap_or_default()
    }

    pub fn log_settings(&self) -> LogSettings {
        LogSettings {
            level: self.log_level,
            format: self.log_format,
            retention_days: self.log_retention_days,
            day_bytes: self.log_day_bytes,
        }
    }
}

impl fmt::Debug for CageConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CageConfig").field("cage", &self.cage).finish_non_exhaustive()
    }
}

impl InterfaceConfig {
    fn read(name: &str, section: Section, environment: &Environment) -> Self {
        let protocol = protocol(name, &section, environment);
        Self {
            name: name.to_owned(),
            serves_queue: environment.protocols.iter().any(|known| known.name == protocol && known.serves_queue),
            protocol,
            enabled: section.flag("enabled", true),
            module: module_name(&section, name),
            timeout: section.optional_milliseconds("timeout_ms", 1..=TIMEOUT_MS_MAX),
            export: section.choice(
                "export",
                &[("handler", ExportChoice::Handler), ("wasi:http", ExportChoice::WasiHttp)],
                ExportChoice::Auto,
            ),
            section,
        }
    }
}

impl ResourceConfig {
    fn read(name: &str, section: Section, environment: &Environment) -> Self {
        Self {
            name: name.to_owned(),
            protocol: protocol(name, &section, environment),
            enabled: section.flag("enabled", true),
            timeout: section.optional_milliseconds("timeout_ms", 1..=TIMEOUT_MS_MAX),
            section,
        }
    }
}

/// Reads `[state]`.
fn store(section: Option<Section>) -> StoreSettings {
    const DEFAULT_MB: u64 = 50;
    let free_mb = section
        .as_ref()
        .map_or(DEFAULT_MB, |section| section.integer("minimum_free_space_mb", DEFAULT_MB, 0..=1 << 30));
    // Its mistakes are reported with those of the file.
    let _ = section.map(Section::finish);
    StoreSettings { minimum_free_bytes: free_mb << 20 }
}

/// Reads the interfaces, and adds those that exist without being named.
fn interfaces(section: &Section, environment: &Environment) -> BTreeMap<String, InterfaceConfig> {
    let read = |name: &str, section| InterfaceConfig::read(name, section, environment);
    let mut interfaces = named(section, "interfaces", read);
    for protocol in environment.protocols.iter().filter(|protocol| protocol.in_every_cage) {
        let name = protocol.name;
        let absent = || read(name, section.absent("interfaces", name));
        interfaces.entry(name.to_owned()).or_insert_with(absent);
    }
    interfaces
}

const LEVELS: &[(&str, Level)] = &[
    ("error", Level::Error),
    ("warn", Level::Warn),
    ("info", Level::Info),
    ("debug", Level::Debug),
    ("trace", Level::Trace),
];

const NAME_RULE: &str = "a name is 1 to 64 letters, digits, `_` or `-`";

/// Returns whether a cage, module, interface or resource may have this name.
pub fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=NAME_CHARACTERS_MAX).contains(&text.len()) && text.bytes().all(fits)
}

const FLOCK_NAME_RULE: &str = "a flock's name is 1 to 40 lower-case letters, digits or `-`";

/// Returns whether a flock may have this name.
pub fn is_flock_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=FLOCK_NAME_CHARACTERS_MAX).contains(&text.len())
        && text.bytes().all(fits)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Reads the tables `[key.NAME]`.
fn named<T>(section: &Section, key: &str, read: impl Fn(&str, Section) -> T) -> BTreeMap<String, T> {
    let mut all = BTreeMap::new();
    for (name, section) in section.sections(key) {
        if !is_name(&name) {
            section.refuse(NAME_RULE);
        }
        let value = read(&name, section);
        all.insert(name, value);
    }
    all
}

/// Reads the protocol, which may be left out if the interface or resource has its name.
fn protocol(name: &str, section: &Section, environment: &Environment) -> String {
    let known: Vec<_> = environment.protocols.iter().map(|protocol| protocol.name).collect();
    let protocol = match section.optional_string("protocol") {
        Some(protocol) => protocol,
        None if section.has("protocol") => return String::new(),
        None if known.contains(&name) => return name.to_owned(),
        None => {
            section.missing("protocol", &format!("allowed: {}", known.join(", ")));
            return String::new();
        }
    };
    if let Some(left_out) = environment.left_out.iter().find(|left_out| left_out.protocol == protocol) {
        let text =
            format!("this program was built without protocol {protocol}: build it with feature {:?}", left_out.feature);
        section.problem("protocol", text);
    } else if !known.contains(&protocol.as_str()) {
        section.record_not_allowed("protocol", "a protocol", known.iter().copied());
    }
    protocol
}

fn module_name(section: &Section, interface: &str) -> String {
    let name = section.string("module", &format!("interface_{interface}"));
    // A default that is invalid comes from the interface's name, whose mistake is recorded already.
    if section.has("module") && !name.is_empty() && !is_name(&name) {
        section.problem("module", format!("{name:?} cannot name a module: {NAME_RULE}"));
    }
    name
}

#[cfg(test)]
mod tests;
