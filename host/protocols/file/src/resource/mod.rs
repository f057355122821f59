//! Resource `file`: reads and writes whole files in a directory. Others see all of a written file or nothing.
//!
//! `config.rs` reads `[resources.x]`, `transaction.rs` executes operations, `../temporary.rs` holds a file before its
//! commit.

mod config;
mod transaction;

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

use self::config::FileResourceConfig;
use self::transaction::FileTransaction;
use super::directory::DirectoryHandle;
use super::{error, temporary};
use wasmcage_config::{ConfigError, Section};
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Connection, Operation, OperationReply, Phase, ReplyStream, Resource, ResourceError};

/// The size of the parts in which a file is streamed.
const PART_BYTES: usize = 64 * 1024;

/// `[resources.x]` with `protocol = "file"`.
pub(super) struct FileResource {
    config: Arc<FileResourceConfig>,
    /// Set once the leftovers of a crash have been removed.
    swept: OnceCell<()>,
}

impl FileResource {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        Ok(Self { config: Arc::new(FileResourceConfig::read(section)?), swept: OnceCell::new() })
    }
}

#[async_trait]
impl Resource for FileResource {
    fn check(&self, operation: &Operation) -> Result<(), ResourceError> {
        transaction::check(operation)
    }

    async fn connect(&self, deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError> {
        let config = self.config.clone();
        let sweep = || async {
            let directory = self.config.directory.display().to_string();
            blocking(Phase::Connect, deadline, move || {
                let swept = DirectoryHandle::open(&config.directory)
                    .and_then(|_| DirectoryHandle::open(&config.temporary))
                    .and_then(|directory| temporary::sweep(&directory));
                swept.map_err(|error| error::harmless(Phase::Connect, &directory, &error))
            })
            .await
            .map(|removed| {
                if removed > 0 {
                    let directory = self.config.temporary.display();
                    tracing::info!(%directory, removed, "unfinished files of an earlier run removed");
                }
            })
        };
        self.swept.get_or_try_init(sweep).await?;
        Ok(Box::new(FileConnection { config: self.config.clone(), transaction: None }))
    }
}

struct FileConnection {
    config: Arc<FileResourceConfig>,
    /// None while an operation runs. If its caller gives up, the transaction is dropped, and the files that it wrote
    /// are removed.
    transaction: Option<FileTransaction>,
}

#[async_trait]
impl Connection for FileConnection {
    async fn begin(&mut self, options: &[(String, String)], deadline: Deadline) -> Result<(), ResourceError> {
        if let Some((name, _)) = options.first() {
            let text = format!("files have no option {name:?}");
            return Err(ResourceError::harmless(Phase::Begin, ResourceError::BAD_OPERATION, text));
        }
        let config = self.config.clone();
        let begun = blocking(Phase::Begin, deadline, move || {
            let directory = config.directory.display().to_string();
            FileTransaction::begin(config).map_err(|error| error::harmless(Phase::Begin, &directory, &error))
        });
        self.transaction = Some(begun.await?);
        Ok(())
    }

    async fn execute(&mut self, operation: Operation, deadline: Deadline) -> Result<OperationReply, ResourceError> {
        let mut transaction = self.take(Phase::Execute)?;
        let (transaction, result) = blocking(Phase::Execute, deadline, move || {
            let result = transaction.execute(operation);
            Ok((transaction, result))
        })
        .await?;
        self.transaction = Some(transaction);
        result
    }

    async fn commit(&mut self, deadline: Deadline) -> Result<(), ResourceError> {
        let transaction = self.take(Phase::Commit)?;
        let committed = blocking(Phase::Commit, deadline, move || transaction.commit()).await;
        // A commit goes on after its deadline, and may succeed.
        committed.map_err(|error| match error.code == ResourceError::TIMED_OUT {
            true => ResourceError { recoverable: false, ..error },
            false => error,
        })
    }

    async fn rollback(&mut self, deadline: Deadline) -> Result<(), ResourceError> {
        let transaction = self.transaction.take();
        blocking(Phase::Rollback, deadline, move || {
            drop(transaction);
            Ok(())
        })
        .await
    }

    async fn open(
        mut self: Box<Self>,
        operation: Operation,
        options: &[(String, String)],
        deadline: Deadline,
    ) -> Result<(OperationReply, Box<dyn ReplyStream>), ResourceError> {
        self.begin(options, deadline).await?;
        let transaction = self.take(Phase::Execute)?;
        let opened = blocking(Phase::Execute, deadline, move || transaction.open(&operation)).await;
        let (reply, file) = opened?;
        Ok((reply, Box::new(FileStream { file: Some(file), deadline })))
    }

    async fn is_healthy(&mut self) -> bool {
        true
    }
}

impl FileConnection {
    fn take(&mut self, phase: Phase) -> Result<FileTransaction, ResourceError> {
        self.transaction.take().ok_or_else(|| ResourceError::fatal(phase, "io", "there is no transaction"))
    }
}

/// Runs the work on a thread for blocking. After the deadline it goes on, but its result is dropped.
async fn blocking<T: Send + 'static>(
    phase: Phase,
    deadline: Deadline,
    work: impl FnOnce() -> Result<T, ResourceError> + Send + 'static,
) -> Result<T, ResourceError> {
    match timeout_at(deadline.instant(), spawn_blocking(work)).await {
        Ok(done) => done.unwrap_or_else(|_| Err(ResourceError::fatal(phase, "io", "the host failed"))),
        Err(_) => {
            let error = ResourceError::harmless(phase, ResourceError::TIMED_OUT, "the disk did not answer in time");
            Err(ResourceError { terminal: true, ..error })
        }
    }
}

/// A file that is streamed in parts.
struct FileStream {
    file: Option<File>,
    deadline: Deadline,
}

#[async_trait]
impl ReplyStream for FileStream {
    async fn next(&mut self) -> Result<Option<Bytes>, ResourceError> {
        let Some(mut file) = self.file.take() else { return Ok(None) };
        let (file, part) = blocking(Phase::Execute, self.deadline, move || {
            let part = read_part(&mut file).map_err(|error| error::harmless(Phase::Execute, "reading", &error))?;
            Ok((file, part))
        })
        .await?;
        if part.is_empty() {
            return Ok(None);
        }
        self.file = Some(file);
        Ok(Some(part))
    }
}

/// Reads the next part, which is empty at the end.
fn read_part(file: &mut File) -> io::Result<Bytes> {
    let mut part = Vec::new();
    file.take(PART_BYTES as u64).read_to_end(&mut part)?;
    Ok(part.into())
}
