//! An order: a row in a database, a count in the module's own data, and a mail that is sent later. All of it, or nothing.

use wasmcage_guest::sql::Statements;
use wasmcage_guest::{Request, Response, Result, handler, module, params, state, transaction};

#[handler]
fn handle(request: Request) -> Result<Response> {
    let item = request.text()?;
    let row = Statements::new()
        .add("create table if not exists orders (id integer primary key, item text, taken text)", params! {})
        .add("insert into orders (item, taken) values ({item}, current_timestamp)", params! { item: item });
    let mut counts = state::transaction();
    let count = counts.increment("orders", 1);

    let mut order = transaction();
    order.operation("db", row.operation()?);
    let counts = order.state(counts)?;
    let mail = order.retried(module("mail").retried(), "send", (item,))?;
    let mut done = order.execute()?;

    let count = done.take(counts)?.take(count)?;
    Ok(Response::text(format!("order {count} is taken, its mail is {}", done.take(mail)?)))
}
