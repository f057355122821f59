//! Writes rows as JSON, within limits: as a whole result, or streamed in parts.

use bytes::Bytes;
use sqlx::{Column, Database, Row};
use tokio::sync::mpsc;

use super::driver::RunError;
use super::value::CellWriter;

/// A part of a streamed result is sent once it has this length. A single row may be longer.
const PART_BYTES: usize = 64 << 10;

/// The limits of a whole result; `bytes` also limits each row of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowLimits {
    pub(super) rows: u64,
    pub(super) bytes: usize,
}

/// Writes one cell. The error says what cannot be expressed in JSON.
pub(super) type WriteCell<R> = fn(&R, usize, CellWriter<'_>) -> Result<(), String>;

pub(super) struct RowWriter {
    /// Once there is a row, `"columns":[..],"rows":[[..],[..]` without the last bracket.
    json: Vec<u8>,
    count: u64,
    limits: RowLimits,
    /// The bytes of the operation's other results.
    bytes_before: usize,
    parts: Option<mpsc::Sender<Bytes>>,
}

impl RowWriter {
    pub(super) fn whole(limits: RowLimits, bytes_before: usize) -> Self {
        Self { json: Vec::new(), count: 0, limits, bytes_before, parts: None }
    }

    pub(super) fn streamed(limits: RowLimits, parts: mpsc::Sender<Bytes>) -> Self {
        Self { json: Vec::new(), count: 0, limits, bytes_before: 0, parts: Some(parts) }
    }

    pub(super) async fn add<D: Database>(&mut self, row: D::Row, write: WriteCell<D::Row>) -> Result<(), RunError> {
        self.write::<D>(&row, write)?;
        drop(row);
        if self.parts.is_some() && self.json.len() >= PART_BYTES {
            self.send().await?;
        }
        Ok(())
    }

    /// Returns whether the result is not streamed.
    pub(super) fn is_whole(&self) -> bool {
        self.parts.is_none()
    }

    /// Returns whether there was no row so far.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Counts a row that is not written.
    pub(super) fn skip(&mut self) -> Result<(), RunError> {
        self.count += 1;
        self.check_count()
    }

    fn check_count(&self) -> Result<(), RunError> {
        let rows = self.limits.rows;
        match self.is_whole() && self.count > rows {
            true => Err(RunError::TooLarge(format!("more than {rows} rows (`max_rows`)"))),
            false => Ok(()),
        }
    }

    fn write<D: Database>(&mut self, row: &D::Row, write: WriteCell<D::Row>) -> Result<(), RunError> {
        if self.json.is_empty() {
            self.begin(row.columns().iter().map(Column::name));
        } else {
            self.json.push(b',');
        }
        let start = self.json.len();
        self.json.push(b'[');
        for index in 0..row.len() {
            if index > 0 {
                self.json.push(b',');
            }
            write(row, index, CellWriter(&mut self.json))
                .map_err(|text| RunError::Cell(format!("column {:?}: {text}", row.columns()[index].name())))?;
        }
        self.json.push(b']');
        self.count += 1;
        self.check_count()?;
        let bytes = self.limits.bytes;
        let streamed = self.parts.is_some();
        let length = if streamed { self.json.len() - start } else { self.bytes_before + self.json.len() };
        if length > bytes {
            let what = if streamed { "a row" } else { "the result" };
            return Err(RunError::TooLarge(format!("{what} is longer than {bytes} bytes (`max_result_bytes`)")));
        }
        Ok(())
    }

    fn begin<'a>(&mut self, columns: impl Iterator<Item = &'a str>) {
        self.json.extend_from_slice(b"\"columns\":[");
        for (index, name) in columns.enumerate() {
            if index > 0 {
                self.json.push(b',');
            }
            CellWriter(&mut self.json).text(name);
        }
        self.json.extend_from_slice(b"],\"rows\":[");
    }

    async fn send(&mut self) -> Result<(), RunError> {
        let json = std::mem::take(&mut self.json);
        let part = Bytes::from([b"{", json.as_slice(), b"]}"].concat());
        match &self.parts {
            Some(parts) => parts.send(part).await.map_err(|_| RunError::Abandoned),
            None => Ok(()),
        }
    }

    /// Returns `"columns":[..],"rows":[..]`, or sends the last part of a stream.
    pub(super) async fn finish(mut self) -> Result<Vec<u8>, RunError> {
        if self.parts.is_some() {
            if !self.json.is_empty() {
                self.send().await?;
            }
            return Ok(self.json);
        }
        if self.json.is_empty() {
            self.begin(std::iter::empty());
        }
        self.json.push(b']');
        Ok(self.json)
    }
}
