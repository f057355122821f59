//! The side of `reverse-rpc` that serves: keeps connections to every copy of the cages that cannot connect to this one, over
//! which they call it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::copy::Copy;
use super::dial::Connection;
use super::{Inner, Lan};
use crate::discovery::{Address, Found};
use crate::fabric::{CopyId, Service};
use wasmcage_core::drain::Drain;

/// Between two attempts at a copy.
const RETRY: Duration = Duration::from_millis(400);

/// How the cages that are served are reached.
#[derive(Default)]
pub(super) struct Reached(Mutex<BTreeMap<Arc<str>, Cage>>);

#[derive(Default)]
struct Cage {
    connections: usize,
    /// Why the last attempt failed.
    error: Option<String>,
}

impl Reached {
    fn change(&self, cage: &Arc<str>, change: impl FnOnce(&mut Cage)) {
        change(self.0.lock().entry(cage.clone()).or_default());
    }

    pub(super) fn failed(&self, cage: &Arc<str>, error: &str) {
        self.change(cage, |cage| cage.error = Some(error.to_owned()));
    }

    fn why_not(&self, cage: &str) -> Option<String> {
        match self.0.lock().get(cage) {
            Some(Cage { connections: 1.., .. }) => None,
            Some(Cage { error: Some(error), .. }) => Some(format!("not served, no copy is reached: {error}")),
            Some(_) | None => Some("not served, no copy is known".to_owned()),
        }
    }
}

/// A connection over which a cage is served, as long as this lives.
struct Serving<'a>(&'a Reached, &'a Arc<str>);

impl<'a> Serving<'a> {
    fn begin(reached: &'a Reached, cage: &'a Arc<str>) -> Self {
        reached.change(cage, |cage| *cage = Cage { connections: cage.connections + 1, error: None });
        Self(reached, cage)
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.change(self.1, |cage| cage.connections = cage.connections.saturating_sub(1));
    }
}

impl Lan {
    /// Which of these cages are not served now, and why.
    pub fn not_served<'a>(&self, cages: &'a [String]) -> Vec<(&'a str, String)> {
        let why_not = |cage: &'a String| Some((cage.as_str(), self.inner.reached.why_not(cage)?));
        cages.iter().filter_map(why_not).collect()
    }

    /// Keeps connections to every copy of `cages` over which these can call `service`; ends when the drain is complete.
    pub async fn serve_in_reverse(&self, cages: &[String], service: Arc<dyn Service>, drain: &Drain) {
        let mut serving = JoinSet::new();
        let mut served: HashSet<CopyId> = HashSet::new();
        loop {
            let changed = self.inner.changed.notified();
            let known = cages.iter().filter_map(|cage| self.inner.copies.get(cage));
            for copy in known.flat_map(|known| known.copies().to_vec()) {
                if served.insert(copy.id) {
                    let (inner, service, drain) = (self.inner.clone(), service.clone(), drain.clone());
                    let serve =
                        move || inner.clone().serve_copy_in_reverse(copy.clone(), service.clone(), drain.clone());
                    serving.spawn(self.inner.tasks.keep_running("reverse-rpc: a copy that is served", serve));
                }
            }
            tokio::select! {
                () = changed => {}
                Some(ended) = serving.join_next() => served.retain(|copy| ended.as_ref().ok() != Some(copy)),
                () = drain.stopping() => break,
            }
        }
        while serving.join_next().await.is_some() {}
    }
}

impl Inner {
    /// Keeps a connection to a copy over which it can call `service`. Returns the copy when that leads nowhere any more.
    async fn serve_copy_in_reverse(
        self: Arc<Self>,
        copy: Arc<Copy>,
        service: Arc<dyn Service>,
        drain: Drain,
    ) -> CopyId {
        for (address, _) in copy.addresses() {
            let (inner, cage, service) = (self.clone(), copy.cage.clone(), service.clone());
            let at = address.clone();
            let connecting = self.lanes.next().spawn(async move { inner.connect(&at, &cage, Some(service)).await });
            let failed = match connecting.await {
                Ok(Ok(connection)) => {
                    self.served_in_reverse(&copy, &address, connection, &drain).await;
                    return copy.id;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) if error.is_cancelled() => return copy.id,
                Err(error) => error.to_string(),
            };
            copy.failed(failed.clone());
            self.reached.failed(&copy.cage, &failed);
            self.events.unreachable(&copy.cage, &address.to_string(), &failed);
        }
        tokio::time::sleep(RETRY).await;
        self.copies.drop_if_lost(&copy);
        self.changed.notify_waiters();
        copy.id
    }

    /// The copy that greeted may be another than was looked for.
    async fn served_in_reverse(&self, copy: &Arc<Copy>, address: &Address, connection: Connection, drain: &Drain) {
        let Connection { link, hello, .. } = connection;
        let id = CopyId(hello.copy);
        if id != copy.id {
            self.copies.met(&copy.cage, id, self.lanes.count(), address, Found::Met);
            self.copies.bury(copy, address, tokio::time::Instant::now());
            link.close();
            return self.changed.notify_waiters();
        }
        copy.greeted(&hello.node, &hello.version);
        self.events.connected(&copy.cage, &address.to_string(), &copy.id.to_string());
        let _serving = Serving::begin(&self.reached, &copy.cage);
        let closed = tokio::select! {
            closed = link.closed() => closed,
            () = drain.stopping() => {
                link.close();
                link.closed().await
            }
        };
        self.left(copy, &closed);
    }
}
