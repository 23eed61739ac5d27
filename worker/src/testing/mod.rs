//! Support for unit tests: the device that they compute on, and the golden files
//! ([`golden_files`]). The environment variable `DICO_TEST_DEVICE` names the device: `cpu` (the
//! default) or `cuda:N`.
//!
//! `tests/gpu/run` sets the variable. On a CPU [`each_code_path`] repeats a check with the GPU
//! path, so that every test run executes the GPU path.

pub mod golden_files;

use std::process::Command;

use config::Precision;
use tch::{Device, Kind};

use crate::nn::{self, Backend};
use crate::{cli, cuda};

const DEVICE_VARIABLE: &str = "DICO_TEST_DEVICE";

/// Loads libtorch's CUDA libraries before `main`: they have to be loaded before the first tensor is
/// created, while there is one thread, and the test harness starts threads before it runs a test.
#[used]
// SAFETY: the C library calls the functions of this section before `main`, after the initializers
// of the standard library.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = load_cuda;

extern "C" fn load_cuda() {
    if device().is_cuda()
        && let Err(problem) = cuda::load()
    {
        eprintln!("error: {DEVICE_VARIABLE}: {problem}");
        std::process::exit(1);
    }
}

/// The device of tests.
pub fn device() -> Device {
    let Ok(text) = std::env::var(DEVICE_VARIABLE) else { return Device::Cpu };
    cli::parse_device(&text).unwrap_or_else(|problem| panic!("{DEVICE_VARIABLE}={text}: {problem}"))
}

/// The device of tests, with bf16 products.
pub fn bf16_backend() -> Backend {
    Backend { device: device(), precision: Precision::Bf16 }
}

/// The type and the device of 32-bit tensors on the device of tests.
pub fn f32_options() -> (Kind, Device) {
    (Kind::Float, device())
}

/// Runs a check in a separate process: all threads of a process share libtorch's random generator,
/// and other tests use it. `test` is the path of the calling test, as the test harness prints it.
pub fn in_separate_process(test: &str, check: impl FnOnce()) {
    const CHILD_VARIABLE: &str = "DICO_TEST_ALONE";
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        return check();
    }
    let mut command = Command::new(std::env::current_exe().expect("the test program has a path"));
    let output = command.args(["--exact", test]).env(CHILD_VARIABLE, "1").output().expect("the test program starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{stdout}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs a check on the device of tests and, if that is a CPU, again with the GPU path.
pub fn each_code_path(check: impl Fn()) {
    check();
    if !device().is_cuda() {
        nn::with_forced_gpu_path(check);
    }
}
