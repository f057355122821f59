//! Implements `wasi:keyvalue` on the module's durable keys, for both drafts of the proposal that components are made with.
//!
//! A bucket is the part of the module's keys that have the same prefix. The bucket `default`, whose name may also be empty, has
//! the keys that begin with a character from U+0020 on. The keys of any other bucket are `U+0001 BUCKET U+0001 KEY`. The name
//! of a bucket contains no control character, so no two buckets share a key. `wasmcage:cage/state` sees all keys in this form.

/// Defines a function of a draft that takes texts and lists of bounded length, where the bindings would copy them whole.
macro_rules! bounded {
    ($functions:ident, $name:literal, |$guest:ident, $($argument:ident: $ty:ty),*| $done:expr) => {
        $functions.func_wrap_async(
            $name,
            |mut store: wasmtime::StoreContextMut<'_, GuestState>, ($($argument,)*): ($($ty,)*)| {
                Box::new(async move {
                    let $guest = store.data_mut();
                    let done: Result<_, Failure> = async { $done }.await;
                    Ok((match done {
                        Ok(done) => Ok(done),
                        Err(failure) => Err(store::Host::convert_error($guest, failure)?),
                    },))
                })
            },
        )?;
    };
}

/// Defines the functions that both drafts have, by `bounded!`.
macro_rules! bounded_shared {
    ($linker:ident, $version:literal, $by:ty) => {
        let mut functions = $linker.instance(concat!("wasi:keyvalue/store@", $version))?;
        bounded!(functions, "open", |guest, name: Name| store::Host::open(guest, name.into_name()).await);
        bounded!(functions, "[method]bucket.get", |guest, bucket: Resource<Bucket>, key: Name| {
            store::HostBucket::get(guest, bucket, key.into_name()).await
        });
        bounded!(functions, "[method]bucket.set", |guest, bucket: Resource<Bucket>, key: Name, value: Value| {
            store::HostBucket::set(guest, bucket, key.into_name(), whole_value(value)?).await
        });
        bounded!(functions, "[method]bucket.delete", |guest, bucket: Resource<Bucket>, key: Name| {
            store::HostBucket::delete(guest, bucket, key.into_name()).await
        });
        bounded!(functions, "[method]bucket.exists", |guest, bucket: Resource<Bucket>, key: Name| {
            store::HostBucket::exists(guest, bucket, key.into_name()).await
        });
        let mut functions = $linker.instance(concat!("wasi:keyvalue/atomics@", $version))?;
        bounded!(functions, "increment", |guest, bucket: Resource<Bucket>, key: Name, by: $by| {
            atomics::Host::increment(guest, bucket, key.into_name(), by).await
        });
        let mut functions = $linker.instance(concat!("wasi:keyvalue/batch@", $version))?;
        bounded!(functions, "get-many", |guest, bucket: Resource<Bucket>, keys: Many<Name>| {
            batch::Host::get_many(guest, bucket, whole_keys(keys)?).await
        });
        bounded!(functions, "set-many", |guest, bucket: Resource<Bucket>, pairs: Many<(Name, Value)>| {
            batch::Host::set_many(guest, bucket, whole_pairs(pairs)?).await
        });
        bounded!(functions, "delete-many", |guest, bucket: Resource<Bucket>, keys: Many<Name>| {
            batch::Host::delete_many(guest, bucket, whole_keys(keys)?).await
        });
    };
}

mod draft;
mod draft2;

use std::collections::VecDeque;

use sha2::{Digest as _, Sha256};
use wasmtime::component::{Linker, Resource, ResourceTableError};

use super::GuestState;
use super::state::ModuleStore;
use super::text::{Few, Name, TooLong};
use wasmcage_store::{Range, STEPS_MAX, StateValue, Step, StepResult, StoreError, VALUE_BYTES_MAX};

/// The greatest length of a bucket's name, in characters. No bucket has a longer name.
const BUCKET_CHARACTERS_MAX: usize = 64;
/// The character before and after a bucket's name in a key.
const MARK: char = '\u{1}';
/// The lower bound of the default bucket's keys. The keys of other buckets sort below it.
const DEFAULT_FROM: &str = " ";
/// The number of keys in one page of a list.
const PAGE_KEYS_MAX: usize = 1_000;
/// The number of cursors that an open bucket keeps. When there are more, the oldest is dropped.
const CURSORS_MAX: usize = 64;
/// The greatest result of `get-many` in bytes, keys included.
const MANY_BYTES_MAX: usize = 64 << 20;
/// The number of attempts at a change before it fails because other requests change the value as well.
const ATTEMPTS_MAX: usize = 16;

/// A bucket that a guest has opened.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Bucket {
    /// The prefix of its keys.
    prefix: String,
    cursors: Cursors,
}

/// The cursors of an open bucket, for the draft in which guests get them as numbers.
#[derive(Default)]
struct Cursors {
    given: VecDeque<String>,
    /// The number of the first cursor in `given`.
    first: u64,
}

/// A value that a guest has read and replaces if it is still the same. Values are compared, so one that was changed and changed
/// back counts as unchanged.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Cas {
    prefix: String,
    key: String,
    seen: Seen,
}

/// The SHA-256 of the value, since values may be large. None if the key does not exist.
type Seen = Option<[u8; 32]>;

/// A key that was asked for, and its value if it has one.
type Found = (String, Option<Vec<u8>>);

/// The result of a compare-and-swap.
enum Swap {
    Done,
    /// The value has changed since it was read. `Seen` is the present one.
    Changed(Seen),
}

/// The error of a function of the proposal.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub enum Failure {
    NoSuchBucket,
    Store(StoreError),
    /// A mistake of the guest or a bug of the host, which ends the guest.
    Trap(wasmtime::Error),
}

/// A value of a guest's, cut if it is longer than the store accepts.
type Value = Few<u8, VALUE_BYTES_MAX>;
/// A list of a guest's, cut if it is longer than one call accepts.
type Many<T> = Few<T, STEPS_MAX>;

fn whole_value(value: Value) -> Result<Vec<u8>, TooLong> {
    value.whole("a value", "bytes")
}

fn whole_keys(keys: Many<Name>) -> Result<Vec<String>, TooLong> {
    Ok(keys.whole("the call", "keys")?.into_iter().map(Name::into_name).collect())
}

fn whole_pairs(pairs: Many<(Name, Value)>) -> Result<Vec<(String, Vec<u8>)>, TooLong> {
    let pairs = pairs.whole("the call", "keys")?.into_iter();
    pairs.map(|(key, value)| Ok((key.into_name(), whole_value(value)?))).collect()
}

impl From<TooLong> for Failure {
    fn from(TooLong(text): TooLong) -> Self {
        Self::Store(StoreError::Invalid(text))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The guest has no such handle, or too many handles.
impl From<ResourceTableError> for Failure {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    draft::add_to_linker(linker)?;
    draft2::add_to_linker(linker)
}

impl Bucket {
    /// Returns the bucket of this name. None if the name is invalid.
    fn named(name: &str) -> Option<Self> {
        let prefix = match name {
            "" | "default" => String::new(),
            name if name.chars().count() > BUCKET_CHARACTERS_MAX || name.contains(char::is_control) => return None,
            name => format!("{MARK}{name}{MARK}"),
        };
        Some(Self { prefix, cursors: Cursors::default() })
    }
}

impl Cursors {
    fn add(&mut self, cursor: String) -> u64 {
        if self.given.len() == CURSORS_MAX {
            self.given.pop_front();
            self.first += 1;
        }
        self.given.push_back(cursor);
        self.first + self.given.len() as u64 - 1
    }

    fn get(&self, number: u64) -> Result<String, StoreError> {
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        let cursor = index.and_then(|index| self.given.get(index)).cloned();
        cursor.ok_or_else(|| {
            StoreError::Invalid(format!("this bucket gave no cursor {number}, or has given {CURSORS_MAX} since"))
        })
    }
}

/// The keys of one bucket in the store, for one request.
struct Keys {
    store: ModuleStore,
    prefix: String,
}

impl GuestState {
    fn open_bucket(&mut self, name: &str) -> Result<Resource<Bucket>, Failure> {
        let bucket = Bucket::named(name).ok_or(Failure::NoSuchBucket)?;
        Ok(self.table.push(bucket)?)
    }

    async fn keys(&mut self, bucket: &Resource<Bucket>) -> Result<Keys, Failure> {
        let prefix = self.table.get(bucket)?.prefix.clone();
        Ok(Keys { store: self.store().await?, prefix })
    }
}

impl Keys {
    /// Returns the module's key for a key of the bucket.
    fn full(&self, key: &str) -> Result<String, StoreError> {
        if self.prefix.is_empty() && key < DEFAULT_FROM {
            return Err(StoreError::Invalid("a key is empty, or begins with a control character".into()));
        }
        Ok(format!("{}{key}", self.prefix))
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.store.get(&self.full(key)?).await?.map(bytes))
    }

    async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.store.write(Step::Set(self.full(key)?, StateValue::Bytes(value))).await.map(drop)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.store.write(Step::Delete(self.full(key)?)).await.map(drop)
    }

    /// Returns a page of keys, and the cursor of the next page.
    async fn list(&self, cursor: Option<String>) -> Result<(Vec<String>, Option<String>), StoreError> {
        let from = self.prefix.is_empty().then(|| DEFAULT_FROM.to_owned());
        let range = Range { prefix: self.prefix.clone(), from, to: None, descending: false };
        let page = self.store.scan(range, PAGE_KEYS_MAX, cursor).await?;
        let keys = page.entries.into_iter().map(|(mut key, _)| key.split_off(self.prefix.len()));
        Ok((keys.collect(), page.next))
    }

    /// Adds `by` to a number. The proposal keeps numbers as text, so `set` may have written the value as bytes. It is then
    /// replaced by a JSON number, as `wasmcage:cage/state` keeps it.
    async fn increment(&self, key: &str, by: i64) -> Result<i64, StoreError> {
        let key = self.full(key)?;
        for _ in 0..ATTEMPTS_MAX {
            let mut steps = Vec::new();
            if let Some(StateValue::Bytes(bytes)) = self.store.get(&key).await? {
                let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse::<i64>().ok());
                let number = number.ok_or_else(|| StoreError::Invalid("the value is not a 64-bit integer".into()))?;
                steps.push(Step::Check(key.clone(), Some(StateValue::Bytes(bytes))));
                steps.push(Step::Set(key.clone(), StateValue::Json(number.to_string())));
            }
            steps.push(Step::Increment(key.clone(), by));
            match self.store.transact(steps).await {
                Ok(outcomes) => match outcomes.last() {
                    Some(StepResult::Number(sum)) => return Ok(*sum),
                    other => return Err(StoreError::Unavailable(format!("an increment gave {other:?}"))),
                },
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(contended())
    }

    /// Returns the keys with their values, in the order in which they were asked for.
    async fn get_many(&self, keys: Vec<String>) -> Result<Vec<Found>, StoreError> {
        let mut room = MANY_BYTES_MAX;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let value = self.get(&key).await?;
            let bytes = key.len() + value.as_ref().map_or(0, Vec::len);
            room = room.checked_sub(bytes).ok_or_else(|| {
                StoreError::Invalid(format!("the values have more than {MANY_BYTES_MAX} bytes: ask for fewer keys"))
            })?;
            found.push((key, value));
        }
        Ok(found)
    }

    /// Sets all pairs or none.
    async fn set_many(&self, pairs: Vec<(String, Vec<u8>)>) -> Result<(), StoreError> {
        let steps = pairs.into_iter().map(|(key, value)| Ok(Step::Set(self.full(&key)?, StateValue::Bytes(value))));
        self.store.transact(steps.collect::<Result<_, _>>()?).await.map(drop)
    }

    /// Deletes all keys or none.
    async fn delete_many(&self, keys: Vec<String>) -> Result<(), StoreError> {
        let steps = keys.into_iter().map(|key| Ok(Step::Delete(self.full(&key)?)));
        self.store.transact(steps.collect::<Result<_, _>>()?).await.map(drop)
    }

    async fn observe(&self, key: &str) -> Result<Seen, StoreError> {
        Ok(self.get(key).await?.as_deref().map(digest))
    }

    async fn swap(&self, key: &str, seen: Seen, value: Vec<u8>) -> Result<Swap, StoreError> {
        let key = self.full(key)?;
        let value = StateValue::Bytes(value);
        for _ in 0..ATTEMPTS_MAX {
            let current = self.store.get(&key).await?;
            let now = current.clone().map(|value| digest(&bytes(value)));
            if now != seen {
                return Ok(Swap::Changed(now));
            }
            let steps = vec![Step::Check(key.clone(), current), Step::Set(key.clone(), value.clone())];
            match self.store.transact(steps).await {
                Ok(_) => return Ok(Swap::Done),
                // The value has changed since it was read above, perhaps only from JSON to bytes.
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(contended())
    }
}

fn contended() -> StoreError {
    StoreError::Unavailable(format!("other requests changed the value {ATTEMPTS_MAX} times meanwhile"))
}

fn bytes(value: StateValue) -> Vec<u8> {
    match value {
        StateValue::Json(json) => json.into_bytes(),
        StateValue::Bytes(bytes) => bytes,
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_buckets_are_parts_of_keys() {
        let check = |name: &str, prefix: Option<&str>| {
            assert_eq!(Bucket::named(name).map(|bucket| bucket.prefix).as_deref(), prefix, "{name:?}");
        };
        check("", Some(""));
        check("default", Some(""));
        check("images", Some("\u{1}images\u{1}"));
        check("ä/ö", Some("\u{1}ä/ö\u{1}"));
        check("a\u{1}b", None);
        check(&"x".repeat(64), Some(&format!("\u{1}{}\u{1}", "x".repeat(64))));
        check(&"x".repeat(65), None);
    }

    #[test]
    fn the_latest_cursors_are_known() {
        let mut cursors = Cursors::default();
        for n in 0..100 {
            assert_eq!(cursors.add(n.to_string()), n);
        }
        assert_eq!(cursors.get(99).unwrap(), "99");
        assert_eq!(cursors.get(36).unwrap(), "36");
        assert!(cursors.get(35).is_err() && cursors.get(100).is_err() && cursors.get(u64::MAX).is_err());
    }
}
