//! The wire, byte by byte, against a fake in place of the dispatcher: what clients of every kind of malice get back, and
//! that the next client is served all the same. Real sockets on free ports; limits are short, and no test waits by time.

mod bodies;
mod fake;
mod hostile;
mod http2;
mod life;
mod secure;
mod serving;
mod tunnels;
