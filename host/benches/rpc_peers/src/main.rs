//! Echo servers and clients that the fabric of calls between cages is compared with, each side a process of its own.
//!
//! ```text
//! rpc_peers keys DIR
//! rpc_peers serve KIND --keys DIR                       prints the port, answers until its input is closed
//! rpc_peers load KIND PORT BYTES CALLERS SECONDS --keys DIR   prints one line of JSON
//! ```
//! With kind `nats` the address of the server takes the place of the port.

mod load;
mod nats;
mod raw;
mod tarpc_peer;
mod tls;
mod tonic_peer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::load::Load;

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
        /// Where the NATS server is; the others listen on a free port.
        url: Option<String>,
        #[arg(long, default_value = "keys")]
        keys: PathBuf,
    },
    /// Call over one connection and print the figures.
    Load {
        kind: Kind,
        /// What `serve` printed.
        address: String,
        bytes: usize,
        callers: usize,
        seconds: f64,
        /// Callers with big bodies at the same time, not counted.
        #[arg(long, default_value_t = 0)]
        beside: usize,
        #[arg(long, default_value_t = 0)]
        beside_bytes: usize,
        #[arg(long, default_value = "keys")]
        keys: PathBuf,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Raw,
    RawPlain,
    Tarpc,
    Tonic,
    Nats,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match arguments.command {
            Command::Keys { directory } => tls::make_keys(&directory),
            Command::Serve { kind, url, keys } => {
                println!("{}", serve(kind, url, keys).await?);
                tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
                Ok(())
            }
            Command::Load { kind, address, bytes, callers, seconds, beside, beside_bytes, keys } => {
                let duration = Duration::from_secs_f64(seconds);
                let load = Load { body_bytes: bytes, callers, duration, beside, beside_body_bytes: beside_bytes };
                println!("{}", call(kind, &address, &keys, load).await?);
                Ok(())
            }
        }
    })
}

/// What `load` needs to find this server.
async fn serve(kind: Kind, url: Option<String>, keys: PathBuf) -> Result<String> {
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
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let tls = tls.clone();
        tokio::spawn(async move {
            let served = match kind {
                Kind::RawPlain => raw::serve(stream).await,
                Kind::Raw => match tls.accept(stream).await {
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
            // A client that leaves without closing its TLS session is not news.
            if let Err(error) = served
                && error.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
                    != Some(std::io::ErrorKind::UnexpectedEof)
            {
                eprintln!("rpc_peers: {error:#}");
            }
        });
    }
}

async fn call(kind: Kind, address: &str, keys: &Path, load: Load) -> Result<String> {
    let figures = match kind {
        Kind::Nats => load::run(nats::Client::connect(address).await?, load).await,
        Kind::Tonic => load::run(tonic_peer::Client::connect(port(address)?, keys).await?, load).await,
        Kind::RawPlain => load::run(raw::Client::new(connect(address).await?), load).await,
        Kind::Raw => load::run(raw::Client::new(connect_tls(address, keys).await?), load).await,
        Kind::Tarpc => load::run(tarpc_peer::Client::new(connect_tls(address, keys).await?), load).await,
    };
    Ok(figures.map_err(|error| anyhow!(error))?.to_json())
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
