//! Copies on other machines, by multicast DNS: each that listens for TCP announces a service `_wasmcage._tcp.local.` whose
//! instance is called like the copy, and whose TXT record names its flock, cage and machine (an instance's name has room
//! for 63 bytes, a cage's alone may have 64). Nothing that comes from the network is believed beyond its form.
//!
//! One daemon serves all cages of a process, as one machine's answers would otherwise multiply; it ends with its last user.
//! That a copy is gone is told at once when it says so itself, and else two minutes later, or soon after `verify`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use mdns_sd::{IfKind, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};
use parking_lot::{Mutex, MutexGuard};

use super::{Address, Found, Listener, News, Sighting};
use crate::fabric::{CopyId, Local};
use wasmcage_config::{is_flock_name, is_name};
use wasmcage_core::task::catch_panic;

/// The port of multicast DNS.
pub const MULTICAST_PORT: u16 = 5353;
const SERVICE_TYPE: &str = "_wasmcage._tcp.local.";
/// Of the TXT record; a copy that says another is passed over.
const VERSION: &str = "1";
/// Copies kept, of all flocks; more are passed over.
const COPIES_MAX: usize = 1_000;
/// Of one copy; more are passed over.
const ADDRESSES_MAX: usize = 8;
const NODE_BYTES_MAX: usize = 64;
/// How long a copy has to answer `verify`.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);
/// For the goodbye to be on its way.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);
/// Before the search is begun again after it broke off.
const SEARCH_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MulticastSettings {
    /// Of UDP: 5353 unless all members agree on another.
    pub port: u16,
    /// Only this machine's copies, over its loopback interface; that interface is not used otherwise.
    pub loopback_only: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum MulticastError {
    #[error("cannot use multicast DNS on UDP port {port}")]
    Daemon {
        port: u16,
        #[source]
        source: mdns_sd::Error,
    },
    #[error("{address} is an address of this machine only: other machines cannot reach it")]
    LoopbackAddress { address: SocketAddr },
}

/// A copy's part in multicast DNS: what it announces and what it is told. Ends when dropped.
pub struct Multicast {
    local: Local,
    daemon: Arc<Daemon>,
    user: u64,
    /// Full name of the announced service.
    announced: Mutex<Option<String>>,
}

impl Multicast {
    /// Joins, and tells of every copy of the flock but its own.
    ///
    /// # Errors
    /// The daemon cannot be started. That the port cannot be had or that there is no network shows only in that nobody
    /// is found.
    pub fn start(settings: MulticastSettings, local: Local, listener: Listener) -> Result<Self, MulticastError> {
        let daemon = Daemon::of_process(settings)?;
        let user = daemon.join(User { flock: local.flock.clone(), own: local.copy, listener });
        Ok(Self { local, daemon, user, announced: Mutex::new(None) })
    }

    /// Tells others where this copy listens: at that address, or at each of the machine's if it is unspecified.
    ///
    /// # Errors
    /// The address is of no use to others, or the daemon does not take it.
    pub fn announce(&self, listening: SocketAddr) -> Result<(), MulticastError> {
        let settings = self.daemon.settings;
        if listening.ip().is_loopback() && !settings.loopback_only {
            return Err(MulticastError::LoopbackAddress { address: listening });
        }
        let failed = |source| MulticastError::Daemon { port: settings.port, source };
        let service = service(&self.local, listening, settings.loopback_only).map_err(failed)?;
        let name = service.get_fullname().to_owned();
        self.daemon.mdns.register(service).map_err(failed)?;
        *self.announced.lock() = Some(name);
        Ok(())
    }

    /// Says goodbye, so that others forget this copy at once.
    pub async fn withdraw(&self) {
        let Some(name) = self.announced.lock().take() else { return };
        if let Ok(said) = self.daemon.mdns.unregister(&name) {
            // Without a goodbye, others find out for themselves.
            let _ = tokio::time::timeout(GOODBYE_TIMEOUT, said.recv_async()).await;
        }
    }

    /// Asks whether a copy that could not be reached is still there; if it does not answer, it is told to be gone.
    pub fn verify(&self, copy: CopyId) {
        // With so much to do that nothing more is taken, the next failure asks again.
        let _ = self.daemon.mdns.verify(full_name(copy), VERIFY_TIMEOUT);
    }
}

impl Drop for Multicast {
    fn drop(&mut self) {
        self.daemon.leave(self.user);
        if let Some(name) = self.announced.get_mut().take() {
            // As for `withdraw`, which has not been called.
            let _ = self.daemon.mdns.unregister(&name);
        }
    }
}

fn full_name(copy: CopyId) -> String {
    format!("{copy}.{SERVICE_TYPE}")
}

fn service(local: &Local, listening: SocketAddr, loopback_only: bool) -> mdns_sd::Result<ServiceInfo> {
    let instance = local.copy.to_string();
    let host = format!("wasmcage-{instance}.local.");
    let mut node = local.node.to_string();
    node.truncate(node.floor_char_boundary(NODE_BYTES_MAX));
    let properties = [("v", VERSION), ("flock", &*local.flock), ("cage", &*local.cage), ("node", &*node)];
    let addresses: Vec<IpAddr> = match listening.ip() {
        address if loopback_only && (!address.is_loopback() || address.is_ipv6()) => vec![Ipv4Addr::LOCALHOST.into()],
        address if address.is_unspecified() => Vec::new(),
        address => vec![address],
    };
    let every = addresses.is_empty();
    let mut service = ServiceInfo::new(
        SERVICE_TYPE,
        &instance,
        &host,
        addresses.as_slice(),
        listening.port(),
        properties.as_slice(),
    )?;
    // The names are unique by the copy's random name: to ask for others of the same name would cost a second.
    service.set_requires_probe(false);
    if every {
        service = service.enable_addr_auto();
        if listening.is_ipv4() {
            service.set_interfaces(vec![IfKind::IPv4]);
        }
    }
    Ok(service)
}

/// One for each port of a process.
static DAEMONS: LazyLock<Mutex<HashMap<MulticastSettings, Weak<Daemon>>>> = LazyLock::new(Mutex::default);

struct Daemon {
    settings: MulticastSettings,
    mdns: ServiceDaemon,
    state: Mutex<State>,
    /// Users that have gone. They may go while one of them is being told something, by what it does then.
    left: Mutex<Vec<u64>>,
}

#[derive(Default)]
struct State {
    copies: HashMap<CopyId, Announced>,
    users: HashMap<u64, User>,
    next_user: u64,
    /// There are more copies than are kept, which was told.
    full: bool,
}

struct User {
    flock: Arc<str>,
    own: CopyId,
    listener: Listener,
}

/// What a copy says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Announced {
    flock: String,
    cage: String,
    node: String,
    /// Sorted, without doubles.
    addresses: Vec<SocketAddr>,
}

impl Daemon {
    fn of_process(settings: MulticastSettings) -> Result<Arc<Self>, MulticastError> {
        let mut daemons = DAEMONS.lock();
        if let Some(daemon) = daemons.get(&settings).and_then(Weak::upgrade) {
            return Ok(daemon);
        }
        let daemon = Self::start(settings).map_err(|source| MulticastError::Daemon { port: settings.port, source })?;
        daemons.retain(|_, daemon| daemon.strong_count() > 0);
        daemons.insert(settings, Arc::downgrade(&daemon));
        Ok(daemon)
    }

    fn start(settings: MulticastSettings) -> mdns_sd::Result<Arc<Self>> {
        let mdns = ServiceDaemon::new_with_port(settings.port)?;
        let daemon = Arc::new(Self { settings, mdns, state: Mutex::default(), left: Mutex::default() });
        if settings.loopback_only {
            daemon.mdns.disable_interface(IfKind::All)?;
            daemon.mdns.enable_interface(IfKind::LoopbackV4)?;
        } else {
            // What is announced there would be told to other machines too, which take it for their own loopback.
            daemon.mdns.disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
        }
        let events = daemon.mdns.browse(SERVICE_TYPE)?;
        let weak = Arc::downgrade(&daemon);
        // A thread of its own: the search breaks off when its events are not taken quickly, and no runtime of a cage
        // lives as long as the process.
        let thread = std::thread::Builder::new().name("discovery".into());
        thread.spawn(move || drain(&weak, events)).map_err(|error| mdns_sd::Error::Msg(error.to_string()))?;
        Ok(daemon)
    }

    /// Tells a new user of all that is known. Returns its number.
    fn join(&self, user: User) -> u64 {
        let mut state = self.state();
        for (copy, announced) in &state.copies {
            user.seen(*copy, announced, &announced.addresses);
        }
        state.next_user += 1;
        let number = state.next_user;
        state.users.insert(number, user);
        number
    }

    fn leave(&self, user: u64) {
        self.left.lock().push(user);
    }

    /// Without the users that have gone.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        for user in std::mem::take(&mut *self.left.lock()) {
            state.users.remove(&user);
        }
        state
    }

    fn event(&self, event: ServiceEvent) {
        match event {
            ServiceEvent::ServiceResolved(service) => {
                if let Some((copy, announced)) = read(&service, self.settings.loopback_only) {
                    self.state().seen(copy, announced);
                }
            }
            ServiceEvent::ServiceRemoved(_, name) => {
                if let Some(copy) = copy_of(&name) {
                    self.state().gone(copy);
                }
            }
            // Of how the search goes; the enum may grow.
            _ => {}
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already. Says goodbye for what is still announced.
        let _ = self.mdns.shutdown();
    }
}

/// Takes the events of a search as long as the daemon has users.
fn drain(daemon: &Weak<Daemon>, mut events: Receiver<ServiceEvent>) {
    loop {
        while let Ok(event) = events.recv() {
            match daemon.upgrade() {
                // A panic must not end the search for all cages of the process.
                Some(daemon) => {
                    if let Err(panic) = catch_panic(|| daemon.event(event)) {
                        tracing::error!(error = %panic, "news of multicast could not be taken in");
                    }
                }
                None => return,
            }
        }
        std::thread::sleep(SEARCH_PAUSE);
        let Some(daemon) = daemon.upgrade() else { return };
        match daemon.mdns.browse(SERVICE_TYPE) {
            Ok(again) => events = again,
            Err(mdns_sd::Error::DaemonShutdown) => return,
            // Too much to do; the closed channel leads back here.
            Err(_) => {}
        }
    }
}

impl State {
    fn seen(&mut self, copy: CopyId, announced: Announced) {
        if self.copies.len() >= COPIES_MAX && !self.copies.contains_key(&copy) {
            if !std::mem::replace(&mut self.full, true) {
                tracing::warn!(
                    copies = COPIES_MAX,
                    "copies of cages found by multicast were passed over: there are too many"
                );
            }
            return;
        }
        let old = self.copies.insert(copy, announced.clone());
        // A copy's flock and cage never change; whoever says so is somebody else.
        let kept = old.as_ref().filter(|old| {
            let same = old.flock == announced.flock && old.cage == announced.cage;
            same && old.addresses.iter().all(|address| announced.addresses.contains(address))
        });
        if kept.is_none()
            && let Some(old) = &old
        {
            self.users.values().for_each(|user| user.gone(copy, old));
        }
        let known = kept.map_or(&[][..], |kept| &kept.addresses);
        let new: Vec<_> = announced.addresses.iter().filter(|address| !known.contains(address)).copied().collect();
        self.users.values().for_each(|user| user.seen(copy, &announced, &new));
    }

    fn gone(&mut self, copy: CopyId) {
        if let Some(old) = self.copies.remove(&copy) {
            self.full = false;
            self.users.values().for_each(|user| user.gone(copy, &old));
        }
    }
}

impl User {
    fn wants(&self, copy: CopyId, announced: &Announced) -> bool {
        copy != self.own && announced.flock == *self.flock
    }

    fn seen(&self, copy: CopyId, announced: &Announced, addresses: &[SocketAddr]) {
        if self.wants(copy, announced) {
            for address in addresses {
                let Announced { cage, node, .. } = announced.clone();
                let address = Address::Tcp(address.to_string());
                (self.listener)(News::Seen(Sighting { cage, copy, node, address, found: Found::Multicast }));
            }
        }
    }

    fn gone(&self, copy: CopyId, announced: &Announced) {
        if self.wants(copy, announced) {
            (self.listener)(News::Gone { cage: announced.cage.clone(), copy, found: Found::Multicast });
        }
    }
}

fn copy_of(full_name: &str) -> Option<CopyId> {
    CopyId::parse(full_name.strip_suffix(SERVICE_TYPE)?.strip_suffix('.')?)
}

/// What a peer announces; none if it makes no sense.
fn read(service: &ResolvedService, loopback: bool) -> Option<(CopyId, Announced)> {
    let copy = copy_of(&service.fullname)?;
    let text = |key| service.txt_properties.get_property_val_str(key);
    let (flock, cage, node) = (text("flock")?, text("cage")?, text("node").unwrap_or_default());
    if text("v") != Some(VERSION) || !is_flock_name(flock) || !is_name(cage) || !is_label(node) || service.port == 0 {
        return None;
    }
    let fits = |address: &SocketAddr| {
        let ip = address.ip();
        ip.is_loopback() == loopback && !ip.is_unspecified() && !ip.is_multicast()
    };
    let mut addresses: Vec<_> =
        service.addresses.iter().map(|ip| socket_address(ip, service.port)).filter(fits).collect();
    // IPv4 is before IPv6 in their order.
    addresses.sort();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() {
        return None;
    }
    let (flock, cage, node) = (flock.to_owned(), cage.to_owned(), node.to_owned());
    Some((copy, Announced { flock, cage, node, addresses }))
}

fn is_label(node: &str) -> bool {
    node.len() <= NODE_BYTES_MAX && !node.contains(char::is_control)
}

fn socket_address(ip: &ScopedIp, port: u16) -> SocketAddr {
    match ip {
        // Such an address means something only with the interface it was heard on.
        ScopedIp::V6(v6) if v6.addr().is_unicast_link_local() => {
            SocketAddrV6::new(*v6.addr(), port, 0, v6.scope_id().index).into()
        }
        other => SocketAddr::new(other.to_ip_addr(), port),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use tokio::sync::mpsc;

    use super::*;
    use crate::discovery::probe;

    fn announced(flock: &str, cage: &str, addresses: &[&str]) -> Announced {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Announced { flock: flock.into(), cage: cage.into(), node: "n".into(), addresses }
    }

    fn user(flock: &str, own: u64) -> (User, mpsc::Receiver<News>) {
        let (tx, rx) = mpsc::channel(2_000);
        let listener: Listener = Arc::new(move |news| tx.try_send(news).unwrap());
        (User { flock: flock.into(), own: CopyId(own), listener }, rx)
    }

    fn seen(cage: &str, copy: u64, address: &str) -> News {
        let (copy, address) = (CopyId(copy), Address::Tcp(address.into()));
        News::Seen(Sighting { cage: cage.into(), copy, node: "n".into(), address, found: Found::Multicast })
    }

    fn gone(cage: &str, copy: u64) -> News {
        News::Gone { cage: cage.into(), copy: CopyId(copy), found: Found::Multicast }
    }

    #[track_caller]
    fn check(rx: &mut mpsc::Receiver<News>, expected: &[News]) {
        let news: Vec<_> = std::iter::from_fn(|| rx.try_recv().ok()).collect();
        assert_eq!(news, expected);
    }

    #[test]
    fn users_hear_of_their_flock_only_and_not_of_themselves() {
        let mut state = State::default();
        let (first, mut rx) = user("default", 1);
        state.users.insert(1, first);
        state.seen(CopyId(1), announced("default", "a", &["10.0.0.1:1"]));
        state.seen(CopyId(2), announced("other", "a", &["10.0.0.1:2"]));
        check(&mut rx, &[]);
        state.seen(CopyId(3), announced("default", "b", &["10.0.0.3:3"]));
        state.seen(CopyId(3), announced("default", "b", &["10.0.0.3:3"]));
        check(&mut rx, &[seen("b", 3, "10.0.0.3:3")]);
        state.seen(CopyId(3), announced("default", "b", &["10.0.0.3:3", "[fd00::3]:3"]));
        check(&mut rx, &[seen("b", 3, "[fd00::3]:3")]);
        state.seen(CopyId(3), announced("default", "b", &["10.0.0.4:3"]));
        check(&mut rx, &[gone("b", 3), seen("b", 3, "10.0.0.4:3")]);
        state.seen(CopyId(3), announced("default", "c", &["10.0.0.4:3"]));
        check(&mut rx, &[gone("b", 3), seen("c", 3, "10.0.0.4:3")]);
        state.gone(CopyId(2));
        state.gone(CopyId(3));
        state.gone(CopyId(3));
        check(&mut rx, &[gone("c", 3)]);
    }

    #[test]
    fn a_user_may_go_while_it_is_told_something() {
        let settings = MulticastSettings { port: free_port(), loopback_only: true };
        let daemon = Daemon::start(settings).unwrap();
        let (tx, mut rx) = mpsc::channel(10);
        let place: Arc<Mutex<Option<Multicast>>> = Arc::default();
        let goes = place.clone();
        let listener: Listener = Arc::new(move |news| {
            drop(goes.lock().take());
            tx.try_send(news).unwrap();
        });
        let user = daemon.join(User { flock: "default".into(), own: CopyId(1), listener });
        let joined = Multicast { local: local("a", 1, "n"), daemon: daemon.clone(), user, announced: Mutex::default() };
        *place.lock() = Some(joined);
        for copy in [2, 3] {
            daemon.state().seen(CopyId(copy), announced("default", "b", &["10.0.0.3:3"]));
        }
        check(&mut rx, &[seen("b", 2, "10.0.0.3:3")]);
    }

    #[test]
    fn a_flood_of_copies_is_cut() {
        let mut state = State::default();
        let (only, mut rx) = user("default", 1);
        state.users.insert(1, only);
        for copy in 0..COPIES_MAX as u64 + 100 {
            state.seen(CopyId(1_000 + copy), announced("default", "a", &["10.0.0.1:1"]));
        }
        assert_eq!(std::iter::from_fn(|| rx.try_recv().ok()).count(), COPIES_MAX);
        // Those that are known stay so.
        state.seen(CopyId(1_000), announced("default", "a", &["10.0.0.1:1", "10.0.0.2:1"]));
        check(&mut rx, &[seen("a", 1_000, "10.0.0.2:1")]);
        state.gone(CopyId(1_001));
        state.seen(CopyId(9_000), announced("default", "a", &["10.0.0.1:1"]));
        check(&mut rx, &[gone("a", 1_001), seen("a", 9_000, "10.0.0.1:1")]);
    }

    /// A service as a peer might announce it.
    fn resolved(instance: &str, port: u16, txt: &[(&str, &str)], addresses: &str) -> ResolvedService {
        ServiceInfo::new(SERVICE_TYPE, instance, "host.local.", addresses, port, txt).unwrap().as_resolved_service()
    }

    #[test]
    fn announcements_that_make_no_sense_are_passed_over() {
        let good = [("v", "1"), ("flock", "default"), ("cage", "worker"), ("node", "n")];
        let check = |instance: &str, port: u16, change: (&str, &str), addresses: &str, expected: Option<&[&str]>| {
            let mut txt = good.to_vec();
            txt.retain(|(key, _)| *key != change.0);
            txt.push(change);
            let found = read(&resolved(instance, port, &txt, addresses), false);
            let expected = expected.map(|expected| (CopyId(255), announced("default", "worker", expected)));
            assert_eq!(found, expected, "{instance} {port} {change:?} {addresses}");
        };
        let (copy, v1, both) = ("00000000000000ff", ("v", "1"), "10.0.0.2,fd00::2");
        check(copy, 7420, v1, both, Some(&["10.0.0.2:7420", "[fd00::2]:7420"]));
        check(copy, 7420, v1, "127.0.0.1,10.0.0.2", Some(&["10.0.0.2:7420"]));
        check(copy, 7420, v1, "127.0.0.1,::1,0.0.0.0,224.0.0.251", None);
        check(copy, 7420, v1, "", None);
        check(copy, 0, v1, both, None);
        check("00000000000000FF", 7420, v1, both, None);
        check("worker", 7420, v1, both, None);
        check("00000000000000ff (2)", 7420, v1, both, None);
        for bad in [
            ("v", "2"),
            ("flock", "Default"),
            ("flock", ""),
            ("cage", ""),
            ("cage", "a/b"),
            ("cage", "../x"),
            ("node", "a\nb"),
            ("node", &"x".repeat(65)),
        ] {
            check(copy, 7420, bad, both, None);
        }
        let many: Vec<_> = (1..20).map(|last| format!("10.0.0.{last}")).collect();
        let txt = good.as_slice();
        assert_eq!(read(&resolved(copy, 1, txt, &many.join(",")), false).unwrap().1.addresses.len(), ADDRESSES_MAX);
        assert!(read(&resolved(copy, 1, &txt[..2], both), false).is_none());
        assert!(read(&resolved(copy, 1, txt, "127.0.0.1"), true).is_some());
    }

    #[test]
    fn names_fit_whatever_the_cage_is_called() {
        let local = local(&"c".repeat(64), 1, &"\u{e9}".repeat(100));
        let service = service(&local, "0.0.0.0:7420".parse().unwrap(), false).unwrap();
        assert_eq!(service.get_property_val_str("cage"), Some(&*local.cage));
        assert!(service.is_addr_auto() && !service.requires_probe());
        assert_eq!(copy_of(service.get_fullname()), Some(CopyId(1)));
        assert!(is_label(service.get_property_val_str("node").unwrap()));
    }

    fn local(cage: &str, copy: u64, node: &str) -> Local {
        Local { flock: "default".into(), cage: cage.into(), copy: CopyId(copy), node: node.into() }
    }

    fn free_port() -> u16 {
        UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// A copy as in a process of its own.
    fn member(port: u16, copy: u64) -> (Multicast, mpsc::Receiver<News>) {
        let daemon = Daemon::start(MulticastSettings { port, loopback_only: true }).unwrap();
        let (user, rx) = user("default", copy);
        let user = daemon.join(user);
        (Multicast { local: local("a", copy, "n"), daemon, user, announced: Mutex::new(None) }, rx)
    }

    #[tokio::test]
    async fn copies_find_each_other_and_say_goodbye() {
        let port = free_port();
        if let Err(error) = probe(port, Ipv4Addr::LOCALHOST) {
            println!(
                "NOT RUN: no multicast over the loopback interface: {}",
                wasmcage_core::telemetry::error_chain(&error)
            );
            return;
        }
        let patience = Duration::from_secs(20);
        let (first, mut first_rx) = member(port, 1);
        first.announce("0.0.0.0:7001".parse().unwrap()).unwrap();
        let (second, mut second_rx) = member(port, 2);
        second.announce("127.0.0.1:7002".parse().unwrap()).unwrap();
        let first_news = tokio::time::timeout(patience, first_rx.recv()).await;
        assert_eq!(first_news.unwrap().unwrap(), seen("a", 2, "127.0.0.1:7002"));
        let second_news = tokio::time::timeout(patience, second_rx.recv()).await;
        assert_eq!(second_news.unwrap().unwrap(), seen("a", 1, "127.0.0.1:7001"));
        second.withdraw().await;
        assert_eq!(tokio::time::timeout(patience, first_rx.recv()).await.unwrap().unwrap(), gone("a", 2));
        // By being dropped.
        drop(first);
        assert_eq!(tokio::time::timeout(patience, second_rx.recv()).await.unwrap().unwrap(), gone("a", 1));
        // A copy that is late is told of those that are there, also by a daemon that knows them already.
        let (late, mut late_rx) = member(port, 3);
        second.announce("127.0.0.1:7004".parse().unwrap()).unwrap();
        assert_eq!(
            tokio::time::timeout(patience, late_rx.recv()).await.unwrap().unwrap(),
            seen("a", 2, "127.0.0.1:7004")
        );
        let (another, mut another_rx) = user("default", 4);
        late.daemon.join(another);
        check(&mut another_rx, &[seen("a", 2, "127.0.0.1:7004")]);
    }

    #[test]
    fn one_daemon_serves_a_process_and_ends_with_its_last_user() {
        let port = free_port();
        let settings = MulticastSettings { port, loopback_only: true };
        let start = |copy| Multicast::start(settings, local("a", copy, "n"), Arc::new(|_| {})).unwrap();
        let (first, second) = (start(1), start(2));
        assert!(Arc::ptr_eq(&first.daemon, &second.daemon));
        let mdns = first.daemon.mdns.clone();
        drop(first);
        assert!(second.daemon.mdns.status().is_ok());
        drop(second);
        let ended = (0..1_000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            matches!(mdns.browse(SERVICE_TYPE), Err(mdns_sd::Error::DaemonShutdown))
        });
        assert!(ended);
        let listening = "127.0.0.1:7420".parse().unwrap();
        let elsewhere = MulticastSettings { port, loopback_only: false };
        let outside = Multicast::start(elsewhere, local("a", 1, "n"), Arc::new(|_| {})).unwrap();
        assert!(matches!(outside.announce(listening), Err(MulticastError::LoopbackAddress { .. })));
    }
}
