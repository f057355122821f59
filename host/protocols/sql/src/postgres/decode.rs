//! Writes cells from PostgreSQL's binary form. The lengths in a server's bytes are not trusted.

use jiff::civil::Time;
use jiff::{SignedDuration, Timestamp};
use sqlx::postgres::{PgTypeInfo, PgTypeKind};
use sqlx::{TypeInfo, types::Uuid};

use super::super::driver::unknown_type;
use super::super::value::CellWriter;
use super::encode::{EPOCH, EPOCH_MICROS};
use super::numeric;

/// Writes a value of one type.
pub(super) type WriteValue = fn(&[u8], CellWriter<'_>) -> Result<(), String>;

/// Writes a cell.
///
/// # Errors
/// Its type, or this value of it, cannot be expressed in JSON.
pub(super) fn cell(bytes: &[u8], info: &PgTypeInfo, cell: CellWriter<'_>) -> Result<(), String> {
    match info.kind() {
        PgTypeKind::Domain(inner) => self::cell(bytes, inner, cell),
        PgTypeKind::Array(element) => array(bytes, element, cell),
        _ => writer_of(info)?(bytes, cell),
    }
}

/// The function that writes values of a type; for an array, that of its elements.
///
/// # Errors
/// The type cannot be expressed in JSON.
pub(super) fn writer_of(info: &PgTypeInfo) -> Result<WriteValue, String> {
    match info.kind() {
        PgTypeKind::Domain(inner) | PgTypeKind::Array(inner) => return writer_of(inner),
        PgTypeKind::Enum(_) => return Ok(written_text),
        _ => {}
    }
    Ok(match info.name() {
        "BOOL" => |bytes, cell| fixed(bytes).map(|value| cell.bool(value != [0])),
        "INT2" => |bytes, cell| fixed(bytes).map(|value| cell.integer(i16::from_be_bytes(value).into())),
        "INT4" => |bytes, cell| fixed(bytes).map(|value| cell.integer(i32::from_be_bytes(value).into())),
        "INT8" => |bytes, cell| fixed(bytes).map(|value| cell.integer(i64::from_be_bytes(value))),
        "OID" => |bytes, cell| fixed(bytes).map(|value| cell.integer(u32::from_be_bytes(value).into())),
        "FLOAT4" => |bytes, cell| fixed(bytes).map(|value| cell.float32(f32::from_be_bytes(value))),
        "FLOAT8" => |bytes, cell| fixed(bytes).map(|value| cell.float(f64::from_be_bytes(value))),
        "NUMERIC" => |bytes, cell| {
            numeric::decode(bytes).map(|number| match number.ends_with(['N', 'y']) {
                true => cell.tagged("float", number),
                false => cell.tagged("decimal", number),
            })
        },
        "TEXT" | "VARCHAR" | "CHAR" | "\"CHAR\"" | "NAME" | "UNKNOWN" | "xml" | "citext" => written_text,
        "BYTEA" => |bytes, cell| {
            cell.bytes(bytes);
            Ok(())
        },
        "DATE" => |bytes, cell| {
            let date = date(i32::from_be_bytes(fixed(bytes)?)).ok_or_else(out_of_range);
            date.map(|date| cell.tagged("date", date))
        },
        "TIME" => time,
        "TIMESTAMP" => |bytes, cell| {
            let since = SignedDuration::from_micros(i64::from_be_bytes(fixed(bytes)?));
            let time = EPOCH.to_datetime(Time::midnight()).checked_add(since).map_err(|_| out_of_range());
            time.map(|time| cell.tagged("datetime", time))
        },
        "TIMESTAMPTZ" => |bytes, cell| {
            let micros = i64::from_be_bytes(fixed(bytes)?).checked_add(EPOCH_MICROS).ok_or_else(out_of_range)?;
            let time = Timestamp::from_microsecond(micros).map_err(|_| out_of_range());
            time.map(|time| cell.tagged("timestamp", time))
        },
        "UUID" => |bytes, cell| fixed(bytes).map(|bytes| cell.tagged("uuid", Uuid::from_bytes(bytes).hyphenated())),
        "JSON" => |bytes, cell| text(bytes).map(|document| cell.json(document)),
        "JSONB" => |bytes, cell| {
            let document = bytes.strip_prefix(&[1]).ok_or("JSONB of an unknown version")?;
            text(document).map(|document| cell.json(document))
        },
        "VOID" => |_, cell| {
            cell.null();
            Ok(())
        },
        other => return Err(unknown_type(other, "x::text")),
    })
}

fn written_text(bytes: &[u8], cell: CellWriter<'_>) -> Result<(), String> {
    text(bytes).map(|text| cell.text(text))
}

fn time(bytes: &[u8], cell: CellWriter<'_>) -> Result<(), String> {
    match i64::from_be_bytes(fixed(bytes)?) {
        // PostgreSQL's times include the end of the day.
        86_400_000_000 => cell.tagged("time", "24:00:00"),
        micros => {
            let time = Time::midnight().checked_add(SignedDuration::from_micros(micros));
            cell.tagged("time", time.map_err(|_| out_of_range())?);
        }
    }
    Ok(())
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    bytes.try_into().map_err(|_| format!("{} bytes where {N} were expected", bytes.len()))
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())
}

fn out_of_range() -> String {
    "an infinite moment, or one outside of the years -9999 to 9999: cast it, as in x::text".to_owned()
}

fn date(days: i32) -> Option<jiff::civil::Date> {
    EPOCH.checked_add(SignedDuration::from_secs(i64::from(days) * 86_400)).ok()
}

fn array(bytes: &[u8], element: &PgTypeInfo, cell: CellWriter<'_>) -> Result<(), String> {
    let mut rest = bytes;
    let integer = |rest: &mut &[u8]| -> Result<i32, String> {
        let (first, after) = rest.split_first_chunk::<4>().ok_or("an array that is cut off")?;
        *rest = after;
        Ok(i32::from_be_bytes(*first))
    };
    let dimensions = integer(&mut rest)?;
    let (_has_nulls, _element) = (integer(&mut rest)?, integer(&mut rest)?);
    let length = match dimensions {
        0 => 0,
        1 => {
            let length = integer(&mut rest)?;
            let _from = integer(&mut rest)?;
            length
        }
        _ => return Err(format!("an array of {dimensions} dimensions: cast it, as in to_jsonb(x)")),
    };
    let out = cell.0;
    out.extend_from_slice(b"{\"array\":[");
    for index in 0..length {
        if index > 0 {
            out.push(b',');
        }
        match usize::try_from(integer(&mut rest)?) {
            Err(_) => CellWriter(out).null(),
            Ok(length) => {
                let value = rest.get(..length).ok_or("an array that is cut off")?;
                rest = &rest[length..];
                self::cell(value, element, CellWriter(out))?;
            }
        }
    }
    out.extend_from_slice(b"]}");
    Ok(())
}
