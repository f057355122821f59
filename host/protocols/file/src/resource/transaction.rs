//! A transaction over files. Until the commit, written files have hidden names and removed files stay. All functions
//! here block.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::str::FromStr as _;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::FileType;
use serde_json::json;

use super::config::FileResourceConfig;
use crate::directory::{self, DirectoryHandle, FileStamp};
use crate::error::{self, bad};
use crate::name::{self, FileName};
use crate::temporary::TemporaryFile;
use wasmcage_resource::{Operation, OperationReply, Phase, ResourceError};

/// The most changes of one transaction.
const CHANGES_MAX: usize = 1_000;
/// The most files in one list.
const LIST_MAX: usize = 10_000;
const LIST_DEFAULT: usize = 1_000;

pub(super) struct FileTransaction {
    config: Arc<FileResourceConfig>,
    directory: DirectoryHandle,
    temporary: Arc<DirectoryHandle>,
    changes: Vec<FileChange>,
}

enum FileChange {
    Place { temporary: TemporaryFile, parent: DirectoryHandle, name: CString, overwrite: bool },
    Remove { parent: DirectoryHandle, name: CString },
}

/// The headers of an operation, parsed.
#[derive(Default)]
struct FileOptions {
    overwrite: Option<bool>,
    remove: Option<bool>,
    after: Option<String>,
    limit: Option<usize>,
}

/// Checks an operation without executing it.
///
/// # Errors
/// The operation is invalid.
pub(super) fn check(operation: &Operation) -> Result<(), ResourceError> {
    FileOptions::read(operation)?;
    if !(operation.action == "list" && operation.target.is_empty()) {
        parse(&operation.target)?;
    }
    Ok(())
}

impl FileTransaction {
    pub(super) fn begin(config: Arc<FileResourceConfig>) -> io::Result<Self> {
        let directory = DirectoryHandle::open(&config.directory)?;
        let temporary = Arc::new(DirectoryHandle::open(&config.temporary)?);
        Ok(Self { config, directory, temporary, changes: Vec::new() })
    }

    pub(super) fn execute(&mut self, operation: Operation) -> Result<OperationReply, ResourceError> {
        let options = FileOptions::read(&operation)?;
        let failed = |error: io::Error| error::harmless(Phase::Execute, &operation.target, &error);
        if operation.action == "list" {
            return self.list(&operation.target, &options);
        }
        let name = parse(&operation.target)?;
        let file = c_name(&name.file)?;
        match operation.action.as_str() {
            "write" => {
                let parent = self.directory.walk_or_create(&name.directories).map_err(failed)?;
                let overwrite = options.overwrite.unwrap_or(true);
                if !overwrite && parent.stat(&file).map_err(failed)?.is_some() {
                    let text = format!("{} is there already", operation.target);
                    return Err(ResourceError::harmless(Phase::Execute, error::EXISTS, text));
                }
                let (directory, permissions) = (self.temporary.clone(), self.config.permissions);
                let temporary =
                    TemporaryFile::write(directory, operation.body.as_ref(), permissions).map_err(failed)?;
                self.change(FileChange::Place { temporary, parent, name: file, overwrite })?;
                Ok(OperationReply { status: 200, ..OperationReply::default() })
            }
            "read" => {
                let parent = self.directory.parent(&name).map_err(failed)?;
                let (opened, stamp) = parent.file(&file).map_err(failed)?;
                let max = self.config.bytes_max;
                let body = directory::read(opened, stamp, max).map_err(failed)?.ok_or_else(|| too_large(max))?;
                if options.remove == Some(true) {
                    self.change(FileChange::Remove { parent, name: file })?;
                }
                Ok(OperationReply { body, ..describe(stamp) })
            }
            "delete" => match self.find(&name, &file).map_err(failed)? {
                None => Ok(missing()),
                Some((parent, FileType::RegularFile, stamp)) => {
                    self.change(FileChange::Remove { parent, name: file })?;
                    Ok(describe(stamp))
                }
                Some(_) => Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not an ordinary file"))),
            },
            "stat" => match self.find(&name, &file).map_err(failed)? {
                None => Ok(missing()),
                Some((_, kind, stamp)) => {
                    let mut reply = describe(stamp);
                    reply.headers.push(("kind".into(), kind_name(kind).into()));
                    Ok(reply)
                }
            },
            action => Err(bad(format!("no action {action:?} (there are read, write, delete, stat, list)"))),
        }
    }

    /// Opens a file to be streamed.
    pub(super) fn open(&self, operation: &Operation) -> Result<(OperationReply, File), ResourceError> {
        if operation.action != "read" || FileOptions::read(operation)?.remove == Some(true) {
            return Err(bad("only `read` without `remove` comes in parts"));
        }
        let name = parse(&operation.target)?;
        let failed = |error: io::Error| error::harmless(Phase::Execute, &operation.target, &error);
        let parent = self.directory.parent(&name).map_err(failed)?;
        let (file, stamp) = parent.file(&c_name(&name.file)?).map_err(failed)?;
        Ok((describe(stamp), file))
    }

    /// Carries out the changes in the order of the operations. If one fails, those before it stay.
    pub(super) fn commit(self) -> Result<(), ResourceError> {
        let mut changed: Vec<DirectoryHandle> = Vec::new();
        for change in self.changes {
            let result = match change {
                FileChange::Place { temporary, parent, name, overwrite } => {
                    (temporary.place(&parent, &name, overwrite), parent, name)
                }
                FileChange::Remove { parent, name } => (parent.remove(&name), parent, name),
            };
            let (result, parent, name) = result;
            match result {
                Ok(()) => changed.push(parent),
                Err(error) if changed.is_empty() => {
                    return Err(error::harmless(Phase::Commit, &name.to_string_lossy(), &error));
                }
                Err(error) => return Err(error::halfway(&name.to_string_lossy(), &error)),
            }
        }
        changed
            .iter()
            .try_for_each(DirectoryHandle::sync)
            .map_err(|error| error::halfway("fsync of a directory", &error))
    }

    fn change(&mut self, change: FileChange) -> Result<(), ResourceError> {
        if self.changes.len() == CHANGES_MAX {
            let text = format!("a transaction changes at most {CHANGES_MAX} files");
            return Err(ResourceError::harmless(Phase::Execute, ResourceError::TOO_LARGE, text));
        }
        self.changes.push(change);
        Ok(())
    }

    /// The directory, type and stamp of what has this name; none if there is nothing.
    fn find(&self, name: &FileName, file: &CString) -> io::Result<Option<(DirectoryHandle, FileType, FileStamp)>> {
        let parent = match self.directory.parent(name) {
            Ok(parent) => parent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(parent.stat(file)?.map(|(kind, stamp)| (parent, kind, stamp)))
    }

    /// Lists a directory by name, without its subdirectories' files. Names that are not UTF-8 are left out.
    fn list(&self, target: &str, options: &FileOptions) -> Result<OperationReply, ResourceError> {
        let failed = |error: io::Error| error::harmless(Phase::Execute, target, &error);
        let parts = match target {
            "" => Vec::new(),
            target => {
                let name = parse(target)?;
                [name.directories, vec![name.file]].concat()
            }
        };
        let directory = self.directory.walk(&parts).map_err(failed)?;
        let limit = options.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
        let mut names = std::collections::BTreeSet::new();
        for name in directory.names().map_err(failed)? {
            let Ok(name) = name.map_err(failed)?.into_string() else { continue };
            let before = options.after.as_ref().is_some_and(|after| name <= *after);
            if before || name::is_own(name.as_bytes()) {
                continue;
            }
            names.insert(name);
            // It keeps one name more than the limit, to know whether there are more.
            if names.len() > limit + 1 {
                names.pop_last();
            }
        }
        let more = names.len() > limit;
        let mut files = Vec::with_capacity(names.len());
        for name in names.into_iter().take(limit) {
            // The file may have been removed meanwhile.
            let Some((kind, stamp)) = directory.stat(&c_name(&name)?).map_err(failed)? else { continue };
            let (kind, size, modified) = (kind_name(kind), stamp.size, stamp.modified());
            files.push(json!({ "name": name, "kind": kind, "size": size, "modified": modified }));
        }
        let headers = vec![("more".to_owned(), more.to_string())];
        Ok(OperationReply { status: 200, headers, body: serde_json::Value::from(files).to_string().into() })
    }
}

impl FileOptions {
    fn read(operation: &Operation) -> Result<Self, ResourceError> {
        let mut options = Self::default();
        for (name, value) in &operation.headers {
            let invalid = || bad(format!("{value:?} does not fit {name}"));
            match (operation.action.as_str(), name.as_str()) {
                ("write", "overwrite") => options.overwrite = Some(value.parse().map_err(|_| invalid())?),
                ("read", "remove") => options.remove = Some(value.parse().map_err(|_| invalid())?),
                ("list", "after") => options.after = Some(value.clone()),
                ("list", "limit") => options.limit = Some(value.parse().map_err(|_| invalid())?),
                (action, _) => return Err(bad(format!("{action} has no header {name:?}"))),
            }
        }
        Ok(options)
    }
}

/// The reply with a file's size and time.
fn describe(stamp: FileStamp) -> OperationReply {
    let headers = vec![("size".into(), stamp.size.to_string()), ("modified".into(), stamp.modified())];
    OperationReply { status: 200, headers, body: Bytes::new() }
}

fn missing() -> OperationReply {
    OperationReply { status: 404, ..OperationReply::default() }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        _ => "other",
    }
}

fn parse(target: &str) -> Result<FileName, ResourceError> {
    FileName::from_str(target).map_err(|error| bad(format!("{target:?}: {error}")))
}

fn c_name(name: &str) -> Result<CString, ResourceError> {
    CString::new(name).map_err(|_| bad(format!("{name:?} has a zero byte in it")))
}

fn too_large(max: u64) -> ResourceError {
    let text = format!("the file has more than {max} bytes (max_bytes); use `open`");
    ResourceError::harmless(Phase::Execute, ResourceError::TOO_LARGE, text)
}
