//! The process's one `tracing` subscriber: filters, formats, and hands each line to the logs it belongs to. Runs on the
//! thread that logs, so it does nothing that can wait.

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
use super::line::Pieces;
use super::terminal::{self, TerminalOptions};
use super::{Level, LogFormat};

/// Everything else, the libraries' own events among it, is not logged.
const TARGETS: [&str; 3] = ["wasmcage", "guest", "access"];
/// What is shown of events that belong to no open log.
const HOMELESS_LEVEL: Level = Level::Info;

/// The open logs.
static SINKS: LazyLock<ArcSwap<Vec<Arc<Sink>>>> = LazyLock::new(ArcSwap::default);
/// The most talkative level of any open log: callsites beyond it are switched off.
static LEVEL_MAX: AtomicU8 = AtomicU8::new(HOMELESS_LEVEL as u8);

/// Makes this the process's subscriber, once; a later call only changes the terminal's options.
pub fn install(terminal: TerminalOptions) {
    static INSTALLED: Once = Once::new();
    terminal::set(terminal);
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Router);
        // Another subscriber is there already: a program that embeds this library and logs in its own way.
        let _ = tracing::subscriber::set_global_default(subscriber);
    });
}

/// Waits, within bounds, until every line so far is in its file and on the terminal: for the end of the process, and for
/// whoever reads a log right after causing its lines.
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

/// Callsites remember whether anybody wants them; this makes them ask again.
pub(super) fn levels_changed() {
    let wanted = SINKS.load().iter().map(|sink| sink.level.get()).chain([HOMELESS_LEVEL]).max();
    let wanted = wanted.expect("the chain is not empty") as u8;
    if LEVEL_MAX.swap(wanted, Ordering::AcqRel) != wanted {
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Whether its emitter has filtered it.
fn filtered(target: &str) -> bool {
    matches!(target, "guest" | "access")
}

struct Router;

impl<S: Subscriber> Layer<S> for Router {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let target = metadata.target();
        let ours = metadata.is_event() && TARGETS.iter().any(|prefix| target.starts_with(prefix));
        let wanted = filtered(target) || Level::from(*metadata.level()) as u8 <= LEVEL_MAX.load(Ordering::Acquire);
        if ours && wanted { Interest::always() } else { Interest::never() }
    }

    /// A lower hint would silence guests, whose level may be raised for one request. A callsite without interest costs
    /// one load more than one that the hint excludes.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        // Taken out while in use: a field's value that logs itself gets a fresh one.
        let mut scratch = SCRATCH.take();
        scratch.route(event);
        SCRATCH.set(scratch);
    }
}

#[derive(Default)]
struct Scratch {
    pieces: Pieces,
    line: String,
    cage: CageName,
}

impl Scratch {
    fn route(&mut self, event: &Event<'_>) {
        let metadata = event.metadata();
        let level = Level::from(*metadata.level());
        let passes = filtered(metadata.target());
        self.cage.find(event);
        let sinks = SINKS.load();
        let (mut homeless, mut shown) = (true, false);
        // Composed once per format that any log wants, whatever their number.
        let mut composed = None;
        for sink in sinks.iter() {
            if !self.cage.matches(&sink.cage) {
                continue;
            }
            homeless = false;
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
        if shown || (homeless && level <= HOMELESS_LEVEL) {
            self.show(event, level, homeless);
        }
    }

    /// Leaves the line in `line`, and returns the day it belongs to.
    fn compose(&mut self, event: &Event<'_>, format: LogFormat) -> Day {
        let metadata = event.metadata();
        let level = Level::from(*metadata.level());
        self.line.clear();
        self.pieces.collect(event, format);
        clock::now(|stamp| {
            match format {
                LogFormat::Text => self.pieces.text(&mut self.line, stamp, level, metadata.target() == "guest"),
                LogFormat::Json => self.pieces.json(&mut self.line, stamp, level, metadata.target()),
            }
            stamp.day
        })
    }

    fn show(&mut self, event: &Event<'_>, level: Level, homeless: bool) {
        let Some(terminal) = terminal::current(homeless) else { return };
        self.line.clear();
        self.pieces.collect(event, LogFormat::Text);
        let guest = event.metadata().target() == "guest";
        let day = clock::now(|stamp| {
            self.pieces.terminal(&mut self.line, stamp, level, guest, terminal.style);
            stamp.day
        });
        terminal.writer.push(day, &self.line, false);
    }
}

/// The event's `cage` field, found without formatting the others.
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

    /// An event about no cage is everybody's.
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
            // Writing to a String fails only when the value's own formatting does; then the name is what came out.
            let _ = write!(self.name, "{value:?}");
            self.found = true;
        }
    }

    // Not a cage's name; the default would format them.
    fn record_u64(&mut self, _: &Field, _: u64) {}
    fn record_i64(&mut self, _: &Field, _: i64) {}
    fn record_f64(&mut self, _: &Field, _: f64) {}
    fn record_bool(&mut self, _: &Field, _: bool) {}
}
