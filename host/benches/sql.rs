//! Compares `select 1` in a guest's loop with the same statement through the same library from Rust: the cost of the
//! cage, its pool and JSON.
//!
//! `cargo bench -p wasmcage-benches --bench sql` after `tests/run guests`. Calls run one after
//! the other, rounds alternate, and the figures are medians. PostgreSQL is measured if `DATABASE_URL` names a server.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first thing that is wrong, and prints"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{Connection, Database, Executor, IntoArguments, PgConnection, Row, SqliteConnection};
use wasmcage_benches::{BenchCage, median};
use wasmcage_core::request::{Facts, Payload, RequestContext};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const STATEMENT: &str = "select 1";
const TIMES: u32 = 2_000;
const ROUNDS: usize = 15;

fn main() {
    let server = std::env::var("DATABASE_URL").ok();
    let mut toml = "[modules.user]\nallow = { resources = [\"sqlite\", \"postgres\"] }\n\
                    [resources.sqlite]\nprotocol = \"sql\"\npath = \"bench.db\"\n"
        .to_owned();
    if let Some(url) = &server {
        toml.push_str(&format!("[resources.postgres]\nprotocol = \"sql\"\nurl = \"{url}\"\n"));
    }
    let Some(cage) = BenchCage::start(&[("sql_user", "user")], &toml) else {
        println!("not run: the guests are not built");
        return;
    };
    println!(
        "| select 1, one after another | library us | guest us | guest / library, statements a second |\n|---|---|---|---|"
    );
    let file = format!("sqlite:{}?mode=rwc", cage.directory().join("bench.db").display());
    let mut connection = cage.runtime.block_on(SqliteConnection::connect(&file)).unwrap();
    row(&cage, "sqlite", &mut connection);
    match server {
        Some(url) => {
            let mut connection = cage.runtime.block_on(PgConnection::connect(&url)).unwrap();
            row(&cage, "postgres", &mut connection);
        }
        None => println!("not run: postgres; DATABASE_URL may name a server"),
    }
}

fn row<C>(cage: &BenchCage, resource: &str, connection: &mut C)
where
    C: Connection + 'static,
    for<'c> &'c mut C: Executor<'c, Database = C::Database>,
    <C::Database as Database>::Arguments: IntoArguments<C::Database>,
    i32: for<'r> sqlx::Decode<'r, C::Database> + sqlx::Type<C::Database>,
    usize: sqlx::ColumnIndex<<C::Database as Database>::Row>,
{
    let dispatcher = cage.host().cage("bench").unwrap().dispatcher().clone();
    let (mut library, mut guest) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        cage.runtime.block_on(async {
            for _ in 0..TIMES {
                let row = sqlx::query(STATEMENT).fetch_one(&mut *connection).await.unwrap();
                assert_eq!(row.get::<i32, _>(0), 1);
            }
        });
        library.push(begun.elapsed() / TIMES);
        let context = RequestContext::new("bench".into(), "bench", Duration::from_secs(60), Arc::new(Facts::default()));
        let arguments = Payload::Json(format!("{{\"args\":[\"{resource}\",\"{STATEMENT}\",{TIMES}]}}"));
        let begun = Instant::now();
        let call = dispatcher.call(Arc::new(context), "user", "repeat".to_owned(), arguments);
        cage.runtime.block_on(call).unwrap();
        guest.push(begun.elapsed() / TIMES);
    }
    let micros = |durations| median(durations).as_secs_f64() * 1e6;
    let (library, guest) = (micros(library), micros(guest));
    println!("| {resource} | {library:.1} | {guest:.1} | {:.2} |", library / guest);
}
