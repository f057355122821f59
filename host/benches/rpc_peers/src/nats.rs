//! Requests over a NATS server, answered by a queue subscriber: async-nats as its examples use it.

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::load::Echo;

const SUBJECT: &str = "rpc_peers.echo";

/// Subscribes, and answers in the background until the server ends.
pub async fn serve(url: &str) -> Result<()> {
    let client = async_nats::connect(url).await.with_context(|| format!("cannot connect to {url}"))?;
    let mut requests = client.queue_subscribe(SUBJECT, "echo".to_owned()).await?;
    client.flush().await?;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let client = client.clone();
            tokio::spawn(async move {
                if let Some(reply) = request.reply {
                    // This fails if the connection is lost; the caller then gets no answer.
                    let _ = client.publish(reply, request.payload).await;
                }
            });
        }
    });
    Ok(())
}

#[derive(Clone)]
pub struct Client(async_nats::Client);

impl Client {
    pub async fn connect(url: &str) -> Result<Self> {
        let client = async_nats::connect(url).await.with_context(|| format!("cannot connect to {url}"))?;
        Ok(Self(client))
    }
}

impl Echo for Client {
    async fn call(&self, body: Bytes) -> Result<usize, String> {
        let answer = self.0.request(SUBJECT, body).await;
        answer.map(|answer| answer.payload.len()).map_err(|error| error.to_string())
    }
}
