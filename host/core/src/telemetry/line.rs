//! Formats an event as a line: `HH:MM:SS.ZZ LVL [origin] text key=value .. # RQ-2D26 +9.8s`, or as a JSON object. Whatever the
//! event's values are, the result is one line of bounded length without control characters.

use std::fmt::{self, Write as _};

use tracing::Event;
use tracing::field::{Field, Visit};

use super::clock::LocalTime;
use super::{Level, LogFormat, error_chain};

/// Longer values are cut. The host's own values are shorter.
const VALUE_BYTES_MAX: usize = 16 * 1024;

/// The parts of an event that a line is composed of. The buffers are reused for the next event.
#[derive(Debug, Default)]
pub(super) struct LineParts {
    pub cage: String,
    interface: String,
    module: String,
    message: String,
    request: String,
    /// All other fields: ` key=value ..` or `,"key":value,..`.
    rest: String,
    scratch: String,
}

impl LineParts {
    pub(super) fn collect(&mut self, event: &Event<'_>, format: LogFormat) {
        self.clear();
        event.record(&mut Collector { parts: self, format });
    }

    /// Fills the parts of a line about the log itself.
    pub(super) fn set_notice(&mut self, cage: &str, message: &str, format: LogFormat, count: u64) {
        self.clear();
        self.cage.push_str(cage);
        self.message.push_str(message);
        self.field("lines", format_args!("{count}"), format, true);
    }

    fn clear(&mut self) {
        let Self { cage, interface, module, message, request, rest, scratch } = self;
        [cage, interface, module, message, request, rest, scratch].into_iter().for_each(String::clear);
    }

    fn field(&mut self, name: &str, value: fmt::Arguments<'_>, format: LogFormat, bare: bool) {
        self.scratch.clear();
        clean(&mut self.scratch, value);
        match format {
            LogFormat::Text => {
                // Writing to a String cannot fail.
                let _ = write!(self.rest, " {name}=");
                push_text_value(&mut self.rest, &self.scratch);
            }
            LogFormat::Json => {
                self.rest.push(',');
                push_json_string(&mut self.rest, name);
                self.rest.push(':');
                if bare {
                    self.rest.push_str(&self.scratch);
                } else {
                    push_json_string(&mut self.rest, &self.scratch);
                }
            }
        }
    }

    /// Writes the line for a cage's text log.
    pub(super) fn text(&self, out: &mut String, stamp: &LocalTime, level: Level, guest: bool) {
        let (origin, module) = self.origin(guest);
        let origin = if origin.is_empty() { "wasmcage" } else { origin };
        // Writing to a String cannot fail.
        let _ = write!(out, "{}.{:02} {} [{origin}]", stamp.time, stamp.centis, level.short());
        self.body(out, module);
    }

    /// Writes the line for a terminal. The cage's name is shown when several cages share the terminal.
    pub(super) fn terminal(&self, out: &mut String, stamp: &LocalTime, level: Level, guest: bool, style: Style) {
        let (origin, module) = self.origin(guest);
        // Writing to a String cannot fail, here and below.
        let (before, after) = if style.colour { colour(level) } else { ("", "") };
        let _ = write!(out, "{}.{:02} {before}{}{after} [", stamp.time, stamp.centis, level.short());
        if style.show_cage && !self.cage.is_empty() && origin != self.cage {
            let _ = write!(out, "{}/", self.cage);
        }
        out.push_str(if origin.is_empty() { "wasmcage" } else { origin });
        out.push(']');
        self.body(out, module);
    }

    /// Returns the origin to show in brackets, and the module if the origin does not name it.
    fn origin(&self, guest: bool) -> (&str, &str) {
        match (self.interface.as_str(), self.module.as_str()) {
            ("", "") => (&self.cage, ""),
            (_, module) if guest && !module.is_empty() => (module, ""),
            ("", module) => (module, ""),
            (interface, module) => (interface, module),
        }
    }

    fn body(&self, out: &mut String, module: &str) {
        out.push(' ');
        out.push_str(&self.message);
        if !module.is_empty() {
            out.push_str(" module=");
            push_text_value(out, module);
        }
        out.push_str(&self.rest);
        if !self.request.is_empty() {
            out.push_str(" # ");
            out.push_str(&self.request);
        }
        out.push('\n');
    }

    pub(super) fn json(&self, out: &mut String, stamp: &LocalTime, level: Level, target: &str) {
        let LocalTime { date_time, offset, centis, .. } = stamp;
        // Writing to a String cannot fail, here and below.
        let _ = write!(out, "{{\"time\":\"{date_time}.{centis:02}{offset}\",\"level\":\"{level}\"");
        let named = [
            ("target", target),
            ("cage", &self.cage),
            ("interface", &self.interface),
            ("module", &self.module),
            ("message", &self.message),
            ("request", &self.request),
        ];
        for (name, value) in named.into_iter().filter(|(_, value)| !value.is_empty()) {
            let _ = write!(out, ",\"{name}\":");
            push_json_string(out, value);
        }
        out.push_str(&self.rest);
        out.push_str("}\n");
    }
}

/// How lines look on a terminal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub colour: bool,
    pub show_cage: bool,
}

fn colour(level: Level) -> (&'static str, &'static str) {
    match level {
        Level::Error => ("\x1b[31m", "\x1b[0m"),
        Level::Warn => ("\x1b[33m", "\x1b[0m"),
        Level::Info => ("\x1b[32m", "\x1b[0m"),
        Level::Debug | Level::Trace => ("\x1b[2m", "\x1b[0m"),
    }
}

struct Collector<'a> {
    parts: &'a mut LineParts,
    format: LogFormat,
}

impl Collector<'_> {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>, bare: bool) {
        let parts = &mut *self.parts;
        let piece = match field.name() {
            "message" => &mut parts.message,
            "cage" => &mut parts.cage,
            "interface" => &mut parts.interface,
            "module" => &mut parts.module,
            "request" => &mut parts.request,
            name => return parts.field(name, value, self.format, bare),
        };
        piece.clear();
        clean(piece, value);
    }
}

impl Visit for Collector<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"), false);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value}"), false);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, format_args!("{value}"), true);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, format_args!("{value}"), true);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.put(field, format_args!("{value}"), true);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.put(field, format_args!("{value}"), true);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, format_args!("{value}"), true);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no numbers for infinity and NaN.
        self.put(field, format_args!("{value}"), value.is_finite());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, format_args!("{}", error_chain(value)), false);
    }
}

/// Returns whether a character could make a line look like another line, or like several: control characters except TAB,
/// those that change the writing direction, and those that some programs treat as the end of a line.
fn misleads(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || matches!(c, '\u{2028}' | '\u{2029}') || (c.is_control() && c != '\t')
}

/// Appends `value` with a space in place of each character that misleads, cut to `VALUE_BYTES_MAX`.
fn clean(out: &mut String, value: fmt::Arguments<'_>) {
    let mut cleaned = CleanWriter { out, left: VALUE_BYTES_MAX, cut: false };
    if cleaned.write_fmt(value).is_err() && !cleaned.cut {
        cleaned.out.push_str("(unprintable)");
    }
    if cleaned.cut {
        cleaned.out.push_str("...");
    }
}

struct CleanWriter<'a> {
    out: &'a mut String,
    left: usize,
    cut: bool,
}

impl fmt::Write for CleanWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.floor_char_boundary(self.left);
        self.left -= end;
        let kept = &text[..end];
        if kept.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            self.out.push_str(kept);
        } else {
            self.out.extend(kept.chars().map(|c| if misleads(c) { ' ' } else { c }));
        }
        if end < text.len() {
            self.cut = true;
            // The error stops the formatting of the rest.
            return Err(fmt::Error);
        }
        Ok(())
    }
}

/// Appends a value as it is if it is one word, and in quotes otherwise.
fn push_text_value(out: &mut String, value: &str) {
    let quoted = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
    let one_word = !value.is_empty() && !value.contains([' ', '\t', '"', '=']);
    if quoted || one_word {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

fn push_json_string(out: &mut String, value: &str) {
    out.push_str(&serde_json::to_string(value).expect("a string is always JSON"));
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tracing::subscriber::with_default;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    /// Formats each event and sends the line.
    struct Golden {
        format: LogFormat,
        terminal: Option<Style>,
        lines: mpsc::Sender<String>,
    }

    impl<S: tracing::Subscriber> Layer<S> for Golden {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let (mut parts, mut out) = (LineParts::default(), String::new());
            let stamp = LocalTime::fixed(1_795_169_472, 7);
            let level = Level::from(*event.metadata().level());
            let guest = event.metadata().target() == "guest";
            parts.collect(event, self.format);
            match (self.format, self.terminal) {
                (_, Some(style)) => parts.terminal(&mut out, &stamp, level, guest, style),
                (LogFormat::Text, None) => parts.text(&mut out, &stamp, level, guest),
                (LogFormat::Json, None) => parts.json(&mut out, &stamp, level, event.metadata().target()),
            }
            self.lines.send(out).unwrap();
        }
    }

    #[track_caller]
    fn check(format: LogFormat, terminal: Option<Style>, emit: impl FnOnce(), expected: &str) {
        let (lines_tx, lines) = mpsc::channel();
        let subscriber = tracing_subscriber::registry().with(Golden { format, terminal, lines: lines_tx });
        with_default(subscriber, emit);
        assert_eq!(lines.recv().unwrap(), format!("{expected}\n"));
    }

    #[track_caller]
    fn check_text(emit: impl FnOnce(), expected: &str) {
        check(LogFormat::Text, None, emit, expected);
    }

    #[test]
    fn text_lines() {
        check_text(
            || tracing::info!(cage = %"runner", interface = "my_http", address = %"127.0.0.1:8080", "started listening"),
            "11:11:12.07 INF [my_http] started listening address=127.0.0.1:8080",
        );
        check_text(
            || tracing::warn!(cage = "runner", "cage is shutting down"),
            "11:11:12.07 WRN [runner] cage is shutting down",
        );
        check_text(|| tracing::warn!("no pool"), "11:11:12.07 WRN [wasmcage] no pool");
        check_text(
            || tracing::debug!(cage = "c", module = "work", elapsed_ms = 12, ratio = 0.5, on = true, "module loaded"),
            "11:11:12.07 DBG [work] module loaded elapsed_ms=12 ratio=0.5 on=true",
        );
        check_text(
            || {
                let request = Some(tracing::field::display("RQ-2D26 via my_http +9.8s"));
                tracing::error!(target: "guest", cage = "c", interface = "i", module = "work", request, "hello {}", 1);
            },
            "11:11:12.07 ERR [work] hello 1 # RQ-2D26 via my_http +9.8s",
        );
        check_text(
            || {
                tracing::trace!(
                    cage = "c",
                    interface = "i",
                    module = "work",
                    request = None::<u64>,
                    "request completed"
                )
            },
            "11:11:12.07 TRC [i] request completed module=work",
        );
    }

    #[test]
    fn hostile_values_stay_on_their_line() {
        check_text(
            || tracing::info!(cage = "c", name = "a b\"c", empty = "", path = ?"x\ny", "one\r\ntwo\x1b[2J\tthree\u{85}four"),
            "11:11:12.07 INF [c] one  two [2J\tthree four name=\"a b\\\"c\" empty=\"\" path=\"x\\ny\"",
        );
        check_text(
            || tracing::info!(cage = "c", file = "exe.\u{202e}gpj", "a\u{2066}b\u{2069}\u{2028}c\u{200f}"),
            "11:11:12.07 INF [c] a b  c  file=\"exe. gpj\"",
        );
        let long = "ä".repeat(VALUE_BYTES_MAX);
        let cut = "ä".repeat(VALUE_BYTES_MAX / 2);
        check_text(|| tracing::info!(cage = "c", "{long}"), &format!("11:11:12.07 INF [c] {cut}..."));
    }

    #[test]
    fn errors_are_told_with_their_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read a.wasm")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("no disk"));
        let error = &error as &dyn std::error::Error;
        check_text(
            || tracing::error!(cage = "c", error, "module refused"),
            "11:11:12.07 ERR [c] module refused error=\"cannot read a.wasm: no disk\"",
        );
    }

    #[test]
    fn json_lines() {
        check(
            LogFormat::Json,
            None,
            || {
                tracing::info!(target: "guest", cage = "c", module = "w", n = 1u64, x = f64::NAN, t = "q\"", request = %"RQ-1", "hi\n");
            },
            r#"{"time":"2026-11-20T11:11:12.07+01:00","level":"info","target":"guest","cage":"c","module":"w","message":"hi ","request":"RQ-1","n":1,"x":"NaN","t":"q\""}"#,
        );
    }

    #[test]
    fn terminal_lines() {
        let plain = Style { colour: false, show_cage: true };
        check(
            LogFormat::Text,
            Some(plain),
            || tracing::info!(cage = "runner", interface = "my_http", "started listening"),
            "11:11:12.07 INF [runner/my_http] started listening",
        );
        check(LogFormat::Text, Some(plain), || tracing::info!(cage = "runner", "up"), "11:11:12.07 INF [runner] up");
        check(
            LogFormat::Text,
            Some(Style { colour: true, show_cage: false }),
            || tracing::warn!(cage = "runner", module = "work", "slow"),
            "11:11:12.07 \x1b[33mWRN\x1b[0m [work] slow",
        );
    }
}
