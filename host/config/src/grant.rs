//! `allow = { .. }` of a module: what it may access outside itself. The linker, calls and outgoing HTTP check these grants, and
//! refuse whatever is not named here.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::section::Section;
use super::{NAME_RULE, is_name};

/// Everything a module may access besides the modules of its own cage; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Cages whose modules it may call; `*` is every cage of the flock.
    pub cages: Vec<String>,
    pub resources: Vec<String>,
    /// Hosts that its outgoing HTTP may reach. Any module may import outgoing HTTP, but without a host each use fails.
    pub http: Vec<HostPattern>,
    pub files: Vec<FileGrant>,
}

/// A directory of the machine that a module may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileGrant {
    /// Joined to the cage's directory unless absolute.
    pub host: PathBuf,
    /// The path in the guest.
    pub guest: String,
    pub writable: bool,
}

/// Hosts that outgoing HTTP may reach: `api.example.org:443`, `*.example.org`, `10.0.0.1:80`, `[::1]:80`, `*`. Without
/// a port, any port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    host: HostMatch,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostMatch {
    Any,
    /// Everything below this domain, but not the domain itself. In lower case.
    Beneath(String),
    /// In lower case.
    Name(String),
    Address(IpAddr),
}

/// Stands for all cages, in place of a name.
const EVERY: &str = "*";

impl Grants {
    /// Returns whether the module may call modules of this other cage.
    pub fn permits_cage(&self, cage: &str) -> bool {
        self.cages.iter().any(|allowed| allowed == cage || allowed == EVERY)
    }

    pub(super) fn read(section: Section) -> Self {
        const HOST: &str = "a host such as \"api.example.org:443\", \"*.example.org\", \"10.0.0.1:80\" or \"*\"";
        let grants = Self {
            cages: names(&section, "cages", Some(EVERY)),
            resources: names(&section, "resources", None),
            http: section.parsed_list("http", Vec::new(), HOST),
            files: section.tables("files").into_iter().filter_map(FileGrant::read).collect(),
        };
        // Mistakes that `finish` finds are reported with those of the whole configuration.
        let _ = section.finish();
        grants
    }
}

impl Grants {
    /// Returns the grants that both have.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let cages = self.cages.iter().filter(|cage| other.permits_cage(cage));
        let fewer = other.cages.iter().filter(|cage| self.permits_cage(cage) && !self.cages.contains(cage));
        let within = |pattern: &&HostPattern, all: &[HostPattern]| all.iter().any(|one| one.covers(pattern));
        let kept = self.http.iter().filter(|pattern| within(pattern, &other.http));
        let narrower = other.http.iter().filter(|pattern| within(pattern, &self.http) && !self.http.contains(pattern));
        let http = kept.chain(narrower).cloned().collect();
        let files = self.files.iter().filter_map(|own| {
            let same = |other: &&FileGrant| (&other.host, &other.guest) == (&own.host, &own.guest);
            let other = other.files.iter().find(same)?;
            Some(FileGrant { writable: own.writable && other.writable, ..own.clone() })
        });
        Self {
            cages: cages.chain(fewer).cloned().collect(),
            resources: self.resources.iter().filter(|name| other.resources.contains(name)).cloned().collect(),
            http,
            files: files.collect(),
        }
    }
}

/// Reads a list of names; `besides` is also allowed.
fn names(section: &Section, key: &str, besides: Option<&str>) -> Vec<String> {
    let names = section.strings(key, &[]);
    let also = besides.map(|besides| format!("; {besides:?} is every one")).unwrap_or_default();
    for name in names.iter().filter(|name| !is_name(name) && Some(name.as_str()) != besides) {
        section.problem(key, format!("{name:?}: {NAME_RULE}{also}"));
    }
    names
}

impl FileGrant {
    fn read(section: Section) -> Option<Self> {
        for key in ["host", "guest"].into_iter().filter(|key| !section.has(key)) {
            section.missing(key, "expected a path");
        }
        let host = section.path("host");
        let guest = section.optional_string("guest");
        if guest.as_deref().is_some_and(|guest| guest.is_empty() || guest.contains('\0')) {
            section.problem("guest", "expected a path such as \"/data\"");
        }
        let writable = section.choice("mode", &[("ro", false), ("rw", true)], false);
        // Mistakes that `finish` finds are reported with those of the whole configuration.
        let _ = section.finish();
        Some(Self { host: host?, guest: guest?, writable })
    }
}

impl HostPattern {
    /// Returns whether this pattern allows everything that `other` allows.
    fn covers(&self, other: &Self) -> bool {
        let host = match (&self.host, &other.host) {
            (HostMatch::Any, _) => true,
            (HostMatch::Beneath(domain), HostMatch::Name(name)) => is_beneath(name, domain),
            (HostMatch::Beneath(domain), HostMatch::Beneath(other)) => other == domain || is_beneath(other, domain),
            (own, other) => own == other,
        };
        host && (self.port.is_none() || self.port == other.port)
    }

    /// Returns whether a request may go to this host and port. `host` is as in a URL: a name, an address, or `[..]` around one.
    pub fn allows(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|allowed| allowed != port) {
            return false;
        }
        match (&self.host, address(host)) {
            (HostMatch::Any, _) => true,
            (HostMatch::Address(allowed), Some(address)) => *allowed == address,
            (HostMatch::Name(allowed), None) => plain(host) == *allowed,
            (HostMatch::Beneath(domain), None) => is_beneath(&plain(host), domain),
            (HostMatch::Address(_), None) | (HostMatch::Name(_) | HostMatch::Beneath(_), Some(_)) => false,
        }
    }
}

/// The text is no host pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a host pattern")]
pub struct InvalidHostPattern;

impl FromStr for HostPattern {
    type Err = InvalidHostPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A bare IPv6 address has colons of its own.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if text.parse::<IpAddr>().is_err() && !text.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        let port = port.map(|port| port.parse().ok().filter(|port| *port > 0).ok_or(InvalidHostPattern)).transpose()?;
        let host = match (host, address(host)) {
            ("*", _) => HostMatch::Any,
            (_, Some(address)) => HostMatch::Address(address),
            (host, None) => match host.strip_prefix("*.") {
                Some(domain) => HostMatch::Beneath(domain_name(domain)?),
                None => HostMatch::Name(domain_name(host)?),
            },
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            HostMatch::Any => f.write_str("*")?,
            HostMatch::Beneath(domain) => write!(f, "*.{domain}")?,
            HostMatch::Name(name) => f.write_str(name)?,
            HostMatch::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            HostMatch::Address(address) => write!(f, "{address}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

fn is_beneath(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

fn address(host: &str) -> Option<IpAddr> {
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    // An IPv4 address that is written as an IPv6 address is the same host.
    bracketed.unwrap_or(host).parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// Converts a host's name to lower case, without the dot that may end a full name.
fn plain(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

fn domain_name(text: &str) -> Result<String, InvalidHostPattern> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(fits);
    let name = plain(text);
    if name.len() <= 253 && name.split('.').all(label) { Ok(name) } else { Err(InvalidHostPattern) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(patterns: &[&str]) -> Vec<HostPattern> {
        patterns.iter().map(|pattern| pattern.parse().unwrap()).collect()
    }

    #[track_caller]
    fn check(own: &[&str], other: &[&str], expected: &[&str]) {
        let grants = |patterns| Grants { http: hosts(patterns), ..Grants::default() };
        assert_eq!(grants(own).intersection(&grants(other)).http, hosts(expected));
    }

    #[test]
    fn what_is_revoked_is_gone_and_what_is_granted_anew_does_not_come_by_itself() {
        check(&["*"], &[], &[]);
        check(&["*"], &["a.example"], &["a.example"]);
        check(&["a.example:443", "b.example"], &["a.example", "b.example:80"], &["a.example:443", "b.example:80"]);
        check(&["*.x.example"], &["*.example"], &["*.x.example"]);
        check(&["*.example"], &["*.x.example", "10.0.0.1"], &["*.x.example"]);
        let files = |writable| {
            let grant = FileGrant { host: "/srv".into(), guest: "/data".into(), writable };
            Grants { files: vec![grant], cages: vec!["a".into(), "b".into()], ..Grants::default() }
        };
        assert_eq!(files(true).intersection(&files(false)), files(false));
        assert_eq!(files(false).intersection(&files(true)), files(false));
        let narrowed = files(true).intersection(&Grants { cages: vec!["b".into()], ..Grants::default() });
        assert_eq!((narrowed.cages, narrowed.files), (vec!["b".to_owned()], Vec::new()));
    }
}
