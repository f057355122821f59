//! Mistakes in a configuration, each with its file, line and key. The command line, the log and the performance page show
//! them. They never contain values from the environment.

use std::fmt;
use std::path::{Path, PathBuf};

/// Most mistakes that are reported together.
pub(super) const PROBLEMS_MAX: usize = 100;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1; 0 for the file as a whole.
    pub line: usize,
    /// A full name such as `interfaces.my_http.listen`; empty if the mistake belongs to no key.
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

/// All mistakes, in the order of files and lines. Its text has one line for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(problems))]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// The mistakes. An error that is returned has at least one.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Merges the mistakes of both, without duplicates.
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

    /// Returns the value, unless there are mistakes.
    ///
    /// # Errors
    /// This error, unless it is empty.
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

/// Adds a mistake, unless there are `PROBLEMS_MAX` already.
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
