//! The load for all peers: a number of callers, a body size and a time. The results are rate, latencies and CPU time of
//! this process.
//!
//! Compiled into `rpc_peers` and, by its path, into the bench `rpc`, so that every figure comes from the same loop.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinHandle;

/// Calls before the measured ones: connections, allocators and branch predictors are warm after them.
const WARM_UP: Duration = Duration::from_millis(200);

/// A client of an echo service on the other side of one connection.
pub(crate) trait Echo: Clone + Send + Sync + 'static {
    /// Sends a body, and returns the length of the response or the error.
    fn call(&self, body: Bytes) -> impl Future<Output = Result<usize, String>> + Send;

    /// Spawns the caller with this number.
    fn spawn<T: Send + 'static>(
        &self,
        _caller: usize,
        calls: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        tokio::spawn(calls)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) body_bytes: usize,
    pub(crate) callers: usize,
    pub(crate) duration: Duration,
    /// Callers whose calls are not counted: the load beside the counted ones.
    pub(crate) beside: usize,
    pub(crate) beside_body_bytes: usize,
}

pub(crate) struct Figures {
    pub(crate) calls_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// The CPU time of the client's process, including the callers that are not counted.
    pub(crate) cpu_us_per_call_client: f64,
}

impl Figures {
    /// One line of JSON with the figures.
    pub(crate) fn to_json(&self) -> String {
        format!(
            "{{\"calls_per_second\":{:.0},\"p50_us\":{:.1},\"p99_us\":{:.1},\"cpu_us_per_call_client\":{:.2}}}",
            self.calls_per_second, self.p50_us, self.p99_us, self.cpu_us_per_call_client
        )
    }
}

/// # Errors
/// The first call that fails, or that comes back with another length.
pub(crate) async fn run(client: impl Echo, load: Load) -> Result<Figures, String> {
    let start = |callers: usize, body_bytes: usize, over: &Arc<AtomicBool>| -> Vec<_> {
        let calls = || calls(client.clone(), body_bytes, over.clone());
        (0..callers).map(|caller| client.spawn(caller, calls())).collect()
    };
    let (warm, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let beside = start(load.beside, load.beside_body_bytes, &over);
    let warming = start(load.callers, load.body_bytes, &warm);
    tokio::time::sleep(WARM_UP).await;
    warm.store(true, Ordering::Relaxed);
    gather(warming).await?;

    let (begun, cpu_begun) = (Instant::now(), cpu_time());
    let counted = start(load.callers, load.body_bytes, &over);
    tokio::time::sleep(load.duration).await;
    over.store(true, Ordering::Relaxed);
    let mut latencies = gather(counted).await?;
    let (elapsed, cpu) = (begun.elapsed(), cpu_time().saturating_sub(cpu_begun));
    gather(beside).await?;

    latencies.sort_unstable();
    let count = latencies.len() as f64;
    Ok(Figures {
        calls_per_second: count / elapsed.as_secs_f64(),
        p50_us: at(&latencies, 0.5),
        p99_us: at(&latencies, 0.99),
        cpu_us_per_call_client: cpu.as_secs_f64() * 1e6 / count,
    })
}

/// Runs one caller, which begins the next call when the last one is answered.
async fn calls(client: impl Echo, body_bytes: usize, over: Arc<AtomicBool>) -> Result<Vec<Duration>, String> {
    let body = Bytes::from(vec![b'x'; body_bytes]);
    let mut latencies = Vec::with_capacity(1 << 16);
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let length = client.call(body.clone()).await?;
        latencies.push(begun.elapsed());
        if length != body_bytes {
            return Err(format!("sent {body_bytes} bytes, {length} came back"));
        }
    }
    Ok(latencies)
}

async fn gather(callers: Vec<JoinHandle<Result<Vec<Duration>, String>>>) -> Result<Vec<Duration>, String> {
    let mut all = Vec::new();
    for caller in callers {
        all.extend(caller.await.map_err(|error| error.to_string())??);
    }
    Ok(all)
}

/// The latency in microseconds at this share of the sorted ones.
fn at(sorted: &[Duration], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
}

/// The CPU time of this process so far.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
