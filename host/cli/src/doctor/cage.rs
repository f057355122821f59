//! Checks what one cage needs to be found and called: its keys, its port, its peers, and, when it runs, that cages on
//! this machine find it.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::path::Path;
use std::time::SystemTime;

use serde_json::Value;
use wasmcage::host::runtime_directory;
use wasmcage_core::telemetry::{error_chain, utc};
use wasmcage_core::unix_socket;
use wasmcage_fabric::LanConfig;
use wasmcage_fabric::discovery::Registry;
use wasmcage_fabric::keys::{CA_FILE, CageKeys, CertificateInfo, Identity, certificates_in};

use super::{Findings, LanCage, Severity, peer};
use crate::supervisor::pid_lock::LockHolder;
use crate::{CommandError, control, directories, holder};

/// The state of a running cage's interface `rpc`.
struct RpcStatus {
    addresses: Vec<String>,
    error: Option<String>,
}

pub(super) fn check(
    root: &Path,
    cage: &LanCage,
    runtime: &tokio::runtime::Runtime,
    findings: &mut Findings,
) -> Result<(), CommandError> {
    let running = match holder(root, &cage.config.cage)? {
        LockHolder::None => None,
        LockHolder::Pid(_) => running(root, cage, findings),
    };
    let keys = keys(cage, findings);
    listen(cage, running.as_ref(), findings);
    peers("peer", "interfaces.rpc", &cage.lan, keys.as_ref(), runtime, findings);
    Ok(())
}

/// Asks the running cage for its interface `rpc`; none when it does not answer, which is added to the findings.
fn running(root: &Path, cage: &LanCage, findings: &mut Findings) -> Option<RpcStatus> {
    let name = &cage.config.cage;
    let check = "running";
    let rpc = match interface(root, name, "rpc") {
        Ok(found) => found?,
        Err(error) => {
            findings.fail(check, format!("it runs, but does not answer: {error}"), format!("`wasmcage logs {name}`"));
            return None;
        }
    };
    let addresses = rpc["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let running = RpcStatus { addresses: addresses.collect(), error: rpc["error"].as_str().map(str::to_owned) };
    match &running.error {
        Some(error) => findings.fail(check, format!("it cannot be called: {error}"), format!("`wasmcage logs {name}`")),
        None => registered(cage, findings),
    }
    Some(running)
}

/// Asks a running cage for the state of one of its interfaces.
///
/// # Errors
/// The cage does not answer.
pub(super) fn interface(root: &Path, cage: &str, name: &str) -> Result<Option<Value>, String> {
    let process =
        control::ask(&directories(root).run(cage), cage, "ps", Value::Null).map_err(|error| error_chain(&error))?;
    let cages = process["cages"].as_array().into_iter().flatten();
    let own = cages.filter(|known| known["cage"] == *cage).flat_map(|cage| cage["interfaces"].as_array()).flatten();
    Ok(own.into_iter().find(|interface| interface["interface"] == *name).cloned())
}

/// Checks that other cages on this machine find the cage.
fn registered(cage: &LanCage, findings: &mut Findings) {
    let (name, directory) = (&cage.config.cage, runtime_directory());
    let is_there = |registry: Registry| {
        let copies = registry.scan().unwrap_or_default().into_iter().filter(|copy| copy.cage == *name);
        let mut paths = copies.map(|copy| registry.registration_path(&copy.cage, copy.copy));
        paths.any(|path| matches!(unix_socket::is_listening(&path), Ok(true)))
    };
    // `Registry::open` would make a missing directory.
    let here = directory.join(&cage.config.flock).is_dir();
    if here && Registry::open(&directory, &cage.config.flock).is_ok_and(is_there) {
        findings.ok("running", "cages on this machine can call it");
    } else {
        findings.fail(
            "running",
            format!("it runs, but is not to be found in {}", directory.display()),
            "WASMCAGE_RUNTIME_DIR and XDG_RUNTIME_DIR must be the same for all cages of a machine, and for this command",
        );
    }
}

fn keys(cage: &LanCage, findings: &mut Findings) -> Option<CageKeys> {
    let (name, directory) = (&cage.config.cage, &cage.lan.keys);
    let check = "keys";
    let now = SystemTime::now();
    let keys = match CageKeys::load(directory, &Identity::new(&*cage.config.flock, &**name)) {
        Ok(Some(keys)) => keys,
        Ok(None) if cage.lan.listen.is_none() && cage.lan.peers.is_empty() => {
            findings.ok(check, "none: it calls, and is called by, cages of this machine only");
            return None;
        }
        Ok(None) => {
            let hint = format!("`wasmcage keys init`, once for a flock, then `wasmcage keys issue {name}`");
            findings.fail(check, format!("none in {}: other machines do not talk to it", directory.display()), hint);
            return None;
        }
        Err(error) => {
            let hint = format!("`wasmcage keys issue {name} --renew`, with the CA of the other cages");
            findings.fail(check, error_chain(&error), hint);
            return None;
        }
    };
    let info = keys.info();
    let validity = info.validity(now);
    if validity.is_valid() {
        let days = info.not_after.duration_since(now).unwrap_or_default().as_secs() / (24 * 3600);
        findings.ok(check, format!("of {}, good until {}, {days} days", keys.identity(), utc(info.not_after)));
        keys.warnings(now).into_iter().for_each(|warning| findings.add(Severity::Warn, check, warning, None));
    } else {
        let hint = format!("is this machine's clock right? else `wasmcage keys issue {name} --renew`");
        findings.fail(check, format!("of {}: {validity}", keys.identity()), hint);
    }
    authorities(cage, now, findings);
    Some(keys)
}

fn authorities(cage: &LanCage, now: SystemTime, findings: &mut Findings) {
    let file = cage.lan.keys.join(CA_FILE);
    // The file has been read before, so an error need not be reported.
    let certificates = certificates_in(&file).ok().flatten().unwrap_or_default();
    let infos: Vec<_> = certificates.iter().filter_map(CertificateInfo::read).collect();
    let none_good = !infos.iter().any(|info| info.validity(now).is_valid());
    for info in infos {
        let validity = info.validity(now);
        if validity != wasmcage_fabric::keys::Validity::Good {
            let severity = if none_good { Severity::Fail } else { Severity::Warn };
            let hint = "`wasmcage keys init --renew` makes a new CA, and says what to do with it";
            findings.add(
                severity,
                "CA",
                format!("{} in {}: {validity}", info.name, file.display()),
                Some(hint.to_owned()),
            );
        }
    }
}

fn listen(cage: &LanCage, running: Option<&RpcStatus>, findings: &mut Findings) {
    let check = "listen";
    let Some(listen) = &cage.lan.listen else {
        return findings.ok(check, "not set: cages of other machines cannot call it, those of this one can");
    };
    let address = match listen.to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(address)) => address,
        Ok(None) => return findings.fail(check, format!("{listen} has no address"), "write one, such as 0.0.0.0:7420"),
        Err(error) => {
            let hint = "write an address of this machine, or 0.0.0.0:7420 for all of them";
            return findings.fail(check, format!("{listen} has no address: {error}"), hint);
        }
    };
    let own_port = running.and_then(|running| listening_port(running, address));
    match (own_port, TcpListener::bind(address)) {
        (Some(port), _) => reachable(address, port, &format!("the running cage listens at {listen}"), findings),
        (None, Ok(_)) if running.is_some_and(|running| running.error.is_none()) => findings.warn(
            check,
            format!("{listen} is free, but the cage that runs does not listen there"),
            format!("`wasmcage logs {}` should say why", cage.config.cage),
        ),
        (None, Ok(_)) => reachable(address, address.port(), &format!("{listen} is free for it"), findings),
        (None, Err(error)) => {
            findings.fail(check, format!("{listen} cannot be had: {error}"), hint_of(&error, address))
        }
    }
}

/// Returns the port of the running cage if it listens at that address.
fn listening_port(running: &RpcStatus, address: SocketAddr) -> Option<u16> {
    let own = running.addresses.iter().filter_map(|own| own.strip_prefix("tls://")?.parse::<SocketAddr>().ok());
    let fits = |own: &SocketAddr| own.ip() == address.ip() && (own.port() == address.port() || address.port() == 0);
    own.into_iter().find(fits).map(|own| own.port())
}

fn reachable(address: SocketAddr, port: u16, text: &str, findings: &mut Findings) {
    if address.ip().is_loopback() {
        return findings.warn(
            "listen",
            format!("{text}, where other machines cannot reach it"),
            "0.0.0.0 in its place lets them; cages of this machine need no `listen`",
        );
    }
    let host = if address.ip().is_unspecified() { "ADDRESS".to_owned() } else { address.ip().to_string() };
    let hint = match port {
        0 => "port 0 is another one at each start: for peers and firewalls, give it a number".to_owned(),
        port => format!(
            "a firewall cannot be seen from here: on the other machine, `nc -vz {host} {port}` must succeed while the cage \
             runs; if it does not, let TCP port {port} through here"
        ),
    };
    findings.add(Severity::Ok, "listen", text, Some(hint));
}

fn hint_of(error: &std::io::Error, address: SocketAddr) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!(
                "`ss -ltnp sport = :{}` names the program that has it; choose another port or stop it",
                address.port()
            )
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address: `ip address`".to_owned()
        }
        std::io::ErrorKind::PermissionDenied => "ports below 1024 are for root: choose another".to_owned(),
        _ => "choose another address".to_owned(),
    }
}

/// Connects to every configured peer. `section` is the section of `cage.toml` that names them.
pub(super) fn peers(
    what: &str,
    section: &str,
    lan: &LanConfig,
    keys: Option<&CageKeys>,
    runtime: &tokio::runtime::Runtime,
    findings: &mut Findings,
) {
    for (name, addresses) in &lan.peers {
        let reached = runtime.block_on(futures_util::future::join_all(
            addresses.iter().map(|address| peer::reach(address, name, keys, section)),
        ));
        // If another copy is reached, one that is not is only a warning.
        let severity = if reached.iter().any(Result::is_ok) { Severity::Warn } else { Severity::Fail };
        for (address, reached) in addresses.iter().zip(reached) {
            let check = format!("{what} {name}");
            match reached {
                Ok(()) if keys.is_some() => findings.ok(&check, format!("{address} is cage {name}")),
                Ok(()) => findings
                    .ok(&check, format!("{address} accepts connections; without keys its identity cannot be checked")),
                Err(problem) => findings.add(severity, &check, problem.text, Some(problem.hint)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_running_cage_is_recognized() {
        let running =
            RpcStatus { addresses: vec!["unix:/run/a.sock".into(), "tls://0.0.0.0:7420".into()], error: None };
        let check = |address: &str, expected: Option<u16>| {
            assert_eq!(listening_port(&running, address.parse().unwrap()), expected)
        };
        check("0.0.0.0:7420", Some(7420));
        check("0.0.0.0:0", Some(7420));
        check("0.0.0.0:7421", None);
        check("127.0.0.1:7420", None);
    }
}
