//! A nightly job for the orders of guest `order`: they go from their table to the archive, and a mail says how many they were.
//! `[interfaces.nightly] protocol = "schedule", cron = "0 0 3 * * *", module = "nightly"` in `cage.toml` runs it at three.

use wasmcage_guest::sql::Statements;
use wasmcage_guest::{Error, Request, Response, Result, handler, info, module, params, sql, transaction};

#[handler]
fn handle(request: Request) -> Result<Response> {
    let until = request.header("scheduled-time").ok_or_else(|| Error::bad_arguments("this is no scheduled request"))?;
    let count = "select max(id), count(*) from orders where taken < datetime({until})";
    let (Some(last), count): (Option<i64>, i64) = sql("db").query(count, params! { until: until })?.one()? else {
        info!("no orders until {until}");
        return Ok(().into());
    };
    let archive = Statements::new()
        .add("create table if not exists archive (id integer primary key, item text, taken text)", params! {})
        .add("insert into archive select id, item, taken from orders where id <= {last}", params! { last: last })
        .add("delete from orders where id <= {last}", params! { last: last });
    let report = format!("{count} orders until {until}");

    let mut night = transaction();
    night.operation("db", archive.operation()?);
    // Its name keeps a night from being reported twice.
    night.retried(module("mail").retried().id(until), "send", (&report,))?;
    night.execute()?;
    info!("{report}");
    Ok(().into())
}
