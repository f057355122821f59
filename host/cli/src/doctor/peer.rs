//! Whether a configured peer can be reached, and is who it should be.

use std::io;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wasmcage_core::telemetry::error_chain;
use wasmcage_fabric::discovery::PeerAddress;
use wasmcage_fabric::keys::{CageKeys, handshake_reason};

/// For each step.
const PATIENCE: Duration = Duration::from_secs(1);

/// What keeps a peer from being called, and what to do.
#[derive(Debug)]
pub(super) struct Trouble {
    pub text: String,
    pub hint: String,
}

fn trouble<T>(text: String, hint: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble { text, hint: hint.into() })
}

/// Connects; with keys, finds out who is there. The address is in `section` of `cage.toml`.
pub(super) async fn reach(
    address: &PeerAddress,
    cage: &str,
    keys: Option<&CageKeys>,
    section: &str,
) -> Result<(), Trouble> {
    let stream = connect(address).await?;
    let Some(keys) = keys else { return Ok(()) };
    let peer = format!("cage {cage} at {address}");
    let hint = format!(
        "both cages need keys of one CA: `wasmcage keys show {cage}` and `wasmcage doctor` on that machine tell more"
    );
    let connector = TlsConnector::from(keys.client());
    let stream = match timeout(PATIENCE, connector.connect(keys.server_name(), stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return trouble(handshake_reason(&error, &peer), hint),
        Err(_) => {
            return trouble(
                format!("{address} takes connections, but says nothing"),
                "is it a cage that listens there?",
            );
        }
    };
    match keys.verify_peer(stream.get_ref().1.peer_certificates(), Some(cage)) {
        Ok(_) => Ok(()),
        Err(error) => {
            let hint = format!("correct `peers` of [{section}], or its keys");
            trouble(format!("{address}: {}", error_chain(&error)), hint)
        }
    }
}

async fn connect(address: &PeerAddress) -> Result<TcpStream, Trouble> {
    let found = match timeout(PATIENCE, lookup_host(address.as_str())).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(error)) => {
            return trouble(format!("{address} has no address: {error}"), "see to the name, or write the address");
        }
        Err(_) => {
            return trouble(format!("{address}: no name server answered within 1 s"), "write the address in its place");
        }
    };
    match timeout(PATIENCE, TcpStream::connect(&*found)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => trouble(
            format!("{address} refuses connections"),
            "does that cage run, with `listen` set to that port and not to 127.0.0.1?",
        ),
        Ok(Err(error)) => {
            trouble(format!("{address} cannot be reached: {error}"), "see to the network between the machines")
        }
        Err(_) => trouble(
            format!("{address} does not answer within 1 s"),
            "a firewall in between drops what it does not let through, or that machine is off",
        ),
    }
}
