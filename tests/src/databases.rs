//! Database servers of a test's own: on a free port, in a temporary directory, killed at the end. They refuse to run as the
//! superuser, so that they run as `nobody` where the tests do.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::need::{Need, is_superuser, missing};

/// The user and group that servers run as where this is the superuser.
const NOBODY: u32 = 65534;
const TIMEOUT: Duration = Duration::from_secs(60);
/// The password of user `postgres` of `DatabaseServer::postgres`.
pub const PASSWORD: &str = "s3cret/word";

/// A running server, which keeps its data over `kill` and `start`.
pub struct DatabaseServer {
    program: PathBuf,
    arguments: Vec<String>,
    directory: TempDir,
    port: u16,
    child: Option<Child>,
}

impl DatabaseServer {
    /// A PostgreSQL server that wants a password, and speaks TLS if there is a certificate with its key. `POSTGRES_BIN` may
    /// name the directory of its programs.
    ///
    /// # Panics
    /// When it cannot be had.
    pub fn postgres(tls: Option<(&str, &str)>) -> Self {
        let programs = postgres_programs().unwrap_or_else(|| missing(Need::Postgres, "there is no PostgreSQL"));
        let directory = directory();
        let data = directory.path().join("data").display().to_string();
        let password = directory.path().join("password");
        fs::write(&password, PASSWORD).expect("a file for the password");
        own(&password);
        let password = format!("--pwfile={}", password.display());
        let made = command(&programs.join("initdb"), directory.path())
            .args([
                "--no-sync",
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "-D",
                &data,
            ])
            .arg(password)
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let set = |setting: String| ["-c".to_owned(), setting];
        let mut arguments = vec!["-D".to_owned(), data];
        arguments.extend(set(format!("port={port}")));
        arguments.extend(set("listen_addresses=127.0.0.1".into()));
        arguments.extend(set(format!("unix_socket_directories={}", directory.path().display())));
        // The kernel keeps what a killed process wrote; only a power failure would lose it.
        arguments.extend(set("fsync=off".into()));
        if let Some((certificate, key)) = tls {
            for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
                let file = directory.path().join("data").join(name);
                fs::write(&file, pem).expect("a file for the server's identity");
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its permissions");
                own(&file);
            }
            arguments.extend(set("ssl=on".into()));
        }
        let mut server = Self { program: programs.join("postgres"), arguments, directory, port, child: None };
        server.start();
        server
    }

    /// A MariaDB or MySQL server that lets everybody in; its database is `test`. `MARIADBD` may name the program.
    ///
    /// # Panics
    /// When it cannot be had.
    pub fn mariadb() -> Self {
        let program = std::env::var("MARIADBD").unwrap_or_else(|_| "/usr/sbin/mariadbd".into());
        let found = fs::canonicalize(&program);
        let program = found.unwrap_or_else(|error| missing(Need::MariaDb, format_args!("{program}: {error}")));
        let directory = directory();
        let data = directory.path().join("data");
        // MariaDB takes each directory in its data directory for a database.
        for database in [&data, &data.join("mysql"), &data.join("test")] {
            fs::create_dir(database).expect("a directory for a database");
            own(database);
        }
        let port = free_port();
        let messages = program.parent().expect("a directory").join("../share/mysql");
        let arguments = vec![
            "--no-defaults".to_owned(),
            format!("--datadir={}", data.display()),
            format!("--lc-messages-dir={}", messages.display()),
            format!("--socket={}", directory.path().join("socket").display()),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--skip-grant-tables".to_owned(),
            "--skip-networking=0".to_owned(),
            "--character-set-server=utf8mb4".to_owned(),
            "--innodb-buffer-pool-size=16M".to_owned(),
        ];
        let mut server = Self { program, arguments, directory, port, child: None };
        server.start();
        server
    }

    /// A PgBouncer before that PostgreSQL, which gives each transaction to the next of three connections that is free, and lets
    /// everybody in. `PGBOUNCER` may name the program.
    ///
    /// # Panics
    /// When it cannot be had.
    pub fn pgbouncer(postgres: &Self) -> Self {
        let program = std::env::var("PGBOUNCER").unwrap_or_else(|_| "/usr/sbin/pgbouncer".into());
        let found = fs::canonicalize(&program);
        let program = found.unwrap_or_else(|error| missing(Need::PgBouncer, format_args!("{program}: {error}")));
        let (directory, port, behind) = (directory(), free_port(), postgres.port());
        let file = directory.path().join("pgbouncer.ini");
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={behind} dbname=postgres user=postgres password={PASSWORD}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 3\n"
        );
        fs::write(&file, settings).expect("the pooler's settings");
        own(&file);
        let arguments = vec![file.display().to_string()];
        let mut server = Self { program, arguments, directory, port, child: None };
        server.start();
        server
    }

    /// Starts the server, and waits until it serves.
    ///
    /// # Panics
    /// When it does not come up within a minute.
    pub fn start(&mut self) {
        let log = self.directory.path().join("log");
        let output = fs::File::create(&log).expect("a log of the server");
        let mut command = command(&self.program, self.directory.path());
        command.args(&self.arguments).stdout(Stdio::null()).stderr(output);
        let until = Instant::now() + TIMEOUT;
        self.child = Some(command.spawn().expect("the server starts"));
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() || !self.is_ready(&log) {
            let log = || fs::read_to_string(&log).unwrap_or_default();
            assert!(Instant::now() < until, "the server does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Reads from the log whether the server serves: one that recovers listens before that.
    fn is_ready(&self, log: &Path) -> bool {
        let text = fs::read_to_string(log).unwrap_or_default();
        text.contains("ready to accept connections")
            || text.contains("ready for connections")
            || text.contains("process up")
    }

    /// Kills the server and all processes that it has started.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
        let children: Vec<&str> = children.split_whitespace().collect();
        child.kill().expect("the server can be killed");
        if !children.is_empty() {
            // Some of them may have ended by themselves.
            let _ = Command::new("kill").arg("-9").args(&children).stderr(Stdio::null()).status();
        }
        child.wait().expect("the server has ended");
        let until = Instant::now() + TIMEOUT;
        while children.iter().any(|child| Path::new("/proc").join(child).exists()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for DatabaseServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn postgres_programs() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("POSTGRES_BIN") {
        return Some(PathBuf::from(named)).filter(|programs| programs.join("postgres").exists());
    }
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    versions.map(|version| version.path().join("bin")).filter(|programs| programs.join("initdb").exists()).max()
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    own(directory.path());
    directory
}

fn own(path: &Path) {
    if is_superuser() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("the server's own files");
    }
}

/// A program of a server, as a user it agrees to.
fn command(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env("HOME", directory);
    if is_superuser() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}
