//! Key files: bounded reads, atomic writes, and PEM.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};

use super::error::KeysError;
use wasmcage_core::regular_file;

/// A cage's own certificate, PEM; intermediate CA certificates may follow.
pub const CERTIFICATE_FILE: &str = "cert.pem";
/// The key of the certificate, PEM.
pub const KEY_FILE: &str = "key.pem";
/// Certificates of the CAs that a cage trusts, PEM; the current one first.
pub const CA_FILE: &str = "ca.pem";
/// The key with which a CA signs, PEM.
pub const CA_KEY_FILE: &str = "ca-key.pem";

/// A longer file is refused.
const FILE_BYTES_MAX: u64 = 1 << 20;
const PEM_COLUMNS: usize = 64;

/// Mode of a file that only its owner reads.
pub(super) const PRIVATE: u32 = 0o600;
pub(super) const PUBLIC: u32 = 0o644;

/// Reads a file; none when it does not exist.
pub(super) fn read(file: &Path) -> Result<Option<Vec<u8>>, KeysError> {
    if regular_file::is_absent(file) {
        return Ok(None);
    }
    regular_file::read(file, FILE_BYTES_MAX).map(Some).map_err(KeysError::read(file))
}

/// Makes the directory and its parents with mode 0700. A directory that exists is not changed.
pub(super) fn private_directory(directory: &Path) -> Result<(), KeysError> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(KeysError::write(directory))
}

/// Replaces a file atomically: a reader sees the old content or the new one.
pub(super) fn write(file: &Path, text: &str, mode: u32) -> Result<(), KeysError> {
    let name = file.file_name().expect("files of keys have names").to_string_lossy();
    let temporary = file.with_file_name(format!(".{name}.{:016x}", fastrand::u64(..)));
    let write = || {
        let mut open = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        open.write_all(text.as_bytes())?;
        open.sync_all()?;
        fs::rename(&temporary, file)
    };
    write().map_err(|error| {
        // If this fails, the file does no harm: its random name is not used again.
        let _ = fs::remove_file(&temporary);
        KeysError::write(file)(error)
    })
}

/// Checks that none of the files exists.
///
/// # Errors
/// One of them exists.
pub(super) fn refuse_existing(directory: &Path, names: &[&str]) -> Result<(), KeysError> {
    match names.iter().map(|name| directory.join(name)).find(|file| file.symlink_metadata().is_ok()) {
        Some(file) => Err(KeysError::Exists { file }),
        None => Ok(()),
    }
}

/// Parses the certificates of a PEM file, at least one.
pub(super) fn certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, KeysError> {
    let unusable = |source| KeysError::Pem { file: file.to_owned(), source };
    let found: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(unusable)?;
    if found.is_empty() { Err(unusable(pem::Error::NoItemsFound)) } else { Ok(found) }
}

/// Reads the certificates of a PEM file, at least one; none when the file does not exist.
///
/// # Errors
/// The file cannot be read or has no certificate.
pub fn certificates_in(file: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, KeysError> {
    read(file)?.map(|text| certificates(file, &text)).transpose()
}

pub(super) fn pem_of<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    let mut text = String::new();
    for certificate in certificates {
        let base64 = STANDARD.encode(certificate);
        text += "-----BEGIN CERTIFICATE-----\n";
        for line in base64.as_bytes().chunks(PEM_COLUMNS) {
            text.extend(line.iter().copied().map(char::from));
            text.push('\n');
        }
        text += "-----END CERTIFICATE-----\n";
    }
    text
}
