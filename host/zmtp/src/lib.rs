//! ZeroMQ for tokio: the wire protocol ZMTP 3.1 and the sockets ROUTER, DEALER, REQ, REP, PUSH, PULL, PUB and SUB, over TCP
//! and Unix sockets, in clear text or with PLAIN or CURVE. Talks to libzmq 4.
//!
//! What sets it apart is that everything a peer can make grow has a bound: see [`Limits`]. There is no `unsafe` and no C.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use zmtp::{Message, Options, Socket};
//!
//! let mut server = Socket::rep(Options::default());
//! let bound = server.bind(&"tcp://127.0.0.1:0".parse()?).await?;
//!
//! let mut client = Socket::req(Options::default());
//! client.connect(&bound)?;
//! client.send(Message::from("ping")).await?;
//!
//! let request = server.recv().await?;
//! assert_eq!(request, Message::from("ping"));
//! server.send(Message::from(["pong", "to you"])).await?;
//!
//! let reply = client.recv().await?;
//! assert_eq!(reply.frames(), ["pong", "to you"]);
//! client.close().await;
//! server.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! The parts: [`codec`] is the protocol without any input or output, [`Security`] the mechanisms, [`Socket`] the sockets on
//! top of tokio. What peers may do to a socket is told by [`Event`]s and [`Counters`].

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod codec;
mod driver;
mod endpoint;
mod error;
mod event;
mod limits;
mod mechanism;
mod message;
mod options;
mod socket_type;

pub use bytes::Bytes;

pub use driver::{Closed, Receiver, Sender, Socket};
pub use endpoint::{Endpoint, EndpointError};
pub use error::{BindError, ConnectError, ReceiveError, SendError, SendErrorReason, SubscribeError};
pub use event::{ConnectionId, Counters, DisconnectReason, Event, Events};
pub use limits::Limits;
pub use mechanism::{AllowedKeys, CredentialsTooLong, KeyError, KeyPair, PublicKey, SecretKey, Security, User};
pub use message::Message;
pub use options::{DuplicateIdentity, Heartbeat, Identity, IdentityError, Options, Reconnect};
pub use socket_type::SocketType;
