//! Checks what all cages of a machine need: the clock, the runtime directory, and multicast.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wasmcage::host::runtime_directory;
use wasmcage_core::telemetry::{error_chain, utc};
use wasmcage_core::unix_socket;
use wasmcage_fabric::discovery::{Registry, multicast_interfaces, probe};

use super::{Findings, LanCage, Severity, flocks};

/// Unix times from 1 January 2026 to 1 January 2100: a clock outside of this range was never set.
const PLAUSIBLE_SECONDS: std::ops::Range<u64> = 1_767_225_600..4_102_444_800;
const DIRECTORY_HINT: &str =
    "cages started with another WASMCAGE_RUNTIME_DIR or XDG_RUNTIME_DIR, or by another user, are not seen from here";

pub(super) fn check(cages: &[LanCage], findings: &mut Findings) {
    clock(SystemTime::now(), findings);
    directory(&runtime_directory(), &flocks(cages), findings);
    multicast(cages, findings);
}

fn clock(now: SystemTime, findings: &mut Findings) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    if PLAUSIBLE_SECONDS.contains(&since.as_secs()) {
        findings.ok("clock", utc(now));
    } else {
        findings.fail(
            "clock",
            format!(
                "{} cannot be right: certificates will seem expired or not yet valid, and will be refused",
                utc(now)
            ),
            "set the clock, and synchronize it by NTP",
        );
    }
}

fn directory(directory: &Path, flocks: &BTreeSet<&str>, findings: &mut Findings) {
    let check = "runtime directory";
    let shown = directory.display();
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made_in = directory.ancestors().skip(1).find(|ancestor| ancestor.exists());
            let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
            match made_in.map(|parent| (parent, rustix::fs::access(parent, access))) {
                Some((_, Ok(()))) => findings.ok(check, format!("{shown} will be made by the first cage that starts")),
                Some((parent, Err(error))) => findings.fail(
                    check,
                    format!("{shown} cannot be made in {}: {error}", parent.display()),
                    "set WASMCAGE_RUNTIME_DIR to a directory of this user, for all of its cages",
                ),
                None => {
                    findings.fail(check, format!("{shown} has no directory to be made in"), "set WASMCAGE_RUNTIME_DIR")
                }
            }
            return;
        }
        Ok(_) | Err(_) => {}
    }
    if let Err(error) = Registry::check_directory(directory) {
        findings.fail(check, error_chain(&error), "until then no cage of this user can call one in another process");
        return;
    }
    findings.ok(check, format!("{shown} belongs to this user and to nobody else"));
    for flock in flocks {
        if directory.join(flock).symlink_metadata().is_ok() {
            flock_directory(directory, flock, findings);
        }
    }
}

/// Checks the directory of a flock, and lists the cages that run there.
fn flock_directory(directory: &Path, flock: &str, findings: &mut Findings) {
    let check = format!("flock {flock}");
    let registry = match Registry::open(directory, flock) {
        Ok(registry) => registry,
        Err(error) => return findings.fail(&check, error_chain(&error), "see above"),
    };
    let copies = match registry.scan() {
        Ok(copies) => copies,
        Err(error) => return findings.fail(&check, format!("its directory cannot be read: {error}"), "see above"),
    };
    let (mut alive, mut dead) = (BTreeSet::new(), 0);
    for copy in &copies {
        let path = registry.registration_path(&copy.cage, copy.copy);
        match unix_socket::is_listening(&path) {
            Ok(true) => _ = alive.insert(copy.cage.as_str()),
            Ok(false) => dead += 1,
            Err(error) => findings.fail(
                &check,
                format!("{} cannot be connected to: {error}", path.display()),
                "the files there must belong to this user",
            ),
        }
    }
    let cages: Vec<_> = alive.into_iter().collect();
    let answer =
        if cages.is_empty() { "no cage is running here".into() } else { format!("running here: {}", cages.join(", ")) };
    findings.add(Severity::Ok, &check, answer, Some(DIRECTORY_HINT.to_owned()));
    if dead > 0 {
        findings.warn(
            &check,
            format!("{dead} sockets of copies that were killed"),
            "nothing: the next cage of the flock that starts removes them",
        );
    }
}

fn multicast(cages: &[LanCage], findings: &mut Findings) {
    let asked: Vec<_> = cages.iter().filter(|cage| cage.lan.multicast).collect();
    if asked.is_empty() {
        if !cages.is_empty() {
            findings.ok("multicast", "not used: `multicast = false` in every cage.toml; peers must be configured");
        }
        return;
    }
    let settings: BTreeSet<_> =
        asked.iter().map(|cage| (cage.lan.multicast_port, cage.lan.multicast_loopback)).collect();
    // A cage without keys talks to no other machine.
    let needed = |setting: &(u16, bool)| {
        let same = |cage: &&&LanCage| (cage.lan.multicast_port, cage.lan.multicast_loopback) == *setting;
        asked.iter().filter(same).any(|cage| cage.lan.keys.exists() && cage.lan.peers.is_empty())
    };
    for setting in &settings {
        on_port(setting.0, setting.1, needed(setting), findings);
    }
}

fn on_port(port: u16, loopback: bool, needed: bool, findings: &mut Findings) {
    let interfaces = if loopback { Ok(vec![("lo".to_owned(), Ipv4Addr::LOCALHOST)]) } else { interfaces() };
    let interfaces = match interfaces {
        Ok(interfaces) => interfaces,
        Err(error) => {
            return findings.warn("multicast", format!("the interfaces cannot be listed: {error}"), "configure peers");
        }
    };
    let broken = if needed { Severity::Fail } else { Severity::Warn };
    if interfaces.is_empty() {
        let hint = "connect this machine to a network; cages on it find each other without";
        return findings.add(broken, "multicast", "no interface is up but loopback", Some(hint.to_owned()));
    }
    let tried: Vec<_> = interfaces.into_iter().map(|(name, address)| (name, address, probe(port, address))).collect();
    let some_work = tried.iter().any(|(.., result)| result.is_ok());
    for (name, address, result) in tried {
        let check = format!("multicast {name}");
        match result {
            Ok(()) => {
                let hint = format!(
                    "whether other machines receive it cannot be checked here: UDP port {port} must not be blocked between them; else \
                     write their addresses into `peers` of [interfaces.rpc]"
                );
                findings.add(
                    Severity::Ok,
                    &check,
                    format!("{address} hears its own query on UDP port {port}"),
                    Some(hint),
                );
            }
            Err(error) => {
                // Multicast does not work on some interfaces, such as those of containers or virtual machines.
                let severity = if some_work { Severity::Warn } else { broken };
                let hint = format!(
                    "let UDP port {port} to 224.0.0.251 through this machine's firewall (`iptables -S`, `nft list ruleset`), \
                     see that there is a route (`ip route get 224.0.0.251`), or write addresses into `peers` of \
                     [interfaces.rpc]"
                );
                findings.add(severity, &check, error_chain(&error), Some(hint));
            }
        }
    }
}

fn interfaces() -> io::Result<Vec<(String, Ipv4Addr)>> {
    Ok(multicast_interfaces()?.into_iter().map(|interface| (interface.name, interface.address)).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[track_caller]
    fn check(findings: &Findings, expected: &[(Severity, &str)]) {
        let found: Vec<_> = findings.list.iter().map(|finding| (finding.severity, finding.text.as_str())).collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((severity, text), (expected, part)) in found.iter().zip(expected) {
            assert!(severity == expected && text.contains(part), "{found:?}");
        }
    }

    #[test]
    fn a_clock_that_was_never_set_is_noticed() {
        let at = |seconds| {
            let mut findings = Findings::of(None);
            clock(UNIX_EPOCH + Duration::from_secs(seconds), &mut findings);
            findings
        };
        check(&at(0), &[(Severity::Fail, "1970")]);
        check(&at(1_800_000_000), &[(Severity::Ok, "2027")]);
        check(&at(7_000_000_000), &[(Severity::Fail, "2191")]);
    }

    #[tokio::test]
    async fn the_directory_is_checked_and_not_changed() {
        let root = tempfile::tempdir().unwrap();
        let runtime = root.path().join("run");
        let check_directory = || {
            let mut findings = Findings::of(None);
            directory(&runtime, &BTreeSet::from(["default"]), &mut findings);
            findings
        };
        check(&check_directory(), &[(Severity::Ok, "will be made")]);
        assert!(!runtime.exists());
        let registry = Registry::open(&runtime, "default").unwrap();
        check(&check_directory(), &[(Severity::Ok, "belongs"), (Severity::Ok, "no cage is running")]);
        let path = |copy| registry.registration_path("worker", wasmcage_fabric::fabric::CopyId(copy));
        let _alive = unix_socket::bind(&path(1)).unwrap();
        drop(unix_socket::bind(&path(2)).unwrap());
        check(
            &check_directory(),
            &[(Severity::Ok, "belongs"), (Severity::Ok, "running here: worker"), (Severity::Warn, "1 sockets")],
        );
        assert!(path(2).exists());
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
        check(&check_directory(), &[(Severity::Fail, "mode 755")]);
    }
}
