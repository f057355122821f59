//! `wasmcage keys`: makes and shows the CA of a flock and the certificates of its cages. The work is done in
//! `wasmcage_fabric::keys`; this file prints the results and what to do next.

mod show;

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use wasmcage_config::{DEFAULT_FLOCK, is_flock_name};
use wasmcage_core::telemetry::utc;
use wasmcage_fabric::keys::{
    Authority, CA_FILE, CA_KEY_FILE, CAGE_DAYS, CERTIFICATE_FILE, DAYS_MAX, IssuedCertificate, KEY_FILE,
    KEYS_DIRECTORY, KeysError, authority_directory, certificates_in, peer_identity,
};

use super::{CommandError, RootArg, cages_in, check_cage, config, print};
use crate::supervisor::STOPPED;

/// Make and show the keys by which cages on different machines know each other
///
/// A flock has a certificate authority (CA), made once by `keys init`. It signs a certificate for each cage, made by
/// `keys issue`. A cage reads both from the directory keys in its own directory: cert.pem, key.pem and ca.pem. Cages on
/// one machine need no keys.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage keys init                       the CA, once, on a machine you trust
  wasmcage keys issue worker               keys of a cage in this root
  wasmcage keys issue worker --out worker  keys of a cage on another machine: copy them there
  wasmcage keys show                       what there is, and until when it is good

To renew a cage's certificate: wasmcage keys issue CAGE --renew. A running cage takes the new files by itself.
To renew the CA: wasmcage keys init --renew. It says what to do next; old and new certificates are trusted meanwhile.")]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    action: KeysAction,
}

#[derive(Debug, Subcommand)]
enum KeysAction {
    Init(InitArgs),
    Issue(IssueArgs),
    Show(show::ShowArgs),
}

/// Make the CA of a flock
///
/// Its key stays in ROOT/.keys/FLOCK. Whoever has it can make any cage of the flock.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage keys init
  wasmcage keys init --flock plant-2
  wasmcage keys init --renew               a new CA; certificates of the old one are still trusted")]
struct InitArgs {
    /// Cages of one flock see each other
    #[arg(long, value_name = "NAME", default_value = DEFAULT_FLOCK, value_parser = flock_name)]
    flock: String,
    /// Replace the CA by a new one, and go on trusting the old one
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    root: RootArg,
}

/// Make a cage's certificate and key, signed by the CA of its flock
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wasmcage keys issue worker               into cages/worker/keys
  wasmcage keys issue worker --renew       a new certificate and key in place of the old ones
  wasmcage keys issue worker --out worker  for a cage on another machine; it need not exist here")]
struct IssueArgs {
    /// Name of the cage
    cage: String,
    /// The cage's flock [default: what its cage.toml says]
    #[arg(long, value_name = "NAME", value_parser = flock_name)]
    flock: Option<String>,
    /// Validity of the certificate in days
    #[arg(long, default_value_t = CAGE_DAYS, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
    /// Directory for the files [default: keys in the cage's directory]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace a certificate and key that are there
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    root: RootArg,
}

impl KeysArgs {
    pub(super) fn execute(self) -> Result<u8, CommandError> {
        match self.action {
            KeysAction::Init(args) => args.execute(),
            KeysAction::Issue(args) => args.execute(),
            KeysAction::Show(args) => args.execute(),
        }
    }
}

impl InitArgs {
    fn execute(self) -> Result<u8, CommandError> {
        let (root, flock) = (&self.root.root, self.flock.as_str());
        let directory = authority_directory(root, flock);
        if self.renew {
            let authority = Authority::renew(&directory, flock).map_err(|error| failed(error, flock))?;
            let updated = update_bundles(root, &authority, flock)?;
            print(renewed(root, &authority, flock, &updated))?;
            return Ok(STOPPED);
        }
        // The directory of the cages may be readable by others; only the keys are private.
        fs::create_dir_all(root)
            .map_err(|error| CommandError::failed(format!("cannot make {}", root.display()), error))?;
        let authority = Authority::create(&directory, flock).map_err(|error| failed(error, flock))?;
        print(format_args!(
            "made the CA of flock {flock}, valid until {}\n  {}      what cages trust\n  {}  signs their certificates: \
             keep it secret, and a copy of it in a safe place\nnext: wasmcage keys issue CAGE{}, for each cage",
            utc(authority.info().not_after),
            directory.join(CA_FILE).display(),
            directory.join(CA_KEY_FILE).display(),
            flag(flock),
        ))?;
        Ok(STOPPED)
    }
}

impl IssueArgs {
    fn execute(self) -> Result<u8, CommandError> {
        let flock = self.flock()?;
        let directory = self.out.clone().unwrap_or_else(|| keys_directory(&self.root.root, &self.cage));
        let authority = Authority::open(&authority_directory(&self.root.root, &flock), &flock);
        let authority = authority.map_err(|error| failed(error, &flock))?;
        let issued = authority.issue(&self.cage, self.days).map_err(|error| failed(error, &flock))?;
        issued.write(&directory, self.renew).map_err(|error| failed(error, &flock))?;
        print(self.issued_text(&issued, &directory))?;
        Ok(STOPPED)
    }

    /// Returns the flock of the certificate. A cage in this root has its flock in `cage.toml`, and would refuse others.
    fn flock(&self) -> Result<String, CommandError> {
        let root = &self.root.root;
        if self.out.is_none() {
            check_cage(root, &self.cage)?;
        }
        if !root.join(&self.cage).is_dir() {
            return Ok(self.flock.clone().unwrap_or_else(|| DEFAULT_FLOCK.to_owned()));
        }
        match (&self.flock, &self.out) {
            // With `--out`, the keys may be for another cage of that name.
            (Some(flock), Some(_)) => Ok(flock.clone()),
            (Some(flock), None) => {
                let own = config(root, &self.cage)?.flock;
                if *flock == own {
                    return Ok(own);
                }
                Err(CommandError::Usage(format!(
                    "cage {} is of flock {own}, not {flock}: write flock = {flock:?} into its cage.toml first",
                    self.cage
                )))
            }
            (None, _) => Ok(config(root, &self.cage)?.flock),
        }
    }

    /// Describes the keys that were made, and what to do next.
    fn issued_text(&self, issued: &IssuedCertificate, directory: &Path) -> String {
        let (cage, shown) = (&self.cage, directory.display());
        let mut text = format!(
            "made the keys of {}, valid until {}\n  {shown}: {CERTIFICATE_FILE}, {KEY_FILE} (secret), {CA_FILE}\n",
            issued.identity,
            utc(issued.not_after),
        );
        text += &match (&self.out, self.renew) {
            (Some(_), _) => format!(
                "next: copy the three files to cages/{cage}/{KEYS_DIRECTORY}/ on the cage's machine, unseen by others, and \
                 delete {shown}"
            ),
            (None, true) => "next: nothing; a running cage takes them within seconds".to_owned(),
            (None, false) => format!(
                "next: let other machines connect, in cage.toml of cage {cage}:\n\n[interfaces.rpc]\nlisten = \
                 \"0.0.0.0:7420\""
            ),
        };
        text
    }
}

/// Writes the bundle with the new CA to the cages of this root that have keys of the flock. Returns their directories.
fn update_bundles(root: &Path, authority: &Authority, flock: &str) -> Result<Vec<PathBuf>, CommandError> {
    let directories = cages_in(root).into_iter().map(|cage| keys_directory(root, &cage));
    let has_keys = |directory: &PathBuf| {
        let certificates = certificates_in(&directory.join(CERTIFICATE_FILE)).ok().flatten();
        peer_identity(certificates.as_deref()).is_ok_and(|identity| identity.flock == flock)
    };
    let updated: Vec<_> = directories.filter(has_keys).collect();
    for directory in &updated {
        authority.write_bundle(directory).map_err(|error| failed(error, flock))?;
    }
    Ok(updated)
}

fn renewed(root: &Path, authority: &Authority, flock: &str, updated: &[PathBuf]) -> String {
    let bundle = authority_directory(root, flock).join(CA_FILE);
    let mut text = format!(
        "made a new CA of flock {flock}, valid until {}; {} in {} are trusted\n",
        utc(authority.info().not_after),
        match authority.trusted() {
            1 => "1 CA".to_owned(),
            several => format!("{several} CAs"),
        },
        bundle.display(),
    );
    for directory in updated {
        text += &format!("  updated {}\n", directory.join(CA_FILE).display());
    }
    text += &format!(
        "next:\n  1. copy {} over {KEYS_DIRECTORY}/{CA_FILE} of every cage on other machines, before anything else\n  2. \
         wasmcage keys issue CAGE{} --renew, for each cage; on other machines with --out and copied there\n  3. when `wasmcage \
         keys show` names no certificate of the old CA any more, cut all but the first\n     certificate from each {CA_FILE}",
        bundle.display(),
        flag(flock),
    );
    text
}

fn keys_directory(root: &Path, cage: &str) -> PathBuf {
    root.join(cage).join(KEYS_DIRECTORY)
}

/// Returns the option that names the flock on a command line.
fn flag(flock: &str) -> String {
    if flock == DEFAULT_FLOCK { String::new() } else { format!(" --flock {flock}") }
}

pub(super) fn flock_name(text: &str) -> Result<String, String> {
    if is_flock_name(text) {
        return Ok(text.to_owned());
    }
    Err("a flock's name is 1 to 40 lower-case letters, digits or `-`, with a letter or digit at both ends".to_owned())
}

/// Converts an error, and adds what to do about it where that is known.
fn failed(error: KeysError, flock: &str) -> CommandError {
    let flag = flag(flock);
    match &error {
        KeysError::NoAuthority { .. } => CommandError::Usage(format!(
            "{error}: `wasmcage keys init{flag}` makes one; if there is one on another machine, use that"
        )),
        KeysError::Exists { file } if file.ends_with(CA_FILE) || file.ends_with(CA_KEY_FILE) => CommandError::Usage(
            format!("{error}: `wasmcage keys init{flag} --renew` makes a new CA and goes on trusting the old one"),
        ),
        KeysError::Exists { .. } => CommandError::Usage(format!("{error}: --renew replaces it")),
        KeysError::BadName { .. } => CommandError::Usage(error.to_string()),
        _ => CommandError::failed(format!("the keys of flock {flock} cannot be made"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TestRoot(tempfile::TempDir);

    impl TestRoot {
        fn arg(&self) -> RootArg {
            RootArg { root: self.0.path().to_owned() }
        }

        fn init(&self, flock: &str, renew: bool) -> Result<u8, CommandError> {
            InitArgs { flock: flock.into(), renew, root: self.arg() }.execute()
        }

        fn issue(&self, cage: &str, flock: Option<&str>, out: Option<&str>, renew: bool) -> Result<u8, CommandError> {
            let out = out.map(|out| self.0.path().join(out));
            let flock = flock.map(str::to_owned);
            IssueArgs { cage: cage.into(), flock, days: 10, out, renew, root: self.arg() }.execute()
        }
    }

    #[track_caller]
    fn refused(result: Result<u8, CommandError>, part: &str) {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.exit_code(), crate::supervisor::MISCONFIGURED, "{error}");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let root = TestRoot(tempfile::tempdir().unwrap());
        fs::create_dir(root.0.path().join("worker")).unwrap();
        refused(root.issue("worker", None, None, false), "`wasmcage keys init` makes one");
        refused(root.issue("worker", Some("plant"), None, false), "write flock = \"plant\" into its cage.toml first");
        refused(root.init("default", true), "`wasmcage keys init` makes one");
        root.init("default", false).unwrap();
        refused(root.init("default", false), "--renew");
        root.issue("worker", None, None, false).unwrap();
        refused(root.issue("worker", None, None, false), "cert.pem is there already: --renew replaces it");
        root.issue("worker", Some("default"), None, true).unwrap();
        refused(root.issue("elsewhere", None, None, false), "there is no cage elsewhere");
        root.issue("elsewhere", None, Some("out"), false).unwrap();
        refused(root.issue("../x", None, Some("out2"), false), "cannot name a cage");
        fs::write(root.0.path().join("worker/cage.toml"), "flock = \"plant\"\n").unwrap();
        refused(root.issue("worker", None, None, true), "`wasmcage keys init --flock plant` makes one");
        root.init("plant", false).unwrap();
        root.issue("worker", None, None, true).unwrap();
        let certificates = certificates_in(&root.0.path().join("worker/keys/cert.pem")).unwrap();
        assert_eq!(peer_identity(certificates.as_deref()).unwrap().flock, "plant");
    }
}
