//! stub main
use std::process::ExitCode;
fn main() -> ExitCode {
    let a: Vec<_> = std::env::args().collect();
    if a.get(1).is_some_and(|x| x == "compile") {
        return wasmcage::module::compile_worker(a[2].as_ref(), a[3].as_ref());
    }
    wasmcage::telemetry::install(wasmcage::telemetry::TerminalOptions::detect(2));
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async {
        let _host =
            wasmcage::host::Host::start(wasmcage::host::HostOptions::new(&a[1], a[2..].to_vec())).await.unwrap();
        println!("{:?}", _host.serving());
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}
