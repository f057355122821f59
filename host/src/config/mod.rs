//! `cage.toml` to a checked `CageConfig`: the shared file overlaid by the cage's own, variables expanded, every mistake of
//! both told together with file, line, key, and what is allowed. Read by `cage.rs` at start and whenever a file changes.

mod document;
mod section;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::document::Origin;
pub use self::section::{Section, did_you_mean};
use crate::telemetry::{Level, LogFormat, LogSettings};

/// In a cage's directory, and in the shared one.
pub const FILE_NAME: &str = "cage.toml";
/// Directory in the root whose files every cage falls back to.
pub const SHARED_DIRECTORY: &str = ".shared";
/// A larger `cage.toml` is refused.
const FILE_BYTES_MAX: u64 = 1 << 20;
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Value of a `${NAME}`, when it has one.
pub type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Names of modules, interfaces and resources: 1 to 64 of `A-Za-z0-9_-`.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// Counts from 1; 0 when it is about the file as a whole.
    pub line: usize,
    /// `interfaces.web.listen`; empty when it is about no key.
    pub key: String,
    pub text: String,
}

impl Problem {
    fn new(origin: &Origin, key: &str, text: String) -> Self {
        Self { file: origin.file.to_path_buf(), line: origin.line, key: key.to_owned(), text }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.text)
    }
}

/// All mistakes of a configuration, in the order of their files and lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(Vec<Problem>);

impl ConfigError {
    fn of(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| (&a.file, a.line, &a.key).cmp(&(&b.file, b.line, &b.key)));
        Self(problems)
    }

    pub fn problems(&self) -> &[Problem] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn merge(&mut self, other: Self) {
        *self = Self::of(std::mem::take(&mut self.0).into_iter().chain(other.0).collect());
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct CageConfig {
    pub cage: String,
    pub node: String,
    pub directory: PathBuf,
    pub log_level: Level,
    pub log_format: LogFormat,
    /// Daily log files older than this are removed; none keeps them all.
    pub log_retention_days: Option<u32>,
    /// Of a request that brings no deadline of its own; also the time that a stop may take.
    pub request_timeout: Duration,
    /// Requests in work at once.
    pub concurrency: usize,
    /// Requests waiting for a place.
    pub queue: usize,
    /// Calls within calls.
    pub call_depth: usize,
    pub interfaces: BTreeMap<String, InterfaceConfig>,
    /// Only the ones that are named; see `module`.
    pub modules: BTreeMap<String, ModuleConfig>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct InterfaceConfig {
    pub name: String,
    pub protocol: String,
    pub enabled: bool,
    pub module: String,
    pub timeout: Option<Duration>,
    pub export: ExportChoice,
    /// The protocol's own keys.
    pub section: Section,
}

/// Which export serves an interface when a component has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportChoice {
    Auto,
    Handler,
    WasiHttp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ModuleConfig {
    pub instances: InstancesConfig,
    /// Linear memory of one instance, all its memories together.
    pub memory_bytes: usize,
    pub table_elements: usize,
    /// Tighter than the request's.
    pub timeout: Option<Duration>,
    pub allow: Grants,
    pub env: Vec<(String, String)>,
    pub config: serde_json::Map<String, serde_json::Value>,
    /// The package that `wasmcage build` compiles.
    pub source: Option<PathBuf>,
    /// A new version must still export what is in use.
    pub compatible: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancesConfig {
    pub mode: InstanceMode,
    pub max: usize,
    /// Calls after which an instance is replaced.
    pub max_uses: u64,
    /// An instance that nobody used for so long is freed.
    pub idle_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceMode {
    /// Warm instances, many at once.
    Reuse,
    /// A new instance for each request.
    Fresh,
    /// One instance, one call after another.
    Single,
}

/// What a module may reach outside itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Cages it may call; its own needs no grant.
    pub cages: Vec<String>,
    /// Hosts it may send HTTP requests to. None: it may not even import the interface.
    pub http: Option<Vec<HostPattern>>,
    pub files: Vec<FileGrant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileGrant {
    pub host: PathBuf,
    pub guest: String,
    pub writable: bool,
}

/// `api.example.org:443`, `api.example.org` (any port), `*.example.org`, `*`, `[::1]:80`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    host: String,
    port: Option<u16>,
}

impl HostPattern {
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().map_err(|_| format!("{text:?}: {port:?} is not a port"))?;
                (host, Some(port))
            }
            _ => (text, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() || host.rfind('*').is_some_and(|at| at > 0) || host.contains('/') {
            return Err(format!("{text:?} is not a host such as \"api.example.org:443\", \"*.example.org\" or \"*\""));
        }
        Ok(Self { host, port })
    }

    /// `host` as a URL has it.
    pub fn allows(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let named = match self.host.strip_prefix('*') {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => host == self.host,
        };
        named && self.port.is_none_or(|allowed| allowed == port)
    }
}

impl Default for ModuleConfig {
    fn default() -> Self {
        Self {
            instances: InstancesConfig {
                mode: InstanceMode::Reuse,
                max: 64,
                max_uses: 100_000,
                idle_timeout: Duration::from_secs(60),
            },
            memory_bytes: 128 << 20,
            table_elements: 100_000,
            timeout: None,
            allow: Grants::default(),
            env: Vec::new(),
            config: serde_json::Map::new(),
            source: None,
            compatible: true,
        }
    }
}

impl CageConfig {
    /// Settings of a module, the defaults when `cage.toml` does not name it.
    pub fn module(&self, name: &str) -> ModuleConfig {
        self.modules.get(name).cloned().unwrap_or_default()
    }

    pub fn log_settings(&self) -> LogSettings {
        LogSettings { level: self.log_level, format: self.log_format, retention_days: self.log_retention_days }
    }
}

/// The configuration of a cage, from its directory and the shared one in `root`. `protocols` are the names that an
/// interface may have.
///
/// # Errors
/// All mistakes of both files.
pub fn load(root: &Path, cage: &str, node: &str, protocols: &[&str]) -> Result<CageConfig, ConfigError> {
    let directory = root.join(cage);
    let mut problems = Vec::new();
    let files = [root.join(SHARED_DIRECTORY).join(FILE_NAME), directory.join(FILE_NAME)];
    let texts: Vec<_> = files.into_iter().filter_map(|file| Some((read(&file, &mut problems)?, file))).collect();
    if !problems.is_empty() {
        return Err(ConfigError::of(problems));
    }
    let absolute = std::path::absolute(&directory).unwrap_or(directory);
    let variables = |name: &str| match name {
        "cage" => Some(cage.to_owned()),
        "node" => Some(node.to_owned()),
        "cage_dir" => Some(absolute.display().to_string()),
        other => std::env::var(other).ok(),
    };
    let sources: Vec<_> = texts.iter().map(|(text, file)| (file.as_path(), text.as_str())).collect();
    parse(&sources, &Place { cage, node, directory: &absolute, protocols, variables: &variables })
}

/// A file's text; none when it is not there.
fn read(file: &Path, problems: &mut Vec<Problem>) -> Option<String> {
    let text = match std::fs::metadata(file) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            Err(format!("has {} bytes, at most {FILE_BYTES_MAX} are read", metadata.len()))
        }
        Ok(_) => std::fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => Err(format!("cannot be read: {error}")),
    };
    text.map_err(|text| problems.push(Problem::new(&Origin::of_file(file.to_owned()), "", text))).ok()
}

/// What a configuration depends on besides its text.
pub struct Place<'a> {
    pub cage: &'a str,
    pub node: &'a str,
    pub directory: &'a Path,
    pub protocols: &'a [&'a str],
    pub variables: &'a Variables<'a>,
}

/// Files from the most general to the cage's own. Reads nothing but its arguments.
///
/// # Errors
/// All mistakes.
pub fn parse(sources: &[(&Path, &str)], place: &Place<'_>) -> Result<CageConfig, ConfigError> {
    let mut problems = Vec::new();
    let mut table = document::Table::new();
    for (file, text) in sources {
        document::overlay(&mut table, document::parse(file, text, &mut problems));
    }
    document::expand(&mut table, place.variables, &mut problems);
    let own = sources.last().map_or_else(|| place.directory.join(FILE_NAME), |(file, _)| file.to_path_buf());
    let mut root = Section::root(table, Origin::of_file(own), place.directory);
    let level = root.choice("log_level", &["error", "warn", "info", "debug", "trace"], "info");
    let config = CageConfig {
        cage: place.cage.to_owned(),
        node: place.node.to_owned(),
        directory: place.directory.to_owned(),
        log_level: level.parse().unwrap_or(Level::Info),
        log_format: match root.choice("log_format", &["text", "json"], "text").as_str() {
            "json" => LogFormat::Json,
            _ => LogFormat::Text,
        },
        log_retention_days: root.optional_integer("log_retention_days", 1..=36_500).map(|days| days as u32),
        request_timeout: root.milliseconds("request_timeout_ms", 10_000, 1..=DAY_MS),
        concurrency: root.integer("concurrency", 1_000, 1..=1_000_000) as usize,
        queue: root.integer("queue", 10_000, 0..=10_000_000) as usize,
        call_depth: root.integer("call_depth", 16, 1..=64) as usize,
        interfaces: named(&mut root, "interfaces", |name, section| interface(name, section, place.protocols)),
        modules: named(&mut root, "modules", |_, section| module(section)),
    };
    if let Err(error) = root.finish() {
        problems.extend(error.0);
    }
    if problems.is_empty() { Ok(config) } else { Err(ConfigError::of(problems)) }
}

fn named<T>(root: &mut Section, key: &str, mut read: impl FnMut(&str, Section) -> T) -> BTreeMap<String, T> {
    let Some(mut tables) = root.table(key) else { return BTreeMap::new() };
    let sections = tables.all_tables();
    for (name, _) in sections.iter().filter(|(name, _)| !is_name(name)) {
        tables.problem(name, "a name has 1 to 64 of A-Z, a-z, 0-9, _ and -");
    }
    sections.into_iter().map(|(name, section)| (name.clone(), read(&name, section))).collect()
}

fn interface(name: &str, mut section: Section, protocols: &[&str]) -> InterfaceConfig {
    let enabled = section.flag("enabled", true);
    if enabled && !section.has("protocol") {
        section.problem("protocol", format!("is needed: one of {}", protocols.join(", ")));
    }
    let module = section.string("module", &format!("interface_{name}"));
    if !is_name(&module) {
        section.problem("module", format!("{module:?} is not a module's name: the file's name without .wasm"));
    }
    InterfaceConfig {
        name: name.to_owned(),
        protocol: section.choice("protocol", protocols, ""),
        enabled,
        module,
        timeout: section.optional_milliseconds("timeout_ms", 1..=DAY_MS),
        export: match section.choice("export", &["auto", "handler", "wasi:http"], "auto").as_str() {
            "handler" => ExportChoice::Handler,
            "wasi:http" => ExportChoice::WasiHttp,
            _ => ExportChoice::Auto,
        },
        section: section.set_aside(),
    }
}

fn module(mut section: Section) -> ModuleConfig {
    let default = ModuleConfig::default();
    ModuleConfig {
        instances: section.table("instances").map_or(default.instances, instances),
        memory_bytes: (section.integer("memory_mb", 128, 1..=4_095) as usize) << 20,
        table_elements: section.integer("table_elements", 100_000, 1..=200_000) as usize,
        timeout: section.optional_milliseconds("timeout_ms", 1..=DAY_MS),
        allow: section.table("allow").map_or(default.allow, grants),
        env: environment(&mut section),
        config: section.json("config"),
        source: section.path("source"),
        compatible: section.flag("compatible", true),
    }
}

fn instances(mut section: Section) -> InstancesConfig {
    InstancesConfig {
        mode: match section.choice("mode", &["reuse", "fresh", "single"], "reuse").as_str() {
            "fresh" => InstanceMode::Fresh,
            "single" => InstanceMode::Single,
            _ => InstanceMode::Reuse,
        },
        max: section.integer("max", 64, 1..=4_000) as usize,
        max_uses: section.integer("max_uses", 100_000, 1..=u64::MAX),
        idle_timeout: section.milliseconds("idle_timeout_ms", 60_000, 1..=DAY_MS),
    }
}

fn grants(mut section: Section) -> Grants {
    let mut hosts = Vec::new();
    let http = section.optional_strings("http");
    for text in http.iter().flatten() {
        match HostPattern::parse(text) {
            Ok(pattern) => hosts.push(pattern),
            Err(reason) => section.problem("http", reason),
        }
    }
    let files = section.tables("files").into_iter().map(file_grant).collect();
    Grants { cages: section.strings("cages", &[]), http: http.map(|_| hosts), files }
}

fn file_grant(mut section: Section) -> FileGrant {
    for key in ["host", "guest"] {
        if !section.has(key) {
            section.problem(key, "is needed: { host = \"directory\", guest = \"/name\", mode = \"ro\" }");
        }
    }
    FileGrant {
        host: section.path("host").unwrap_or_default(),
        guest: section.string("guest", "/"),
        writable: section.choice("mode", &["ro", "rw"], "ro") == "rw",
    }
}

fn environment(section: &mut Section) -> Vec<(String, String)> {
    let Some(mut table) = section.table("env") else { return Vec::new() };
    let keys: Vec<_> = table.keys();
    keys.into_iter().filter_map(|key| Some((key.clone(), table.optional_string(&key)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<CageConfig, ConfigError> {
        let variables = |name: &str| (name == "SECRET").then(|| "hunter2".to_owned());
        let place = Place {
            cage: "runner",
            node: "here",
            directory: Path::new("/cages/runner"),
            protocols: &["http"],
            variables: &variables,
        };
        parse(&[(Path::new("cage.toml"), text)], &place)
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let problems = parsed(text).err().unwrap_or_default();
        let lines: Vec<_> = problems.problems().iter().map(Problem::to_string).collect();
        assert_eq!(lines.len(), expected.len(), "{lines:#?}");
        for (line, part) in lines.iter().zip(expected) {
            assert!(line.contains(part), "{line:?} lacks {part:?}");
        }
        assert!(lines.iter().all(|line| !line.contains("hunter2")), "a secret in {lines:?}");
    }

    #[test]
    fn an_empty_file_is_a_configuration() {
        let config = parsed("").unwrap();
        assert_eq!((config.concurrency, config.queue), (1_000, 10_000));
        assert_eq!(config.module("any"), ModuleConfig::default());
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        check("log_level = \"inof\"", &["cage.toml:1: log_level: \"inof\" is none of error, warn, info"]);
        check("log_levle = \"info\"", &["cage.toml:1: log_levle: unknown key, did you mean \"log_level\"?"]);
        check("queue = -1", &["cage.toml:1: queue: -1 is not within 0 and 10000000"]);
        check("queue = \"many\"", &["queue: expected an integer, found a string"]);
        check("[interfaces.web]\nlisten = \"x\"", &["cage.toml:1: interfaces.web.protocol: is needed: one of http"]);
        check(
            "[interfaces.web]\nprotocol = \"htpp\"",
            &["cage.toml:2: interfaces.web.protocol: \"htpp\" is none of http"],
        );
        check("[interfaces.\"a b\"]\nprotocol = \"http\"", &["a name has 1 to 64"]);
        check("[modules.work]\ninstances = { mode = \"warm\" }", &["modules.work.instances.mode: \"warm\" is none of"]);
        check(
            "[modules.work]\ninstances = { maxx = 1 }",
            &["modules.work.instances.maxx: unknown key, did you mean \"max\"?"],
        );
        check("[modules.work]\nallow = { http = [\"a:b\"] }", &["\"b\" is not a port"]);
        check(
            "[modules.work]\nallow = { files = [{ guest = \"/x\" }] }",
            &["modules.work.allow.files.host: is needed"],
        );
        check("[modules.work]\nmemory_mb = 9999", &["modules.work.memory_mb: 9999 is not within 1 and 4095"]);
        check("[modules.work]\nenv = { A = 1 }", &["modules.work.env.A: expected a string, found an integer"]);
        check("queue = ${", &["cage.toml:1: "]);
        check("log_level = \"${UNSET}\"", &["variable UNSET is not set"]);
        check("log_level = \"${SECRET\"", &["without its }"]);
        check("interfaces = 3", &["interfaces: expected a table, found an integer"]);
        check(
            "queue = -1\nconcurrency = 0\n[modules.work]\ntimeout_ms = 0\n",
            &["cage.toml:1: queue", "cage.toml:2: concurrency", "cage.toml:4: modules.work.timeout_ms"],
        );
    }

    #[test]
    fn a_protocols_own_keys_are_left_to_it() {
        let config = parsed("[interfaces.web]\nprotocol = \"http\"\nlisten = \"x\"\nlisten2 = \"y\"").unwrap();
        let mut section = config.interfaces["web"].section.clone();
        assert_eq!(section.string("listen", ""), "x");
        let error = section.finish().unwrap_err().to_string();
        assert_eq!(
            error,
            "cage.toml:4: interfaces.web.listen2: unknown key, did you mean \"listen\"?; known are enabled, export, listen, module, protocol, timeout_ms"
        );
    }

    #[test]
    fn the_cages_file_is_laid_over_the_shared_one() {
        let place = Place {
            cage: "runner",
            node: "here",
            directory: Path::new("/cages/runner"),
            protocols: &["http"],
            variables: &|_| None,
        };
        let shared = "queue = 5\n[modules.work]\nmemory_mb = 64\nenv = { A = \"1\" }";
        let own = "[modules.work]\nenv = { B = \"2\" }";
        let config = parse(&[(Path::new("shared"), shared), (Path::new("own"), own)], &place).unwrap();
        let work = config.module("work");
        assert_eq!((config.queue, work.memory_bytes), (5, 64 << 20));
        assert_eq!(work.env, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())]);
        let wrong = parse(&[(Path::new("shared"), "queue = -5"), (Path::new("own"), "\nconcurrency = 0")], &place);
        let text = wrong.unwrap_err().to_string();
        assert!(text.contains("shared:1: queue") && text.contains("own:2: concurrency"), "{text}");
    }

    #[test]
    fn a_moved_line_is_no_change() {
        assert_eq!(parsed("queue = 5"), parsed("\n\nqueue = 5"));
        assert_ne!(parsed("queue = 5"), parsed("queue = 6"));
    }

    #[test]
    fn hosts_are_matched() {
        let check = |pattern: &str, host: &str, port: u16, expected: bool| {
            assert_eq!(HostPattern::parse(pattern).unwrap().allows(host, port), expected, "{pattern} {host}:{port}");
        };
        check("api.example.org:443", "API.example.org", 443, true);
        check("api.example.org:443", "api.example.org", 80, false);
        check("api.example.org", "api.example.org", 80, true);
        check("*.example.org", "a.b.example.org", 1, true);
        check("*.example.org", "example.org", 1, false);
        check("*", "anything", 1, true);
        check("[::1]:80", "[::1]", 80, true);
        assert!(HostPattern::parse("a*b").is_err() && HostPattern::parse("").is_err());
    }
}
