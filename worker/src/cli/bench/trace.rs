//! Traces of libtorch's profiler.

use std::ffi::{CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use tch::Device;

use crate::cuda;
use crate::nn::checked_call;

// SAFETY: declarations of the functions in cuda/trace.cpp, with the same types.
unsafe extern "C" {
    fn dico_trace_begin(on_gpu: bool, error: *mut c_char) -> *mut c_void;
    fn dico_trace_end(path: *const c_char, error: *mut c_char) -> *mut c_void;
}

/// Runs `work`, and writes the duration of its operations and kernels to a file in Chrome's trace
/// format. Tracing slows the CPU down, but not a GPU.
///
/// # Errors
/// The file cannot be written, libtorch's profiler fails, or `work` fails.
pub fn trace(device: Device, path: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
    // Fails if the file cannot be written, which libtorch would not report.
    std::fs::File::create(path).with_context(|| path.display().to_string())?;
    let name = CString::new(path.as_os_str().as_bytes()).with_context(|| path.display().to_string())?;
    cuda::synchronize(device);
    // SAFETY: the error's buffer outlives the call.
    checked_call(|error| unsafe { dico_trace_begin(device.is_cuda(), error) })?;
    let result = work();
    cuda::synchronize(device);
    // SAFETY: as above; the name outlives the call, too.
    checked_call(|error| unsafe { dico_trace_end(name.as_ptr(), error) })?;
    result
}
