//! A RabbitMQ of the tests' own, on loopback ports that nobody else has, in a temporary directory; beside any other broker
//! of the machine; it ends with the test's process. `RABBITMQ_SERVER` names the server's script; without one, its tests fail.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::need::{Need, missing};

const START_WITHIN: Duration = Duration::from_secs(60);

/// A running server, which is killed when dropped.
pub struct RabbitMq {
    directory: TempDir,
    port: u16,
    ports: [u16; 3],
    tls_port: Option<u16>,
    server: Mutex<Option<Child>>,
    names: Child,
}

impl RabbitMq {
    /// The server that tests share, each with queues of its own.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<RabbitMq>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start(""));
        *shared = Arc::downgrade(&server);
        server
    }

    /// A server of the test's own; `config` is added to its `rabbitmq.conf`, where TLS_PORT and DIRECTORY are replaced.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(config: &str) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary directory"), config)
    }

    /// Starts one in a directory that may hold files which the configuration names.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_in(directory: TempDir, config: &str) -> Self {
        let script = script();
        if !script.is_file() {
            missing(Need::RabbitMq, format_args!("there is no {}", script.display()));
        }
        let ports = free_ports();
        let path = directory.path();
        for name in ["mnesia", "log", "gen", "schema"] {
            fs::create_dir_all(path.join(name)).expect("a directory");
        }
        let tls_port = config.contains("TLS_PORT").then_some(ports[3]);
        let config =
            config.replace("TLS_PORT", &ports[3].to_string()).replace("DIRECTORY", &path.display().to_string());
        let memory = match config.contains("vm_memory_high_watermark") {
            true => "",
            false => "vm_memory_high_watermark.absolute = 512MB\n",
        };
        let config = format!("loopback_users = none\ndisk_free_limit.absolute = 50MB\n{memory}{config}\n");
        fs::write(path.join("rabbitmq.conf"), config).expect("a configuration");
        fs::write(path.join("enabled_plugins"), "[].").expect("a file");
        let cookie = path.join(".erlang.cookie");
        fs::write(&cookie, format!("cookie{}", std::process::id())).expect("a cookie");
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400)).expect("its mode");
        // A child of ours; the server would start one that outlives it.
        let names = group_of(Path::new("epmd"))
            .args(["-port", &ports[2].to_string(), "-address", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("epmd starts");
        let [port, distribution, names_port, _] = ports;
        let ports = [port, distribution, names_port];
        let server = Self { directory, port, ports, tls_port, server: Mutex::new(None), names };
        server.restart();
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of its TLS listener.
    pub fn tls_port(&self) -> u16 {
        self.tls_port.expect("its configuration names a TLS_PORT")
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2F", self.port)
    }

    /// Starts the server again in its directory and on its ports.
    pub fn restart(&self) {
        let path = self.directory.path();
        let [port, distribution, names] = self.ports;
        let out = fs::File::create(path.join("out")).expect("a file");
        let error = out.try_clone().expect("the same file");
        let mut command = group_of(&script());
        command
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("LANG", "C.UTF-8")
            .env("HOME", path)
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_NODENAME", format!("t{port}@localhost"))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .env("ERL_EPMD_PORT", names.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_MNESIA_BASE", path.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", path.join("log"))
            .env("RABBITMQ_LOGS", path.join("log/rabbit.log"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path.join("enabled_plugins"))
            .env("RABBITMQ_CONFIG_FILE", path.join("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", path.join("advanced.config"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", path.join("gen"))
            .env("RABBITMQ_SCHEMA_DIR", path.join("schema"))
            .env("RABBITMQ_PID_FILE", path.join("pid"))
            .env("ERL_CRASH_DUMP_SECONDS", "0")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2")
            .current_dir(path)
            .stdout(out)
            .stderr(error);
        *self.server.lock().expect("no test has panicked here") = Some(command.spawn().expect("RabbitMQ starts"));
        let begun = Instant::now();
        while !self.answers() {
            let out = || fs::read_to_string(path.join("out")).unwrap_or_default();
            assert!(begun.elapsed() < START_WITHIN, "RabbitMQ does not start: {}", out());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills the server at once, as a power failure would.
    pub fn kill(&self) {
        if let Some(mut server) = self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            kill_group(&mut server);
        }
    }

    /// Stops the process until `resume`; its connections stay open.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = fs::read_to_string(self.directory.path().join("pid")).expect("the server has written its pid");
        let sent = Command::new("kill").args([signal, pid.trim()]).status().expect("kill runs");
        assert!(sent.success(), "{signal} to {pid}");
    }

    /// Runs `rabbitmqctl` and returns its output.
    pub fn control(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(script().with_file_name("rabbitmqctl"));
        command
            .env("HOME", self.directory.path())
            .env("ERL_EPMD_PORT", self.ports[2].to_string())
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .args(["-q", "-n", &format!("t{}@localhost", self.port)])
            .args(arguments);
        let output = command.output().expect("rabbitmqctl runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Says whether it answers by AMQP yet.
    fn answers(&self) -> bool {
        let answered = || -> std::io::Result<u8> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"AMQP\0\0\x09\x01")?;
            let mut first = [0];
            stream.read_exact(&mut first)?;
            Ok(first[0])
        };
        answered().is_ok_and(|first| first == 1)
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.kill();
        kill_group(&mut self.names);
    }
}

/// Runs `program` in a process group of its own, which ends when this process does, however that ends: the shell waits for
/// the end of its input. (The kernel's signal at a parent's death comes at the death of the thread, which is sooner.)
fn group_of(program: &Path) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", r#"set -m; "$0" "$@" </dev/null & read -r; kill -9 -- "-$!"; wait"#]).arg(program);
    command.stdin(Stdio::piped()).process_group(0);
    command
}

/// Kills the process group of a `group_of` at once.
fn kill_group(shell: &mut Child) {
    drop(shell.stdin.take());
    let _ = shell.wait();
}

fn script() -> PathBuf {
    std::env::var("RABBITMQ_SERVER").map_or_else(|_| "/usr/lib/rabbitmq/bin/rabbitmq-server".into(), PathBuf::from)
}

fn free_ports() -> [u16; 4] {
    let listeners = std::array::from_fn::<_, 4, _>(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("its address").port())
}
