use std::ffi::{CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tch::Device;

use super::synchronise;
use crate::nn::guarded;

// SAFETY: declarations of the functions in cuda/trace.cpp, with the same types.
unsafe extern "C" {
    fn dico_trace_begin(on_gpu: bool, error: *mut c_char) -> *mut c_void;
    fn dico_trace_end(path: *const c_char, error: *mut c_char) -> *mut c_void;
}

/// Does some work, and writes the operations and the kernels that it started to a file in the format
/// of Chrome's traces, with the time that each took. Tracing makes the processor slower, not a GPU.
///
/// # Errors
/// There is no file, or libtorch's profiler cannot trace.
pub fn trace(device: Device, path: &Path, work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    // libtorch reports nothing when it cannot write.
    std::fs::File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| format!("{}: {error}", path.display()))?;
    synchronise(device);
    // SAFETY: the error's buffer outlives the call.
    guarded(|error| unsafe { dico_trace_begin(device.is_cuda(), error) })?;
    let done = work();
    synchronise(device);
    // SAFETY: as above, and the name does, too.
    guarded(|error| unsafe { dico_trace_end(name.as_ptr(), error) })?;
    done
}
