//! gRPC by `tonic`, its own mutual TLS; the message is derived by hand, so that no protoc is needed.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic_prost::ProstCodec;

use crate::load::Echo;
use crate::tls;

const PATH: &str = "/rpc_peers.Echo/echo";
const MESSAGE_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct Message {
    #[prost(bytes = "bytes", tag = "1")]
    body: Bytes,
}

type Codec = ProstCodec<Message, Message>;

#[derive(Clone)]
struct EchoServer;

impl NamedService for EchoServer {
    const NAME: &'static str = "rpc_peers.Echo";
}

impl UnaryService<Message> for EchoServer {
    type Response = Message;
    type Future = std::future::Ready<Result<tonic::Response<Message>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<Message>) -> Self::Future {
        ready(Ok(tonic::Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for EchoServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Codec::default())
                .apply_max_message_size_config(Some(MESSAGE_BYTES_MAX), Some(MESSAGE_BYTES_MAX));
            Ok(grpc.unary(EchoServer, request).await)
        })
    }
}

pub async fn serve(listener: TcpListener, keys: &Path) -> Result<()> {
    let (identity, ca) = identity(keys)?;
    let connections = TcpListenerStream::new(listener).map(|connection| {
        connection.inspect(|stream| {
            // Without this option a small answer may be delayed by 40 ms; it does no harm if the option is refused.
            let _ = stream.set_nodelay(true);
        })
    });
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity).client_ca_root(ca))?
        .add_service(EchoServer)
        .serve_with_incoming(connections)
        .await?;
    Ok(())
}

#[derive(Clone)]
pub struct Client(Channel);

impl Client {
    pub async fn connect(port: u16, keys: &Path) -> Result<Self> {
        let (identity, ca) = identity(keys)?;
        let tls = ClientTlsConfig::new().ca_certificate(ca).identity(identity).domain_name(tls::NAME);
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?.tcp_nodelay(true);
        Ok(Self(endpoint.tls_config(tls)?.connect().await?))
    }
}

impl Echo for Client {
    async fn call(&self, body: Bytes) -> Result<usize, String> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|error| error.to_string())?;
        let request = tonic::Request::new(Message { body });
        let answer = grpc.unary(request, PathAndQuery::from_static(PATH), Codec::default()).await;
        answer.map(|answer| answer.get_ref().body.len()).map_err(|status| status.to_string())
    }
}

fn identity(keys: &Path) -> Result<(Identity, Certificate)> {
    let read = |file: &str| std::fs::read(keys.join(file));
    let identity = Identity::from_pem(read("cert.pem")?, read("key.pem")?);
    Ok((identity, Certificate::from_pem(read("ca.pem")?)))
}
