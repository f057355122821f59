//! STUB
use crate::protocol::rpc::fabric::{CopyId, Local};
use std::path::{Path, PathBuf};
use std::str::FromStr;
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    Unix(PathBuf),
    Tcp(String),
}
impl Address {
    pub fn is_here(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(p) => write!(f, "unix:{}", p.display()),
            Self::Tcp(t) => f.write_str(t),
        }
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Found {
    SameMachine,
    Multicast,
    Peer,
    Told,
    Reverse,
}
impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub cage: String,
    pub copy: CopyId,
    pub node: String,
    pub address: Address,
    pub found: Found,
}
pub enum News {
    Seen(Sighting),
    Gone { cage: String, copy: CopyId, found: Found },
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress(String);
impl FromStr for PeerAddress {
    type Err = ();
    fn from_str(t: &str) -> Result<Self, ()> {
        t.rsplit_once(':').filter(|(_, p)| p.parse::<u16>().is_ok()).map(|_| Self(t.into())).ok_or(())
    }
}
impl std::fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
#[derive(Clone)]
pub struct Registry(PathBuf);
impl Registry {
    pub fn open(d: &Path, flock: &str) -> std::io::Result<Self> {
        let p = d.join(flock);
        std::fs::create_dir_all(&p)?;
        Ok(Self(p))
    }
    pub fn registration_path(&self, cage: &str, copy: CopyId) -> PathBuf {
        self.0.join(format!("{cage}.{copy}.sock"))
    }
    pub fn remove_stale(&self, p: &Path) {
        let _ = std::fs::remove_file(p);
    }
    pub fn scan_now(&self, own: CopyId) -> Vec<Sighting> {
        std::fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| {
                let p = e.path();
                let n = p.file_name()?.to_str()?.strip_suffix(".sock")?.to_owned();
                let (c, i) = n.split_once('.')?;
                let copy = CopyId::parse(i)?;
                (copy != own).then(|| Sighting {
                    cage: c.into(),
                    copy,
                    node: String::new(),
                    address: Address::Unix(p.clone()),
                    found: Found::SameMachine,
                })
            })
            .collect()
    }
    pub async fn watch(self, own: CopyId, f: impl Fn(News)) {
        let mut known: Vec<Sighting> = Vec::new();
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            let now = self.scan_now(own);
            for s in &now {
                if !known.contains(s) {
                    f(News::Seen(s.clone()))
                }
            }
            for s in &known {
                if !now.contains(s) {
                    f(News::Gone { cage: s.cage.clone(), copy: s.copy, found: s.found })
                }
            }
            known = now;
        }
    }
}
pub struct Registration(PathBuf);
impl Registration {
    pub fn new(p: PathBuf) -> Self {
        Self(p)
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
}
impl Drop for Registration {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
pub struct Multicast;
#[derive(Default)]
pub struct MulticastSettings {
    pub port: u16,
    pub loopback_only: bool,
}
impl Multicast {
    pub fn start(
        _s: MulticastSettings,
        _l: &Local,
        _p: Option<u16>,
        _f: impl Fn(News) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        Ok(Self)
    }
}
