//! What all tasks and handles of a socket share: its peers, its queues, its counters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{Notify, broadcast};

use super::gate::Gate;
use super::inbound::{Inbound, Source};
use super::lock::Mutex;
use super::pipe::{End, Pipe};
use super::subscriptions::Subscriptions;
use super::tasks::Tasks;
use crate::codec::{Command, ConnectionConfig, Peer};
use crate::endpoint::Endpoint;
use crate::event::{Counting, DisconnectReason, Event, count};
use crate::message::Message;
use crate::options::{DuplicateIdentity, Identity, Options};
use crate::socket_type::SocketType;

/// Whose turn it is on a REQ or REP.
#[derive(Debug)]
pub(crate) enum Turn {
    /// A REQ may send, a REP may receive.
    Free,
    /// A REQ waits for the reply of this pipe's peer. A pipe outlives its connections, so requests are told apart by numbers
    /// too.
    Asked { pipe: u64, request: u64 },
    /// A REP has to reply to this peer, with these frames before its own.
    Owes(Arc<Pipe>, Message),
}

/// Something that goes on until it is told to stop: a listener or a connection that is made again and again.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// The queue that a connection keeps while it is made again.
    pub(crate) kept: Option<Arc<Pipe>>,
    stopped: AtomicBool,
    stop: Notify,
}

impl Activity {
    pub(crate) fn new(kept: Option<Arc<Pipe>>) -> Self {
        Self { kept, ..Self::default() }
    }

    pub(crate) fn stop(&self) {
        if let Some(pipe) = &self.kept {
            pipe.end(End::Finish);
        }
        self.stopped.store(true, Ordering::Release);
        self.stop.notify_waiters();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) async fn stopped(&self) {
        let mut stop = std::pin::pin!(self.stop.notified());
        stop.as_mut().enable();
        if !self.is_stopped() {
            stop.await;
        }
    }
}

/// The peers that are sent to in turn, or all at once.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    pub(crate) pipes: Vec<Arc<Pipe>>,
    pub(crate) next: usize,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) socket_type: SocketType,
    pub(crate) options: Options,
    pub(crate) config: Arc<ConnectionConfig>,
    pub(crate) inbound: Inbound,
    pub(crate) ring: Mutex<Ring>,
    identities: RwLock<HashMap<Identity, Arc<Pipe>>>,
    /// Told when a sender that found no room or no peer may try again.
    pub(crate) room: Notify,
    pub(crate) turn: Mutex<Turn>,
    /// Of this socket, if it is a SUB.
    pub(crate) subscriptions: Mutex<Subscriptions>,
    pub(crate) counting: Counting,
    /// `None` when closed, which ends all readers.
    events: Mutex<Option<broadcast::Sender<Event>>>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) tasks: Arc<Tasks>,
    /// Listeners and connections by what they were bound or connected to.
    pub(crate) listeners: Mutex<HashMap<Endpoint, Arc<Activity>>>,
    pub(crate) dials: Mutex<HashMap<Endpoint, Arc<Activity>>>,
    /// The connections that were accepted, to be ended with the socket.
    pub(crate) accepted: Mutex<HashMap<u64, Arc<Pipe>>>,
    pub(crate) closed: AtomicBool,
    next: AtomicU64,
    next_identity: Mutex<u32>,
}

impl Shared {
    pub(crate) fn new(socket_type: SocketType, options: Options) -> Self {
        let config = ConnectionConfig {
            socket_type,
            identity: options.identity.clone().map_or_else(Bytes::new, Bytes::from),
            security: options.security.clone(),
            router_accepts_push: options.router_accepts_push,
            limits: options.limits.clone(),
        };
        Self {
            socket_type,
            config: Arc::new(config),
            inbound: Inbound::new(&options.limits),
            ring: Mutex::default(),
            identities: RwLock::default(),
            room: Notify::new(),
            turn: Mutex::new(Turn::Free),
            subscriptions: Mutex::default(),
            counting: Counting::default(),
            events: Mutex::new(Some(broadcast::Sender::new(options.events_max.max(1)))),
            gate: Arc::new(Gate::new(&options.limits)),
            tasks: Arc::default(),
            listeners: Mutex::default(),
            dials: Mutex::default(),
            accepted: Mutex::default(),
            closed: AtomicBool::new(false),
            next: AtomicU64::new(1),
            // A reply to a peer of an earlier life of this socket shall not find one of this life.
            next_identity: Mutex::new(fastrand::u32(..)),
            options,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// A number for a pipe or a connection.
    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn new_pipe(&self) -> Arc<Pipe> {
        Arc::new(Pipe::new(self.next_id(), &self.options.limits))
    }

    pub(crate) fn tell(&self, event: Event) {
        if let Some(events) = &*self.events.lock() {
            // Nobody need listen.
            let _ = events.send(event);
        }
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        match &*self.events.lock() {
            Some(events) => events.subscribe(),
            None => broadcast::Sender::new(1).subscribe(),
        }
    }

    pub(crate) fn end_events(&self) {
        self.events.lock().take();
    }

    /// Runs a task of this socket.
    pub(crate) fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        let shared = self.clone();
        self.tasks.spawn(future, move |message| shared.panicked(message));
    }

    pub(crate) fn panicked(&self, message: String) {
        count(&self.counting.panics, 1);
        self.tell(Event::Panicked { message });
    }

    /// The pipe to the peer with this identity.
    pub(crate) fn route(&self, identity: &[u8]) -> Option<Arc<Pipe>> {
        self.identities.read().unwrap_or_else(PoisonError::into_inner).get(identity).cloned()
    }

    /// A peer passed its handshake: gives it its place among the others. `kept` says that the pipe has one already, which it
    /// keeps from connection to connection.
    pub(crate) fn join(&self, pipe: &Arc<Pipe>, peer: &Peer, kept: bool) -> Result<Identity, DisconnectReason> {
        let identity = match self.socket_type {
            SocketType::Router => self.identify(pipe, peer)?,
            _ => Identity::from_wire(peer.identity.clone()),
        };
        if self.socket_type.receives() {
            self.inbound.open(Arc::new(Source { identity: identity.clone(), pipe: pipe.clone() }));
        }
        if self.socket_type == SocketType::Sub {
            // Under the lock that later subscriptions take too: none is sent twice, and none is missed.
            let subscriptions = self.subscriptions.lock();
            pipe.begin_with(subscriptions.prefixes().cloned().map(Command::Subscribe));
            self.ring.lock().pipes.push(pipe.clone());
        } else if !kept && (self.socket_type.takes_turns() || self.socket_type == SocketType::Pub) {
            self.ring.lock().pipes.push(pipe.clone());
        }
        self.room.notify_waiters();
        Ok(identity)
    }

    /// RFC 28, "The ROUTER Socket Type": each peer has an identity of its own.
    fn identify(&self, pipe: &Arc<Pipe>, peer: &Peer) -> Result<Identity, DisconnectReason> {
        let given = peer.identity.clone();
        let mut identities = self.identities.write().unwrap_or_else(PoisonError::into_inner);
        if peer.socket_type == SocketType::Push {
            // Nothing can be sent to it, so its identity leads nowhere.
            return Ok(self.generate(&identities));
        }
        let identity = if given.is_empty() { self.generate(&identities) } else { Identity::from_wire(given) };
        let known = identities.get(&identity);
        match (known, self.options.duplicate_identity) {
            (None, _) => {}
            (Some(_), DuplicateIdentity::Reject) => return Err(DisconnectReason::DuplicateIdentity(identity)),
            (Some(old), DuplicateIdentity::HandOver) => {
                old.end(End::Kill(DisconnectReason::HandedOver(identity.clone())));
            }
        }
        identities.insert(identity.clone(), pipe.clone());
        Ok(identity)
    }

    /// An identity as libzmq makes them: a zero byte, with which none that is given starts, and a number.
    fn generate(&self, known: &HashMap<Identity, Arc<Pipe>>) -> Identity {
        let mut next = self.next_identity.lock();
        loop {
            *next = next.wrapping_add(1);
            let mut identity = BytesMut::with_capacity(5);
            identity.put_u8(0);
            identity.put_u32(*next);
            let identity = Identity::from_wire(identity.freeze());
            if !known.contains_key(&identity) {
                return identity;
            }
        }
    }

    /// A connection ended that had joined.
    pub(crate) fn leave(&self, pipe: &Arc<Pipe>, identity: &Identity, kept: bool) {
        if self.socket_type == SocketType::Router {
            let mut identities = self.identities.write().unwrap_or_else(PoisonError::into_inner);
            // Not if it was handed over.
            if identities.get(identity).is_some_and(|known| Arc::ptr_eq(known, pipe)) {
                identities.remove(identity);
            }
        }
        if !kept {
            self.remove(pipe);
        }
        // A request that was not sent yet is sent on the next connection.
        let gone = self.request(pipe).filter(|_| pipe.is_empty());
        self.inbound.shut(pipe.id, gone);
        self.room.notify_waiters();
    }

    /// The request of a REQ to which this pipe's peer has to reply.
    fn request(&self, pipe: &Pipe) -> Option<u64> {
        match *self.turn.lock() {
            Turn::Asked { pipe: asked, request } if asked == pipe.id => Some(request),
            Turn::Asked { .. } | Turn::Free | Turn::Owes(..) => None,
        }
    }

    /// There will be no further connection: a request that went into this pipe has no reply.
    pub(crate) fn forget_request(&self, pipe: &Arc<Pipe>) {
        if let Some(request) = self.request(pipe) {
            self.inbound.open(Arc::new(Source { identity: Identity::from_wire(Bytes::new()), pipe: pipe.clone() }));
            self.inbound.shut(pipe.id, Some(request));
        }
    }

    /// Nothing goes through this pipe any more.
    pub(crate) fn remove(&self, pipe: &Arc<Pipe>) {
        self.ring.lock().pipes.retain(|other| !Arc::ptr_eq(other, pipe));
        count(&self.counting.unsent, pipe.close());
    }
}
