//! Echo servers and clients that the fabric of calls between cages is compared with, each side a process of its own.
//!
//! ```text
//! rpc_peers keys DIR
//! rpc_peers serve KIND DIR [URL]                          prints its address, answers until its input is closed
//! rpc_peers load KIND DIR ADDRESS BYTES CALLERS SECONDS   prints one line of JSON
//! ```
//! The address is a port of 127.0.0.1; with kind `nats`, that of the NATS server. `benches/rpc` takes the same
//! arguments for wasmcage's own fabrics.

mod http1;
mod load;
mod nats;
mod raw;
mod tarpc_peer;
mod threads;
mod tls;
mod tonic_peer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::load::Load;
use crate::threads::Threads;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the certificates both sides use.
    Keys { directory: PathBuf },
    /// Answer until standard input is closed.
    Serve {
        kind: Kind,
        /// The directory with the keys.
        directory: PathBuf,
        /// The URL of the NATS server; other kinds listen on a free port.
        url: Option<String>,
    },
    /// Call over one connection and print the figures.
    Load {
        kind: Kind,
        directory: PathBuf,
        /// The address that `serve` printed.
        address: String,
        bytes: usize,
        callers: usize,
        seconds: f64,
        /// Callers with big bodies at the same time, not counted.
        #[arg(default_value_t = 0)]
        beside: usize,
        #[arg(default_value_t = 0)]
        beside_bytes: usize,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Raw,
    RawPlain,
    /// A connection for each of two threads that share nothing.
    RawThreads,
    Tarpc,
    Tonic,
    Nats,
    /// HTTP/1.1 by hyper, without TLS; one caller at a time.
    Http1,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match arguments.command {
            Command::Keys { directory } => tls::make_keys(&directory),
            Command::Serve { kind, directory, url } => {
                println!("{}", serve(kind, directory, url).await?);
                tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
                Ok(())
            }
            Command::Load { kind, directory, address, bytes, callers, seconds, beside, beside_bytes } => {
                let duration = Duration::from_secs_f64(seconds);
                let load = Load { body_bytes: bytes, callers, duration, beside, beside_body_bytes: beside_bytes };
                println!("{}", call(kind, &address, &directory, load).await?);
                Ok(())
            }
        }
    })
}

/// Starts a server, and returns the address for `load`.
async fn serve(kind: Kind, keys: PathBuf, url: Option<String>) -> Result<String> {
    if kind == Kind::Nats {
        let url = url.context("nats needs the address of its server")?;
        nats::serve(&url).await?;
        return Ok(url);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        if let Err(error) = accept(kind, listener, &keys).await {
            eprintln!("rpc_peers: {error:#}");
        }
    });
    Ok(port.to_string())
}

async fn accept(kind: Kind, listener: TcpListener, keys: &Path) -> Result<()> {
    if kind == Kind::Tonic {
        return tonic_peer::serve(listener, keys).await;
    }
    let tls = tls::acceptor(keys)?;
    let threads = if kind == Kind::RawThreads { Some(Threads::start()?) } else { None };
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let tls = tls.clone();
        match &threads {
            None => tokio::spawn(serve_connection(kind, stream, tls)),
            Some(threads) => {
                let stream = stream.into_std()?;
                threads.next().spawn(async move {
                    match TcpStream::from_std(stream) {
                        Ok(stream) => serve_connection(kind, stream, tls).await,
                        Err(error) => eprintln!("rpc_peers: {error}"),
                    }
                })
            }
        };
    }
}

async fn serve_connection(kind: Kind, stream: TcpStream, tls: TlsAcceptor) {
    let served = match kind {
        Kind::RawPlain => raw::serve(stream).await,
        Kind::Http1 => http1::serve(stream).await,
        Kind::Raw | Kind::RawThreads => match tls.accept(stream).await {
            Ok(stream) => raw::serve(stream).await,
            Err(error) => Err(error.into()),
        },
        Kind::Tarpc => match tls.accept(stream).await {
            Ok(stream) => {
                tarpc_peer::serve(stream).await;
                Ok(())
            }
            Err(error) => Err(error.into()),
        },
        Kind::Tonic | Kind::Nats => unreachable!("both have listeners of their own"),
    };
    if let Err(error) = served
        && !is_hang_up(&error)
    {
        eprintln!("rpc_peers: {error:#}");
    }
}

/// Returns whether a client has left without closing its TLS session, which is no error here.
fn is_hang_up(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

async fn call(kind: Kind, address: &str, keys: &Path, load: Load) -> Result<String> {
    let figures = match kind {
        Kind::Nats => load::run(nats::Client::connect(address).await?, load).await,
        Kind::Tonic => load::run(tonic_peer::Client::connect(port(address)?, keys).await?, load).await,
        Kind::Http1 => load::run(http1::Client::new(connect(address).await?).await?, load).await,
        Kind::RawPlain => load::run(raw::Client::new(connect(address).await?), load).await,
        Kind::Raw => load::run(raw::Client::new(connect_tls(address, keys).await?), load).await,
        Kind::RawThreads => load::run(connect_each(address, keys).await?, load).await,
        Kind::Tarpc => load::run(tarpc_peer::Client::new(connect_tls(address, keys).await?), load).await,
    };
    Ok(figures.map_err(|error| anyhow!(error))?.to_json())
}

/// Makes a connection for each thread, on that thread.
async fn connect_each(address: &str, keys: &Path) -> Result<raw::Clients> {
    let threads = Arc::new(Threads::start()?);
    let mut clients = Vec::new();
    for thread in 0..Threads::COUNT {
        let (address, keys) = (address.to_owned(), keys.to_owned());
        let connecting = async move { anyhow::Ok(raw::Client::new(connect_tls(&address, &keys).await?)) };
        clients.push(threads.handle(thread).spawn(connecting).await??);
    }
    Ok(raw::Clients { clients: clients.into(), threads })
}

async fn connect_tls(address: &str, keys: &Path) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let (connector, name) = tls::connector(keys)?;
    Ok(connector.connect(name, connect(address).await?).await?)
}

async fn connect(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port(address)?)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn port(address: &str) -> Result<u16> {
    address.parse().with_context(|| format!("{address} is not a port"))
}
