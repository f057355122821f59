//! Standard error: log lines when it is a terminal, and the few things that have no log to go to.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::line::Style;
use super::writer::{Batch, Output, Writer};

/// How log lines are shown on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalOptions {
    /// Every line of every log; otherwise only lines that belong to no open log.
    pub lines: bool,
    /// Lines that belong to no open log.
    pub homeless: bool,
    pub colour: bool,
    /// Begin lines with their cage's name.
    pub show_cage: bool,
}

impl TerminalOptions {
    /// Lines when standard error is a terminal, in colour unless `NO_COLOR` is set.
    pub fn detect(cages: usize) -> Self {
        let lines = io::stderr().is_terminal();
        let colour = lines && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { lines, homeless: true, colour, show_cage: cages > 1 }
    }

    /// Nothing at all: for tests.
    pub fn off() -> Self {
        Self { lines: false, homeless: false, colour: false, show_cage: false }
    }
}

pub(super) struct Terminal {
    options: TerminalOptions,
    pub style: Style,
    pub writer: Writer,
}

static CURRENT: ArcSwapOption<Terminal> = ArcSwapOption::const_empty();

pub(super) fn set(options: TerminalOptions) {
    let used = options.lines || options.homeless;
    if CURRENT.load().as_ref().is_some_and(|current| current.options == options) {
        return;
    }
    let style = Style { colour: options.colour, show_cage: options.show_cage };
    CURRENT
        .store(used.then(|| Arc::new(Terminal { options, style, writer: Writer::start("terminal", StandardError) })));
}

/// The terminal, if it takes such lines.
pub(super) fn current(homeless: bool) -> Option<Arc<Terminal>> {
    let current = CURRENT.load();
    let wanted = |terminal: &&Arc<Terminal>| terminal.options.lines || (homeless && terminal.options.homeless);
    current.as_ref().filter(wanted).cloned()
}

/// Waits, within bounds, until all lines are on the terminal.
pub(super) fn flush() {
    if let Some(terminal) = CURRENT.load().as_ref() {
        terminal.writer.flush();
    }
}

/// Says on standard error what the log itself cannot be told.
pub(super) fn complain(text: fmt::Arguments<'_>) {
    // There is nowhere left to say that this failed.
    let _ = writeln!(io::stderr(), "wasmcage: {text}");
}

struct StandardError;

impl Output for StandardError {
    fn write(&mut self, batch: &Batch) {
        // A terminal that went away takes its lines along; the log has them.
        let _ = io::stderr().write_all(&batch.bytes);
    }

    fn dropped(&mut self, lines: u64) {
        complain(format_args!("{lines} lines were not shown, the terminal is too slow"));
    }
}
