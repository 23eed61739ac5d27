//! Generates the protocol's types without `protoc`: protox parses the file, prost and tonic write
//! the code.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=dico/v1/dico.proto");
    let descriptors = protox::compile(["dico/v1/dico.proto"], ["."])?;
    let has_grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure().build_client(has_grpc).build_server(has_grpc).compile_fds(descriptors)?;
    Ok(())
}
