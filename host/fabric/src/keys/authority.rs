//! The certificate authority (CA) of a flock: made once by `keys init`, it signs the certificates of cages. Its key is in
//! `<root>/.keys/<flock>/` and nowhere else; running cages do not need it.
//!
//! `ca.pem` is a bundle: the current CA first, then earlier ones as long as they are valid, so that certificates of both
//! are trusted until the last old one has been replaced.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;

use super::certificate::{CertificateInfo, DAY};
use super::error::KeysError;
use super::files::{self, CA_FILE, CA_KEY_FILE, CERTIFICATE_FILE, KEY_FILE, PRIVATE, PUBLIC};
use super::identity::{Identity, dns_name};
use wasmcage_config::{is_flock_name, is_name};
use wasmcage_core::telemetry::utc;

/// Name of the directory with a cage's keys; with a dot in front, of a root's directory with the CAs of its flocks.
pub const KEYS_DIRECTORY: &str = "keys";
/// Validity of a CA.
const CA_DAYS: u32 = 3650;
/// Default validity of a cage's certificate.
pub const CAGE_DAYS: u32 = 365;
/// A longer validity is refused.
pub const DAYS_MAX: u32 = CA_DAYS;

/// Certificates are valid from this long before they are made, for machines whose clocks are behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// A CA that can sign.
pub struct Authority {
    flock: String,
    issuer: Issuer<'static, KeyPair>,
    /// Content of the issuer's certificate.
    info: CertificateInfo,
    /// The issuer's certificate first.
    bundle: Vec<CertificateDer<'static>>,
}

/// The certificate, key and CA bundle for a cage.
pub struct IssuedCertificate {
    pub identity: Identity,
    pub not_after: SystemTime,
    certificate: String,
    key: String,
    authorities: String,
}

/// Returns the directory with the CA of a flock.
pub fn authority_directory(root: &Path, flock: &str) -> PathBuf {
    root.join(format!(".{KEYS_DIRECTORY}")).join(flock)
}

impl Authority {
    /// Makes a flock's first CA in its directory.
    ///
    /// # Errors
    /// There is a CA already, or the files cannot be written.
    pub fn create(directory: &Path, flock: &str) -> Result<Self, KeysError> {
        check_flock(flock)?;
        files::refuse_existing(directory, &[CA_FILE, CA_KEY_FILE])?;
        Self::replace(directory, flock, Vec::new())
    }

    /// Makes a new CA that replaces the one in the directory, whose certificate stays in the bundle.
    /// # Errors
    /// There is none, it cannot be read, or the files cannot be written.
    pub fn renew(directory: &Path, flock: &str) -> Result<Self, KeysError> {
        let old = Self::open(directory, flock)?;
        let now = SystemTime::now();
        let valid = |certificate: &CertificateDer<'_>| {
            CertificateInfo::read(certificate).is_some_and(|info| info.validity(now).is_valid())
        };
        Self::replace(directory, flock, old.bundle.into_iter().filter(valid).collect())
    }

    /// Reads the CA in the directory.
    /// # Errors
    /// There is none, its files cannot be read, or they do not belong together.
    pub fn open(directory: &Path, flock: &str) -> Result<Self, KeysError> {
        check_flock(flock)?;
        let [certificates, key] = [CA_FILE, CA_KEY_FILE].map(|name| directory.join(name));
        let no_authority = |file: &Path| KeysError::NoAuthority { flock: flock.to_owned(), file: file.to_owned() };
        let bundle = files::certificates_in(&certificates)?.ok_or_else(|| no_authority(&certificates))?;
        let text = files::read(&key)?.ok_or_else(|| no_authority(&key))?;
        let pair = KeyPair::from_pem(&String::from_utf8_lossy(&text))
            .map_err(|source| KeysError::AuthorityKey { file: key.clone(), source })?;
        // It need not be the first certificate: a renewal may have been interrupted between its two files.
        let public_key = pair.subject_public_key_info();
        let own = bundle.iter().position(|certificate| {
            CertificateInfo::read(certificate).is_some_and(|info| info.public_key == public_key)
        });
        let own = own.ok_or_else(|| KeysError::AuthorityMismatch { certificates: certificates.clone(), key })?;
        Self::new(flock, pair, own, bundle)
    }

    fn new(flock: &str, key: KeyPair, own: usize, mut bundle: Vec<CertificateDer<'static>>) -> Result<Self, KeysError> {
        let info = CertificateInfo::read(&bundle[own]).expect("the CA's own certificate has been read before");
        let issuer = Issuer::from_ca_cert_der(&bundle[own], key)
            .map_err(|source| KeysError::Make { subject: format!("flock {flock}"), source })?;
        bundle[..=own].rotate_right(1);
        Ok(Self { flock: flock.to_owned(), issuer, info, bundle })
    }

    fn replace(directory: &Path, flock: &str, old: Vec<CertificateDer<'static>>) -> Result<Self, KeysError> {
        let failed = |source| KeysError::Make { subject: format!("flock {flock}"), source };
        let key = KeyPair::generate().map_err(failed)?;
        let pem = key.serialize_pem();
        let now = SystemTime::now();
        let mut params = params(now - BACKDATED, now + DAY * CA_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // With a unique name, a certificate signed by another CA of that flock is reported as such, not as a bad
        // signature.
        let name = format!("wasmcage {flock} CA {:08x}", fastrand::u32(..));
        params.distinguished_name.push(DnType::CommonName, name);
        let mut bundle = vec![CertificateDer::from(params.self_signed(&key).map_err(failed)?)];
        bundle.extend(old);
        let authority = Self::new(flock, key, 0, bundle)?;
        files::private_directory(directory)?;
        // The bundle is written first: if this is interrupted, the old key still finds its certificate in it.
        authority.write_bundle(directory)?;
        files::write(&directory.join(CA_KEY_FILE), &pem, PRIVATE)?;
        Ok(authority)
    }

    /// Returns the content of the CA's certificate.
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// Returns the number of certificates in the bundle, including this CA's.
    pub fn trusted(&self) -> usize {
        self.bundle.len()
    }

    /// Writes `ca.pem` alone, for a cage that has its certificate already.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_bundle(&self, directory: &Path) -> Result<(), KeysError> {
        files::write(&directory.join(CA_FILE), &files::pem_of(&self.bundle), PUBLIC)
    }

    /// Makes a new key and certificate for a cage, valid for `days`, but no longer than the CA itself.
    ///
    /// # Errors
    /// The name cannot be a cage's, or the CA has expired.
    pub fn issue(&self, cage: &str, days: u32) -> Result<IssuedCertificate, KeysError> {
        if !is_name(cage) {
            let text = format!("{cage:?} cannot name a cage: a name is 1 to 64 letters, digits, `_` or `-`");
            return Err(KeysError::BadName { text });
        }
        let now = SystemTime::now();
        if now > self.info.not_after {
            return Err(KeysError::AuthorityEnded { flock: self.flock.clone(), on: utc(self.info.not_after) });
        }
        let not_after = (now + DAY * days.min(DAYS_MAX)).min(self.info.not_after);
        self.sign(Identity::new(&self.flock, cage), now - BACKDATED, not_after)
    }

    pub(super) fn sign(
        &self,
        identity: Identity,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<IssuedCertificate, KeysError> {
        let make = || {
            let mut params = params(not_before, not_after);
            params.distinguished_name.push(DnType::OrganizationName, &identity.flock);
            params.distinguished_name.push(DnType::CommonName, &identity.cage);
            let (dns, uri) = (dns_name(&identity.flock), identity.uri());
            params.subject_alt_names = vec![SanType::DnsName(dns.try_into()?), SanType::URI(uri.try_into()?)];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            // A cage is a client on connections that it makes, and a server on those that it accepts.
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
        };
        let made = make().map_err(|source| KeysError::Make { subject: identity.to_string(), source });
        let (certificate, key) = made?;
        Ok(IssuedCertificate { identity, not_after, certificate, key, authorities: files::pem_of(&self.bundle) })
    }
}

impl IssuedCertificate {
    /// Writes `cert.pem`, `key.pem` and `ca.pem`. The directory is made if it is missing.
    ///
    /// # Errors
    /// A certificate or a key exists and `replace` is false, or the files cannot be written.
    pub fn write(&self, directory: &Path, replace: bool) -> Result<(), KeysError> {
        if !replace {
            files::refuse_existing(directory, &[CERTIFICATE_FILE, KEY_FILE])?;
        }
        files::private_directory(directory)?;
        files::write(&directory.join(CA_FILE), &self.authorities, PUBLIC)?;
        files::write(&directory.join(KEY_FILE), &self.key, PRIVATE)?;
        files::write(&directory.join(CERTIFICATE_FILE), &self.certificate, PUBLIC)
    }
}

fn params(not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let seconds = |at: SystemTime| Duration::from_secs(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date_time_ymd(1970, 1, 1) + seconds(not_before);
    params.not_after = date_time_ymd(1970, 1, 1) + seconds(not_after);
    params
}

fn check_flock(flock: &str) -> Result<(), KeysError> {
    if is_flock_name(flock) {
        return Ok(());
    }
    let rule = "a name is 1 to 40 lower-case letters, digits or `-`, with a letter or digit at both ends";
    Err(KeysError::BadName { text: format!("{flock:?} cannot name a flock: {rule}") })
}
