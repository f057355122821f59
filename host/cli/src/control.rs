//! The control sockets of a running cage: Unix sockets in `.run/` of the cage's directory, for the cage's own user only.
//! Each direction has one JSON object per line: `{"command":"ps"}` is answered by `{"ok":..}` or
//! `{"error":{"code":..,"text":..}}`. A client that closes its side before a command is done cancels it. What is
//! received is bounded and not trusted.
//!
//! The secondary serves `control.sock`, whose clients are `ps`, `call`, `retry` and `state`; the primary serves
//! `primary.sock`, whose client is `stop`. Both make their socket again when somebody has removed it.

pub(crate) mod call;
pub(crate) mod retry;
pub(crate) mod state;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};
use wasmcage_core::unix_socket::{self, NamedListener};

/// Bytes of the arguments or the result of a call, before they are encoded.
pub(crate) const CONTENT_BYTES_MAX: usize = 32 << 20;
/// Bytes of a line in either direction: JSON within a string can become twice as long.
const LINE_BYTES_MAX: u64 = 2 * CONTENT_BYTES_MAX as u64 + (1 << 20);
/// Connections served at once; more of them wait. There are many, so that `ps` need not wait for long calls.
const CONNECTIONS_MAX: usize = 128;
/// A connection on which nothing is received for this time is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client waits for an answer, in addition to the time that the command itself may take.
pub(crate) const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Interval at which the socket's file is checked and restored.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// One request line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandRequest {
    pub command: String,
    /// Arguments of the command; null if it has none.
    #[serde(default)]
    pub arguments: Value,
}

/// Why a command was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CommandRefusal {
    /// A stable code, for programs.
    pub code: String,
    pub text: String,
}

impl CommandRefusal {
    pub(crate) fn new(code: &str, text: impl ToString) -> Self {
        Self { code: code.into(), text: text.to_string() }
    }
}

/// Performs the commands of one cage.
#[async_trait]
pub(crate) trait CommandHandler: Send + Sync + 'static {
    async fn answer(&self, request: CommandRequest) -> Result<Value, CommandRefusal>;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("cannot reach cage {cage} at {socket}")]
    Connect {
        cage: String,
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cage {cage} did not answer as it should")]
    Answer {
        cage: String,
        #[source]
        source: io::Error,
    },
    #[error("cage {cage} refused the command: {text} ({code})")]
    Refused { cage: String, code: String, text: String },
}

/// Returns the path of the secondary's socket.
pub(crate) fn socket_path(run: &Path) -> PathBuf {
    run.join("control.sock")
}

/// Returns the path of the primary's socket.
pub(crate) fn primary_socket_path(run: &Path) -> PathBuf {
    run.join("primary.sock")
}

/// Serves the control socket of one cage.
pub(crate) struct ControlServer {
    pub cage: String,
    pub listener: NamedListener,
    pub handler: Arc<dyn CommandHandler>,
}

impl ControlServer {
    /// Serves until the future is dropped.
    pub(crate) async fn serve(mut self) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut checks = interval(SOCKET_CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                (accepted, permit) = self.accept(&permits) => self.spawn_connection(accepted, permit).await,
                () = tick(&mut checks) => self.restore(),
            }
        }
    }

    async fn accept(&self, permits: &Arc<Semaphore>) -> (io::Result<UnixStream>, OwnedSemaphorePermit) {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        (self.listener.accept().await, permit)
    }

    async fn spawn_connection(&self, accepted: io::Result<UnixStream>, permit: OwnedSemaphorePermit) {
        let Ok(stream) = accepted else {
            // The process is probably out of descriptors or memory, which may pass.
            return sleep(ACCEPT_PAUSE).await;
        };
        let handler = self.handler.clone();
        tokio::spawn(async move {
            // Errors concern this client only: it has left, was silent or sent invalid lines.
            let _ = serve_connection(stream, &*handler).await;
            drop(permit);
        });
    }

    fn restore(&mut self) {
        // An error, such as a missing directory, is not logged: this is tried again each second.
        if let Ok(true) = self.listener.restore() {
            let socket = self.listener.path().display();
            tracing::warn!(cage = %self.cage, %socket, "the control socket had been removed and was made again");
        }
    }
}

async fn tick(checks: &mut Interval) {
    checks.tick().await;
}

async fn serve_connection(stream: UnixStream, handler: &dyn CommandHandler) -> io::Result<()> {
    // The socket's mode keeps other users out, but not on every file system.
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(LINE_BYTES_MAX);
        timeout(IDLE_TIMEOUT, bounded.read_until(b'\n', &mut line)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if line.is_empty() {
            return Ok(());
        }
        let complete = line.ends_with(b"\n");
        let result = match serde_json::from_slice::<CommandRequest>(&line) {
            // The answer is polled first: a client may close its sending side right after the command.
            Ok(request) => tokio::select! {
                biased;
                result = handler.answer(request) => result,
                () = client_left(&mut reader) => return Ok(()),
            },
            Err(error) => Err(CommandRefusal { code: "bad-request".into(), text: error.to_string() }),
        };
        let mut reply = match result {
            Ok(value) => json!({ "ok": value }),
            Err(refusal) => json!({ "error": refusal }),
        }
        .to_string();
        reply.push('\n');
        timeout(IDLE_TIMEOUT, writer.write_all(reply.as_bytes())).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if !complete {
            return Ok(());
        }
    }
}

/// Returns when the client has closed its side. Never returns when it has sent its next command already.
async fn client_left(reader: &mut (impl tokio::io::AsyncBufRead + Unpin)) {
    match reader.fill_buf().await {
        Ok([]) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
}

/// Sends a running cage a command that takes no time.
///
/// # Errors
/// The cage cannot be reached, or refuses the command.
pub(crate) fn ask(run: &Path, cage: &str, command: &str, arguments: Value) -> Result<Value, ControlError> {
    ask_with_timeout(run, cage, command, arguments, CLIENT_TIMEOUT)
}

/// Sends a running cage a command, and waits up to `timeout` for the answer.
///
/// # Errors
/// The cage cannot be reached, or refuses the command.
pub(crate) fn ask_with_timeout(
    run: &Path,
    cage: &str,
    command: &str,
    arguments: Value,
    timeout: Duration,
) -> Result<Value, ControlError> {
    let request = CommandRequest { command: command.to_owned(), arguments };
    ask_at(socket_path(run), cage, &request, timeout)
}

/// Sends a command to the primary of a running cage.
///
/// # Errors
/// The primary cannot be reached, or refuses the command.
pub(crate) fn ask_primary(run: &Path, cage: &str, command: &str, arguments: Value) -> Result<Value, ControlError> {
    let request = CommandRequest { command: command.to_owned(), arguments };
    ask_at(primary_socket_path(run), cage, &request, CLIENT_TIMEOUT)
}

fn ask_at(socket: PathBuf, cage: &str, request: &CommandRequest, timeout: Duration) -> Result<Value, ControlError> {
    let connect = || -> io::Result<BlockingStream> {
        let stream = unix_socket::connect_blocking(&socket)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        Ok(stream)
    };
    let cage = cage.to_owned();
    let stream = match connect() {
        Ok(stream) => stream,
        Err(source) => return Err(ControlError::Connect { cage, socket, source }),
    };
    match exchange(&stream, request) {
        Ok(CommandResult::Ok(value)) => Ok(value),
        Ok(CommandResult::Error(CommandRefusal { code, text })) => Err(ControlError::Refused { cage, code, text }),
        Err(source) => Err(ControlError::Answer { cage, source }),
    }
}

/// The result of a command, or of a part of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CommandResult<T> {
    Ok(T),
    Error(CommandRefusal),
}

fn exchange(mut stream: &BlockingStream, request: &CommandRequest) -> io::Result<CommandResult<Value>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = Vec::new();
    let read = BufReader::new(stream.take(LINE_BYTES_MAX)).read_until(b'\n', &mut reply);
    read.map_err(|error| match error.kind() {
        // This is how the system reports that a read timed out.
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it said nothing for too long"),
        _ => error,
    })?;
    if reply.ends_with(b"\n") {
        return Ok(serde_json::from_slice(&reply)?);
    }
    Err(match reply.len() as u64 {
        LINE_BYTES_MAX.. => io::Error::other(format!("its answer is longer than {LINE_BYTES_MAX} bytes")),
        _ => io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection before it had answered"),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct TestCommandHandler;

    #[async_trait]
    impl CommandHandler for TestCommandHandler {
        async fn answer(&self, request: CommandRequest) -> Result<Value, CommandRefusal> {
            match request.command.as_str() {
                "echo" => Ok(request.arguments),
                // It is never answered.
                "wait" => {
                    let _given_up = GivenUpGuard;
                    std::future::pending().await
                }
                "given-up" => Ok(json!(GIVEN_UP.load(std::sync::atomic::Ordering::SeqCst))),
                other => Err(CommandRefusal { code: "unknown-command".into(), text: format!("no command `{other}`") }),
            }
        }
    }

    static GIVEN_UP: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

    struct GivenUpGuard;

    impl Drop for GivenUpGuard {
        fn drop(&mut self) {
            GIVEN_UP.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// Runs `client` against a socket in a directory of this name.
    fn check(directory_name: &str, client: impl FnOnce(&Path) + Send + 'static) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(directory_name);
        fs::create_dir_all(&directory).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // A killed process leaves such a file behind.
            drop(unix_socket::bind(&socket_path(&directory)).unwrap());
            let listener = NamedListener::bind(&socket_path(&directory)).unwrap();
            let mode = fs::metadata(socket_path(&directory)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let server = ControlServer { cage: "c".to_owned(), listener, handler: Arc::new(TestCommandHandler) };
            let server = tokio::spawn(server.serve());
            let at = directory.clone();
            tokio::task::spawn_blocking(move || client(&at)).await.unwrap();
            server.abort();
        });
    }

    #[test]
    fn commands_are_answered_or_refused() {
        check("short", |directory| {
            let arguments = json!({ "n": [1, "two\n"] });
            assert_eq!(ask(directory, "c", "echo", arguments.clone()).unwrap(), arguments);
            let error = ask(directory, "c", "dance", Value::Null).unwrap_err();
            assert_eq!(error.to_string(), "cage c refused the command: no command `dance` (unknown-command)");
            let elsewhere = directory.join("other");
            assert!(matches!(ask(&elsewhere, "c", "echo", Value::Null), Err(ControlError::Connect { .. })));
        });
    }

    #[test]
    fn a_command_is_cancelled_when_its_client_leaves() {
        check("leaving", |directory| {
            let timeout = Duration::from_millis(20);
            let error = ask_with_timeout(directory, "c", "wait", Value::Null, timeout).unwrap_err();
            assert!(wasmcage_core::telemetry::error_chain(&error).contains("nothing for too long"), "{error}");
            while ask(directory, "c", "given-up", Value::Null).unwrap() != json!(true) {}
        });
    }

    #[test]
    fn a_client_that_closes_its_sending_side_is_answered() {
        check("half-closed", |directory| {
            let mut stream = BlockingStream::connect(socket_path(directory)).unwrap();
            stream.write_all(b"{\"command\":\"echo\",\"arguments\":7}\n").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "{\"ok\":7}\n");
        });
    }

    #[test]
    fn a_socket_that_was_removed_is_made_again() {
        check("tidied", |directory| {
            fs::rename(directory, directory.with_extension("away")).unwrap();
            fs::create_dir(directory).unwrap();
            let until = std::time::Instant::now() + Duration::from_secs(20);
            while ask(directory, "c", "echo", json!(1)).is_err() {
                assert!(std::time::Instant::now() < until);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
    }

    #[test]
    fn some_mib_are_carried() {
        check("large", |directory| {
            let large = json!("\"".repeat(8 << 20));
            assert_eq!(ask(directory, "c", "echo", large.clone()).unwrap(), large);
        });
    }

    #[test]
    fn a_long_path_is_no_obstacle() {
        check(&"long".repeat(40), |directory| {
            assert_eq!(ask(directory, "c", "echo", json!(1)).unwrap(), json!(1));
        });
    }

    #[test]
    fn invalid_lines_are_answered_and_an_endless_line_is_cut() {
        check("nonsense", |directory| {
            let mut stream = BlockingStream::connect(socket_path(directory)).unwrap();
            stream.write_all(b"nonsense\n{\"command\":\"echo\",\"arguments\":7}\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            assert!(lines.next().unwrap().unwrap().contains("bad-request"));
            assert_eq!(lines.next().unwrap().unwrap(), r#"{"ok":7}"#);
            // The server closes the connection before it has read all of it.
            let _ = stream.write_all(&vec![b'x'; LINE_BYTES_MAX as usize + (1 << 20)]);
            assert!(lines.next().is_none_or(|line| line.is_err() || line.unwrap().contains("bad-request")));
        });
    }
}
