//! Writes log lines to standard error when that is a terminal, and messages that cannot be logged.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::line::Style;
use super::writer::{Batch, LineOutput, LogWriter};

/// How log lines are shown on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalOptions {
    /// Show every line of every log; otherwise only lines that belong to no open log.
    pub lines: bool,
    /// Show lines that belong to no open log.
    pub without_log: bool,
    pub colour: bool,
    /// Begin lines with the name of their cage.
    pub show_cage: bool,
}

impl TerminalOptions {
    /// Shows lines when standard error is a terminal, in colour unless `NO_COLOR` is set.
    pub fn detect(cages: usize) -> Self {
        let lines = io::stderr().is_terminal();
        let colour = lines && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { lines, without_log: true, colour, show_cage: cages > 1 }
    }

    /// Shows nothing: for tests.
    pub fn off() -> Self {
        Self { lines: false, without_log: false, colour: false, show_cage: false }
    }
}

pub(super) struct Terminal {
    options: TerminalOptions,
    pub style: Style,
    pub writer: LogWriter,
}

static CURRENT: ArcSwapOption<Terminal> = ArcSwapOption::const_empty();

pub(super) fn set(options: TerminalOptions) {
    let used = options.lines || options.without_log;
    if CURRENT.load().as_ref().is_some_and(|current| current.options == options) {
        return;
    }
    let style = Style { colour: options.colour, show_cage: options.show_cage };
    CURRENT.store(
        used.then(|| Arc::new(Terminal { options, style, writer: LogWriter::start("terminal", StandardError) })),
    );
}

/// Returns the terminal if it shows such lines.
pub(super) fn current(without_log: bool) -> Option<Arc<Terminal>> {
    let current = CURRENT.load();
    let wanted = |terminal: &&Arc<Terminal>| terminal.options.lines || (without_log && terminal.options.without_log);
    current.as_ref().filter(wanted).cloned()
}

/// Waits, up to a timeout, until all lines are on the terminal.
pub(super) fn flush() {
    if let Some(terminal) = CURRENT.load().as_ref() {
        terminal.writer.flush();
    }
}

/// Writes a message about the log itself to standard error.
pub(super) fn write_stderr(text: fmt::Arguments<'_>) {
    // If this fails, there is no other place to report it.
    let _ = writeln!(io::stderr(), "wasmcage: {text}");
}

struct StandardError;

impl LineOutput for StandardError {
    fn write(&mut self, batch: &Batch) {
        // If the terminal is gone, its lines are lost; the log files have them.
        let _ = io::stderr().write_all(&batch.bytes);
    }

    fn dropped(&mut self, lines: u64) {
        write_stderr(format_args!("{lines} lines were not shown, because the terminal is too slow"));
    }
}
