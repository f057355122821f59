//! Cells from PostgreSQL's binary form. What a server sends is not trusted to be of the right length.

use jiff::civil::Time;
use jiff::{SignedDuration, Timestamp};
use sqlx::postgres::{PgTypeInfo, PgTypeKind};
use sqlx::{TypeInfo, types::Uuid};

use super::super::driver::unknown_type;
use super::super::value::Cell;
use super::encode::{EPOCH, EPOCH_MICROS};
use super::numeric;

/// # Errors
/// Its type, or this value of it, has no form in JSON.
pub(super) fn cell(bytes: &[u8], info: &PgTypeInfo, cell: Cell<'_>) -> Result<(), String> {
    match info.kind() {
        PgTypeKind::Domain(inner) => return self::cell(bytes, inner, cell),
        PgTypeKind::Array(element) => return array(bytes, element, cell),
        PgTypeKind::Enum(_) => return text(bytes).map(|text| cell.text(text)),
        _ => {}
    }
    match info.name() {
        "BOOL" => cell.bool(fixed::<1>(bytes)? != [0]),
        "INT2" => cell.integer(i16::from_be_bytes(fixed(bytes)?).into()),
        "INT4" => cell.integer(i32::from_be_bytes(fixed(bytes)?).into()),
        "INT8" => cell.integer(i64::from_be_bytes(fixed(bytes)?)),
        "OID" => cell.integer(u32::from_be_bytes(fixed(bytes)?).into()),
        "FLOAT4" => cell.float32(f32::from_be_bytes(fixed(bytes)?)),
        "FLOAT8" => cell.float(f64::from_be_bytes(fixed(bytes)?)),
        "NUMERIC" => match numeric::decode(bytes)? {
            name if name.ends_with(['N', 'y']) => cell.tagged("float", name),
            number => cell.tagged("decimal", number),
        },
        "TEXT" | "VARCHAR" | "CHAR" | "\"CHAR\"" | "NAME" | "UNKNOWN" | "xml" | "citext" => cell.text(text(bytes)?),
        "BYTEA" => cell.bytes(bytes),
        "DATE" => cell.tagged("date", date(i32::from_be_bytes(fixed(bytes)?)).ok_or_else(no_moment)?),
        "TIME" => match i64::from_be_bytes(fixed(bytes)?) {
            // PostgreSQL knows the end of the day, too.
            86_400_000_000 => cell.tagged("time", "24:00:00"),
            micros => {
                let time = Time::midnight().checked_add(SignedDuration::from_micros(micros));
                cell.tagged("time", time.map_err(|_| no_moment())?);
            }
        },
        "TIMESTAMP" => {
            let since = SignedDuration::from_micros(i64::from_be_bytes(fixed(bytes)?));
            let time = EPOCH.to_datetime(Time::midnight()).checked_add(since);
            cell.tagged("datetime", time.map_err(|_| no_moment())?);
        }
        "TIMESTAMPTZ" => {
            let micros = i64::from_be_bytes(fixed(bytes)?).checked_add(EPOCH_MICROS).ok_or_else(no_moment)?;
            cell.tagged("timestamp", Timestamp::from_microsecond(micros).map_err(|_| no_moment())?);
        }
        "UUID" => cell.tagged("uuid", Uuid::from_bytes(fixed(bytes)?).hyphenated()),
        "JSON" => cell.json(text(bytes)?),
        "JSONB" => cell.json(text(bytes.strip_prefix(&[1]).ok_or("JSONB of an unknown version")?)?),
        "VOID" => cell.null(),
        other => return Err(unknown_type(other, "x::text")),
    }
    Ok(())
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    bytes.try_into().map_err(|_| format!("{} bytes where {N} were expected", bytes.len()))
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())
}

fn no_moment() -> String {
    "an infinite moment, or one outside of the years -9999 to 9999: cast it, as in x::text".to_owned()
}

fn date(days: i32) -> Option<jiff::civil::Date> {
    EPOCH.checked_add(SignedDuration::from_secs(i64::from(days) * 86_400)).ok()
}

fn array(bytes: &[u8], element: &PgTypeInfo, cell: Cell<'_>) -> Result<(), String> {
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
            Err(_) => Cell(out).null(),
            Ok(length) => {
                let value = rest.get(..length).ok_or("an array that is cut off")?;
                rest = &rest[length..];
                self::cell(value, element, Cell(out))?;
            }
        }
    }
    out.extend_from_slice(b"]}");
    Ok(())
}
