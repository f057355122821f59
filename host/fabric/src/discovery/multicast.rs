//! Finds copies on other machines by multicast DNS. Each copy that listens for TCP announces a service
//! `_wasmcage._tcp.local.`; the instance is named after the copy, and the TXT record has its flock, cage and machine (an
//! instance's name has room for 63 bytes, and a cage's name alone may have 64). What comes from the network is checked
//! for its form only, so that it is a hint.
//!
//! One daemon serves all cages of a process, so that a machine does not answer once per cage; it ends with its last
//! subscriber. The end of a copy is reported at once when the copy announces it, and otherwise after two minutes, or soon
//! after `verify`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use mdns_sd::{IfKind, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};
use parking_lot::{Mutex, MutexGuard};

use super::{CopyAddress, CopyHint, DiscoveryEvent, FoundBy, Listener};
use crate::fabric::{CopyId, LocalCopy};
use wasmcage_config::{is_flock_name, is_name};
use wasmcage_core::task::catch_panic;

/// The port of multicast DNS.
pub(crate) const MULTICAST_PORT: u16 = 5353;
const SERVICE_TYPE: &str = "_wasmcage._tcp.local.";
/// Version of the TXT record; a copy that announces another one is ignored.
const VERSION: &str = "1";
/// Known copies of all flocks; further ones are ignored.
const COPIES_MAX: usize = 1_000;
/// Known addresses of one copy; further ones are ignored.
const ADDRESSES_MAX: usize = 8;
const NODE_BYTES_MAX: usize = 64;
/// How long a copy has to answer `verify`.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end of a copy waits for its goodbye to be sent.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause before the search is started again after it ended.
const SEARCH_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MulticastSettings {
    /// UDP port: 5353 unless all members use another.
    pub port: u16,
    /// Uses the loopback interface alone, for copies of this machine. Otherwise that interface is not used.
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

/// A copy's announcement in multicast DNS, and its subscription to those of others. Both end when it is dropped.
pub struct Multicast {
    local: LocalCopy,
    daemon: Arc<Daemon>,
    subscriber: u64,
    /// Full name of the announced service.
    announced: Mutex<Option<String>>,
}

impl Multicast {
    /// Reports every other copy of the flock to `listener`.
    ///
    /// # Errors
    /// The daemon cannot be started. A port in use and a missing network are no errors: then no copy is found.
    pub fn start(settings: MulticastSettings, local: LocalCopy, listener: Listener) -> Result<Self, MulticastError> {
        let daemon = Daemon::of_process(settings)?;
        let subscriber = daemon.join(Subscriber { flock: local.flock.clone(), own: local.copy, listener });
        Ok(Self { local, daemon, subscriber, announced: Mutex::new(None) })
    }

    /// Announces where this copy listens: that address, or all addresses of the machine if it is unspecified.
    ///
    /// # Errors
    /// Other machines cannot reach the address, or the daemon refuses it.
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

    /// Announces the end of this copy, so that others forget it at once.
    pub async fn withdraw(&self) {
        let Some(name) = self.announced.lock().take() else { return };
        if let Ok(said) = self.daemon.mdns.unregister(&name) {
            // If the goodbye is not sent in time, others notice the end later.
            let _ = tokio::time::timeout(GOODBYE_TIMEOUT, said.recv_async()).await;
        }
    }

    /// Asks whether a copy that could not be reached is still there. If it does not answer, it is reported as lost.
    pub fn verify(&self, copy: CopyId) {
        // If the daemon's queue is full, the next failed connection asks again.
        let _ = self.daemon.mdns.verify(full_name(copy), VERIFY_TIMEOUT);
    }
}

impl Drop for Multicast {
    fn drop(&mut self) {
        self.daemon.leave(self.subscriber);
        if let Some(name) = self.announced.get_mut().take() {
            // `withdraw` has not been called. An error means that the daemon has ended.
            let _ = self.daemon.mdns.unregister(&name);
        }
    }
}

fn full_name(copy: CopyId) -> String {
    format!("{copy}.{SERVICE_TYPE}")
}

fn service(local: &LocalCopy, listening: SocketAddr, loopback_only: bool) -> mdns_sd::Result<ServiceInfo> {
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
    // The copy's random id makes the name unique, so the probe for others of that name, which takes a second, is left
    // out.
    service.set_requires_probe(false);
    if every {
        service = service.enable_addr_auto();
        if listening.is_ipv4() {
            service.set_interfaces(vec![IfKind::IPv4]);
        }
    }
    Ok(service)
}

/// The daemons of this process, one for each setting.
static DAEMONS: LazyLock<Mutex<HashMap<MulticastSettings, Weak<Daemon>>>> = LazyLock::new(Mutex::default);

struct Daemon {
    settings: MulticastSettings,
    mdns: ServiceDaemon,
    state: Mutex<DaemonState>,
    /// Subscribers to be removed. A listener may drop its own subscription, while the state is locked.
    left: Mutex<Vec<u64>>,
}

#[derive(Default)]
struct DaemonState {
    copies: HashMap<CopyId, Announcement>,
    subscribers: HashMap<u64, Subscriber>,
    next_subscriber: u64,
    /// There are more copies than `COPIES_MAX`, which was logged.
    full: bool,
}

struct Subscriber {
    flock: Arc<str>,
    own: CopyId,
    listener: Listener,
}

/// The content of a copy's announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Announcement {
    flock: String,
    cage: String,
    node: String,
    /// Sorted, without duplicates.
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
            // Loopback addresses would also be announced to other machines, for which they mean themselves.
            daemon.mdns.disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
        }
        let events = daemon.mdns.browse(SERVICE_TYPE)?;
        let weak = Arc::downgrade(&daemon);
        // In a thread of its own: the search ends when its events are not read quickly, and no cage's runtime lives as
        // long as the process.
        let thread = std::thread::Builder::new().name("discovery".into());
        thread.spawn(move || handle_events(&weak, events)).map_err(|error| mdns_sd::Error::Msg(error.to_string()))?;
        Ok(daemon)
    }

    /// Adds a subscriber and reports all known copies to it. Returns its number.
    fn join(&self, subscriber: Subscriber) -> u64 {
        let mut state = self.state();
        for (copy, announced) in &state.copies {
            subscriber.found(*copy, announced, &announced.addresses);
        }
        state.next_subscriber += 1;
        let number = state.next_subscriber;
        state.subscribers.insert(number, subscriber);
        number
    }

    fn leave(&self, subscriber: u64) {
        self.left.lock().push(subscriber);
    }

    /// Locks the state, and removes the subscribers that have left.
    fn state(&self) -> MutexGuard<'_, DaemonState> {
        let mut state = self.state.lock();
        for subscriber in std::mem::take(&mut *self.left.lock()) {
            state.subscribers.remove(&subscriber);
        }
        state
    }

    fn event(&self, event: ServiceEvent) {
        match event {
            ServiceEvent::ServiceResolved(service) => {
                if let Some((copy, announced)) = read(&service, self.settings.loopback_only) {
                    self.state().found(copy, announced);
                }
            }
            ServiceEvent::ServiceRemoved(_, name) => {
                if let Some(copy) = copy_of(&name) {
                    self.state().lost(copy);
                }
            }
            // Events about the search itself; the enum may grow.
            _ => {}
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Withdraws what is still announced. An error means that the daemon has ended already.
        let _ = self.mdns.shutdown();
    }
}

/// Handles the events of a search as long as the daemon has subscribers.
fn handle_events(daemon: &Weak<Daemon>, mut events: Receiver<ServiceEvent>) {
    loop {
        while let Ok(event) = events.recv() {
            match daemon.upgrade() {
                // A panic must not end the search for all cages of the process.
                Some(daemon) => {
                    if let Err(panic) = catch_panic(|| daemon.event(event)) {
                        tracing::error!(error = %panic, "multicast event could not be handled");
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
            // The daemon's queue is full. `events` is closed, so the loop comes back here after the pause.
            Err(_) => {}
        }
    }
}

impl DaemonState {
    fn found(&mut self, copy: CopyId, announced: Announcement) {
        if self.copies.len() >= COPIES_MAX && !self.copies.contains_key(&copy) {
            if !std::mem::replace(&mut self.full, true) {
                tracing::warn!(
                    copies = COPIES_MAX,
                    "copies of cages found by multicast were ignored: there are too many"
                );
            }
            return;
        }
        let old = self.copies.insert(copy, announced.clone());
        // A copy's flock and cage never change: an announcement that changes them is from somebody else.
        let kept = old.as_ref().filter(|old| {
            let same = old.flock == announced.flock && old.cage == announced.cage;
            same && old.addresses.iter().all(|address| announced.addresses.contains(address))
        });
        if kept.is_none()
            && let Some(old) = &old
        {
            self.subscribers.values().for_each(|subscriber| subscriber.lost(copy, old));
        }
        let known = kept.map_or(&[][..], |kept| &kept.addresses);
        let new: Vec<_> = announced.addresses.iter().filter(|address| !known.contains(address)).copied().collect();
        self.subscribers.values().for_each(|subscriber| subscriber.found(copy, &announced, &new));
    }

    fn lost(&mut self, copy: CopyId) {
        if let Some(old) = self.copies.remove(&copy) {
            self.full = false;
            self.subscribers.values().for_each(|subscriber| subscriber.lost(copy, &old));
        }
    }
}

impl Subscriber {
    fn wants(&self, copy: CopyId, announced: &Announcement) -> bool {
        copy != self.own && announced.flock == *self.flock
    }

    fn found(&self, copy: CopyId, announced: &Announcement, addresses: &[SocketAddr]) {
        if self.wants(copy, announced) {
            for address in addresses {
                let Announcement { cage, node, .. } = announced.clone();
                let address = CopyAddress::Tcp(address.to_string());
                (self.listener)(DiscoveryEvent::Found(CopyHint {
                    cage,
                    copy,
                    node,
                    address,
                    found_by: FoundBy::Multicast,
                }));
            }
        }
    }

    fn lost(&self, copy: CopyId, announced: &Announcement) {
        if self.wants(copy, announced) {
            (self.listener)(DiscoveryEvent::Lost { cage: announced.cage.clone(), copy, found_by: FoundBy::Multicast });
        }
    }
}

fn copy_of(full_name: &str) -> Option<CopyId> {
    CopyId::parse(full_name.strip_suffix(SERVICE_TYPE)?.strip_suffix('.')?)
}

/// Reads a peer's announcement; none if it is not valid.
fn read(service: &ResolvedService, loopback: bool) -> Option<(CopyId, Announcement)> {
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
    Some((copy, Announcement { flock, cage, node, addresses }))
}

fn is_label(node: &str) -> bool {
    node.len() <= NODE_BYTES_MAX && !node.contains(char::is_control)
}

fn socket_address(ip: &ScopedIp, port: u16) -> SocketAddr {
    match ip {
        // A link-local address is only valid together with the interface on which it was received.
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

    fn announced(flock: &str, cage: &str, addresses: &[&str]) -> Announcement {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Announcement { flock: flock.into(), cage: cage.into(), node: "n".into(), addresses }
    }

    fn subscriber(flock: &str, own: u64) -> (Subscriber, mpsc::Receiver<DiscoveryEvent>) {
        let (tx, rx) = mpsc::channel(2_000);
        let listener: Listener = Arc::new(move |event| tx.try_send(event).unwrap());
        (Subscriber { flock: flock.into(), own: CopyId(own), listener }, rx)
    }

    fn found(cage: &str, copy: u64, address: &str) -> DiscoveryEvent {
        let (copy, address) = (CopyId(copy), CopyAddress::Tcp(address.into()));
        DiscoveryEvent::Found(CopyHint {
            cage: cage.into(),
            copy,
            node: "n".into(),
            address,
            found_by: FoundBy::Multicast,
        })
    }

    fn lost(cage: &str, copy: u64) -> DiscoveryEvent {
        DiscoveryEvent::Lost { cage: cage.into(), copy: CopyId(copy), found_by: FoundBy::Multicast }
    }

    #[track_caller]
    fn check(rx: &mut mpsc::Receiver<DiscoveryEvent>, expected: &[DiscoveryEvent]) {
        let events: Vec<_> = std::iter::from_fn(|| rx.try_recv().ok()).collect();
        assert_eq!(events, expected);
    }

    #[test]
    fn subscribers_get_events_of_their_flock_only_and_not_of_themselves() {
        let mut state = DaemonState::default();
        let (first, mut rx) = subscriber("default", 1);
        state.subscribers.insert(1, first);
        state.found(CopyId(1), announced("default", "a", &["10.0.0.1:1"]));
        state.found(CopyId(2), announced("other", "a", &["10.0.0.1:2"]));
        check(&mut rx, &[]);
        state.found(CopyId(3), announced("default", "b", &["10.0.0.3:3"]));
        state.found(CopyId(3), announced("default", "b", &["10.0.0.3:3"]));
        check(&mut rx, &[found("b", 3, "10.0.0.3:3")]);
        state.found(CopyId(3), announced("default", "b", &["10.0.0.3:3", "[fd00::3]:3"]));
        check(&mut rx, &[found("b", 3, "[fd00::3]:3")]);
        state.found(CopyId(3), announced("default", "b", &["10.0.0.4:3"]));
        check(&mut rx, &[lost("b", 3), found("b", 3, "10.0.0.4:3")]);
        state.found(CopyId(3), announced("default", "c", &["10.0.0.4:3"]));
        check(&mut rx, &[lost("b", 3), found("c", 3, "10.0.0.4:3")]);
        state.lost(CopyId(2));
        state.lost(CopyId(3));
        state.lost(CopyId(3));
        check(&mut rx, &[lost("c", 3)]);
    }

    #[test]
    fn a_user_may_go_while_it_is_told_something() {
        let settings = MulticastSettings { port: free_port(), loopback_only: true };
        let daemon = Daemon::start(settings).unwrap();
        let (tx, mut rx) = mpsc::channel(10);
        let place: Arc<Mutex<Option<Multicast>>> = Arc::default();
        let goes = place.clone();
        let listener: Listener = Arc::new(move |event| {
            drop(goes.lock().take());
            tx.try_send(event).unwrap();
        });
        let subscriber = daemon.join(Subscriber { flock: "default".into(), own: CopyId(1), listener });
        let joined =
            Multicast { local: local("a", 1, "n"), daemon: daemon.clone(), subscriber, announced: Mutex::default() };
        *place.lock() = Some(joined);
        for copy in [2, 3] {
            daemon.state().found(CopyId(copy), announced("default", "b", &["10.0.0.3:3"]));
        }
        check(&mut rx, &[found("b", 2, "10.0.0.3:3")]);
    }

    #[test]
    fn a_flood_of_copies_is_cut() {
        let mut state = DaemonState::default();
        let (only, mut rx) = subscriber("default", 1);
        state.subscribers.insert(1, only);
        for copy in 0..COPIES_MAX as u64 + 100 {
            state.found(CopyId(1_000 + copy), announced("default", "a", &["10.0.0.1:1"]));
        }
        assert_eq!(std::iter::from_fn(|| rx.try_recv().ok()).count(), COPIES_MAX);
        // Known copies are kept.
        state.found(CopyId(1_000), announced("default", "a", &["10.0.0.1:1", "10.0.0.2:1"]));
        check(&mut rx, &[found("a", 1_000, "10.0.0.2:1")]);
        state.lost(CopyId(1_001));
        state.found(CopyId(9_000), announced("default", "a", &["10.0.0.1:1"]));
        check(&mut rx, &[lost("a", 1_001), found("a", 9_000, "10.0.0.1:1")]);
    }

    /// A service as a peer might announce it.
    fn resolved(instance: &str, port: u16, txt: &[(&str, &str)], addresses: &str) -> ResolvedService {
        ServiceInfo::new(SERVICE_TYPE, instance, "host.local.", addresses, port, txt).unwrap().as_resolved_service()
    }

    #[test]
    fn invalid_announcements_are_ignored() {
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

    fn local(cage: &str, copy: u64, node: &str) -> LocalCopy {
        LocalCopy { flock: "default".into(), cage: cage.into(), copy: CopyId(copy), node: node.into() }
    }

    fn free_port() -> u16 {
        UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// A copy as in a process of its own.
    fn member(port: u16, copy: u64) -> (Multicast, mpsc::Receiver<DiscoveryEvent>) {
        let daemon = Daemon::start(MulticastSettings { port, loopback_only: true }).unwrap();
        let (subscriber, rx) = subscriber("default", copy);
        let subscriber = daemon.join(subscriber);
        (Multicast { local: local("a", copy, "n"), daemon, subscriber, announced: Mutex::new(None) }, rx)
    }

    #[tokio::test]
    async fn with_loopback_multicast_copies_find_each_other_and_say_goodbye() {
        let port = free_port();
        if let Err(error) = probe(port, Ipv4Addr::LOCALHOST) {
            panic!(
                "this test cannot run here: no multicast over the loopback interface: {}. `cargo test -- --skip \
                 with_loopback_multicast` leaves out such tests",
                wasmcage_core::telemetry::error_chain(&error)
            );
        }
        let timeout = Duration::from_secs(20);
        let (first, mut first_rx) = member(port, 1);
        first.announce("0.0.0.0:7001".parse().unwrap()).unwrap();
        let (second, mut second_rx) = member(port, 2);
        second.announce("127.0.0.1:7002".parse().unwrap()).unwrap();
        let first_event = tokio::time::timeout(timeout, first_rx.recv()).await;
        assert_eq!(first_event.unwrap().unwrap(), found("a", 2, "127.0.0.1:7002"));
        let second_event = tokio::time::timeout(timeout, second_rx.recv()).await;
        assert_eq!(second_event.unwrap().unwrap(), found("a", 1, "127.0.0.1:7001"));
        second.withdraw().await;
        assert_eq!(tokio::time::timeout(timeout, first_rx.recv()).await.unwrap().unwrap(), lost("a", 2));
        // Dropping it withdraws the announcement, too.
        drop(first);
        assert_eq!(tokio::time::timeout(timeout, second_rx.recv()).await.unwrap().unwrap(), lost("a", 1));
        // A copy that joins late gets those that are there, also from a daemon that knows them already.
        let (late, mut late_rx) = member(port, 3);
        second.announce("127.0.0.1:7004".parse().unwrap()).unwrap();
        assert_eq!(
            tokio::time::timeout(timeout, late_rx.recv()).await.unwrap().unwrap(),
            found("a", 2, "127.0.0.1:7004")
        );
        let (another, mut another_rx) = subscriber("default", 4);
        late.daemon.join(another);
        check(&mut another_rx, &[found("a", 2, "127.0.0.1:7004")]);
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
