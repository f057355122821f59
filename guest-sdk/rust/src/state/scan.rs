//! Going through keys, in the order of their bytes.

use std::marker::PhantomData;
use std::vec;

use serde::de::DeserializeOwned;

use super::{StateError, from_payload, state};
use crate::bindings::imports::wasmcage::cage::types::Payload;

/// Entries that are asked for at once, unless said otherwise.
const PAGE_ENTRIES: u32 = 1_000;

/// All keys that begin with `prefix`, in the order of their bytes; fetched page by page while they are gone through.
///
/// ```no_run
/// # use wasmcage_guest::{Result, info, state};
/// # fn f() -> Result<()> {
/// for entry in state::scan("customer/").entries::<(String, i64)>() {
///     let (key, (name, visits)) = entry?;
///     info!("{key}: {name} came {visits} times");
/// }
/// let latest = state::scan("order/").descending().page(1).keys().next().transpose()?;
/// # Ok(()) }
/// ```
pub fn scan(prefix: &str) -> Scan {
    let range = state::Range { prefix: prefix.to_owned(), from: None, to: None, descending: false };
    Scan { range, page: PAGE_ENTRIES, cursor: None }
}

/// Which keys are gone through, and how. Made by [`scan`].
#[derive(Clone, Debug)]
pub struct Scan {
    range: state::Range,
    page: u32,
    cursor: Option<String>,
}

impl Scan {
    /// From this key on, itself included.
    pub fn from(mut self, key: &str) -> Self {
        self.range.from = Some(key.to_owned());
        self
    }

    /// Up to this key, itself not included.
    pub fn to(mut self, key: &str) -> Self {
        self.range.to = Some(key.to_owned());
        self
    }

    /// From the last to the first.
    pub fn descending(mut self) -> Self {
        self.range.descending = true;
        self
    }

    /// How many entries are fetched at once.
    pub fn page(mut self, entries: u32) -> Self {
        self.page = entries;
        self
    }

    /// From where [`Entries::cursor`] was. It stays good whatever is written meanwhile.
    pub fn after(mut self, cursor: &str) -> Self {
        self.cursor = Some(cursor.to_owned());
        self
    }

    /// Keys and their values.
    pub fn entries<T: DeserializeOwned>(self) -> Entries<(String, T)> {
        Entries::new(self, |key, value| {
            let value = from_payload(&key, value)?;
            Ok((key, value))
        })
    }

    /// Keys and their values as they are.
    pub fn raw(self) -> Entries<(String, Payload)> {
        Entries::new(self, |key, value| Ok((key, value)))
    }

    /// Keys only. Their values are fetched all the same.
    pub fn keys(self) -> Entries<String> {
        Entries::new(self, |key, _| Ok(key))
    }
}

/// An iterator over a [`Scan`]. It ends after an error of the host's, and goes on after a value of another type.
#[derive(Debug)]
pub struct Entries<T> {
    scan: Scan,
    page: vec::IntoIter<(String, Payload)>,
    /// No further page is asked for.
    last: bool,
    make: fn(String, Payload) -> Result<T, StateError>,
    items: PhantomData<T>,
}

impl<T> Entries<T> {
    fn new(scan: Scan, make: fn(String, Payload) -> Result<T, StateError>) -> Self {
        Self { scan, page: Vec::new().into_iter(), last: false, make, items: PhantomData }
    }

    /// Where the page after the current one begins, for [`Scan::after`]; none after the last.
    pub fn cursor(&self) -> Option<&str> {
        self.scan.cursor.as_deref()
    }
}

impl<T> Iterator for Entries<T> {
    type Item = Result<T, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.page.next() {
                return Some((self.make)(key, value));
            }
            if self.last {
                return None;
            }
            match state::scan(&self.scan.range, self.scan.page, self.scan.cursor.as_deref()) {
                Ok(page) => {
                    self.last = page.next.is_none();
                    self.scan.cursor = page.next;
                    self.page = page.entries.into_iter();
                }
                Err(error) => {
                    self.last = true;
                    return Some(Err(error.into()));
                }
            }
        }
    }
}
