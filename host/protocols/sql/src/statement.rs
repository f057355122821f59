//! Parses one statement's text: `{name}` becomes a placeholder of the database. The scanner knows just enough of each
//! dialect to leave strings, quoted names and comments alone, and to refuse statements that are not permitted.

use std::collections::HashMap;
use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
    MySql,
}

/// A statement with the database's own placeholders.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) sql: String,
    /// The names of the values in the order in which they are bound.
    pub(super) parameters: Vec<String>,
    pub(super) kind: StatementKind,
}

/// The effects of a statement, as far as its words show them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StatementKind {
    /// It changes rows.
    pub(super) writes: bool,
    /// Each row that it changes is a new one.
    pub(super) inserts: bool,
    /// It returns rows.
    pub(super) gives_rows: bool,
    /// It may change which columns a table has.
    pub(super) changes_schema: bool,
    /// It may leave state in the session that only the connection's end removes.
    pub(super) leaves_session_state: bool,
}

/// The words that begin or end transactions.
const CONTROL: &[&str] = &["abort", "begin", "commit", "end", "release", "rollback", "savepoint", "start", "xa"];
/// The words that a statement of SQLite may begin with. Others reach files (`attach`, `vacuum into`) or change the
/// connection.
const SQLITE_PERMITTED: &[&str] = &[
    "alter", "analyze", "create", "delete", "drop", "explain", "insert", "reindex", "replace", "select", "update",
    "values", "with",
];
/// The words that may follow a semicolon within `create trigger`.
const SQLITE_INNER: &[&str] = &["delete", "end", "insert", "replace", "select", "update", "values", "with"];
const WRITES: &[&str] = &["delete", "insert", "merge", "replace", "update"];
const SCHEMA_CHANGES: &[&str] = &["alter", "create", "drop", "rename"];
/// The words of statements that return rows without a `returning`.
const READS: &[&str] = &["explain", "select", "values", "with"];
/// The most parameters of one statement: PostgreSQL and MySQL count them in 16 bits.
const PARAMETERS_MAX: usize = 65_535;
/// The words of PostgreSQL's statements that change prepared statements or load libraries. A reset of the session does
/// not undo them, or they remove prepared statements on which the connection's cache relies.
const POSTGRES_SESSION_WORDS: &[&str] = &["deallocate", "discard", "load", "prepare"];
/// The words that a statement of MySQL can begin with and leave nothing in the session, which cannot be reset.
const MYSQL_SESSIONLESS_WORDS: &[&str] = &[
    "alter", "analyze", "check", "create", "delete", "desc", "describe", "drop", "explain", "grant", "insert",
    "optimize", "rename", "repair", "replace", "revoke", "select", "show", "table", "truncate", "update", "values",
    "with",
];

/// Parses a statement.
///
/// # Errors
/// Why the text is no statement, or none that is permitted.
pub(super) fn parse(text: &str, dialect: Dialect) -> Result<Template, String> {
    if text.contains('\0') {
        return Err("a statement cannot contain a null character".into());
    }
    let mut scanner = Scanner { text, dialect, at: 0 };
    let mut template =
        Template { sql: String::with_capacity(text.len()), parameters: Vec::new(), kind: StatementKind::default() };
    let mut numbers = HashMap::new();
    let mut classifier = StatementClassifier {
        dialect,
        words: 0,
        first: String::new(),
        second: String::new(),
        at_start: true,
        keywords: Keywords::default(),
    };
    while let Some((token, range)) = scanner.next() {
        let (start, written) = (range.start, &text[range]);
        match token {
            Token::Space => template.sql.push_str(written),
            Token::Quoted | Token::Other => {
                if dialect != Dialect::Postgres && matches!(written, "?" | "@" | "$" | ":") && !scanner.is_name(written)
                {
                    return Err(format!("`{written}` as a placeholder: write a parameter as {{name}}"));
                }
                if written == "@" {
                    classifier.variable(&text[..start], &text[scanner.at..]);
                }
                classifier.token(None)?;
                template.sql.push_str(written);
            }
            Token::Semicolon => {
                classifier.semicolon();
                template.sql.push(';');
            }
            Token::Word => {
                let word = written.to_ascii_lowercase();
                classifier.word(&word);
                classifier.token(Some(word))?;
                template.sql.push_str(written);
            }
            Token::Brace => {
                classifier.token(None)?;
                template.sql.push_str(&written[..1]);
            }
            Token::Parameter => {
                classifier.token(None)?;
                template.parameter(&written[1..written.len() - 1], dialect, &mut numbers)?;
            }
            Token::Bad(text) => return Err(text.into()),
        }
    }
    classifier.end()?;
    template.kind = classifier.kind(text);
    Ok(template)
}

impl Template {
    /// Appends the placeholder of a parameter. `numbers` has the numbers of the names so far.
    fn parameter<'a>(
        &mut self,
        name: &'a str,
        dialect: Dialect,
        numbers: &mut HashMap<&'a str, usize>,
    ) -> Result<(), String> {
        let known = numbers.get(name).copied().filter(|_| dialect != Dialect::MySql);
        let number = known.unwrap_or(self.parameters.len() + 1);
        if known.is_none() {
            if number > PARAMETERS_MAX {
                return Err(format!("a statement has at most {PARAMETERS_MAX} parameters"));
            }
            self.parameters.push(name.to_owned());
            numbers.insert(name, number);
        }
        match dialect {
            Dialect::Sqlite => self.sql.push_str(&format!("?{number}")),
            Dialect::Postgres => self.sql.push_str(&format!("${number}")),
            Dialect::MySql => self.sql.push('?'),
        }
        Ok(())
    }
}

/// Classifies a statement by the words it begins with, other keywords in it, and what follows semicolons.
struct StatementClassifier {
    dialect: Dialect,
    words: usize,
    first: String,
    second: String,
    /// The next token is the first one, or the first after a semicolon.
    at_start: bool,
    keywords: Keywords,
}

/// The keywords and signs that were found anywhere in the statement.
#[derive(Default)]
struct Keywords {
    write: bool,
    insert: bool,
    returning: bool,
    conflict: bool,
    mysql_session_state: bool,
    /// A stream of the client's, as in `copy t from stdin`.
    client_stream: bool,
}

impl StatementClassifier {
    /// Takes the next token, with its text if it is a word.
    ///
    /// # Errors
    /// A second statement begins.
    fn token(&mut self, word: Option<String>) -> Result<(), String> {
        let at_start = std::mem::take(&mut self.at_start);
        let word = word.unwrap_or_default();
        if self.words == 1 {
            self.second.clone_from(&word);
        }
        self.words += 1;
        if self.words == 1 {
            self.first = word;
            return Ok(());
        }
        if !at_start {
            return Ok(());
        }
        // The bodies of triggers and functions contain semicolons.
        if self.first != "create" {
            return Err("one statement at a time: give several as several entries of `statements`".into());
        }
        if self.dialect == Dialect::Sqlite && !SQLITE_INNER.contains(&word.as_str()) {
            return Err(format!("`{word}` after a semicolon: one statement at a time"));
        }
        Ok(())
    }

    /// Records a keyword. It must be called before `token`.
    fn word(&mut self, word: &str) {
        let keywords = &mut self.keywords;
        if WRITES.contains(&word) && (self.words == 0 || self.first == "with" && word != "replace") {
            keywords.write = true;
            keywords.insert |= matches!(word, "insert" | "replace");
        }
        keywords.returning |= word == "returning";
        keywords.conflict |= word == "conflict";
        keywords.mysql_session_state |= word == "temporary";
        keywords.client_stream |= matches!(word, "stdin" | "stdout" | "local");
    }

    /// Records a variable of MySQL: `@x` belongs to the session, `@@x` to the system, and only `set` changes that.
    fn variable(&mut self, before: &str, after: &str) {
        self.keywords.mysql_session_state |= !before.ends_with('@') && !after.starts_with('@');
    }

    fn kind(&self, text: &str) -> StatementKind {
        let Self { dialect, first, keywords, .. } = self;
        let first = first.as_str();
        let leaves_session_state = match dialect {
            Dialect::Postgres => POSTGRES_SESSION_WORDS.contains(&first),
            Dialect::MySql => {
                !MYSQL_SESSIONLESS_WORDS.contains(&first)
                    || keywords.mysql_session_state
                    || contains_ignoring_case(text, "get_lock")
            }
            // This finds `create temp view` and `create table "temp".x`; the word has no other spelling.
            Dialect::Sqlite => first == "create" && contains_ignoring_case(text, "temp"),
        };
        StatementKind {
            writes: keywords.write,
            inserts: keywords.insert && !keywords.conflict,
            gives_rows: READS.contains(&first) || keywords.returning,
            changes_schema: SCHEMA_CHANGES.contains(&first),
            leaves_session_state,
        }
    }

    fn semicolon(&mut self) {
        self.at_start = true;
    }

    /// Checks the whole statement.
    ///
    /// # Errors
    /// The statement is not permitted.
    fn end(&self) -> Result<(), String> {
        let Self { dialect, words, first, second, keywords, .. } = self;
        if *words == 0 {
            return Err("there is no statement in the text".into());
        }
        let control = CONTROL.contains(&first.as_str())
            || (first == "prepare" && second == "transaction")
            || (first == "set" && second == "autocommit");
        if control {
            return Err(format!("`{first}`: transactions are begun and ended by the operation, not by a statement"));
        }
        if keywords.client_stream && (first == "copy" || first == "load") {
            return Err(format!(
                "`{first}` with data of the client's is not possible here: insert rows with parameters, several statements \
                 in one operation, and read them with `select`"
            ));
        }
        if *dialect == Dialect::Sqlite && !SQLITE_PERMITTED.contains(&first.as_str()) {
            return Err(format!("`{first}` is not permitted (permitted: {})", SQLITE_PERMITTED.join(", ")));
        }
        Ok(())
    }
}

fn contains_ignoring_case(text: &str, wanted: &str) -> bool {
    text.as_bytes().windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted.as_bytes()))
}

enum Token {
    /// White space and comments.
    Space,
    /// A string or a quoted name.
    Quoted,
    Word,
    Semicolon,
    Parameter,
    /// `{{` or `}}`.
    Brace,
    Other,
    Bad(&'static str),
}

struct Scanner<'a> {
    text: &'a str,
    dialect: Dialect,
    at: usize,
}

impl Scanner<'_> {
    fn next(&mut self) -> Option<(Token, Range<usize>)> {
        let start = self.at;
        let rest = &self.text[start..];
        let first = rest.chars().next()?;
        let (token, length) = self.token(rest, first);
        self.at += length;
        Some((token, start..self.at))
    }

    fn token(&self, rest: &str, first: char) -> (Token, usize) {
        use Dialect::{MySql, Postgres, Sqlite};
        let dialect = self.dialect;
        match first {
            ' ' | '\t' | '\n' | '\r' | '\x0c' => (Token::Space, 1),
            '-' if rest.starts_with("--") && (dialect != MySql || line_comment(rest)) => (Token::Space, line(rest)),
            '#' if dialect == MySql => (Token::Space, line(rest)),
            // MySQL executes the text within `/*! */`.
            '/' if rest.starts_with("/*!") && dialect == MySql => (Token::Bad("`/*!` is not permitted"), 3),
            '/' if rest.starts_with("/*M!") && dialect == MySql => (Token::Bad("`/*M!` is not permitted"), 4),
            '/' if rest.starts_with("/*") => (Token::Space, comment(rest, dialect == Postgres)),
            '\'' => (Token::Quoted, quoted(rest, 1, '\'', dialect == MySql)),
            '"' => (Token::Quoted, quoted(rest, 1, '"', dialect == MySql)),
            '`' if dialect != Postgres => (Token::Quoted, quoted(rest, 1, '`', false)),
            '[' if dialect == Sqlite => (Token::Quoted, rest.find(']').map_or(rest.len(), |end| end + 1)),
            'e' | 'E' if dialect == Postgres && rest[1..].starts_with('\'') => {
                (Token::Quoted, quoted(rest, 2, '\'', true))
            }
            '$' if dialect == Postgres => match dollar_quoted(rest) {
                Some(length) => (Token::Quoted, length),
                None if rest[1..].starts_with(|next: char| next.is_ascii_digit()) => {
                    (Token::Bad("`$1` as a placeholder: write a parameter as {name}"), 1)
                }
                None => (Token::Other, 1),
            },
            ';' => (Token::Semicolon, 1),
            '{' if rest.starts_with("{{") => (Token::Brace, 2),
            '}' if rest.starts_with("}}") => (Token::Brace, 2),
            '{' => match parameter(rest) {
                Some(length) => (Token::Parameter, length),
                None => (Token::Bad("`{` without a name and `}` after it: a brace itself is written {{"), 1),
            },
            '}' => (Token::Bad("`}` without `{`: a brace itself is written }}"), 1),
            _ if is_word(first) => {
                (Token::Word, rest.find(|next| !(is_word(next) || next == '$')).unwrap_or(rest.len()))
            }
            _ => (Token::Other, first.len_utf8()),
        }
    }

    /// Returns whether the sign is not a placeholder, but part of MySQL's `@variable` or `:=`.
    fn is_name(&self, written: &str) -> bool {
        self.dialect == Dialect::MySql && written != "?"
    }
}

/// Returns whether the character is part of words: letters, digits, and everything that is not ASCII.
fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_' || !character.is_ascii()
}

/// The length of the line that `rest` begins with.
fn line(rest: &str) -> usize {
    rest.find('\n').map_or(rest.len(), |end| end + 1)
}

/// Returns whether `--` begins a comment in MySQL, which requires white space after it.
fn line_comment(rest: &str) -> bool {
    rest[2..].chars().next().is_none_or(|next| next.is_ascii_whitespace() || next.is_ascii_control())
}

/// The length of the block comment that `rest` begins with.
fn comment(rest: &str, nested: bool) -> usize {
    let bytes = rest.as_bytes();
    let (mut at, mut depth) = (2, 1);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"*/" => {
                at += 2;
                depth -= 1;
                if depth == 0 {
                    return at;
                }
            }
            b"/*" if nested => {
                at += 2;
                depth += 1;
            }
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of the quoted text that `rest` begins with. Without a closing quote it is the whole rest, which the
/// database will refuse. A doubled quote is read as two strings side by side, with the same result.
fn quoted(rest: &str, skip: usize, quote: char, backslash: bool) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(skip) {
        match character {
            _ if escaped => escaped = false,
            '\\' if backslash => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of `$$..$$` or `$tag$..$tag$` at the beginning of `rest`, if it begins so.
fn dollar_quoted(rest: &str) -> Option<usize> {
    let tag_end = rest[1..].find('$')? + 2;
    let tag = &rest[..tag_end];
    let name = &tag[1..tag_end - 1];
    let is_tag = name.chars().all(is_word) && !name.starts_with(|first: char| first.is_ascii_digit());
    is_tag.then(|| rest[tag_end..].find(tag).map_or(rest.len(), |end| tag_end + end + tag.len()))
}

/// The length of `{name}` at the beginning of `rest`, if it begins so.
fn parameter(rest: &str) -> Option<usize> {
    let name = rest[1..].find('}').map(|end| &rest[1..=end])?;
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then_some(name.len() + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(dialect: Dialect, text: &str, sql: &str, parameters: &[&str]) {
        let template = parse(text, dialect).unwrap();
        assert_eq!(
            (template.sql.as_str(), template.parameters),
            (sql, parameters.iter().map(|p| p.to_string()).collect())
        );
    }

    #[track_caller]
    fn refused(dialect: Dialect, text: &str, why: &str) {
        let error = parse(text, dialect).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }

    #[test]
    fn parameters_become_placeholders() {
        use Dialect::*;
        check(Sqlite, "select {a}, {b}, {a}", "select ?1, ?2, ?1", &["a", "b"]);
        check(Postgres, "select {a}::int, {b}, {a}", "select $1::int, $2, $1", &["a", "b"]);
        check(MySql, "select {a}, {b}, {a}", "select ?, ?, ?", &["a", "b", "a"]);
    }

    #[test]
    fn strings_names_and_comments_are_left_alone() {
        use Dialect::*;
        for dialect in [Sqlite, Postgres, MySql] {
            check(
                dialect,
                "select '{a}', 'it''s {a}', \"{a}\" /* {a} */ -- {a}\n",
                "select '{a}', 'it''s {a}', \"{a}\" /* {a} */ -- {a}\n",
                &[],
            );
            check(dialect, "select {{ }}", "select { }", &[]);
        }
        check(
            Postgres,
            "select $$ {a} ; $$, $x$ $$ {a} $x$, E'\\'{a}', /* /* */ {a} */ {b}",
            "select $$ {a} ; $$, $x$ $$ {a} $x$, E'\\'{a}', /* /* */ {a} */ $1",
            &["b"],
        );
        check(Postgres, "select '\\', {a}", "select '\\', $1", &["a"]);
        check(Postgres, "select a[1] ? 'b', c ->> 'd'", "select a[1] ? 'b', c ->> 'd'", &[]);
        check(MySql, "select '\\'{a}', `{a}`, 1--1, {b} # {a}", "select '\\'{a}', `{a}`, 1--1, ? # {a}", &["b"]);
        check(MySql, "select @@version, @a", "select @@version, @a", &[]);
        check(Sqlite, "select [{a}], `{a}`", "select [{a}], `{a}`", &[]);
        // A string that is not closed runs to the end.
        check(Sqlite, "select '{a}", "select '{a}", &[]);
    }

    #[test]
    fn a_text_that_is_not_one_permitted_statement_is_refused() {
        use Dialect::*;
        for dialect in [Sqlite, Postgres, MySql] {
            refused(dialect, "select 1; select 2", "one statement at a time");
            refused(dialect, " /* x */ CoMMit", "transactions are begun");
            refused(dialect, ";begin", "transactions are begun");
            refused(dialect, "rollback", "transactions are begun");
            refused(dialect, " -- nothing\n;", "no statement");
            refused(dialect, "select {a", "without a name");
            refused(dialect, "select {1}", "without a name");
            refused(dialect, "select }", "without `{`");
            refused(dialect, "select \0", "null character");
            refused(dialect, "savepoint a", "transactions are begun");
            check(dialect, "select 1 ; -- done", "select 1 ; -- done", &[]);
        }
        refused(Postgres, "select $1", "{name}");
        refused(MySql, "select ?", "{name}");
        refused(MySql, "/*!50000 commit */", "not permitted");
        for text in ["attach '/etc/passwd' as x", "vacuum into 'x'", "pragma journal_mode", "\u{feff}attach 'x' as y"] {
            refused(Sqlite, text, "not permitted");
        }
        for text in ["select ?1", "select $0", "select :a", "select @a"] {
            refused(Sqlite, text, "{name}");
        }
        refused(
            Sqlite,
            "create trigger t after insert on a begin select 1; end; attach 'x' as y",
            "`attach` after a semicolon",
        );
        refused(Sqlite, "select $$; attach 'x' as y; --$$", "{name}");
        let trigger = "create trigger t after insert on a begin update b set c = 1; delete from d; end;";
        check(Sqlite, trigger, trigger, &[]);
    }

    #[test]
    fn the_effects_of_a_statement_are_recognized() {
        use Dialect::*;
        let kind =
            |writes, inserts, gives_rows| StatementKind { writes, inserts, gives_rows, ..StatementKind::default() };
        for (text, expected) in [
            ("insert into t values (1)", kind(true, true, false)),
            ("insert into t values (1) returning id", kind(true, true, true)),
            ("insert into t values (1) on conflict do update set a = 1", kind(true, false, false)),
            (" /**/ UPDATE t set a = 1", kind(true, false, false)),
            ("with x as (select 1) insert into t select * from x", kind(true, true, true)),
            ("with x as (select 1) select replace(a, 'b', 'c') from x", kind(false, false, true)),
            ("select 'insert'", kind(false, false, true)),
            ("create table t (a)", StatementKind { changes_schema: true, ..StatementKind::default() }),
        ] {
            assert_eq!(parse(text, Sqlite).unwrap().kind, expected, "{text}");
        }
    }

    #[test]
    fn state_that_stays_in_the_session_is_recognized() {
        use Dialect::*;
        for (dialect, text, marks) in [
            (Postgres, "select set_config('a.b', 'c', false)", false),
            (Postgres, "discard all", true),
            (Postgres, "prepare x as select 1", true),
            (Sqlite, "create table t (a)", false),
            (Sqlite, "CREATE TEMP TRIGGER x after insert on t begin select 1; end", true),
            (Sqlite, "create table \"Temp\".x (a)", true),
            (Sqlite, "select 1 as temp", false),
            (MySql, "select * from t where a = 'x@y'", false),
            (MySql, "insert into t values (1)", false),
            (MySql, "with x as (select 1) select * from x", false),
            (MySql, "select @@version, last_insert_id()", false),
            (MySql, "insert ignore into t values (1)", false),
            (MySql, "select `GET_LOCK`('a', 1)", true),
            (MySql, "select a into @x from t", true),
            (MySql, "select @x := 1", true),
            (MySql, "set names latin1", true),
            (MySql, "select get_lock('a', 1)", true),
            (MySql, "create temporary table t (a int)", true),
            (MySql, "call p()", true),
            (MySql, "use other", true),
            (MySql, "lock tables t write", true),
        ] {
            assert_eq!(parse(text, dialect).unwrap().kind.leaves_session_state, marks, "{text}");
        }
    }

    #[test]
    fn streams_of_the_client_and_too_many_parameters_are_refused() {
        refused(Dialect::Postgres, "copy t from stdin", "insert rows with parameters");
        refused(Dialect::Postgres, "COPY (select 1) TO STDOUT", "insert rows with parameters");
        refused(Dialect::MySql, "load data local infile '/x' into table t", "insert rows with parameters");
        check(Dialect::Postgres, "copy t from '/x'", "copy t from '/x'", &[]);
        let many: Vec<String> = (0..=PARAMETERS_MAX).map(|number| format!("{{p{number}}}")).collect();
        refused(Dialect::Postgres, &format!("select {}", many.join(",")), "at most 65535");
    }
}
