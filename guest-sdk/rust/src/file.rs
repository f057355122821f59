//! Files in a directory that is granted as a resource of protocol `file`.
//!
//! A file is written as a whole: others see the old or the new content, never a part of it, also after a crash. Names are
//! relative to the directory: `a.txt`, `2026/a.txt`.

use serde::Deserialize;

use crate::resource::{Operation, Parts, Reply, ResourceError, resource};

/// The directory of the resource with this name.
///
/// ```no_run
/// # use wasmcage_guest::{Result, file::files};
/// # fn f() -> Result<()> {
/// let reports = files("reports");
/// reports.write("2026/november.txt", "all is well")?;
/// assert_eq!(reports.read("2026/november.txt")?, b"all is well");
/// for entry in reports.list("2026")? {
///     println!("{} has {} bytes", entry.name, entry.size);
/// }
/// # Ok(()) }
/// ```
pub fn files(resource: &str) -> Files<'_> {
    Files { resource }
}

/// A directory, made by [`files`].
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    resource: &'a str,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Entry {
    pub name: String,
    pub kind: Kind,
    /// Size of a file in bytes.
    pub size: u64,
    /// Time of the last change, such as `2026-11-21T09:00:00.123Z`.
    pub modified: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    File,
    Directory,
    Other,
}

impl Files<'_> {
    /// Writes a file, or replaces it. Missing directories are created.
    ///
    /// # Errors
    /// An invalid name, a full disk, ...
    pub fn write(self, name: &str, content: impl Into<Vec<u8>>) -> Result<(), ResourceError> {
        self.execute(write_operation(name, content)).map(drop)
    }

    /// Writes a file that must not exist yet; otherwise it fails with the code `exists`.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn create(self, name: &str, content: impl Into<Vec<u8>>) -> Result<(), ResourceError> {
        self.execute(with(write_operation(name, content), "overwrite", "false")).map(drop)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// `not-found`; `too-large` when it is longer than the resource's `max_bytes`: see `open`.
    pub fn read(self, name: &str) -> Result<Vec<u8>, ResourceError> {
        Ok(self.execute(operation("read", name))?.body)
    }

    /// Reads a file and removes it.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn take(self, name: &str) -> Result<Vec<u8>, ResourceError> {
        Ok(self.execute(with(operation("read", name), "remove", "true"))?.body)
    }

    /// Reads a file of any length in parts.
    ///
    /// # Errors
    /// `not-found`.
    pub fn open(self, name: &str) -> Result<Parts, ResourceError> {
        Ok(resource(self.resource).open(operation("read", name))?.1)
    }

    /// Removes a file. Returns whether it existed.
    ///
    /// # Errors
    /// An invalid name, a missing permission, ...
    pub fn delete(self, name: &str) -> Result<bool, ResourceError> {
        Ok(self.execute(operation("delete", name))?.status != 404)
    }

    /// Returns whether a file exists.
    ///
    /// # Errors
    /// An invalid name, a missing permission, ...
    pub fn exists(self, name: &str) -> Result<bool, ResourceError> {
        Ok(self.execute(operation("stat", name))?.status != 404)
    }

    /// Lists a directory below this one, or this one if the name is empty: the first 1,000 entries, sorted by name.
    ///
    /// # Errors
    /// `Failed`, for instance with `not-found`.
    pub fn list(self, directory: &str) -> crate::Result<Vec<Entry>> {
        self.list_after(directory, "", 1_000)
    }

    /// Lists the entries whose names come after `after`, up to `limit`, which is 10,000 at most.
    ///
    /// # Errors
    /// Those of `list`.
    pub fn list_after(self, directory: &str, after: &str, limit: usize) -> crate::Result<Vec<Entry>> {
        let list = with(with(operation("list", directory), "after", after), "limit", &limit.to_string());
        Ok(serde_json::from_slice(&self.execute(list)?.body)?)
    }

    fn execute(self, operation: Operation) -> Result<Reply, ResourceError> {
        resource(self.resource).execute(operation)
    }
}

/// Makes the operation `write` for a transaction: the file is written when that commits.
pub fn write_operation(name: &str, content: impl Into<Vec<u8>>) -> Operation {
    Operation { body: content.into(), ..operation("write", name) }
}

fn operation(action: &str, target: &str) -> Operation {
    Operation { action: action.to_owned(), target: target.to_owned(), headers: Vec::new(), body: Vec::new() }
}

fn with(mut operation: Operation, name: &str, value: &str) -> Operation {
    operation.headers.push((name.to_owned(), value.to_owned()));
    operation
}
