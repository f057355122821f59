//! The bounds on everything that a peer can make grow.

use std::time::Duration;

/// The bounds of a socket. Each holds for every peer, whoever connected to whom; what happens at a bound is said with it.
///
/// What a socket holds at most, besides what the application has taken: `connections_max` times what one connection holds,
/// which is a message that is being received (`message_bytes_max`), a read buffer (64 KiB), a write buffer (64 KiB and one
/// frame), and a queue for sending (`send_bytes_max`); and the queues for receiving (`receive_total_bytes_max` and one
/// message of each connection). Buffers grow with what has arrived, never by a length that a peer announces.
///
/// Bytes of queues are counted as [`Message::weight`](crate::Message::weight): 64 more for each frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one frame. A longer one ends the connection as soon as its header is there. 8 MiB.
    pub frame_bytes_max: usize,
    /// Bytes of all frames of a message together. More ends the connection. 8 MiB.
    pub message_bytes_max: usize,
    /// Frames of a message. More ends the connection. 64.
    pub message_frames_max: usize,
    /// Bytes of a command. More ends the connection. 8 KiB.
    pub command_bytes_max: usize,

    /// From a new connection to the end of its handshake. Longer ends the connection. 5 s.
    pub handshake_timeout: Duration,
    /// Accepted connections whose handshake is not complete. For a further one the oldest of them is closed: peers that stay
    /// silent cannot keep others out. 512.
    pub handshakes_max: usize,
    /// The same for those from one address; all of `ipc` are one address, and so is a network of
    /// IPv6 of 64 bits. 256.
    pub handshakes_per_address_max: usize,
    /// Accepted connections, including those in handshake. A further one is closed. 1024.
    pub connections_max: usize,

    /// Messages that wait to be sent to one peer. At the bound a PUB leaves its message out for that peer, a ROUTER gives
    /// its message back or waits, and the others turn to another peer or wait. 1000.
    pub send_messages_max: usize,
    /// Bytes that wait to be sent to one peer; one message may exceed them. 16 MiB.
    pub send_bytes_max: usize,

    /// Messages of one peer that wait to be received. At the bound nothing more is read from that peer. 1000.
    pub receive_messages_max: usize,
    /// Bytes of one peer that wait to be received; what was read with one call may exceed them. 16 MiB.
    pub receive_bytes_max: usize,
    /// Messages of all peers that wait to be received. At the bound nothing more is read, except that each peer may have one
    /// message waiting: those who flood do not keep the others out. 100 000.
    pub receive_total_messages_max: usize,
    /// The same for bytes of all peers. 64 MiB.
    pub receive_total_bytes_max: usize,

    /// Different subscriptions of one peer. More ends the connection. 10 000.
    pub subscriptions_max: usize,
    /// Bytes of one peer's subscriptions together, each counted with 64 bytes more. More ends the connection. 1 MiB.
    pub subscription_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 8 << 20,
            message_bytes_max: 8 << 20,
            message_frames_max: 64,
            command_bytes_max: 8 << 10,
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 512,
            handshakes_per_address_max: 256,
            connections_max: 1024,
            send_messages_max: 1000,
            send_bytes_max: 16 << 20,
            receive_messages_max: 1000,
            receive_bytes_max: 16 << 20,
            receive_total_messages_max: 100_000,
            receive_total_bytes_max: 64 << 20,
            subscriptions_max: 10_000,
            subscription_bytes_max: 1 << 20,
        }
    }
}
