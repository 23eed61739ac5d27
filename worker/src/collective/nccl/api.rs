//! Bindings for NCCL's functions. cudarc declares the types. Its loader is not used: it looks for
//! `libnccl.so`, while PyTorch's library is called `libnccl.so.2`, and it panics without one.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclUniqueId};
use libloading::os::unix::Library;

const LIBRARY: &str = "libnccl.so.2";
/// `ncclSuccess`.
pub const SUCCESS: ResultCode = 0;
/// `ncclInProgress`: a non-blocking call has not completed yet.
pub const IN_PROGRESS: ResultCode = 7;
/// `ncclSum` of `ncclRedOp_t`.
pub const SUM: c_int = 0;

/// `ncclResult_t`. An integer, because later versions of the library may return unknown codes.
pub type ResultCode = u32;

macro_rules! api {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// NCCL's functions, under their names without the prefix.
        pub struct NcclApi {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl NcclApi {
            fn resolve(library: &Library) -> Result<Self> {
                let missing = |symbol: &str| anyhow!("{LIBRARY} has no {symbol}: it is too old");
                Ok(Self {
                    // SAFETY: the types are those of nccl.h.
                    $($field: *unsafe { library.get($symbol) }.map_err(|_| missing($symbol))?,)*
                })
            }
        }
    };
}

api! {
    get_unique_id = "ncclGetUniqueId": fn(*mut ncclUniqueId) -> ResultCode;
    comm_init_rank_config = "ncclCommInitRankConfig": fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> ResultCode;
    comm_get_async_error = "ncclCommGetAsyncError": fn(ncclComm_t, *mut ResultCode) -> ResultCode;
    comm_finalize = "ncclCommFinalize": fn(ncclComm_t) -> ResultCode;
    comm_destroy = "ncclCommDestroy": fn(ncclComm_t) -> ResultCode;
    comm_abort = "ncclCommAbort": fn(ncclComm_t) -> ResultCode;
    all_reduce = "ncclAllReduce": fn(*const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> ResultCode;
    broadcast = "ncclBroadcast": fn(*const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> ResultCode;
    all_gather = "ncclAllGather": fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclComm_t, cudaStream_t) -> ResultCode;
    get_error_string = "ncclGetErrorString": fn(ResultCode) -> *const c_char;
    get_last_error = "ncclGetLastError": fn(ncclComm_t) -> *const c_char;
}

impl NcclApi {
    /// The functions of the library that libtorch has loaded, or else of the one that the dynamic
    /// loader finds. Only the first call opens it; later calls return the same result.
    ///
    /// # Errors
    /// There is no such library, it cannot be opened, or it lacks a function.
    pub fn get() -> Result<&'static Self> {
        static API: OnceLock<Result<NcclApi>> = OnceLock::new();
        let load = || {
            // SAFETY: opening a library runs its initializers. Those of NCCL may run at any time:
            // the dynamic loader also runs them, when libtorch's CUDA library is opened.
            let library = unsafe { Library::new(LIBRARY) }.map_err(|error| {
                anyhow!("cannot open {LIBRARY} ({error}): install PyTorch with CUDA, or `pip install nvidia-nccl-cu13`")
            })?;
            let api = Self::resolve(&library);
            // The functions are used until the process ends, so the library is not closed.
            std::mem::forget(library);
            api
        };
        API.get_or_init(load).as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// The error message for `code`, with NCCL's last error. NCCL keeps one last error for all
    /// communicators, and ignores `comm`.
    pub fn error_message(&self, code: ResultCode, comm: ncclComm_t) -> String {
        // SAFETY: both return strings that NCCL keeps, or null; a null communicator is allowed.
        let texts = unsafe { [(self.get_error_string)(code), (self.get_last_error)(comm)] };
        let texts = texts.into_iter().filter(|text| !text.is_null());
        // SAFETY: as above.
        let texts = texts.map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned());
        let texts: Vec<String> = texts.filter(|text| !text.is_empty()).collect();
        format!("NCCL: {}", texts.join(": "))
    }
}
