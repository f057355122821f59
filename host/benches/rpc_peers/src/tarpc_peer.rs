//! `tarpc` over length-delimited frames and bincode.

use bytes::Bytes;
use futures_util::StreamExt;
use serde_bytes::ByteBuf;
use tarpc::context::Context;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::tokio_util::codec::LengthDelimitedCodec;
use tarpc::{client, context, serde_transport, server};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::load::Echo;

const IN_FLIGHT_MAX: usize = 1024;
const FRAME_BYTES_MAX: usize = 16 << 20;

// `ByteBuf`, since bincode encodes a `Vec<u8>` byte by byte.
#[tarpc::service]
trait EchoService {
    async fn echo(body: ByteBuf) -> ByteBuf;
}

#[derive(Clone)]
struct Server;

impl EchoService for Server {
    async fn echo(self, _: Context, body: ByteBuf) -> ByteBuf {
        body
    }
}

fn frames() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES_MAX).new_codec()
}

/// Serves a connection until the peer closes it.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let framed = tarpc::tokio_util::codec::Framed::new(stream, frames());
    let transport = serde_transport::new(framed, Bincode::default());
    let config = server::Config { pending_response_buffer: IN_FLIGHT_MAX };
    BaseChannel::new(config, transport)
        .execute(Server.serve())
        .for_each(|answer| async {
            tokio::spawn(answer);
        })
        .await;
}

#[derive(Clone)]
pub struct Client(EchoServiceClient);

impl Client {
    pub fn new(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let framed = tarpc::tokio_util::codec::Framed::new(stream, frames());
        let transport = serde_transport::new(framed, Bincode::default());
        let mut config = client::Config::default();
        config.max_in_flight_requests = IN_FLIGHT_MAX;
        config.pending_request_buffer = IN_FLIGHT_MAX;
        Self(EchoServiceClient::new(config, transport).spawn())
    }
}

impl Echo for Client {
    async fn call(&self, body: Bytes) -> Result<usize, String> {
        let body = ByteBuf::from(Vec::from(body));
        self.0.echo(context::current(), body).await.map(|body| body.len()).map_err(|error| error.to_string())
    }
}
