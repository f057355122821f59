//! A directory as a resource: whole files, written so that others see all of one or nothing.
//!
//! `config.rs` reads `[resources.x]`, `transaction.rs` does what is asked, `../temporary.rs` is a file before its commit.

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

use self::config::ResourceConfig;
use self::transaction::Transaction;
use super::directory::Directory;
use super::{error, temporary};
use wasmcage_config::{ConfigError, Section};
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Connection, Operation, OperationReply, Phase, ReplyStream, Resource, ResourceError};

/// Bytes of one part of a file that is read in parts.
const PART_BYTES: usize = 64 * 1024;

/// `[resources.x]` with `protocol = "file"`.
pub(super) struct FileResource {
    config: Arc<ResourceConfig>,
    /// What a crash left behind is removed once.
    swept: OnceCell<()>,
}

impl FileResource {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        Ok(Self { config: Arc::new(ResourceConfig::read(section)?), swept: OnceCell::new() })
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
                let swept = Directory::open(&config.directory)
                    .and_then(|_| Directory::open(&config.temporary))
                    .and_then(|home| temporary::sweep(&home));
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
    config: Arc<ResourceConfig>,
    /// Away while it works: if nobody waits for that any more, it is dropped, and what it wrote is removed.
    transaction: Option<Transaction>,
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
            Transaction::begin(config).map_err(|error| error::harmless(Phase::Begin, &directory, &error))
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
        // A commit that is late goes on, and may come to its end.
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
        Ok((reply, Box::new(Parts { file: Some(file), deadline })))
    }

    async fn is_healthy(&mut self) -> bool {
        true
    }
}

impl FileConnection {
    fn take(&mut self, phase: Phase) -> Result<Transaction, ResourceError> {
        self.transaction.take().ok_or_else(|| ResourceError::fatal(phase, "io", "there is no transaction"))
    }
}

/// Runs where blocking does no harm. After the deadline it runs on, unheard.
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

/// A file that is read part by part.
struct Parts {
    file: Option<File>,
    deadline: Deadline,
}

#[async_trait]
impl ReplyStream for Parts {
    async fn next(&mut self) -> Result<Option<Bytes>, ResourceError> {
        let Some(mut file) = self.file.take() else { return Ok(None) };
        let (file, part) = blocking(Phase::Execute, self.deadline, move || {
            let part = part(&mut file).map_err(|error| error::harmless(Phase::Execute, "reading", &error))?;
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

/// Empty at the end.
fn part(file: &mut File) -> io::Result<Bytes> {
    let mut part = Vec::new();
    file.take(PART_BYTES as u64).read_to_end(&mut part)?;
    Ok(part.into())
}
