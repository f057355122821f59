//! stub

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Error = 1,
    Warn,
    Info,
    Debug,
    Trace,
}
impl Level {
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace].into_iter().find(|level| *level as u8 == value)
    }
}
pub struct LevelCell(std::sync::atomic::AtomicU8);
impl LevelCell {
    pub fn new(l: Level) -> Self {
        Self((l as u8).into())
    }
    pub fn get(&self) -> Level {
        Level::from_u8(self.0.load(std::sync::atomic::Ordering::Relaxed)).unwrap()
    }
    pub fn set(&self, l: Level) {
        self.0.store(l as u8, std::sync::atomic::Ordering::Relaxed)
    }
}
pub struct Gate;
impl Gate {
    pub fn new(_m: u64, _i: std::time::Duration) -> Self {
        Self
    }
    pub fn pass(&self) -> Option<u64> {
        Some(0)
    }
}
pub struct LogSettings {
    pub level: Level,
    pub format: LogFormat,
    pub retention_days: Option<u32>,
}
pub struct CageLog;
impl CageLog {
    pub fn open(_c: &str, _d: &std::path::Path, _s: LogSettings) -> Self {
        Self
    }
    pub fn set(&self, _s: LogSettings) {}
    pub fn flush(&self) {}
}
pub fn error_chain(e: &dyn std::error::Error) -> String {
    e.to_string()
}
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LogFormat {
    Text,
    Json,
}
impl std::str::FromStr for Level {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Ok(match s {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => Self::Info,
        })
    }
}
pub fn install() {}
pub fn flush() {}
