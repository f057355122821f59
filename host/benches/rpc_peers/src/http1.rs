//! HTTP/1.1 by hyper, without TLS: the round trip with which calls between guests are compared.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::load::Echo;

/// Serves a connection until the peer closes it.
pub async fn serve(stream: TcpStream) -> Result<()> {
    let echo = service_fn(async |request: Request<Incoming>| {
        let body = request.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>(Response::new(Full::new(body)))
    });
    Ok(Builder::new().serve_connection(TokioIo::new(stream), echo).await?)
}

/// A client with one connection; each request waits for the one before it.
#[derive(Clone)]
pub struct Client(Arc<Mutex<SendRequest<Full<Bytes>>>>);

impl Client {
    pub async fn new(stream: TcpStream) -> Result<Self> {
        let (requests, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(Arc::new(Mutex::new(requests))))
    }
}

impl Echo for Client {
    async fn call(&self, body: Bytes) -> Result<usize, String> {
        let request = Request::post("/").header("host", "rpc-peers.test").body(Full::new(body));
        let request = request.map_err(|error| error.to_string())?;
        let mut requests = self.0.lock().await;
        let answer = requests.send_request(request).await.map_err(|error| error.to_string())?;
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
        Ok(body.to_bytes().len())
    }
}
