//! Machines of a network: network namespaces on a bridge where this machine permits them, addresses of the loopback interface
//! elsewhere. Cages on them run in processes of their own, listen at fixed ports, and find each other by multicast.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Child;
use wasmcage_fabric::keys::{Authority, KEYS_DIRECTORY};

use crate::need::{Need, missing};
use crate::{cache, guest, program};

/// The TCP port by which the cage of each machine is called.
const PORT: u16 = 7420;

/// A network of machines, which is removed when dropped.
pub struct Machines {
    network: Network,
    directory: TempDir,
    authority: Authority,
    /// The port of multicast over the loopback interface, which all tests share.
    multicast_port: u16,
}

enum Network {
    /// Namespaces on a bridge of this name.
    Namespaces {
        bridge: String,
        subnet: usize,
        machines: usize,
    },
    Loopback {
        first: usize,
    },
}

/// A cage that runs on a machine. Killed when dropped.
pub struct Machine {
    machine: usize,
    root: PathBuf,
    pub cage: String,
    /// A primary process watches it, as `wasmcage ps` needs it.
    supervised: bool,
    process: Child,
}

/// A cage to be started.
#[derive(Clone, Copy, Debug, Default)]
pub struct CagePlan<'a> {
    pub cage: &'a str,
    /// Names of guests, and the names of the modules that they become.
    pub modules: &'a [(&'a str, &'a str)],
    /// More lines of `[interfaces.rpc]` in its `cage.toml`.
    pub rpc: &'a str,
    /// The rest of its `cage.toml`.
    pub more: &'a str,
}

impl Machines {
    /// # Panics
    /// When keys cannot be made.
    pub fn new(machines: usize) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let authority = Authority::create(&directory.path().join("authority"), "default").expect("an authority");
        let network = Network::namespaces(machines).unwrap_or_else(|| Network::loopback(machines));
        let multicast_port =
            UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        Self { network, directory, authority, multicast_port }
    }

    /// Machines between which multicast works.
    ///
    /// # Panics
    /// When it does not work here.
    pub fn with_multicast(machines: usize) -> Self {
        let all = Self::new(machines);
        let works = match all.network {
            Network::Namespaces { .. } => Ok(()),
            Network::Loopback { .. } => {
                wasmcage_fabric::discovery::probe(all.multicast_port, std::net::Ipv4Addr::LOCALHOST)
            }
        };
        match works {
            Ok(()) => all,
            Err(error) => missing(
                Need::Multicast,
                format_args!("there are neither network namespaces nor multicast over the loopback interface: {error}"),
            ),
        }
    }

    pub fn ip(&self, machine: usize) -> String {
        match self.network {
            Network::Namespaces { subnet, .. } => format!("198.{}.{}.{}", 18 + subnet / 256, subnet % 256, machine + 1),
            Network::Loopback { first } => format!("127.{}.{}.{}", 1 + first / 256 % 250, first % 256, 2 + machine),
        }
    }

    /// Where a machine's cage listens for others.
    pub fn address(&self, machine: usize) -> String {
        format!("{}:{PORT}", self.ip(machine))
    }

    fn multicast(&self) -> String {
        match self.network {
            Network::Namespaces { .. } => String::new(),
            Network::Loopback { .. } => {
                format!("multicast_loopback = true\nmulticast_port = {}\n", self.multicast_port)
            }
        }
    }

    /// Starts a cage as one process, so that a kill kills it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&self, number: usize, plan: &CagePlan<'_>) -> Machine {
        self.begin(number, number, plan, false)
    }

    /// Starts a cage as one process on the first machine, beside that machine's own.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_on_first(&self, number: usize, plan: &CagePlan<'_>) -> Machine {
        self.begin(number, 0, plan, false)
    }

    /// Starts a cage as an operator does.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, number: usize, plan: &CagePlan<'_>) -> Machine {
        self.begin(number, number, plan, true)
    }

    fn begin(&self, number: usize, machine: usize, plan: &CagePlan<'_>, supervised: bool) -> Machine {
        let CagePlan { cage, modules, rpc, more } = plan;
        let root = self.directory.path().join(format!("machine{number}"));
        let directory = root.join(cage);
        fs::create_dir_all(&directory).expect("a directory");
        for (name, module) in *modules {
            fs::copy(guest(name), directory.join(format!("{module}.wasm"))).expect("a guest");
        }
        std::os::unix::fs::symlink(cache(), root.join(".cache")).expect("the cache");
        self.authority.issue(cage, 1).and_then(|keys| keys.write(&directory.join(KEYS_DIRECTORY), true)).expect("keys");
        let listen = match number == machine {
            true => format!("listen = \"{}\"\n", self.address(machine)),
            false => String::new(),
        };
        let multicast = self.multicast();
        fs::write(directory.join("cage.toml"), format!("{more}\n[interfaces.rpc]\n{listen}{multicast}{rpc}\n"))
            .expect("a cage.toml");
        let process = self.process(machine, &root, cage, supervised);
        Machine { machine, root, cage: (*cage).to_owned(), supervised, process }
    }

    fn process(&self, number: usize, root: &Path, cage: &str, supervised: bool) -> Child {
        let mut command = self.command(number);
        command.arg(if supervised { "run" } else { "secondary" });
        command.arg("--root").arg(root).args(["--lanes", "1", "--", cage]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true).spawn().expect("the program starts")
    }

    fn command(&self, number: usize) -> Command {
        let mut command = match &self.network {
            Network::Namespaces { bridge, .. } => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &format!("{bridge}m{number}")]).arg(program());
                command
            }
            Network::Loopback { .. } => Command::new(program()),
        };
        command.env("WASMCAGE_RUNTIME_DIR", self.directory.path().join(format!("run{number}")));
        command
    }

    /// Starts the cage of a machine anew, after its process has ended.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn restart(&self, machine: &mut Machine) {
        machine.process.wait().await.expect("it ends");
        machine.process = self.process(machine.machine, &machine.root, &machine.cage, machine.supervised);
    }

    /// The copies of another cage that `wasmcage ps` shows for this one; none while it does not answer.
    pub fn members(&self, of: &Machine, cage: &str) -> Option<Vec<Value>> {
        let mut command = self.command(of.machine);
        command.arg("ps").arg("--json").arg("--root").arg(&of.root).arg(&of.cage);
        let output = command.stdin(Stdio::null()).output().ok()?;
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        let members = answer["processes"][0]["cages"][0]["members"].as_array()?;
        Some(members.iter().filter(|member| member["cage"] == cage).cloned().collect())
    }
}

impl Machine {
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, name: &str) {
        let pid = self.process.id().expect("it runs").to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill").success());
    }

    /// Everything that its cage has logged.
    pub fn log(&self) -> String {
        let files = fs::read_dir(self.root.join(&self.cage).join("logs")).into_iter().flatten().flatten();
        files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect()
    }
}

/// A number that no other network of this process has, and hardly one of another process.
fn next() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    std::process::id() as usize * 8 + NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Network {
    fn loopback(_: usize) -> Self {
        Self::Loopback { first: next() }
    }

    fn namespaces(machines: usize) -> Option<Self> {
        let number = next();
        let (bridge, subnet) = (format!("wc{number:x}"), number % 512);
        // Its drop removes what is made from here on.
        let network = Self::Namespaces { bridge: bridge.clone(), subnet, machines };
        let net = format!("198.{}.{}", 18 + subnet / 256, subnet % 256);
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("addr add {net}.254/24 dev {bridge}"))?;
        ip(&format!("link set {bridge} up"))?;
        for machine in 0..machines {
            let (namespace, outer, inner) =
                (format!("{bridge}m{machine}"), format!("{bridge}o{machine}"), format!("{bridge}i{machine}"));
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("link add {outer} type veth peer name {inner}"))?;
            ip(&format!("link set {outer} master {bridge} up"))?;
            ip(&format!("link set {inner} netns {namespace}"))?;
            ip(&format!("-n {namespace} addr add {net}.{}/24 dev {inner}", machine + 1))?;
            ip(&format!("-n {namespace} link set {inner} up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        Some(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let Self::Namespaces { bridge, machines, .. } = self else { return };
        // Some may not have been made.
        for machine in 0..*machines {
            let _ = ip(&format!("netns del {bridge}m{machine}"));
            let _ = ip(&format!("link del {bridge}o{machine}"));
        }
        let _ = ip(&format!("link del {bridge}"));
    }
}

fn ip(line: &str) -> Option<()> {
    let mut command = Command::new("ip");
    command.args(line.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().ok()?.success().then_some(())
}
