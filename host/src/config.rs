//! stub until the reader lands
use crate::telemetry::{Level, LogSettings};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const FILE_NAME: &str = "cage.toml";
pub const SHARED_DIRECTORY: &str = ".shared";
pub fn is_name(_: &str) -> bool {
    true
}
pub fn load(_root: &Path, _cage: &str, _node: &str, _protocols: &[&str]) -> Result<CageConfig, ConfigError> {
    todo!()
}

#[derive(Clone, PartialEq)]
pub struct Section;
#[derive(Debug, Default, thiserror::Error)]
#[error("stub")]
pub struct ConfigError;
impl ConfigError {
    pub fn merge(&mut self, _o: Self) {}
    pub fn is_empty(&self) -> bool {
        true
    }
}
#[derive(Clone, Copy, PartialEq)]
pub enum ExportChoice {
    Auto,
    Handler,
    WasiHttp,
}
#[derive(Clone, Copy, PartialEq)]
pub enum InstanceMode {
    Reuse,
    Fresh,
    Single,
}
#[derive(Clone, PartialEq)]
pub struct InstancesConfig {
    pub mode: InstanceMode,
    pub max: usize,
    pub max_uses: u64,
    pub idle_timeout: Duration,
}
#[derive(Clone, PartialEq)]
pub struct HostPattern;
impl HostPattern {
    pub fn allows(&self, _h: &str, _p: u16) -> bool {
        true
    }
}
#[derive(Clone, PartialEq)]
pub struct FileGrant {
    pub host: PathBuf,
    pub guest: String,
    pub writable: bool,
}
#[derive(Clone, PartialEq, Default)]
pub struct Grants {
    pub cages: Vec<String>,
    pub resources: Vec<String>,
    pub http: Option<Vec<HostPattern>>,
    pub files: Vec<FileGrant>,
}
#[derive(Clone, PartialEq)]
pub struct ModuleConfig {
    pub instances: InstancesConfig,
    pub memory_bytes: usize,
    pub table_elements: usize,
    pub timeout: Option<Duration>,
    pub drain_timeout: Duration,
    pub allow: Grants,
    pub env: Vec<(String, String)>,
    pub config: serde_json::Map<String, serde_json::Value>,
    pub source: Option<PathBuf>,
    pub compatible: bool,
}
#[derive(Clone, PartialEq)]
pub struct InterfaceConfig {
    pub name: String,
    pub protocol: String,
    pub enabled: bool,
    pub module: String,
    pub timeout: Option<Duration>,
    pub export: ExportChoice,
    pub section: Section,
}
#[derive(Clone, PartialEq)]
pub struct CageConfig {
    pub cage: String,
    pub node: String,
    pub directory: PathBuf,
    pub log_level: Level,
    pub request_timeout: Duration,
    pub concurrency: usize,
    pub queue: usize,
    pub call_depth: usize,
    pub interfaces: BTreeMap<String, InterfaceConfig>,
    pub modules: BTreeMap<String, ModuleConfig>,
}
impl CageConfig {
    pub fn module(&self, _n: &str) -> ModuleConfig {
        todo!()
    }
    pub fn log_settings(&self) -> LogSettings {
        todo!()
    }
}
