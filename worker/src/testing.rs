//! The device of unit tests: the one that `DICO_TEST_DEVICE` names (`cpu`, the default, or
//! `cuda:N`).
//!
//! `tests/gpu/run` sets the variable. Without a GPU [`each_code_path`] repeats a check with the
//! code path of GPUs on the CPU, so that every test run executes it.

use std::process::Command;

use config::Precision;
use tch::{Device, Kind};

use crate::nn::{self, Backend};
use crate::{cli, cuda};

const VARIABLE: &str = "DICO_TEST_DEVICE";

/// The CUDA part of libtorch has to be loaded before the first tensor is created, while there is
/// one thread. The test harness starts its threads before it runs a test, so this is called before
/// `main`.
#[used]
// SAFETY: the C library calls the functions of this section before `main`, after the standard library's own.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = load_cuda;

extern "C" fn load_cuda() {
    if device().is_cuda()
        && let Err(problem) = cuda::load()
    {
        eprintln!("error: {VARIABLE}: {problem}");
        std::process::exit(1);
    }
}

/// The device of tests.
pub fn device() -> Device {
    let Ok(text) = std::env::var(VARIABLE) else { return Device::Cpu };
    cli::parse_device(&text).unwrap_or_else(|problem| panic!("{VARIABLE}={text}: {problem}"))
}

/// The device of tests, with 16-bit products.
pub fn sixteen_bits() -> Backend {
    Backend { device: device(), precision: Precision::Bf16 }
}

/// 32-bit numbers on the device of tests.
pub fn floats() -> (Kind, Device) {
    (Kind::Float, device())
}

/// Runs a check in a separate process: libtorch's generator belongs to the whole process, and other
/// tests draw from it. `test` is the path of the calling test, as the test harness prints it.
pub fn alone(test: &str, check: impl FnOnce()) {
    const ALONE: &str = "DICO_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return check();
    }
    let mut command = Command::new(std::env::current_exe().expect("the test's program has a path"));
    let output = command.args(["--exact", test]).env(ALONE, "1").output().expect("the test's program runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a check on the device of tests and, if that is a CPU, again with the code path of GPUs.
pub fn each_code_path(check: impl Fn()) {
    check();
    if !device().is_cuda() {
        nn::on_gpu_path(check);
    }
}
