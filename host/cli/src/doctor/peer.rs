//! Checks that a configured peer can be reached, and that it is the cage that it should be.

use std::io;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wasmcage_core::telemetry::error_chain;
use wasmcage_fabric::discovery::PeerAddress;
use wasmcage_fabric::keys::{CageKeys, handshake_reason};

/// Timeout of each step: name lookup, connection, handshake.
const STEP_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a peer cannot be called, and what to do.
#[derive(Debug)]
pub(super) struct PeerProblem {
    pub text: String,
    pub hint: String,
}

fn problem<T>(text: String, hint: impl Into<String>) -> Result<T, PeerProblem> {
    Err(PeerProblem { text, hint: hint.into() })
}

/// Connects to a peer and, with keys, checks its identity. `section` is the section of `cage.toml` that has the address.
pub(super) async fn reach(
    address: &PeerAddress,
    cage: &str,
    keys: Option<&CageKeys>,
    section: &str,
) -> Result<(), PeerProblem> {
    let stream = connect(address).await?;
    let Some(keys) = keys else { return Ok(()) };
    let peer = format!("cage {cage} at {address}");
    let hint = format!(
        "both cages need keys of one CA: `wasmcage keys show {cage}` and `wasmcage doctor` on that machine tell more"
    );
    let connector = TlsConnector::from(keys.client());
    let stream = match timeout(STEP_TIMEOUT, connector.connect(keys.server_name(), stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return problem(handshake_reason(&error, &peer), hint),
        Err(_) => {
            return problem(
                format!("{address} accepts connections, but does not answer"),
                "is it a cage that listens there?",
            );
        }
    };
    match keys.verify_peer(stream.get_ref().1.peer_certificates(), Some(cage)) {
        Ok(_) => Ok(()),
        Err(error) => {
            let hint = format!("correct `peers` of [{section}], or its keys");
            problem(format!("{address}: {}", error_chain(&error)), hint)
        }
    }
}

async fn connect(address: &PeerAddress) -> Result<TcpStream, PeerProblem> {
    let found = match timeout(STEP_TIMEOUT, lookup_host(address.as_str())).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(error)) => {
            return problem(format!("{address} has no address: {error}"), "see to the name, or write the address");
        }
        Err(_) => {
            return problem(format!("{address}: no name server answered within 1 s"), "write the address in its place");
        }
    };
    match timeout(STEP_TIMEOUT, TcpStream::connect(&*found)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => problem(
            format!("{address} refuses connections"),
            "does that cage run, with `listen` set to that port and not to 127.0.0.1?",
        ),
        Ok(Err(error)) => {
            problem(format!("{address} cannot be reached: {error}"), "see to the network between the machines")
        }
        Err(_) => problem(
            format!("{address} does not answer within 1 s"),
            "a firewall in between drops what it does not let through, or that machine is off",
        ),
    }
}
