//! Checks whether multicast DNS can work on this machine: sends a query over an interface and listens for it. Used by
//! `wasmcage doctor`, and by tests to decide whether they can run. Whether the network forwards multicast to other
//! machines cannot be checked from one machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const TIMEOUT: Duration = Duration::from_millis(500);
/// Size of the buffer for a datagram. A longer one is not our query.
const BYTES_MAX: usize = 512;

/// An interface that is up and has an IPv4 address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MulticastInterface {
    pub name: String,
    pub address: Ipv4Addr,
}

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("UDP port {port} cannot be shared: another program holds it for itself")]
    Port {
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("the group {GROUP} cannot be joined at {interface}")]
    Join {
        interface: Ipv4Addr,
        #[source]
        source: io::Error,
    },
    #[error("nothing can be sent to {GROUP} at {interface}")]
    Send {
        interface: Ipv4Addr,
        #[source]
        source: io::Error,
    },
    #[error("a query of this machine to {GROUP}:{port} at {interface} was not heard within {} ms", TIMEOUT.as_millis())]
    Silence { port: u16, interface: Ipv4Addr },
}

/// Returns the interfaces over which multicast DNS is tried; loopback is not among them.
///
/// # Errors
/// The operating system cannot list the interfaces.
pub fn multicast_interfaces() -> io::Result<Vec<MulticastInterface>> {
    let all = if_addrs::get_if_addrs()?;
    let usable = all.into_iter().filter(|interface| interface.is_oper_up() && !interface.is_loopback());
    let v4 = usable.filter_map(|interface| match interface.ip() {
        IpAddr::V4(address) => Some(MulticastInterface { name: interface.name, address }),
        IpAddr::V6(_) => None,
    });
    Ok(v4.collect())
}

/// Sends a query over the interface with that address, and receives it. Blocks for up to half a second.
///
/// # Errors
/// Which step did not work.
pub fn probe(port: u16, interface: Ipv4Addr) -> Result<(), ProbeError> {
    let socket = bind(port).map_err(|source| ProbeError::Port { port, source })?;
    socket.join_multicast_v4(&GROUP, &interface).map_err(|source| ProbeError::Join { interface, source })?;
    let failed = |source| ProbeError::Send { interface, source };
    socket.set_multicast_if_v4(&interface).map_err(failed)?;
    let nonce = format!("{:016x}", fastrand::u64(..));
    let query = query(&nonce);
    socket.send_to(&query, &SocketAddrV4::new(GROUP, port).into()).map_err(failed)?;
    let socket = std::net::UdpSocket::from(socket);
    let until = Instant::now() + TIMEOUT;
    let mut buffer = [0; BYTES_MAX];
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left)).map_err(failed)?;
        if let Ok((bytes, _)) = socket.recv_from(&mut buffer)
            && buffer[..bytes] == query
        {
            return Ok(());
        }
    }
    Err(ProbeError::Silence { port, interface })
}

/// Binds the port shared with other programs, as all that use multicast DNS do.
fn bind(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket)
}

/// Builds a question for a name that nobody has.
fn query(nonce: &str) -> Vec<u8> {
    // Id, flags, one question, nothing else.
    let mut query = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [nonce, "_wasmcage", "_tcp", "local"] {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    // The root, type TXT, class IN.
    query.extend_from_slice(&[0, 0, 16, 0, 1]);
    query
}
