//! Tests over real sockets, with a fake dispatcher: what clients get back, malicious ones included, and that the next
//! client is served all the same. Limits are short, and no test sleeps to wait for something.

mod bodies;
mod fake;
mod hostile;
mod http2;
mod life;
mod secure;
mod serving;
mod tunnels;
