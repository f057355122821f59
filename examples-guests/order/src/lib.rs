//! An order: a row in a database, a count in the module's own data, and a mail that is sent later. All of it, or nothing.

use wasmcage_guest::serde_json::json;
use wasmcage_guest::sql::Statements;
use wasmcage_guest::transaction::{Outcome, RetriedCall, RetriedOptions, Step};
use wasmcage_guest::{Error, Payload, Request, Response, Result, handler, params, transaction};

#[handler]
fn handle(request: Request) -> Result<Response> {
    let item = request.text()?.to_owned();
    let row = Statements::new()
        .add("create table if not exists orders (id integer primary key, item text not null)", params! {})
        .add("insert into orders (item) values ({item})", params! { item: item.clone() });

    let mut order = transaction();
    order.operation("db", row.operation()?);
    let count = order.state(vec![Step::Increment(("orders".into(), 1))]);
    let mail = order.retried(mail(&item));
    let mut done = order.execute()?;

    let [Outcome::Number(count)] = done.take(count)?[..] else { return Err(Error::failed("no count")) };
    Ok(Response::text(format!("order {count} is taken, its mail is {}", done.take(mail)?)))
}

/// `mail.send(item)`, in the background, until it succeeds.
fn mail(item: &str) -> RetriedCall {
    RetriedCall {
        cage: None,
        module: "mail".into(),
        function: "send".into(),
        arguments: Payload::Json(json!({ "args": [item] }).to_string()),
        options: RetriedOptions {
            queue: None,
            id: None,
            expires_ms: None,
            not_before_ms: None,
            max_attempts: None,
            priority: None,
        },
    }
}
