//! `wasmcage keys show`: lists the CAs and certificates in a root, and until when they are valid.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};
use wasmcage_core::telemetry::{error_chain, utc};
use wasmcage_fabric::keys::{
    Authority, CA_FILE, CERTIFICATE_FILE, CageKeys, CertificateInfo, Identity, KEYS_DIRECTORY, Validity,
    authority_directory, certificates_in,
};

use super::{CommandError, RootArg, cages_in, check_cage, config, flag, keys_directory, print};
use crate::supervisor::{FAILED, STOPPED};

/// Characters of a fingerprint in the table.
const FINGERPRINT_SHOWN: usize = 16;

const UNUSABLE: &str = "cannot be used";

/// Show CAs and certificates, and until when they are good
///
/// Exits with 1 when something has expired or cannot be used.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage keys show
  wasmcage keys show worker
  wasmcage keys show --json                for programs: \"usable\", \"not_after\", \"problems\"")]
pub(super) struct ShowArgs {
    /// A cage; without it, all of them and the CAs
    cage: Option<String>,
    /// For programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    root: RootArg,
}

/// A row of the table: a certificate, or the reason why there is none.
struct CertificateRow {
    /// The cage to which it belongs; none for a CA.
    cage: Option<String>,
    flock: String,
    certificate: Option<CertificateInfo>,
    /// Short text.
    state: String,
    problems: Vec<String>,
    /// Whether it can be used now, also if there are problems.
    usable: bool,
}

impl ShowArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        let (root, now) = (&self.root.root, SystemTime::now());
        let shown = match &self.cage {
            Some(cage) => {
                check_cage(root, cage)?;
                vec![cage_keys(root, cage, now).ok_or_else(|| {
                    CommandError::Refused(format!("cage {cage} has no keys: `wasmcage keys issue {cage}` makes them"))
                })?]
            }
            None => {
                let mut shown: Vec<_> = flocks(root).iter().flat_map(|flock| authorities(root, flock, now)).collect();
                shown.extend(cages_in(root).iter().filter_map(|cage| cage_keys(root, cage, now)));
                shown
            }
        };
        if self.json {
            let all: Vec<_> = shown.iter().map(CertificateRow::json).collect();
            print(format_args!("{:#}", json!({ "certificates": all })))?;
        } else if shown.is_empty() {
            print("no keys: `wasmcage keys init` makes a CA, `wasmcage keys issue CAGE` a cage's keys")?;
        } else {
            print(table(&shown).trim_end())?;
        }
        Ok(if shown.iter().all(|shown| shown.usable) { STOPPED } else { FAILED })
    }
}

/// Returns the flocks that have a CA in this root, sorted.
fn flocks(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join(format!(".{KEYS_DIRECTORY}"))).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = directories.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Returns the current CA, and older ones that are still trusted.
fn authorities(root: &Path, flock: &str, now: SystemTime) -> Vec<CertificateRow> {
    let directory = authority_directory(root, flock);
    let flock = flock.to_owned();
    let current = match Authority::open(&directory, &flock) {
        Ok(authority) => authority.info().fingerprint.clone(),
        Err(error) => {
            let (state, problems) = (UNUSABLE.to_owned(), vec![error_chain(&error)]);
            return vec![CertificateRow { cage: None, flock, certificate: None, state, problems, usable: false }];
        }
    };
    let certificates = certificates_in(&directory.join(CA_FILE)).ok().flatten().unwrap_or_default();
    let infos = certificates.iter().filter_map(CertificateInfo::read);
    let shown = infos.map(|info| {
        let (validity, signs) = (info.validity(now), info.fingerprint == current);
        let mut problems = Vec::new();
        if signs && validity != Validity::Good {
            problems.push(format!("the CA {validity}: wasmcage keys init{} --renew", flag(&flock)));
        }
        let state = if signs { validity.to_string() } else { format!("replaced, {validity}") };
        let usable = validity.is_valid() || !signs;
        CertificateRow { cage: None, flock: flock.clone(), certificate: Some(info), state, problems, usable }
    });
    shown.collect()
}

/// Returns the row of a cage; none when it has no keys.
fn cage_keys(root: &Path, cage: &str, now: SystemTime) -> Option<CertificateRow> {
    let directory = keys_directory(root, cage);
    let certificates = certificates_in(&directory.join(CERTIFICATE_FILE)).ok().flatten();
    let certificate = certificates.as_deref().and_then(<[_]>::first).and_then(CertificateInfo::read);
    let named = certificate.as_ref().and_then(|info| info.identity.as_ref().ok());
    let mut shown = CertificateRow {
        cage: Some(cage.to_owned()),
        flock: named.map_or_else(|| "-".to_owned(), |identity| identity.flock.clone()),
        state: certificate
            .as_ref()
            .map(|info| info.validity(now))
            .filter(|validity| !validity.is_valid())
            .map_or_else(|| UNUSABLE.to_owned(), |validity| validity.to_string()),
        certificate,
        problems: Vec::new(),
        usable: false,
    };
    let flock = match config(root, cage) {
        Ok(config) => config.flock,
        Err(error) => {
            shown.problems.push(error_chain(&error));
            return directory.is_dir().then_some(shown);
        }
    };
    match CageKeys::load(&directory, &Identity::new(flock, cage)) {
        Ok(None) => return None,
        Ok(Some(keys)) => {
            shown.usable = true;
            shown.state = keys.info().validity(now).to_string();
            shown.problems = keys.warnings(now);
        }
        Err(error) => shown.problems.push(error_chain(&error)),
    }
    Some(shown)
}

impl CertificateRow {
    fn json(&self) -> Value {
        let certificate = self.certificate.as_ref();
        json!({
            "kind": if self.cage.is_some() { "cage" } else { "ca" },
            "cage": self.cage,
            "flock": self.flock,
            "name": certificate.map(|info| &info.name),
            "issuer": certificate.map(|info| &info.issuer),
            "not_before": certificate.map(|info| utc(info.not_before)),
            "not_after": certificate.map(|info| utc(info.not_after)),
            "fingerprint": certificate.map(|info| &info.fingerprint),
            "usable": self.usable,
            "state": self.state,
            "problems": self.problems,
        })
    }

    fn row(&self) -> [String; 6] {
        let whose = self.cage.as_ref().map_or_else(|| "CA".to_owned(), |cage| format!("cage {cage}"));
        let [signer, end, fingerprint] = match &self.certificate {
            Some(info) => {
                let fingerprint = info.fingerprint.get(..FINGERPRINT_SHOWN).unwrap_or_default();
                [info.issuer.clone(), utc(info.not_after), fingerprint.to_owned()]
            }
            None => ["-", "-", "-"].map(str::to_owned),
        };
        [whose, self.flock.clone(), signer, end, fingerprint, self.state.clone()]
    }
}

fn table(shown: &[CertificateRow]) -> String {
    let mut rows = vec![["KEYS OF", "FLOCK", "SIGNED BY", "VALID UNTIL", "FINGERPRINT", "STATE"].map(str::to_owned)];
    rows.extend(shown.iter().map(CertificateRow::row));
    let widths: [usize; 6] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    for (shown, row) in shown.iter().zip(&rows[1..]) {
        for problem in &shown.problems {
            text += &format!("{} of flock {}: {problem}\n", row[0], row[1]);
        }
    }
    text
}
