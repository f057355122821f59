//! What is wrong with a configuration: every mistake with its file, line and key. Made by `Section` and `parse`,
//! printed by the command line, the log and the performance page. Never holds a value that came from the environment.

use std::fmt;
use std::path::{Path, PathBuf};

/// Mistakes told at once: whoever has more starts with these.
pub(super) const PROBLEMS_MAX: usize = 100;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// As in `interfaces.my_http.listen`; empty when no key is meant.
    pub key: String,
    /// What is wrong, and what is allowed.
    pub text: String,
}

impl Problem {
    pub(super) fn of_file(file: &Path) -> Self {
        Self { file: file.to_owned(), line: 0, key: String::new(), text: String::new() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.text)
    }
}

/// All mistakes that were found, in the order of files and lines. Shown one a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(problems))]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// Never empty in an error that was returned.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The mistakes of both, each once.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.problems.extend(other.problems);
        self.problems.sort();
        self.problems.dedup();
        self
    }

    pub(super) fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// The value, unless there are mistakes.
    /// # Errors
    /// This, unless it is empty.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.problems.is_empty() { Ok(value) } else { Err(self.merge(Self::default())) }
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

impl FromIterator<Problem> for ConfigError {
    fn from_iter<I: IntoIterator<Item = Problem>>(problems: I) -> Self {
        Self { problems: problems.into_iter().collect() }.merge(Self::default())
    }
}

/// Adds a mistake, as long as there are not too many.
pub(super) fn push(problems: &mut Vec<Problem>, problem: Problem) {
    match problems.len() {
        len if len < PROBLEMS_MAX => problems.push(problem),
        PROBLEMS_MAX => {
            let text = format!("more than {PROBLEMS_MAX} mistakes; the rest is not listed");
            problems.push(Problem { text, ..Problem::of_file(&problem.file) });
        }
        _ => {}
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}
