//! A guestbook in SQLite: POST signs it, GET shows it.

use wasmcage_guest::{Request, Response, Result, handler, params, sql};

#[handler]
fn handle(request: Request) -> Result<Response> {
    let db = sql("db");
    db.execute("create table if not exists guests (id integer primary key, name text not null)", params! {})?;
    if request.method() == "POST" {
        db.execute("insert into guests (name) values ({name})", params! { name: request.text()? })?;
    }
    let names: Vec<String> = db.query("select name from guests order by id desc limit 100", params! {})?.all()?;
    Ok(Response::text(names.join("\n")))
}
