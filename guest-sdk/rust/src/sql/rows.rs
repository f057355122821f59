//! Results of statements.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Error;
use super::value::{RowDeserializer, Value};

/// The result of one statement.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Rows {
    /// Names of the columns; empty when the statement returns no rows.
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
    /// Number of rows that the statement changed.
    pub affected: u64,
    /// The id that SQLite, MySQL or MariaDB gave to an inserted row.
    pub last_id: Option<i64>,
}

impl Rows {
    /// Converts each row to a struct by its columns' names, to a tuple by their order, or to a single value if there is one column.
    ///
    /// # Errors
    /// [`Error::BadResult`], which names the row.
    pub fn all<T: DeserializeOwned>(self) -> Result<Vec<T>, Error> {
        let Self { columns, rows, .. } = self;
        rows.into_iter().map(|row| typed(&columns, row)).collect()
    }

    /// Converts the first row, if there is any.
    ///
    /// # Errors
    /// See [`Rows::all`].
    pub fn first<T: DeserializeOwned>(self) -> Result<Option<T>, Error> {
        let Self { columns, rows, .. } = self;
        rows.into_iter().next().map(|row| typed(&columns, row)).transpose()
    }

    /// Converts the only row.
    ///
    /// # Errors
    /// [`Error::BadResult`], also when there is no row or more than one.
    pub fn one<T: DeserializeOwned>(self) -> Result<T, Error> {
        match self.rows.len() {
            1 => self.first()?.ok_or_else(|| Error::BadResult("no row".into())),
            count => Err(Error::BadResult(format!("{count} rows where one was expected"))),
        }
    }
}

/// A part of a streamed result.
#[derive(Deserialize)]
pub(super) struct Part {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Vec<Value>>,
}

impl Part {
    pub(super) fn parse(json: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(json).map_err(|error| Error::BadResult(error.to_string()))
    }
}

pub(super) fn parse(json: &[u8]) -> Result<Vec<Rows>, Error> {
    #[derive(Deserialize)]
    struct Results {
        results: Vec<Rows>,
    }
    let Results { results } = serde_json::from_slice(json).map_err(|error| Error::BadResult(error.to_string()))?;
    Ok(results)
}

pub(super) fn typed<T: DeserializeOwned>(columns: &[String], row: Vec<Value>) -> Result<T, Error> {
    T::deserialize(RowDeserializer { columns, row }).map_err(|error| Error::BadResult(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows() -> Rows {
        let reply = json!({"results": [{
            "columns": ["id", "name", "price", "data", "tags", "paid"],
            "rows": [[1, "x", {"decimal": "1.10"}, {"bytes": "AP8="}, {"json": {"a": [1]}}, 1],
                     [2, null, {"decimal": "2"}, {"bytes": ""}, {"json": {}}, false]],
            "affected": 0, "last_id": null}]});
        parse(reply.to_string().as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn rows_become_structs_tuples_and_plain_values() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Order {
            id: u32,
            name: Option<String>,
            price: String,
            data: Vec<u8>,
            tags: serde_json::Value,
            paid: bool,
        }
        let all: Vec<Order> = rows().all().unwrap();
        assert_eq!(
            all[0],
            Order {
                id: 1,
                name: Some("x".into()),
                price: "1.10".into(),
                data: vec![0, 255],
                tags: json!({"a": [1]}),
                paid: true
            }
        );
        assert_eq!((all[1].name.clone(), all[1].paid), (None, false));
        type Tuple = (i64, Option<String>, String, Vec<u8>, serde_json::Value, bool);
        assert_eq!(rows().first::<Tuple>().unwrap().unwrap().0, 1);
        let one =
            || Rows { columns: vec!["n".into()], rows: vec![vec![Value::Integer(7)]], affected: 0, last_id: None };
        assert_eq!(one().one::<i64>(), Ok(7));
        assert_eq!(one().one::<Option<f64>>(), Ok(Some(7.0)));
        assert_eq!(one().one::<(u8,)>(), Ok((7,)));
        assert!(one().one::<String>().is_err());
        assert!(rows().one::<Order>().unwrap_err().to_string().contains("2 rows"));
        assert!(rows().all::<i64>().unwrap_err().to_string().contains("6 columns"));
    }

    #[test]
    fn values_are_written_as_they_are_read() {
        let values = vec![
            Value::Null,
            true.into(),
            (-1).into(),
            u64::MAX.into(),
            1.0.into(),
            f64::INFINITY.into(),
            "a\"b".into(),
            vec![0_u8, 255].into(),
            Value::Decimal("1.10".into()),
            Value::Date("2026-11-21".into()),
            Value::Time("10:00:00".into()),
            Value::DateTime("2026-11-21T10:00:00".into()),
            Value::Timestamp("2026-11-21T10:00:00Z".into()),
            json!([1]).into(),
            Value::Uuid("00000000-0000-0000-0000-000000000000".into()),
            vec![Value::from(1), Value::Null].into(),
            None::<i64>.into(),
        ];
        let text = serde_json::to_string(&values).unwrap();
        assert!(text.contains(",1.0,"), "a float shows that it is one: {text}");
        assert_eq!(serde_json::from_str::<Vec<Value>>(&text).unwrap(), values);
        assert!(serde_json::from_str::<Value>(r#"{"money": "1"}"#).is_err());
    }
}
