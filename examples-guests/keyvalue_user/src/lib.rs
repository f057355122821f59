//! The interfaces that other hosts have, too: `wasi:keyvalue`, in the draft `0.2.0-draft2`, and, in `old`, in the draft
//! before it. Keys and values are texts here.

mod draft {
    wit_bindgen::generate!({ path: "../../host/runtime/wit/wasi/keyvalue-draft", world: "wasi:keyvalue/imports" });
}
mod draft2 {
    wit_bindgen::generate!({ path: "../../host/runtime/wit/wasi/keyvalue-draft2", world: "wasi:keyvalue/imports" });
}

use draft2::wasi::keyvalue::atomics::CasError;
use draft2::wasi::keyvalue::store::{Bucket, Error as StoreError, open};
use wasmcage_guest::{Error, Result, service};

#[service]
mod keyvalue_user {
    use std::collections::BTreeMap;

    use super::draft2::wasi::keyvalue::atomics::{self, Cas};
    use super::draft2::wasi::keyvalue::batch;
    use super::*;

    type Pair = (String, String);

    pub fn get(bucket: &str, key: &str) -> Result<Option<String>> {
        opened(bucket)?.get(key).map(|value| value.map(text)).map_err(failed)
    }

    pub fn set(bucket: &str, key: &str, value: &str) -> Result<()> {
        opened(bucket)?.set(key, value.as_bytes()).map_err(failed)
    }

    pub fn delete(bucket: &str, key: &str) -> Result<()> {
        opened(bucket)?.delete(key).map_err(failed)
    }

    pub fn exists(bucket: &str, key: &str) -> Result<bool> {
        opened(bucket)?.exists(key).map_err(failed)
    }

    /// All keys, and of how many pages.
    pub fn keys(bucket: &str) -> Result<(Vec<String>, usize)> {
        let bucket = opened(bucket)?;
        let (mut keys, mut pages, mut cursor) = (Vec::new(), 0, None::<String>);
        loop {
            let mut page = bucket.list_keys(cursor.as_deref()).map_err(failed)?;
            keys.append(&mut page.keys);
            pages += 1;
            match page.cursor {
                Some(next) => cursor = Some(next),
                None => return Ok((keys, pages)),
            }
        }
    }

    pub fn increment(bucket: &str, key: &str, delta: i64) -> Result<i64> {
        atomics::increment(&opened(bucket)?, key, delta).map_err(failed)
    }

    /// Appends to a value, after `meanwhile` has appended something, too: the first swap fails, and the next one is made
    /// with the handle that it gave.
    pub fn append(bucket: &str, key: &str, more: &str, meanwhile: Option<String>) -> Result<u32> {
        let bucket = opened(bucket)?;
        let mut cas = Cas::new(&bucket, key).map_err(failed)?;
        let mut current = cas.current().map_err(failed)?.map_or(String::new(), text);
        if let Some(meanwhile) = meanwhile {
            bucket.set(key, format!("{current}{meanwhile}").as_bytes()).map_err(failed)?;
        }
        let mut swaps = 0;
        loop {
            swaps += 1;
            cas = match atomics::swap(cas, (current + more).as_bytes()) {
                Ok(()) => return Ok(swaps),
                Err(CasError::CasFailed(cas)) => cas,
                Err(CasError::StoreError(error)) => return Err(failed(error)),
            };
            current = cas.current().map_err(failed)?.map_or(String::new(), text);
        }
    }

    pub fn get_many(bucket: &str, keys: Vec<String>) -> Result<Vec<(String, Option<String>)>> {
        let found = batch::get_many(&opened(bucket)?, &keys).map_err(failed)?;
        Ok(found.into_iter().map(|(key, value)| (key, value.map(text))).collect())
    }

    pub fn set_many(bucket: &str, pairs: BTreeMap<String, String>) -> Result<()> {
        let pairs: Vec<_> = pairs.into_iter().map(|(key, value)| (key, value.into_bytes())).collect();
        batch::set_many(&opened(bucket)?, &pairs).map_err(failed)
    }

    pub fn delete_many(bucket: &str, keys: Vec<String>) -> Result<()> {
        batch::delete_many(&opened(bucket)?, &keys).map_err(failed)
    }

    /// Some of it in the older draft: sets a key, counts another up, and tells both and all keys.
    pub fn old(bucket: &str) -> Result<(Vec<Option<Pair>>, Vec<String>)> {
        use super::draft::wasi::keyvalue::{atomics, batch, store};
        let failed = |error: store::Error| Error::failed(format!("{error:?}"));
        let bucket = store::open(bucket).map_err(failed)?;
        bucket.set("set", b"old").map_err(failed)?;
        atomics::increment(&bucket, "counted", 7).map_err(failed)?;
        let asked = ["set", "missing", "counted"].map(String::from);
        let found = batch::get_many(&bucket, &asked).map_err(failed)?;
        let (mut keys, mut cursor) = (Vec::new(), None);
        loop {
            let mut page = bucket.list_keys(cursor).map_err(failed)?;
            keys.append(&mut page.keys);
            cursor = page.cursor;
            if cursor.is_none() {
                let found = found.into_iter().map(|pair| pair.map(|(key, value)| (key, text(value))));
                return Ok((found.collect(), keys));
            }
        }
    }
}

fn opened(bucket: &str) -> Result<Bucket> {
    open(bucket).map_err(failed)
}

fn failed(error: StoreError) -> Error {
    Error::failed(format!("{error:?}"))
}

fn text(value: Vec<u8>) -> String {
    String::from_utf8_lossy(&value).into_owned()
}
