//! Generates the protocol's types without `protoc`: protox parses the file, tonic writes the code.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=dico/v1/dico.proto");
    let descriptors = protox::compile(["dico/v1/dico.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
