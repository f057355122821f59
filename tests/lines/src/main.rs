//! A host with a protocol of its own, and no other: `cargo run -p wasmcage-lines -- run hello`.

fn main() -> std::process::ExitCode {
    wasmcage_cli::main(wasmcage::Protocols::new(vec![Box::new(wasmcage_lines::Lines)]))
}
