//! The serving side of `reverse-rpc`: keeps connections to every copy of the cages that cannot connect to this one, so
//! that they can call it over these.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::copy::RemoteCopy;
use super::dial::NewConnection;
use super::{Lan, LanInner};
use crate::discovery::{CopyAddress, FoundBy};
use crate::fabric::{CallHandler, CopyId};
use wasmcage_core::drain::Drain;

/// Pause between two attempts to connect to a copy.
const RETRY_PAUSE: Duration = Duration::from_millis(400);

/// How many connections there are to each served cage, or why there are none.
#[derive(Default)]
pub(super) struct ReverseStatus(Mutex<BTreeMap<Arc<str>, CageStatus>>);

#[derive(Default)]
struct CageStatus {
    connections: usize,
    /// Why the last attempt failed.
    error: Option<String>,
}

impl ReverseStatus {
    fn change(&self, cage: &Arc<str>, change: impl FnOnce(&mut CageStatus)) {
        change(self.0.lock().entry(cage.clone()).or_default());
    }

    pub(super) fn failed(&self, cage: &Arc<str>, error: &str) {
        self.change(cage, |cage| cage.error = Some(error.to_owned()));
    }

    fn problem(&self, cage: &str) -> Option<String> {
        match self.0.lock().get(cage) {
            Some(CageStatus { connections: 1.., .. }) => None,
            Some(CageStatus { error: Some(error), .. }) => Some(format!("not served, no copy is reached: {error}")),
            Some(_) | None => Some("not served, no copy is known".to_owned()),
        }
    }
}

/// Counts a connection to a served cage until it is dropped.
struct ConnectionGuard<'a>(&'a ReverseStatus, &'a Arc<str>);

impl<'a> ConnectionGuard<'a> {
    fn new(status: &'a ReverseStatus, cage: &'a Arc<str>) -> Self {
        status.change(cage, |cage| *cage = CageStatus { connections: cage.connections + 1, error: None });
        Self(status, cage)
    }
}

impl Drop for ConnectionGuard<'_> {
    fn drop(&mut self) {
        self.0.change(self.1, |cage| cage.connections = cage.connections.saturating_sub(1));
    }
}

impl Lan {
    /// Returns those of the cages that are not served now, each with the reason.
    pub fn not_served<'a>(&self, cages: &'a [String]) -> Vec<(&'a str, String)> {
        let problem = |cage: &'a String| Some((cage.as_str(), self.inner.reverse_status.problem(cage)?));
        cages.iter().filter_map(problem).collect()
    }

    /// Keeps connections to every copy of `cages`, over which these can call `service`. Returns when the drain is
    /// complete.
    pub async fn serve_in_reverse(&self, cages: &[String], handler: Arc<dyn CallHandler>, drain: &Drain) {
        let mut serving = JoinSet::new();
        let mut served: HashSet<CopyId> = HashSet::new();
        loop {
            let changed = self.inner.changed.notified();
            let known = cages.iter().filter_map(|cage| self.inner.copies.get(cage));
            for copy in known.flat_map(|known| known.copies().to_vec()) {
                if served.insert(copy.id) {
                    let (inner, handler, drain) = (self.inner.clone(), handler.clone(), drain.clone());
                    let serve =
                        move || inner.clone().serve_copy_in_reverse(copy.clone(), handler.clone(), drain.clone());
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

impl LanInner {
    /// Connects to a copy and serves its calls with `service` until the connection ends. Returns the copy's id, so that
    /// the caller can start over.
    async fn serve_copy_in_reverse(
        self: Arc<Self>,
        copy: Arc<RemoteCopy>,
        handler: Arc<dyn CallHandler>,
        drain: Drain,
    ) -> CopyId {
        for (address, _) in copy.addresses() {
            let (inner, cage, handler) = (self.clone(), copy.cage.clone(), handler.clone());
            let at = address.clone();
            let connecting = self.lanes.next().spawn(async move { inner.connect(&at, &cage, Some(handler)).await });
            let failed = match connecting.await {
                Ok(Ok(connection)) => {
                    self.hold_reverse_connection(&copy, &address, connection, &drain).await;
                    return copy.id;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) if error.is_cancelled() => return copy.id,
                Err(error) => error.to_string(),
            };
            copy.failed(failed.clone());
            self.reverse_status.failed(&copy.cage, &failed);
            self.events.unreachable(&copy.cage, &address.to_string(), &failed);
        }
        tokio::time::sleep(RETRY_PAUSE).await;
        self.copies.drop_if_unreachable(&copy);
        self.changed.notify_waiters();
        copy.id
    }

    /// Keeps the connection until it ends or the drain begins. Closes it if another copy than the wanted one greeted.
    async fn hold_reverse_connection(
        &self,
        copy: &Arc<RemoteCopy>,
        address: &CopyAddress,
        connection: NewConnection,
        drain: &Drain,
    ) {
        let NewConnection { link, hello, .. } = connection;
        let id = CopyId(hello.copy);
        if id != copy.id {
            self.copies.record_connection(&copy.cage, id, self.lanes.count(), address, FoundBy::Connection);
            self.copies.mark_absent(copy, address, tokio::time::Instant::now());
            link.close();
            return self.changed.notify_waiters();
        }
        copy.greeted(&hello.node, &hello.version);
        self.events.connected(&copy.cage, &address.to_string(), &copy.id.to_string());
        let _counted = ConnectionGuard::new(&self.reverse_status, &copy.cage);
        let closed = tokio::select! {
            closed = link.closed() => closed,
            () = drain.stopping() => {
                link.close();
                link.closed().await
            }
        };
        self.connection_ended(copy, &closed);
    }
}
