//! Checks what an interface of protocol `reverse-rpc` needs: keys, a way to find each cage that it serves, and, when it
//! runs, a connection to each.

use std::path::Path;

use wasmcage_config::CageConfig;
use wasmcage_core::telemetry::error_chain;
use wasmcage_fabric::ReverseConfig;
use wasmcage_fabric::keys::{CageKeys, Identity};

use super::{Findings, cage};
use crate::supervisor::pid_lock::LockHolder;
use crate::{CommandError, holder};

/// An interface of protocol `reverse-rpc`.
pub(super) struct ReverseCage {
    cage: String,
    flock: String,
    interface: String,
    config: ReverseConfig,
}

impl ReverseCage {
    fn section(&self) -> String {
        format!("interfaces.{}", self.interface)
    }
}

/// Reads the enabled interfaces of protocol `reverse-rpc` of a cage.
pub(super) fn read(config: &CageConfig, findings: &mut Findings) -> Vec<ReverseCage> {
    let of_protocol = config.interfaces.values().filter(|of| of.protocol == "reverse-rpc" && of.enabled);
    let read = of_protocol.filter_map(|interface| match ReverseConfig::read(interface.section.clone()) {
        Ok(read) => Some(ReverseCage {
            cage: config.cage.clone(),
            flock: config.flock.clone(),
            interface: interface.name.clone(),
            config: read,
        }),
        Err(error) => {
            findings.fail(&format!("interfaces.{}", interface.name), error_chain(&error), "correct it in cage.toml");
            None
        }
    });
    read.collect()
}

pub(super) fn check(
    root: &Path,
    reverse: &ReverseCage,
    runtime: &tokio::runtime::Runtime,
    findings: &mut Findings,
) -> Result<(), CommandError> {
    let keys = keys(reverse, findings);
    addresses(reverse, findings);
    let (what, section) = (format!("{}: peer", reverse.interface), reverse.section());
    cage::peers(&what, &section, &reverse.config.lan, keys.as_ref(), runtime, findings);
    if let LockHolder::Pid(_) = holder(root, &reverse.cage)? {
        running(root, reverse, findings);
    }
    Ok(())
}

fn keys(reverse: &ReverseCage, findings: &mut Findings) -> Option<CageKeys> {
    let check = format!("{}: keys", reverse.interface);
    let directory = &reverse.config.lan.keys;
    match CageKeys::load(directory, &Identity::new(&*reverse.flock, &*reverse.cage)) {
        Ok(Some(keys)) => Some(keys),
        Ok(None) => {
            let hint = format!("`wasmcage keys init`, once for a flock, then `wasmcage keys issue {}`", reverse.cage);
            findings.fail(&check, format!("none in {}: other machines do not talk to it", directory.display()), hint);
            None
        }
        Err(error) => {
            let hint = format!("`wasmcage keys issue {} --renew`, with the CA of the other cages", reverse.cage);
            findings.fail(&check, error_chain(&error), hint);
            None
        }
    }
}

/// Checks that each cage to serve has an address or can be found by multicast.
fn addresses(reverse: &ReverseCage, findings: &mut Findings) {
    let lan = &reverse.config.lan;
    for cage in reverse.config.serve.iter().filter(|cage| !lan.peers.contains_key(*cage) && !lan.multicast) {
        findings.fail(
            &format!("{}: peer {cage}", reverse.interface),
            "it has no address, and is not looked for by multicast",
            format!("write its address into `peers` of [{}]", reverse.section()),
        );
    }
}

/// Checks the state of the running interface.
fn running(root: &Path, reverse: &ReverseCage, findings: &mut Findings) {
    let check = format!("{}: running", reverse.interface);
    let hint = format!("`wasmcage logs {}`", reverse.cage);
    match cage::interface(root, &reverse.cage, &reverse.interface) {
        // An error is reported for interface `rpc`; without the interface, it was added to cage.toml just now.
        Err(_) | Ok(None) => {}
        Ok(Some(interface)) => match (interface["error"].as_str(), interface["status"].as_str()) {
            (Some(error), _) | (None, Some(error)) => findings.fail(&check, error, hint),
            (None, None) => findings.ok(&check, format!("it serves {}", reverse.config.serve.join(", "))),
        },
    }
}
