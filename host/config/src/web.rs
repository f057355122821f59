//! Settings of outgoing HTTP: the proxy, and the trusted certificate authorities. `[modules.NAME.http]` has them for a module's
//! own requests; resources read the same `proxy` and `no_proxy`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use http::Uri;
use http::uri::Scheme;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::grant::HostPattern;
use super::section::Section;

/// Largest file of `ca`.
const AUTHORITIES_BYTES_MAX: u64 = 1 << 20;

/// How a module's own requests are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutgoingHttp {
    /// Authorities that are trusted besides the public ones.
    pub authorities: Option<Authorities>,
    pub proxy: Option<Proxy>,
}

/// Certificate authorities, with the content of their file, so that a changed file is a changed setting.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorities {
    pub file: PathBuf,
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// A server that requests are sent through.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// The host as in a URL.
    pub host: String,
    pub port: u16,
    /// `user:password`, if it requires them.
    pub user: Option<String>,
    /// Servers that requests are sent to directly.
    pub except: Vec<HostPattern>,
}

impl OutgoingHttp {
    pub(super) fn read(section: Section) -> Self {
        let http = Self {
            authorities: section.path("ca").and_then(|file| {
                let read = Authorities::read(file);
                read.map_err(|text| section.problem("ca", text)).ok()
            }),
            proxy: Proxy::read(&section),
        };
        // Mistakes that `finish` finds are reported with those of the whole configuration.
        let _ = section.finish();
        http
    }
}

impl Authorities {
    fn read(file: PathBuf) -> Result<Self, String> {
        let shown = file.display();
        let metadata = std::fs::metadata(&file).map_err(|error| format!("{shown}: {error}"))?;
        if !metadata.is_file() || metadata.len() > AUTHORITIES_BYTES_MAX {
            return Err(format!("{shown} is no file of at most {AUTHORITIES_BYTES_MAX} bytes"));
        }
        let pem = std::fs::read(&file).map_err(|error| format!("{shown}: {error}"))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let certificates = certificates.map_err(|error| format!("{shown} is no PEM file: {error}"))?;
        if certificates.is_empty() {
            return Err(format!("{shown} has no certificate in PEM form"));
        }
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            let added = roots.add(certificate.clone());
            added.map_err(|error| format!("a certificate in {shown} cannot be used: {error}"))?;
        }
        Ok(Self { certificates: certificates.into(), file })
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authorities").field(&self.file).finish()
    }
}

impl Proxy {
    /// Reads `proxy` and `no_proxy` of a section; none if `proxy` is not set or empty.
    pub fn read(section: &Section) -> Option<Self> {
        const HOST: &str = "a host such as \"db.internal:443\", \"*.internal\", \"10.0.0.1\" or \"*\"";
        let except = section.parsed_list("no_proxy", Vec::new(), HOST);
        // An unset variable makes it empty: `proxy = "${HTTPS_PROXY:-}"`.
        if section.has("proxy") && section.string("proxy", "").is_empty() {
            return None;
        }
        let proxy = section.optional_parsed::<Self>("proxy", "a URL such as \"http://user:password@proxy:3128\"")?;
        Some(Self { except, ..proxy })
    }
}

/// Does not show the password.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("except", &self.except)
            .finish_non_exhaustive()
    }
}

/// The text is no URL of a proxy.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidProxy;

impl FromStr for Proxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        let uri: Uri = text.parse().map_err(|_| InvalidProxy)?;
        let authority = uri.authority().ok_or(InvalidProxy)?;
        let plain = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let port = url_port(&uri).filter(|_| plain).ok_or(InvalidProxy)?;
        let user = authority.as_str().rsplit_once('@').map(|(user, _)| unescaped(user)).transpose()?;
        Ok(Self { host: authority.host().to_owned(), port, user, except: Vec::new() })
    }
}

/// Returns the port of a URL, or the default one of its scheme; none if the URL has an invalid port.
pub fn url_port(uri: &Uri) -> Option<u16> {
    let authority = uri.authority()?;
    let host_and_port = authority.as_str().rsplit('@').next()?;
    match host_and_port.strip_prefix(authority.host())? {
        "" => Some(if uri.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 }),
        port => port.strip_prefix(':')?.parse().ok().filter(|port| *port > 0),
    }
}

/// Decodes percent-encoding.
fn unescaped(text: &str) -> Result<String, InvalidProxy> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit)).ok_or(InvalidProxy)?;
        let digits = std::str::from_utf8(digits).map_err(|_| InvalidProxy)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| InvalidProxy)?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| InvalidProxy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_url() {
        let check = |text: &str, host: &str, port: u16, user: Option<&str>| {
            let proxy: Proxy = text.parse().unwrap();
            assert_eq!((proxy.host.as_str(), proxy.port, proxy.user.as_deref()), (host, port, user), "{text}");
        };
        check("http://proxy:3128", "proxy", 3128, None);
        check("http://proxy/", "proxy", 80, None);
        check("http://[::1]:3128", "[::1]", 3128, None);
        check("http://u:p%40s@proxy:1", "proxy", 1, Some("u:p@s"));
        for wrong in ["", "proxy:3128", "https://proxy", "socks5://proxy", "http://proxy:0", "http://proxy:65536"] {
            assert_eq!(wrong.parse::<Proxy>(), Err(InvalidProxy), "{wrong}");
        }
        assert_eq!("http://proxy/path".parse::<Proxy>(), Err(InvalidProxy));
        assert_eq!("http://u%4@proxy".parse::<Proxy>(), Err(InvalidProxy));
    }

    #[test]
    fn a_port_is_said_or_follows_from_the_scheme() {
        let check = |uri: &str, expected: Option<u16>| assert_eq!(url_port(&uri.parse().unwrap()), expected, "{uri}");
        check("http://a.example/", Some(80));
        check("https://a.example/x?y", Some(443));
        check("http://a.example:8080/", Some(8080));
        check("https://[::1]/", Some(443));
        check("https://[::1]:8443/", Some(8443));
        check("http://user:secret@a.example:81/", Some(81));
        check("http://user:81@a.example/", Some(80));
        for wrong in ["65536", "99999999999", "0", "x"] {
            if let Ok(uri) = format!("http://a.example:{wrong}/").parse() {
                assert_eq!(url_port(&uri), None, "{wrong}");
            }
        }
        check("/path", None);
    }

    #[test]
    fn nothing_shows_the_password() {
        let proxy: Proxy = "http://user:secret@proxy:3128".parse().unwrap();
        assert!(!format!("{proxy:?}").contains("secret"));
    }
}
