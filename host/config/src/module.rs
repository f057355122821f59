//! `[modules.NAME]`: how many instances a module may have, their lifetime and limits, and what the module may access.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::TIMEOUT_MS_MAX;
use super::binding::Binding;
use super::grant::Grants;
use super::section::Section;
use super::web::OutgoingHttp;
use wasmcage_core::store_settings::Quota;

/// Most table elements of an instance. The pooling allocator reserves as many for each instance.
pub const TABLE_ELEMENTS_MAX: usize = 200_000;
/// Most handles of an instance. Each costs the host about 150 bytes.
const HANDLES_MAX: u64 = 10_000_000;

#[derive(Clone, PartialEq)]
pub struct ModuleConfig {
    pub instances: InstancesConfig,
    /// Linear memory of one instance.
    pub memory_bytes: usize,
    /// Linear memory of all instances of one version; none: limited only by the cage.
    pub total_memory_bytes: Option<usize>,
    /// Table elements of one instance.
    pub table_elements: usize,
    /// Most handles of one instance: streams, pollables, header fields and other resources of the host.
    pub handles: usize,
    /// Timeout of one request; the request's own deadline holds anyway.
    pub timeout: Option<Duration>,
    pub allow: Grants,
    /// How requests that `allow.http` permits are sent.
    pub http: OutgoingHttp,
    /// Imports that other modules answer.
    pub imports: Vec<Binding>,
    /// The guest's environment variables.
    pub env: Vec<(String, String)>,
    /// Quota of the module's durable data.
    pub state: Quota,
    /// The module's own settings.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// The package that the module is built from.
    pub source: Option<PathBuf>,
    /// A new version must still export what other modules use of the old one.
    pub compatible: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancesConfig {
    /// None: it depends on the module's exports, see `Exports::instance_mode`.
    pub mode: Option<InstanceMode>,
    /// Most instances of one version.
    pub max: usize,
    /// Number of requests after which an instance is replaced.
    pub max_uses: u64,
    /// An instance that was idle for so long is dropped.
    pub idle_timeout: Duration,
    /// An instance whose memory has grown by more than this since it started is dropped when its request ends.
    pub keep_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceMode {
    /// Instances stay warm and serve one request after another.
    Reuse,
    /// A new instance per request.
    Fresh,
    /// There is one instance only.
    Single,
}

impl Default for ModuleConfig {
    fn default() -> Self {
        Self {
            instances: InstancesConfig::default(),
            memory_bytes: 128 << 20,
            total_memory_bytes: None,
            table_elements: 100_000,
            handles: 200_000,
            timeout: None,
            allow: Grants::default(),
            http: OutgoingHttp::default(),
            imports: Vec::new(),
            env: Vec::new(),
            state: Quota::default(),
            config: serde_json::Map::new(),
            source: None,
            compatible: true,
        }
    }
}

impl Default for InstancesConfig {
    fn default() -> Self {
        Self { mode: None, max: 64, max_uses: 100_000, idle_timeout: Duration::from_secs(60), keep_bytes: 32 << 20 }
    }
}

/// Shows only names: values may be secrets.
impl fmt::Debug for ModuleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModuleConfig")
            .field("instances", &self.instances)
            .field("allow", &self.allow)
            .field("http", &self.http)
            .field("imports", &self.imports)
            .field("env", &self.env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("config", &self.config.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl ModuleConfig {
    pub(super) fn read(section: Section) -> Self {
        let default = Self::default();
        let config = Self {
            instances: section.table("instances").map_or(default.instances, InstancesConfig::read),
            memory_bytes: (section.integer("memory_mb", 128, 1..=4096) as usize) << 20,
            total_memory_bytes: super::megabytes(&section, "total_memory_mb"),
            table_elements: section.integer(
                "table_elements",
                default.table_elements as u64,
                1..=TABLE_ELEMENTS_MAX as u64,
            ) as usize,
            handles: section.integer("handles", default.handles as u64, 1..=HANDLES_MAX) as usize,
            timeout: section.optional_milliseconds("timeout_ms", 1..=TIMEOUT_MS_MAX),
            allow: section.table("allow").map_or(default.allow, Grants::read),
            http: section.table("http").map_or(default.http, OutgoingHttp::read),
            imports: section.table("imports").map_or(default.imports, Binding::read_all),
            env: environment(&section),
            state: section.table("state").map_or(default.state, state),
            config: section.table("config").map_or(default.config, |section| section.json()),
            source: section.path("source"),
            compatible: section.flag("compatible", default.compatible),
        };
        // Mistakes that `finish` finds are reported with those of the whole configuration.
        let _ = section.finish();
        config
    }
}

impl InstancesConfig {
    fn read(section: Section) -> Self {
        use InstanceMode::{Fresh, Reuse, Single};
        let default = Self::default();
        let config = Self {
            mode: section.choice(
                "mode",
                &[("reuse", Some(Reuse)), ("fresh", Some(Fresh)), ("single", Some(Single))],
                default.mode,
            ),
            max: section.integer("max", default.max as u64, 1..=100_000) as usize,
            max_uses: section.integer("max_uses", default.max_uses, 1..=1_000_000_000_000),
            idle_timeout: section.milliseconds("idle_timeout_ms", default.idle_timeout, 1..=TIMEOUT_MS_MAX),
            keep_bytes: (section.integer("keep_mb", (default.keep_bytes >> 20) as u64, 0..=4096) as usize) << 20,
        };
        // Mistakes that `finish` finds are reported with those of the whole configuration.
        let _ = section.finish();
        config
    }
}

fn state(section: Section) -> Quota {
    let default = Quota::default();
    let quota = Quota {
        bytes: section.integer("max_mb", default.bytes >> 20, 1..=1 << 20) << 20,
        entries: section.integer("max_entries", default.entries, 1..=1_000_000_000),
    };
    // Mistakes that `finish` finds are reported with those of the whole configuration.
    let _ = section.finish();
    quota
}

fn environment(section: &Section) -> Vec<(String, String)> {
    let pairs = section.pairs("env");
    for (name, value) in &pairs {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            section.problem("env", format!("{name:?} cannot be an environment variable"));
        }
    }
    pairs
}
