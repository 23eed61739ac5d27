//! Compiles the C++ sources with libtorch's headers, and sets the library path of libtorch.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    // torch-sys has found libtorch (LIBTORCH, LIBTORCH_USE_PYTORCH or .libtorch) and publishes its
    // library folder.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys publishes libtorch's library folder"));
    let lib = std::path::absolute(&lib).expect("the library folder has an absolute path");
    let include = lib.parent().unwrap_or(Path::new("/")).join("include");
    for folder in ["cuda", "gloo", "include", "torch_operators"] {
        println!("cargo:rerun-if-changed={folder}");
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .includes(["include", "gloo/include"])
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files([
            "cuda/graph.cpp",
            "cuda/settings.cpp",
            "cuda/trace.cpp",
            "gloo/shim.cpp",
            "torch_operators/exponentials.cpp",
            "torch_operators/operators.cpp",
        ])
        // In all profiles: unoptimized, the vectorized loops are too slow for tests.
        .opt_level(3)
        .flag("-fopenmp-simd")
        .warnings(false)
        .compile("dico_shims");
    println!("cargo:rustc-link-search=native={}", lib.display());
    for library in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib={library}");
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // The CPU library refers to CUDA libraries, which the loader finds through the rpath.
    println!("cargo:rustc-link-arg=-Wl,--allow-shlib-undefined");
}
