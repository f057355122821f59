//! Scans of keys, in the order of their bytes.

use std::marker::PhantomData;
use std::vec;

use serde::de::DeserializeOwned;

use super::{StateError, from_payload, state};
use crate::bindings::imports::wasmcage::cage::types::Payload;

/// Number of entries that are fetched at once by default.
const PAGE_ENTRIES: u32 = 1_000;

/// Scans all keys that begin with `prefix`, in the order of their bytes. They are fetched page by page.
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

/// The options of a scan, made by [`scan`].
#[derive(Clone, Debug)]
pub struct Scan {
    range: state::Range,
    page: u32,
    cursor: Option<String>,
}

impl Scan {
    /// Begins at this key, included.
    pub fn from(mut self, key: &str) -> Self {
        self.range.from = Some(key.to_owned());
        self
    }

    /// Ends at this key, not included.
    pub fn to(mut self, key: &str) -> Self {
        self.range.to = Some(key.to_owned());
        self
    }

    /// Scans from the last key to the first.
    pub fn descending(mut self) -> Self {
        self.range.descending = true;
        self
    }

    /// Sets how many entries are fetched at once.
    pub fn page(mut self, entries: u32) -> Self {
        self.page = entries;
        self
    }

    /// Begins where [`Entries::cursor`] was. Cursors stay valid whatever is written meanwhile.
    pub fn after(mut self, cursor: &str) -> Self {
        self.cursor = Some(cursor.to_owned());
        self
    }

    /// Returns keys and their values.
    pub fn entries<T: DeserializeOwned>(self) -> Entries<(String, T)> {
        Entries::new(self, |key, value| {
            let value = from_payload(&key, value)?;
            Ok((key, value))
        })
    }

    /// Returns keys and their unconverted values.
    pub fn raw(self) -> Entries<(String, Payload)> {
        Entries::new(self, |key, value| Ok((key, value)))
    }

    /// Returns keys only, although their values are fetched, too.
    pub fn keys(self) -> Entries<String> {
        Entries::new(self, |key, _| Ok(key))
    }
}

/// An iterator over a [`Scan`]. It ends after an error of the host, and goes on after a value that does not fit.
#[derive(Debug)]
pub struct Entries<T> {
    scan: Scan,
    page: vec::IntoIter<(String, Payload)>,
    /// No further page is fetched.
    last: bool,
    make: fn(String, Payload) -> Result<T, StateError>,
    items: PhantomData<T>,
}

impl<T> Entries<T> {
    fn new(scan: Scan, make: fn(String, Payload) -> Result<T, StateError>) -> Self {
        Self { scan, page: Vec::new().into_iter(), last: false, make, items: PhantomData }
    }

    /// Returns where the page after the current one begins, for [`Scan::after`]; none after the last page.
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
