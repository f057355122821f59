//! The sockets: what applications hold, and the tasks behind it.
//!
//! `link.rs` is a connection's task. `listen.rs` accepts connections and `dial.rs` makes them. `inbound.rs` and `pipe.rs` are the queues
//! between connections and application, `shared.rs` is what all of them have in common, `gate.rs` bounds connections,
//! `tasks.rs` keeps watch over the tasks, `stream.rs` is TCP and Unix sockets.

mod dial;
mod gate;
mod inbound;
mod link;
mod listen;
mod lock;
mod pipe;
mod receiver;
mod sender;
mod shared;
mod stream;
mod subscriptions;
mod tasks;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use self::receiver::Receiver;
pub use self::sender::Sender;

use self::dial::Dial;
use self::pipe::End;
use self::shared::{Activity, Shared};
use self::stream::Listener;
use crate::codec::Command;
use crate::endpoint::Endpoint;
use crate::error::{BindError, ConnectError, ReceiveError, SendError, SubscribeError};
use crate::event::{Counters, DisconnectReason, Events};
use crate::message::Message;
use crate::options::{Identity, Options};
use crate::socket_type::SocketType;

/// Ends what a socket has going on when the last handle of it is dropped.
#[derive(Debug)]
pub(crate) struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Shared {
    /// Takes nothing more from the application and has nothing more for it.
    fn shut(&self) {
        self.closed.store(true, Ordering::Release);
        self.inbound.close();
        self.room.notify_waiters();
        for activity in self.listeners.lock().values() {
            activity.stop();
        }
    }

    /// Ends everything at once.
    fn end(&self) {
        self.shut();
        self.tasks.abort();
        self.end_events();
    }
}

/// What was left when a socket was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Messages that were still waiting to be put into the form of the wire, over the life of the socket. Those that a peer
    /// had not read are not known.
    pub unsent: u64,
}

/// A ZeroMQ socket.
///
/// It binds to and connects to any number of endpoints. Connections are made in the background, and made again when they are
/// lost: a peer that cannot be reached is told by an [`Event`](crate::Event), not by an error.
///
/// Its tasks run on the tokio runtime in which [`bind`](Self::bind) and [`connect`](Self::connect) are called. Dropping the
/// socket (and the handles made of it) ends everything at once; [`close`](Self::close) sends first what waits.
///
/// | type | `recv` gives | `send` goes to |
/// |---|---|---|
/// | ROUTER | the sender's identity as the first frame, then the message | the peer whose identity is the first frame |
/// | DEALER | messages | the peers in turn |
/// | REQ | the reply to the last request | the peers in turn, one request at a time |
/// | REP | requests | the peer whose request came last |
/// | PUSH | | the peers in turn |
/// | PULL | messages | |
/// | PUB | | all peers that subscribed to the start of the first frame |
/// | SUB | messages that were subscribed to | |
#[derive(Debug)]
pub struct Socket {
    sender: Sender,
    receiver: Receiver,
}

impl Socket {
    fn new(socket_type: SocketType, options: Options) -> Self {
        let owner = Arc::new(Owner { shared: Arc::new(Shared::new(socket_type, options)) });
        Self { sender: Sender::new(owner.clone()), receiver: Receiver::new(owner) }
    }

    /// Talks to peers by their identities.
    #[must_use]
    pub fn router(options: Options) -> Self {
        Self::new(SocketType::Router, options)
    }

    /// Talks to peers in turn.
    #[must_use]
    pub fn dealer(options: Options) -> Self {
        Self::new(SocketType::Dealer, options)
    }

    /// Sends requests, and receives a reply to each before the next.
    #[must_use]
    pub fn req(options: Options) -> Self {
        Self::new(SocketType::Req, options)
    }

    /// Receives requests, and replies to each before the next.
    #[must_use]
    pub fn rep(options: Options) -> Self {
        Self::new(SocketType::Rep, options)
    }

    /// Sends to peers in turn.
    #[must_use]
    pub fn push(options: Options) -> Self {
        Self::new(SocketType::Push, options)
    }

    /// Receives from all peers.
    #[must_use]
    pub fn pull(options: Options) -> Self {
        Self::new(SocketType::Pull, options)
    }

    /// PUB: sends to all peers that subscribed.
    #[must_use]
    pub fn publisher(options: Options) -> Self {
        Self::new(SocketType::Pub, options)
    }

    /// SUB: receives what it subscribed to.
    #[must_use]
    pub fn subscriber(options: Options) -> Self {
        Self::new(SocketType::Sub, options)
    }

    /// One half to send and control, which can be cloned, and one to receive.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// A handle to send and control.
    #[must_use]
    pub const fn sender(&self) -> &Sender {
        &self.sender
    }

    /// See [`Sender::bind`].
    ///
    /// # Errors
    /// See there.
    pub async fn bind(&self, endpoint: &Endpoint) -> Result<Endpoint, BindError> {
        self.sender.bind(endpoint).await
    }

    /// See [`Sender::connect`].
    ///
    /// # Errors
    /// See there.
    pub fn connect(&self, endpoint: &Endpoint) -> Result<(), ConnectError> {
        self.sender.connect(endpoint)
    }

    /// See [`Sender::subscribe`].
    ///
    /// # Errors
    /// See there.
    pub fn subscribe(&self, prefix: &[u8]) -> Result<(), SubscribeError> {
        self.sender.subscribe(prefix)
    }

    /// See [`Sender::send`].
    ///
    /// # Errors
    /// See there.
    pub async fn send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.sender.send(message).await
    }

    /// See [`Sender::send_to`].
    ///
    /// # Errors
    /// See there.
    pub async fn send_to(&self, identity: &[u8], message: impl Into<Message>) -> Result<(), SendError> {
        self.sender.send_to(identity, message).await
    }

    /// See [`Receiver::recv`].
    ///
    /// # Errors
    /// See there.
    pub async fn recv(&mut self) -> Result<Message, ReceiveError> {
        self.receiver.recv().await
    }

    /// See [`Receiver::recv_from`].
    ///
    /// # Errors
    /// See there.
    pub async fn recv_from(&mut self) -> Result<(Identity, Message), ReceiveError> {
        self.receiver.recv_from().await
    }

    /// See [`Sender::events`].
    #[must_use]
    pub fn events(&self) -> Events {
        self.sender.events()
    }

    /// See [`Sender::counters`].
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.sender.counters()
    }

    /// See [`Sender::close`].
    pub async fn close(self) -> Closed {
        self.sender.close().await
    }
}

/// What does not concern messages.
impl Sender {
    /// Accepts connections at `endpoint`. Returns where that is: with port 0, the port that was chosen.
    ///
    /// The file of a Unix socket goes when the socket is closed or unbound. One that was left behind by a process that is
    /// gone is replaced.
    ///
    /// # Errors
    /// The system refuses, or the socket is closed.
    pub async fn bind(&self, endpoint: &Endpoint) -> Result<Endpoint, BindError> {
        let shared = &self.owner.shared;
        if shared.is_closed() {
            return Err(BindError::Closed(endpoint.clone()));
        }
        let (listener, bound) = Listener::bind(endpoint).await?;
        let activity = Arc::new(Activity::default());
        shared.listeners.lock().insert(bound.clone(), activity.clone());
        if shared.is_closed() {
            // Closing may have passed over it.
            return Err(BindError::Closed(endpoint.clone()));
        }
        shared.spawn(listen::run(shared.clone(), listener, bound.clone(), activity));
        Ok(bound)
    }

    /// Accepts no more connections at an endpoint that [`bind`](Self::bind) returned. Those that were accepted stay. Whether
    /// it was bound.
    pub fn unbind(&self, bound: &Endpoint) -> bool {
        let activity = self.owner.shared.listeners.lock().remove(bound);
        activity.inspect(|activity| activity.stop()).is_some()
    }

    /// Connects to `endpoint` in the background, and again whenever the connection is lost.
    ///
    /// With DEALER, REQ and PUSH messages can be sent at once: they wait for the connection, and those that wait survive the
    /// loss of one. What had been given to the system is lost with a connection.
    ///
    /// # Errors
    /// The endpoint is one for binding, or connected to already; or the socket is closed.
    ///
    /// # Panics
    /// It is not called within a tokio runtime.
    pub fn connect(&self, endpoint: &Endpoint) -> Result<(), ConnectError> {
        let shared = &self.owner.shared;
        if endpoint.is_wildcard() {
            return Err(ConnectError::Wildcard(endpoint.clone()));
        }
        let dial = {
            let mut dials = shared.dials.lock();
            if shared.is_closed() {
                return Err(ConnectError::Closed(endpoint.clone()));
            }
            if dials.get(endpoint).is_some_and(|activity| !activity.is_stopped()) {
                return Err(ConnectError::Twice(endpoint.clone()));
            }
            let (dial, activity) = Dial::new(shared.clone(), endpoint.clone());
            dials.insert(endpoint.clone(), activity);
            dial
        };
        shared.spawn(dial.run());
        Ok(())
    }

    /// Closes the connection to an endpoint and makes no other. What waits for it is sent, within the time to linger.
    /// Whether there was one.
    pub fn disconnect(&self, endpoint: &Endpoint) -> bool {
        let activity = self.owner.shared.dials.lock().remove(endpoint);
        activity.inspect(|activity| activity.stop()).is_some()
    }

    /// Has publishers send messages that start with `prefix`, now and after each new connection. The empty prefix is that of
    /// all messages.
    ///
    /// # Errors
    /// The socket is no SUB, has too many subscriptions, or is closed.
    pub fn subscribe(&self, prefix: &[u8]) -> Result<(), SubscribeError> {
        let shared = self.subscriber()?;
        let limits = &shared.options.limits;
        if prefix.len() + 16 > limits.command_bytes_max {
            return Err(SubscribeError::TooMany);
        }
        // The lock is held until all peers are told, so that they hear what happens to one prefix in its order.
        let mut subscriptions = shared.subscriptions.lock();
        let added = subscriptions.add(prefix, limits.subscriptions_max, limits.subscription_bytes_max);
        if added.map_err(|_| SubscribeError::TooMany)? {
            self.tell_peers(&Command::Subscribe(bytes::Bytes::copy_from_slice(prefix)));
        }
        Ok(())
    }

    /// Takes back one subscription. A prefix that was subscribed to twice has to be cancelled twice.
    ///
    /// # Errors
    /// The socket is no SUB or is closed, or there is no such subscription.
    pub fn cancel(&self, prefix: &[u8]) -> Result<(), SubscribeError> {
        let shared = self.subscriber()?;
        let mut subscriptions = shared.subscriptions.lock();
        if subscriptions.remove(prefix).ok_or(SubscribeError::Unknown)? {
            self.tell_peers(&Command::Cancel(bytes::Bytes::copy_from_slice(prefix)));
        }
        Ok(())
    }

    fn subscriber(&self) -> Result<&Arc<Shared>, SubscribeError> {
        let shared = &self.owner.shared;
        if shared.socket_type != SocketType::Sub {
            return Err(SubscribeError::WrongType(shared.socket_type));
        }
        if shared.is_closed() {
            return Err(SubscribeError::Closed);
        }
        Ok(shared)
    }

    fn tell_peers(&self, command: &Command) {
        for pipe in &self.owner.shared.ring.lock().pipes {
            pipe.push_command(command.clone());
        }
    }

    /// Whether a peer with this identity is connected, to which can be sent. ROUTER sockets only.
    #[must_use]
    pub fn has_peer(&self, identity: &[u8]) -> bool {
        self.owner.shared.route(identity).is_some()
    }

    /// Closes the connection of the peer with this identity, at once. It may come back. ROUTER sockets only. Whether there
    /// is one.
    pub fn close_peer(&self, identity: &[u8]) -> bool {
        let pipe = self.owner.shared.route(identity);
        pipe.inspect(|pipe| pipe.end(End::Kill(DisconnectReason::ClosedHere))).is_some()
    }

    /// What happens to the socket's connections from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events(self.owner.shared.events())
    }

    /// How often things happened since the socket was made.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.owner.shared.counting.read()
    }

    /// The socket's type.
    #[must_use]
    pub fn socket_type(&self) -> SocketType {
        self.owner.shared.socket_type
    }

    /// Closes the socket: takes nothing more from the application, sends what waits, lets peers read it, and waits until all
    /// tasks have ended. That takes as long as `linger` at most; what is not sent by then is lost. If this is dropped
    /// before, nothing more is waited for.
    pub async fn close(&self) -> Closed {
        let shared = &self.owner.shared;
        let end = EndOnDrop(shared);
        shared.shut();
        for activity in shared.dials.lock().values() {
            activity.stop();
        }
        for pipe in shared.accepted.lock().values() {
            pipe.end(End::Finish);
        }
        {
            let idle = pin!(shared.tasks.idle());
            // All of them obey the time to linger themselves; a hundred milliseconds more let them.
            let most = shared.options.linger.saturating_add(std::time::Duration::from_millis(200));
            let _ = tokio::time::timeout(most, idle).await;
        }
        drop(end);
        shared.tasks.idle().await;
        Closed { unsent: shared.counting.read().unsent }
    }
}

struct EndOnDrop<'a>(&'a Shared);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
