//! CONNECT to standard WASI HTTP components: their answer of success makes the connection, or the stream of HTTP/2, a tunnel
//! of the two bodies, with the limits of everything that streams.

use std::io::ErrorKind;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wasmcage_tests::{RunningCage, TestCage, Version, eventually};

const GUESTS: [&str; 2] = ["wasi_http_p2", "wasi_http_p3"];
const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

/// No test waits longer for what comes through a tunnel.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Far longer than any test runs.
const LONG: &str = "timeout_ms = 600000";
const TUNNELS: &str = "allowed_methods = [\"GET\", \"POST\", \"CONNECT\"]";

async fn started(guest: &str, config: &str) -> RunningCage {
    TestCage::new().module(guest, "interface_web").http("web").config(TUNNELS).config(config).start().await
}

/// Nothing is in work any more, and the module serves.
async fn alive(cage: &RunningCage) {
    cage.quiet().await;
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    cage.quiet().await;
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The status of the answer, and the tunnel: raw bytes after the head over HTTP/1.
async fn connect(address: &str, version: Version, name: &str) -> (u16, Box<dyn Stream>) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    if version == Version::Http1 {
        socket.write_all(format!("CONNECT {name}:1 HTTP/1.1\r\nhost: {name}:1\r\n\r\n").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tokio::time::timeout(TIMEOUT, socket.read_u8()).await.expect("a head").expect("all of it"));
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let status = head[9..12].parse().unwrap();
        if status == 200 {
            assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        }
        return (status, Box::new(socket));
    }
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::connect(format!("{name}:1")).body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = tokio::time::timeout(TIMEOUT, client.send_request(request)).await.expect("an answer").unwrap();
    let status = response.status().as_u16();
    if status == 200 {
        return (status, Box::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap())));
    }
    let text = response.into_body().collect().await.unwrap().to_bytes();
    (status, Box::new(tokio::io::join(std::io::Cursor::new(text), tokio::io::sink())))
}

async fn opened(cage: &RunningCage, version: Version, name: &str) -> Box<dyn Stream> {
    let (status, stream) = connect(&cage.address("web"), version, name).await;
    assert_eq!(status, 200, "{version:?} {name}");
    stream
}

async fn send(stream: &mut dyn Stream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
}

async fn expect(stream: &mut dyn Stream, text: &str) {
    let mut came = vec![0; text.len()];
    tokio::time::timeout(TIMEOUT, stream.read_exact(&mut came)).await.expect("bytes").expect("all of them");
    assert_eq!(String::from_utf8_lossy(&came), text);
}

/// Reads to the end of the stream, which must be one in good order.
async fn rest(stream: &mut dyn Stream) -> String {
    let mut came = Vec::new();
    tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut came)).await.expect("an end").expect("in good order");
    String::from_utf8(came).unwrap()
}

/// Reads to the end, which has to be a cut.
async fn cut(stream: &mut dyn Stream, version: Version) {
    let read = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut Vec::new())).await.expect("an end");
    match version {
        Version::Http1 => assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset),
        // This client takes a reset stream for the end of its bytes; what it writes tells.
        Version::Http2 => {
            let failed = async { while stream.write_all(b"x").await.is_ok() && stream.flush().await.is_ok() {} };
            tokio::time::timeout(TIMEOUT, failed).await.expect("a reset");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_until_each_side_has_ended() {
    for guest in GUESTS {
        let cage = started(guest, LONG).await;
        for version in VERSIONS {
            let mut stream = opened(&cage, version, "echo").await;
            for piece in ["one", "two", "three"] {
                send(&mut *stream, piece).await;
                expect(&mut *stream, piece).await;
            }
            eventually("a tunnel in work", || (cage.snapshot().cages[0].in_work == 1).then_some(())).await;
            stream.shutdown().await.unwrap();
            assert_eq!(rest(&mut *stream).await, "", "{guest} {version:?}");
            alive(&cage).await;
            // The client's end is not the module's.
            let mut stream = opened(&cage, version, "early").await;
            expect(&mut *stream, "answered early\n").await;
            send(&mut *stream, "12345").await;
            stream.shutdown().await.unwrap();
            assert_eq!(rest(&mut *stream).await, "5 bytes followed\n", "{guest} {version:?}");
            // Nor does a module have to wait for the client's.
            let mut stream = opened(&cage, version, "never-reads").await;
            assert_eq!(rest(&mut *stream).await, "not read", "{guest} {version:?}");
            alive(&cage).await;
        }
        if guest == "wasi_http_p3" {
            let mut stream = opened(&cage, Version::Http1, "pass").await;
            send(&mut *stream, "handed over").await;
            expect(&mut *stream, "handed over").await;
            stream.shutdown().await.unwrap();
            assert_eq!(rest(&mut *stream).await, "");
        }
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_bytes_come_through_whole() {
    let sent = bytes::Bytes::from_iter((0..3_000_000_u32).map(|index| (index % 251) as u8));
    for guest in GUESTS {
        let cage = started(guest, LONG).await;
        for version in VERSIONS {
            let (mut reader, mut writer) = tokio::io::split(opened(&cage, version, "echo").await);
            let bytes = sent.clone();
            let writing = tokio::spawn(async move {
                writer.write_all(&bytes).await.unwrap();
                writer.shutdown().await.unwrap();
            });
            let mut came = Vec::new();
            tokio::time::timeout(TIMEOUT, reader.read_to_end(&mut came)).await.expect("an end").unwrap();
            assert!(came == sent, "{guest} {version:?}: {} bytes", came.len());
            writing.await.unwrap();
        }
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_may_refuse() {
    for guest in GUESTS {
        let cage = started(guest, LONG).await;
        for version in VERSIONS {
            let (status, mut stream) = connect(&cage.address("web"), version, "elsewhere").await;
            assert_eq!(status, 404, "{guest} {version:?}");
            assert!(rest(&mut *stream).await.contains("no such path"), "{guest} {version:?}");
            let (status, _) = connect(&cage.address("web"), version, "error").await;
            assert_eq!(status, 500, "{guest} {version:?}");
        }
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_has_the_limits_of_what_streams() {
    for guest in GUESTS {
        for version in VERSIONS {
            // Silence in both directions; and before there is any answer.
            let cage = started(guest, "timeout_ms = 400").await;
            let mut stream = opened(&cage, version, "echo").await;
            send(&mut *stream, "one").await;
            expect(&mut *stream, "one").await;
            cut(&mut *stream, version).await;
            assert_eq!(connect(&cage.address("web"), version, "hang").await.0, 504, "{guest} {version:?}");
            // A pause that is short enough, again and again, for longer than that.
            let mut stream = opened(&cage, version, "slow-body").await;
            assert!(rest(&mut *stream).await.ends_with("line 9\n"), "{guest} {version:?}");
            alive(&cage).await;
            let late = || cage.module("interface_web")?.readings.outcomes.get("deadline-exceeded").copied();
            eventually("both late ones counted", || (late() == Some(2)).then_some(())).await;
            // However much moves.
            let cage = started(guest, "stream_timeout_ms = 500").await;
            cut(&mut *opened(&cage, version, "echo").await, version).await;
            alive(&cage).await;
            let cage = started(guest, &format!("{LONG}\nmax_body_bytes = 1000")).await;
            let mut stream = opened(&cage, version, "early").await;
            expect(&mut *stream, "answered early\n").await;
            send(&mut *stream, &"y".repeat(1001)).await;
            cut(&mut *stream, version).await;
            alive(&cage).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_in_the_middle_ends_the_tunnel() {
    for guest in GUESTS {
        let cage = started(guest, LONG).await;
        for version in VERSIONS {
            let mut stream = opened(&cage, version, "echo").await;
            send(&mut *stream, "one").await;
            expect(&mut *stream, "one").await;
            drop(stream);
            alive(&cage).await;
            let mut stream = opened(&cage, version, "trap-late").await;
            cut(&mut *stream, version).await;
            alive(&cage).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_a_tunnel_and_cuts_it_at_its_end() {
    for guest in GUESTS {
        for version in VERSIONS {
            let cage = started(guest, LONG).await;
            let mut stream = opened(&cage, version, "echo").await;
            send(&mut *stream, "before").await;
            expect(&mut *stream, "before").await;
            let address = cage.address("web");
            let stopped = tokio::spawn(cage.stop());
            eventually("a closed port", || std::net::TcpStream::connect(&address).is_err().then_some(())).await;
            send(&mut *stream, "meanwhile").await;
            expect(&mut *stream, "meanwhile").await;
            assert!(!stopped.is_finished());
            stream.shutdown().await.unwrap();
            assert_eq!(rest(&mut *stream).await, "");
            assert!(tokio::time::timeout(TIMEOUT, stopped).await.unwrap().unwrap(), "{guest} {version:?}");
            let cage = TestCage::new().config("request_timeout_ms = 300").module(guest, "interface_web").http("web");
            let cage = cage.config(TUNNELS).config(LONG).start().await;
            let mut stream = opened(&cage, version, "echo").await;
            let stopped = tokio::spawn(cage.stop());
            assert!(!tokio::time::timeout(TIMEOUT, stopped).await.unwrap().unwrap(), "{guest} {version:?}");
            cut(&mut *stream, version).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_passes_through_a_middleware() {
    const BOUND: &str = "[modules.front.imports]\n\"wasi:http/handler\" = \"inner\"\n";
    for inner in GUESTS {
        let cage = TestCage::new().config(BOUND).module("middleware", "front").module(inner, "inner").http("web");
        let cage = cage.config("module = \"front\"").config(TUNNELS).config(LONG).start().await;
        for version in VERSIONS {
            let mut stream = opened(&cage, version, "echo").await;
            for piece in ["one", "two"] {
                send(&mut *stream, piece).await;
                expect(&mut *stream, piece).await;
            }
            stream.shutdown().await.unwrap();
            assert_eq!(rest(&mut *stream).await, "", "{inner} {version:?}");
            alive(&cage).await;
        }
    }
}
