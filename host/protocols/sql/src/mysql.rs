//! MySQL and MariaDB. A cell's type is its column's; timestamps are in UTC.

use async_trait::async_trait;
use sqlx::mysql::types::{MySqlTime, MySqlTimeSign};
use sqlx::mysql::{MySqlArguments, MySqlConnectOptions, MySqlQueryResult, MySqlRow, MySqlTypeInfo, MySqlValueRef};
use sqlx::types::chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Decode, Encode, Executor, MySql, MySqlConnection, Row, Type, TypeInfo,
    ValueRef,
};

use super::driver::{self, BeginOptions, RunError, StatementResult};
use super::operation::Statement;
use super::rows::RowWriter;
use super::value::{CellWriter, Value};

pub(super) struct MySqlDriver {
    connection: MySqlConnection,
}

impl MySqlDriver {
    pub(super) async fn connect(options: &MySqlConnectOptions) -> Result<Self, sqlx::Error> {
        Ok(Self { connection: options.connect().await? })
    }

    async fn control(&mut self, sql: impl Into<String>) -> Result<(), sqlx::Error> {
        (&mut self.connection).execute(AssertSqlSafe(sql.into())).await.map(drop)
    }
}

#[async_trait]
impl driver::DatabaseDriver for MySqlDriver {
    async fn begin(&mut self, options: BeginOptions) -> Result<(), sqlx::Error> {
        if let Some(isolation) = options.isolation {
            // This holds for the next transaction only.
            self.control(format!("set transaction isolation level {isolation}")).await?;
        }
        self.control(if options.read_only { "start transaction read only" } else { "start transaction" }).await
    }

    async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.control("commit").await
    }

    async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.control("rollback").await
    }

    async fn run(&mut self, statement: Statement, rows: &mut RowWriter) -> Result<StatementResult, RunError> {
        let mut arguments = MySqlArguments::default();
        for (name, value) in statement.arguments {
            bind(&mut arguments, value).map_err(|text| RunError::Parameter(format!("parameter {{{name}}}: {text}")))?;
        }
        let query = sqlx::query_with::<MySql, _>(AssertSqlSafe(statement.sql), arguments);
        driver::drain::<MySql>((&mut self.connection).fetch_many(query), rows, statement_result, write).await
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }
}

fn statement_result(result: MySqlQueryResult) -> StatementResult {
    // Zero stands for none.
    let last_id = i64::try_from(result.last_insert_id()).ok().filter(|id| *id != 0);
    StatementResult { affected: result.rows_affected(), last_id }
}

/// A decimal number, sent as text so that all digits are kept.
struct DecimalText(String);

impl Type<MySql> for DecimalText {
    fn type_info() -> MySqlTypeInfo {
        <sqlx::types::BigDecimal as Type<MySql>>::type_info()
    }
}

impl Encode<'_, MySql> for DecimalText {
    fn encode_by_ref(&self, buffer: &mut Vec<u8>) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        <&str as Encode<MySql>>::encode(&self.0, buffer)
    }
}

fn bind(arguments: &mut MySqlArguments, value: Value) -> Result<(), String> {
    use sqlx::Arguments;
    match value {
        Value::Null => arguments.add(None::<i64>),
        Value::Bool(value) => arguments.add(value),
        Value::Integer(value) => arguments.add(value),
        Value::Float(value) if !value.is_finite() => return Err("MySQL has finite floats only".into()),
        Value::Float(value) => arguments.add(value),
        Value::Text(text) | Value::Json(text) => arguments.add(text),
        Value::Decimal(decimal) => arguments.add(DecimalText(decimal.0)),
        Value::Bytes(bytes) => arguments.add(bytes),
        Value::Date(value) => arguments.add(date(value)?),
        Value::Time(value) => arguments.add(time(value)?),
        Value::DateTime(value) => arguments.add(NaiveDateTime::new(date(value.date())?, time(value.time())?)),
        Value::Timestamp(value) => {
            let moment = DateTime::<Utc>::from_timestamp_micros(value.as_microsecond());
            arguments.add(moment.ok_or("out of range")?)
        }
        Value::Uuid(uuid) => arguments.add(uuid.hyphenated().to_string()),
        Value::Array(_) => return Err("MySQL has no arrays: give JSON, and `json_table` in the statement".into()),
    }
    .map_err(|error| error.to_string())
}

fn date(date: jiff::civil::Date) -> Result<NaiveDate, String> {
    let (month, day) = (date.month().unsigned_abs().into(), date.day().unsigned_abs().into());
    NaiveDate::from_ymd_opt(date.year().into(), month, day).ok_or_else(|| "out of range".to_owned())
}

fn time(time: jiff::civil::Time) -> Result<NaiveTime, String> {
    let [hour, minute, second] = [time.hour(), time.minute(), time.second()].map(|part| part.unsigned_abs().into());
    let micros = u32::try_from(time.subsec_nanosecond() / 1000).unwrap_or_default();
    NaiveTime::from_hms_micro_opt(hour, minute, second, micros).ok_or_else(|| "out of range".to_owned())
}

fn write(row: &MySqlRow, index: usize, cell: CellWriter<'_>) -> Result<(), String> {
    let value = row.try_get_raw(index).map_err(|error| error.to_string())?;
    if value.is_null() {
        cell.null();
        return Ok(());
    }
    let info = value.type_info().into_owned();
    match info.name() {
        "BOOLEAN" => match decoded::<i64>(value)? {
            bool @ (0 | 1) => cell.bool(bool == 1),
            integer => cell.integer(integer),
        },
        "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => cell.integer(decoded(value)?),
        "BIT" | "YEAR" | "TINYINT UNSIGNED" | "SMALLINT UNSIGNED" | "MEDIUMINT UNSIGNED" | "INT UNSIGNED"
        | "BIGINT UNSIGNED" => cell.unsigned(decoded(value)?),
        "FLOAT" => cell.float32(decoded(value)?),
        "DOUBLE" => cell.float(decoded(value)?),
        "DECIMAL" => cell.tagged("decimal", decoded::<&str>(value)?),
        "DATE" => cell.tagged("date", decoded::<NaiveDate>(value)?),
        "TIME" => cell.tagged("time", TimeText(decoded(value)?)),
        "DATETIME" => cell.tagged("datetime", decoded::<NaiveDateTime>(value)?.format("%Y-%m-%dT%H:%M:%S%.f")),
        "TIMESTAMP" => cell.tagged("timestamp", decoded::<DateTime<Utc>>(value)?.format("%Y-%m-%dT%H:%M:%S%.fZ")),
        "JSON" => cell.json(decoded(value)?),
        "ENUM" | "SET" => cell.text(decoded(value)?),
        _ if <str as Type<MySql>>::compatible(&info) => cell.text(decoded(value)?),
        "BINARY" | "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" => cell.bytes(decoded(value)?),
        other => return Err(driver::unknown_type(other, "cast(x as char)")),
    }
    Ok(())
}

/// A time of day or a time span, written such as `-838:59:59.000001`.
struct TimeText(MySqlTime);

impl std::fmt::Display for TimeText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(time) = self;
        let sign = if matches!(time.sign(), MySqlTimeSign::Negative) { "-" } else { "" };
        write!(f, "{sign}{:02}:{:02}:{:02}", time.hours(), time.minutes(), time.seconds())?;
        match time.microseconds() {
            0 => Ok(()),
            micros => write!(f, ".{micros:06}"),
        }
    }
}

fn decoded<'r, T: Decode<'r, MySql>>(value: MySqlValueRef<'r>) -> Result<T, String> {
    T::decode(value).map_err(|error| error.to_string())
}
