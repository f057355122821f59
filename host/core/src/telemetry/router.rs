//! The process's `tracing` subscriber. It filters and formats events and passes each line to the logs it belongs to. It runs
//! on the thread that logs, so it does nothing that can block.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock, Once};

use arc_swap::ArcSwap;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::cage_log::Sink;
use super::clock::{self, Day};
use super::line::LineParts;
use super::terminal::{self, TerminalOptions};
use super::{Level, LogFormat};

/// Only events with these prefixes of their target are logged; those of libraries are not.
const TARGETS: [&str; 3] = ["wasmcage", "guest", "access"];
/// Level for events that belong to no open log.
const DEFAULT_LEVEL: Level = Level::Info;

/// The open logs.
static SINKS: LazyLock<ArcSwap<Vec<Arc<Sink>>>> = LazyLock::new(ArcSwap::default);
/// The most verbose level of all open logs. Callsites beyond it are switched off.
static LEVEL_MAX: AtomicU8 = AtomicU8::new(DEFAULT_LEVEL as u8);

/// Installs this as the process's subscriber, once. A later call only changes the terminal's options.
pub fn install(terminal: TerminalOptions) {
    static INSTALLED: Once = Once::new();
    terminal::set(terminal);
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Router);
        // This fails in a program that embeds the library and has a subscriber of its own, which then stays.
        let _ = tracing::subscriber::set_global_default(subscriber);
    });
}

/// Waits, up to a timeout, until every line so far is in its file and on the terminal. Used at the end of the process, and
/// before a log is read.
pub fn flush() {
    SINKS.load().iter().for_each(|sink| {
        sink.writer.flush();
    });
    terminal::flush();
}

pub(super) fn register(sink: Arc<Sink>) {
    SINKS.rcu(|sinks| sinks.iter().chain([&sink]).cloned().collect::<Vec<_>>());
    levels_changed();
}

pub(super) fn unregister(sink: &Arc<Sink>) {
    SINKS.rcu(|sinks| sinks.iter().filter(|other| !Arc::ptr_eq(other, sink)).cloned().collect::<Vec<_>>());
    levels_changed();
}

/// Recomputes the most verbose level. Callsites cache whether they are wanted, so that cache is rebuilt if it has changed.
pub(super) fn levels_changed() {
    let wanted = SINKS.load().iter().map(|sink| sink.level.get()).chain([DEFAULT_LEVEL]).max();
    let wanted = wanted.expect("the chain is not empty") as u8;
    if LEVEL_MAX.swap(wanted, Ordering::AcqRel) != wanted {
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Returns whether the code that emits such events has filtered them already.
fn is_prefiltered(target: &str) -> bool {
    matches!(target, "guest" | "access")
}

struct Router;

impl<S: Subscriber> Layer<S> for Router {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let target = metadata.target();
        let ours = metadata.is_event() && TARGETS.iter().any(|prefix| target.starts_with(prefix));
        let wanted =
            is_prefiltered(target) || Level::from(*metadata.level()) as u8 <= LEVEL_MAX.load(Ordering::Acquire);
        if ours && wanted { Interest::always() } else { Interest::never() }
    }

    /// All levels, because a guest's level may be raised for one request. A callsite without interest costs only one load more
    /// than one that the hint excludes.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local! {
            static BUILDER: RefCell<LineBuilder> = RefCell::default();
        }
        // It is taken out while in use: if formatting a field's value logs another event, that gets a new builder.
        let mut builder = BUILDER.take();
        builder.route(event);
        BUILDER.set(builder);
    }
}

#[derive(Default)]
struct LineBuilder {
    parts: LineParts,
    line: String,
    cage: CageName,
}

impl LineBuilder {
    fn route(&mut self, event: &Event<'_>) {
        let metadata = event.metadata();
        let level = Level::from(*metadata.level());
        let passes = is_prefiltered(metadata.target());
        self.cage.find(event);
        let sinks = SINKS.load();
        let (mut without_log, mut shown) = (true, false);
        // The line is composed once for each format, however many logs want it.
        let mut composed = None;
        for sink in sinks.iter() {
            if !self.cage.matches(&sink.cage) {
                continue;
            }
            without_log = false;
            if !passes && level > sink.level.get() {
                continue;
            }
            shown = true;
            let format = sink.format();
            let day = match composed {
                Some((composed, day)) if composed == format => day,
                _ => self.compose(event, format),
            };
            composed = Some((format, day));
            sink.push(day, &self.line, level == Level::Error, metadata.target() == "guest");
        }
        if shown || (without_log && level <= DEFAULT_LEVEL) {
            self.show(event, level, without_log);
        }
    }

    /// Composes the line in `line`. Returns the day that it belongs to.
    fn compose(&mut self, event: &Event<'_>, format: LogFormat) -> Day {
        let metadata = event.metadata();
        let level = Level::from(*metadata.level());
        self.line.clear();
        self.parts.collect(event, format);
        clock::now(|stamp| {
            match format {
                LogFormat::Text => self.parts.text(&mut self.line, stamp, level, metadata.target() == "guest"),
                LogFormat::Json => self.parts.json(&mut self.line, stamp, level, metadata.target()),
            }
            stamp.day
        })
    }

    fn show(&mut self, event: &Event<'_>, level: Level, without_log: bool) {
        let Some(terminal) = terminal::current(without_log) else { return };
        self.line.clear();
        self.parts.collect(event, LogFormat::Text);
        let guest = event.metadata().target() == "guest";
        let day = clock::now(|stamp| {
            self.parts.terminal(&mut self.line, stamp, level, guest, terminal.style);
            stamp.day
        });
        terminal.writer.push(day, &self.line, false);
    }
}

/// The event's field `cage`, found without formatting the others.
#[derive(Default)]
struct CageName {
    name: String,
    found: bool,
}

impl CageName {
    fn find(&mut self, event: &Event<'_>) {
        self.name.clear();
        self.found = false;
        event.record(self);
    }

    /// Returns whether the event belongs to the log of this cage. An event without a cage belongs to all logs.
    fn matches(&self, cage: &str) -> bool {
        !self.found || self.name == cage
    }
}

impl Visit for CageName {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "cage" {
            self.name.push_str(value);
            self.found = true;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "cage" {
            // Writing to a String fails only when the value's own formatting does; then the name is incomplete.
            let _ = write!(self.name, "{value:?}");
            self.found = true;
        }
    }

    // These are no names of cages; the default implementation would format them.
    fn record_u64(&mut self, _: &Field, _: u64) {}
    fn record_i64(&mut self, _: &Field, _: i64) {}
    fn record_f64(&mut self, _: &Field, _: f64) {}
    fn record_bool(&mut self, _: &Field, _: bool) {}
}
