//! Implements `wasmcage:cage/log` and `wasi:logging`: writes lines of guests to the cage's log, limited in length and rate.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker};

use super::GuestState;
use super::bindings::{log, types};
use super::text::{Name, Text};
use wasmcage_core::request::RequestContext;
use wasmcage_core::telemetry::{Level, LevelCell, Throttle};

/// The greatest length of a line. A longer one is cut.
pub(super) const LINE_BYTES_MAX: usize = 8 * 1024;
/// The number of lines of one version of a module in one second. Further ones are dropped, and the log tells their number.
const LINES_PER_SECOND_MAX: u64 = 1_000;

/// Writes the lines of one version of a module. All its instances share this, and with it the limit of their rate.
pub(super) struct GuestLog {
    cage: Arc<str>,
    module: Arc<str>,
    cage_level: Arc<LevelCell>,
    gate: Throttle,
}

impl GuestLog {
    pub(super) fn new(cage: Arc<str>, module: Arc<str>, cage_level: Arc<LevelCell>) -> Self {
        Self { cage, module, cage_level, gate: Throttle::new(LINES_PER_SECOND_MAX, std::time::Duration::from_secs(1)) }
    }

    /// Returns the most verbose level that is written now: the request's own, if it has one, or the cage's.
    pub(super) fn level(&self, request: Option<&RequestContext>) -> Level {
        request.and_then(RequestContext::level).unwrap_or_else(|| self.cage_level.get())
    }

    pub(super) fn line(&self, level: Level, text: &str, request: Option<&RequestContext>) {
        self.cut_line(level, text, 0, request);
    }

    /// Writes a line of which `cut` bytes are missing already.
    fn cut_line(&self, level: Level, text: &str, cut: usize, request: Option<&RequestContext>) {
        if level > self.level(request) {
            return;
        }
        let Some(suppressed) = self.gate.pass() else { return };
        if suppressed > 0 {
            self.write(Level::Warn, &format!("{suppressed} log lines of this module were dropped"), None);
        }
        let end = text.floor_char_boundary(LINE_BYTES_MAX);
        let cut = cut + text.len() - end;
        if cut > 0 {
            self.write(level, &format!("{} ... ({cut} bytes cut)", &text[..end]), request);
        } else {
            self.write(level, text, request);
        }
    }

    fn write(&self, level: Level, text: &str, request: Option<&RequestContext>) {
        let (cage, module) = (&*self.cage, &*self.module);
        let request = request.map(|request| tracing::field::display(request.tail()));
        macro_rules! event {
            ($level:ident) => {
                tracing::event!(target: "guest", tracing::Level::$level, cage, module, request, "{text}")
            };
        }
        match level {
            Level::Error => event!(ERROR),
            Level::Warn => event!(WARN),
            Level::Info => event!(INFO),
            Level::Debug => event!(DEBUG),
            Level::Trace => event!(TRACE),
        }
    }
}

impl GuestState {
    pub(super) fn log_text(&self, level: Level, text: Text<LINE_BYTES_MAX>) {
        let (text, cut) = text.into_parts();
        self.home.log.cut_line(level, &text, cut, self.request.as_deref());
    }
}

impl log::Host for GuestState {
    fn log(&mut self, level: log::Level, message: String) {
        self.home.log.line(from_wit(level), &message, self.request.as_deref());
    }

    fn enabled(&mut self, level: log::Level) -> bool {
        from_wit(level) <= self.home.log.level(self.request.as_deref())
    }
}

// The interface has no functions.
impl types::Host for GuestState {}

pub(super) fn from_wit(level: log::Level) -> Level {
    match level {
        log::Level::Error => Level::Error,
        log::Level::Warn => Level::Warn,
        log::Level::Info => Level::Info,
        log::Level::Debug => Level::Debug,
        log::Level::Trace => Level::Trace,
    }
}

pub(super) fn to_wit(level: Level) -> log::Level {
    match level {
        Level::Error => log::Level::Error,
        Level::Warn => log::Level::Warn,
        Level::Info => log::Level::Info,
        Level::Debug => log::Level::Debug,
        Level::Trace => log::Level::Trace,
    }
}

/// The type `level` of the proposal `wasi:logging`.
#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "made by lifting only")]
enum WasiLevel {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

type WasiLine = (WasiLevel, Name, Text<LINE_BYTES_MAX>);

/// Adds `wasi:logging` without a version and with one, since components import both.
pub(super) fn add_wasi_logging(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    for name in ["wasi:logging/logging", "wasi:logging/logging@0.1.0-draft"] {
        linker.instance(name)?.func_wrap(
            "log",
            |store: StoreContextMut<'_, GuestState>, (level, context, message): WasiLine| {
                let level = match level {
                    WasiLevel::Trace => Level::Trace,
                    WasiLevel::Debug => Level::Debug,
                    WasiLevel::Info => Level::Info,
                    WasiLevel::Warn => Level::Warn,
                    WasiLevel::Error | WasiLevel::Critical => Level::Error,
                };
                let (mut text, cut) = message.into_parts();
                let context = context.into_name();
                if !context.is_empty() {
                    text.insert_str(0, &format!("{context}: "));
                }
                let state = store.data();
                state.home.log.cut_line(level, &text, cut, state.request.as_deref());
                Ok(())
            },
        )?;
    }
    Ok(())
}
