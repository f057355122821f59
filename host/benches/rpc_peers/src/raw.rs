//! A minimal multiplexing protocol: frames `[length u32][id u64][body]`, a task for each request, several frames in one
//! write.
//!
//! It has no deadlines, flow control or permissions: the lower limit with which an RPC that has them is compared.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::load::Echo;
use crate::threads::Threads;

type Message = (u64, Bytes);

const QUEUED_MAX: usize = 1024;
/// The most bytes of messages that are joined into one write.
const WRITE_BYTES: usize = 64 << 10;
/// Longer bodies are not copied, but written by themselves.
const COPIED_BYTES_MAX: usize = 8 << 10;

/// Serves a connection until the peer closes it.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<()> {
    let (mut reader, writer) = tokio::io::split(stream);
    let (answers, outgoing) = mpsc::channel(QUEUED_MAX);
    tokio::spawn(write(writer, outgoing));
    let mut buffer = BytesMut::with_capacity(WRITE_BYTES);
    while let Some((id, body)) = read(&mut reader, &mut buffer).await? {
        let answers = answers.clone();
        tokio::spawn(async move {
            // This fails if the connection is lost, and the caller with it.
            let _ = answers.send((id, body)).await;
        });
    }
    Ok(())
}

#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    requests: mpsc::Sender<Message>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Bytes>>>,
    next: AtomicU64,
}

impl Client {
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (mut reader, writer) = tokio::io::split(stream);
        let (requests, outgoing) = mpsc::channel(QUEUED_MAX);
        let shared = Arc::new(Shared { requests, waiting: Mutex::default(), next: AtomicU64::new(0) });
        tokio::spawn(write(writer, outgoing));
        let answered = Arc::clone(&shared);
        tokio::spawn(async move {
            let mut buffer = BytesMut::with_capacity(WRITE_BYTES);
            while let Ok(Some((id, body))) = read(&mut reader, &mut buffer).await {
                if let Some(caller) = answered.waiting.lock().remove(&id) {
                    // This fails if the caller has given up.
                    let _ = caller.send(body);
                }
            }
            answered.waiting.lock().clear();
        });
        Self(shared)
    }
}

impl Echo for Client {
    async fn call(&self, body: Bytes) -> Result<usize, String> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (caller, answer) = oneshot::channel();
        self.0.waiting.lock().insert(id, caller);
        self.0.requests.send((id, body)).await.map_err(|_| "the connection is closed".to_owned())?;
        answer.await.map(|body| body.len()).map_err(|_| "the connection was closed before the answer".to_owned())
    }
}

/// A client for each thread; each caller stays on its thread.
#[derive(Clone)]
pub struct Clients {
    pub clients: Arc<[Client]>,
    pub threads: Arc<Threads>,
}

tokio::task_local! {
    /// The index of the client that a caller uses.
    static CLIENT: usize;
}

impl Echo for Clients {
    async fn call(&self, body: Bytes) -> Result<usize, String> {
        self.clients[CLIENT.get()].call(body).await
    }

    fn spawn<T: Send + 'static>(
        &self,
        caller: usize,
        calls: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let client = caller % self.clients.len();
        self.threads.handle(client).spawn(CLIENT.scope(client, calls))
    }
}

async fn read(reader: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> Result<Option<Message>> {
    loop {
        if let Some(mut header) = buffer.get(..12) {
            let length = header.get_u32() as usize;
            let id = header.get_u64();
            if buffer.len() >= 12 + length {
                buffer.advance(12);
                return Ok(Some((id, buffer.split_to(length).freeze())));
            }
            buffer.reserve(12 + length - buffer.len());
        } else {
            buffer.reserve(WRITE_BYTES);
        }
        if reader.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut outgoing: mpsc::Receiver<Message>) -> Result<()> {
    let mut batch = BytesMut::with_capacity(WRITE_BYTES * 2);
    while let Some(first) = outgoing.recv().await {
        let mut next = Some(first);
        while let Some((id, body)) = next {
            batch.put_u32(body.len() as u32);
            batch.put_u64(id);
            if body.len() <= COPIED_BYTES_MAX {
                batch.put_slice(&body);
            } else {
                writer.write_all(&batch).await?;
                batch.clear();
                writer.write_all(&body).await?;
            }
            next = if batch.len() < WRITE_BYTES { outgoing.try_recv().ok() } else { None };
        }
        writer.write_all(&batch).await?;
        batch.clear();
        writer.flush().await?;
    }
    Ok(())
}
