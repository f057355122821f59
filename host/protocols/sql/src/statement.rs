//! One statement's text: `{name}` becomes a placeholder of the database. Knows just enough of each dialect's words to leave
//! strings, quoted names and comments alone, and to see what a statement must not be.

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
    /// Names of the values in the order in which they are bound.
    pub(super) parameters: Vec<String>,
    pub(super) kind: Kind,
}

/// What a statement does, as far as its words tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kind {
    /// It changes rows.
    pub(super) writes: bool,
    /// Each row that it changes is a new one.
    pub(super) inserts: bool,
    /// It gives rows.
    pub(super) gives_rows: bool,
    /// It may change which columns a table has.
    pub(super) changes_schema: bool,
    /// It may leave something in the session that nothing but the connection's end takes away.
    pub(super) marks_session: bool,
}

/// What begins or ends transactions.
const CONTROL: &[&str] = &["abort", "begin", "commit", "end", "release", "rollback", "savepoint", "start", "xa"];
/// All that a statement of SQLite may begin with: others reach files (`attach`, `vacuum into`) or change the connection.
const SQLITE: &[&str] = &[
    "alter", "analyze", "create", "delete", "drop", "explain", "insert", "reindex", "replace", "select", "update",
    "values", "with",
];
/// What may follow a semicolon within `create trigger`.
const SQLITE_INNER: &[&str] = &["delete", "end", "insert", "replace", "select", "update", "values", "with"];
const WRITES: &[&str] = &["delete", "insert", "merge", "replace", "update"];
const CHANGES: &[&str] = &["alter", "create", "drop", "rename"];
/// What gives rows without a `returning`.
const READS: &[&str] = &["explain", "select", "values", "with"];
/// Parameters of one statement: PostgreSQL and MySQL count them in 16 bits.
const PARAMETERS_MAX: usize = 65_535;
/// PostgreSQL's statements about prepared statements and loaded libraries, which no reset of a session undoes, or which take
/// away those that the connection's cache counts on.
const POSTGRES_MARKS: &[&str] = &["deallocate", "discard", "load", "prepare"];
/// All that a statement of MySQL may begin with to leave nothing in the session: it has no reset but a new connection.
const MYSQL_UNMARKED: &[&str] = &[
    "alter", "analyze", "check", "create", "delete", "desc", "describe", "drop", "explain", "grant", "insert",
    "optimize", "rename", "repair", "replace", "revoke", "select", "show", "table", "truncate", "update", "values",
    "with",
];

/// # Errors
/// What is wrong with it.
pub(super) fn parse(text: &str, dialect: Dialect) -> Result<Template, String> {
    if text.contains('\0') {
        return Err("a statement cannot contain a null character".into());
    }
    let mut scanner = Scanner { text, dialect, at: 0 };
    let mut template =
        Template { sql: String::with_capacity(text.len()), parameters: Vec::new(), kind: Kind::default() };
    let mut numbers = HashMap::new();
    let mut shape =
        Shape { dialect, words: 0, first: String::new(), second: String::new(), fresh: true, seen: Seen::default() };
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
                    shape.variable(&text[..start], &text[scanner.at..]);
                }
                shape.token(None)?;
                template.sql.push_str(written);
            }
            Token::Semicolon => {
                shape.semicolon();
                template.sql.push(';');
            }
            Token::Word => {
                let word = written.to_ascii_lowercase();
                shape.word(&word);
                shape.token(Some(word))?;
                template.sql.push_str(written);
            }
            Token::Brace => {
                shape.token(None)?;
                template.sql.push_str(&written[..1]);
            }
            Token::Parameter => {
                shape.token(None)?;
                template.parameter(&written[1..written.len() - 1], dialect, &mut numbers)?;
            }
            Token::Bad(text) => return Err(text.into()),
        }
    }
    shape.end()?;
    template.kind = shape.kind(text);
    Ok(template)
}

impl Template {
    /// `numbers` has those of the names that were seen.
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

/// Which words the statement begins with, and what follows semicolons.
struct Shape {
    dialect: Dialect,
    words: usize,
    first: String,
    second: String,
    /// Nothing was seen since the beginning or a semicolon.
    fresh: bool,
    seen: Seen,
}

/// Which of the words and signs that matter there were anywhere.
#[derive(Default)]
struct Seen {
    write: bool,
    insert: bool,
    returning: bool,
    conflict: bool,
    mysql_mark: bool,
    /// The client's own end of a stream, as in `copy t from stdin`.
    client_stream: bool,
}

impl Shape {
    fn token(&mut self, word: Option<String>) -> Result<(), String> {
        let fresh = std::mem::take(&mut self.fresh);
        let word = word.unwrap_or_default();
        if self.words == 1 {
            self.second.clone_from(&word);
        }
        self.words += 1;
        if self.words == 1 {
            self.first = word;
            return Ok(());
        }
        if !fresh {
            return Ok(());
        }
        // Bodies of triggers and functions have semicolons.
        if self.first != "create" {
            return Err("one statement at a time: give several as several entries of `statements`".into());
        }
        if self.dialect == Dialect::Sqlite && !SQLITE_INNER.contains(&word.as_str()) {
            return Err(format!("`{word}` after a semicolon: one statement at a time"));
        }
        Ok(())
    }

    /// Called before `token`.
    fn word(&mut self, word: &str) {
        let seen = &mut self.seen;
        if WRITES.contains(&word) && (self.words == 0 || self.first == "with" && word != "replace") {
            seen.write = true;
            seen.insert |= matches!(word, "insert" | "replace");
        }
        seen.returning |= word == "returning";
        seen.conflict |= word == "conflict";
        seen.mysql_mark |= word == "temporary";
        seen.client_stream |= matches!(word, "stdin" | "stdout" | "local");
    }

    /// `@x` is a variable of the session, `@@x` one of the system, which only `set` changes.
    fn variable(&mut self, before: &str, after: &str) {
        self.seen.mysql_mark |= !before.ends_with('@') && !after.starts_with('@');
    }

    fn kind(&self, text: &str) -> Kind {
        let Self { dialect, first, seen, .. } = self;
        let first = first.as_str();
        let marks_session = match dialect {
            Dialect::Postgres => POSTGRES_MARKS.contains(&first),
            Dialect::MySql => {
                !MYSQL_UNMARKED.contains(&first) || seen.mysql_mark || contains_ignoring_case(text, "get_lock")
            }
            // `create temp view`, `create table "temp".x`: a name has no other spelling.
            Dialect::Sqlite => first == "create" && contains_ignoring_case(text, "temp"),
        };
        Kind {
            writes: seen.write,
            inserts: seen.insert && !seen.conflict,
            gives_rows: READS.contains(&first) || seen.returning,
            changes_schema: CHANGES.contains(&first),
            marks_session,
        }
    }

    fn semicolon(&mut self) {
        self.fresh = true;
    }

    fn end(&self) -> Result<(), String> {
        let Self { dialect, words, first, second, seen, .. } = self;
        if *words == 0 {
            return Err("there is no statement in the text".into());
        }
        let control = CONTROL.contains(&first.as_str())
            || (first == "prepare" && second == "transaction")
            || (first == "set" && second == "autocommit");
        if control {
            return Err(format!("`{first}`: transactions are begun and ended by the operation, not by a statement"));
        }
        if seen.client_stream && (first == "copy" || first == "load") {
            return Err(format!(
                "`{first}` with data of the client's is not possible here: insert rows with parameters, several statements \
                 in one operation, and read them with `select`"
            ));
        }
        if *dialect == Dialect::Sqlite && !SQLITE.contains(&first.as_str()) {
            return Err(format!("`{first}` is not permitted (permitted: {})", SQLITE.join(", ")));
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
            // MySQL runs what is within `/*! */`.
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

    /// Whether what was just scanned is a name, not a placeholder: MySQL's `@variable` and `:=`.
    fn is_name(&self, written: &str) -> bool {
        self.dialect == Dialect::MySql && written != "?"
    }
}

/// Letters and digits; all that is not ASCII is part of words.
fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_' || !character.is_ascii()
}

fn line(rest: &str) -> usize {
    rest.find('\n').map_or(rest.len(), |end| end + 1)
}

/// MySQL wants white space after `--`.
fn line_comment(rest: &str) -> bool {
    rest[2..].chars().next().is_none_or(|next| next.is_ascii_whitespace() || next.is_ascii_control())
}

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

/// To the closing quote, or to the end of the text: the database will tell. A doubled quote comes out as two strings side by
/// side, which is as good.
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

/// `$$..$$` and `$tag$..$tag$`.
fn dollar_quoted(rest: &str) -> Option<usize> {
    let tag_end = rest[1..].find('$')? + 2;
    let tag = &rest[..tag_end];
    let name = &tag[1..tag_end - 1];
    let is_tag = name.chars().all(is_word) && !name.starts_with(|first: char| first.is_ascii_digit());
    is_tag.then(|| rest[tag_end..].find(tag).map_or(rest.len(), |end| tag_end + end + tag.len()))
}

fn parameter(rest: &str) -> Option<usize> {
    let name = rest[1..].find('}').map(|end| &rest[1..=end])?;
    let fits = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    fits.then_some(name.len() + 2)
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
        // What is not closed runs to the end.
        check(Sqlite, "select '{a}", "select '{a}", &[]);
    }

    #[test]
    fn what_is_no_statement_of_its_own_is_refused() {
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
    fn it_is_seen_what_a_statement_does() {
        use Dialect::*;
        let kind = |writes, inserts, gives_rows| Kind { writes, inserts, gives_rows, ..Kind::default() };
        for (text, expected) in [
            ("insert into t values (1)", kind(true, true, false)),
            ("insert into t values (1) returning id", kind(true, true, true)),
            ("insert into t values (1) on conflict do update set a = 1", kind(true, false, false)),
            (" /**/ UPDATE t set a = 1", kind(true, false, false)),
            ("with x as (select 1) insert into t select * from x", kind(true, true, true)),
            ("with x as (select 1) select replace(a, 'b', 'c') from x", kind(false, false, true)),
            ("select 'insert'", kind(false, false, true)),
            ("create table t (a)", Kind { changes_schema: true, ..Kind::default() }),
        ] {
            assert_eq!(parse(text, Sqlite).unwrap().kind, expected, "{text}");
        }
    }

    #[test]
    fn it_is_seen_what_stays_in_a_session_that_cannot_be_reset() {
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
            assert_eq!(parse(text, dialect).unwrap().kind.marks_session, marks, "{text}");
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
