//! The rendezvous store (a c10d TCPStore) in which the ranks of a generation exchange addresses.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::{IpAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// The size of an error buffer in bytes, as in `include/exceptions.h`.
pub(super) const ERROR_LENGTH: usize = 512;

// SAFETY: declarations of the functions in gloo/shim.cpp, with the same types.
unsafe extern "C" {
    fn dico_store_serve(fd: c_int, host: *const c_char, port: u16, error: *mut c_char) -> *mut c_void;
    fn dico_store_connect(
        host: *const c_char,
        port: u16,
        prefix: *const c_char,
        timeout_ms: i64,
        error: *mut c_char,
    ) -> *mut c_void;
    fn dico_store_set(
        store: *mut c_void,
        key: *const c_char,
        value: *const u8,
        length: usize,
        error: *mut c_char,
    ) -> *mut c_void;
    fn dico_store_get(
        store: *mut c_void,
        key: *const c_char,
        value: *mut u8,
        length: usize,
        error: *mut c_char,
    ) -> *mut c_void;
    fn dico_store_free(store: *mut c_void);
}

/// An owned pointer to an object of the C++ shim (`gloo/shim.cpp`): a store, a process group, or an
/// operation in flight. One thread at a time may use the object.
pub(super) struct ShimHandle {
    pub pointer: *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: c10d's objects are reference-counted atomically and tied to no thread.
unsafe impl Send for ShimHandle {}

impl Drop for ShimHandle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim together with the function that frees it, and is
        // freed once.
        unsafe { (self.free)(self.pointer) }
    }
}

impl ShimHandle {
    /// An object that `make` creates and `free` frees.
    ///
    /// # Errors
    /// `make` returned null. The error is the message that it wrote to the error buffer.
    pub fn new(free: unsafe extern "C" fn(*mut c_void), make: impl FnOnce(*mut c_char) -> *mut c_void) -> Result<Self> {
        Ok(Self { pointer: call_shim(make)?, free })
    }
}

/// Calls a function of the shim. Returns the function's pointer or, if that is null, the error that
/// the function wrote.
fn call_shim(call: impl FnOnce(*mut c_char) -> *mut c_void) -> Result<*mut c_void> {
    let mut error = [0 as c_char; ERROR_LENGTH];
    let pointer = call(error.as_mut_ptr());
    if pointer.is_null() { Err(anyhow!(error_message(&error))) } else { Ok(pointer) }
}

/// The message in an error buffer.
pub(super) fn error_message(error: &[c_char; ERROR_LENGTH]) -> String {
    // SAFETY: the buffer is initialized with zeros, and the shim terminates its text with a zero.
    unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned()
}

/// `text` as a string of C.
///
/// # Errors
/// The text contains a zero byte.
pub(super) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| anyhow!("{text:?} contains a zero byte"))
}

/// A c10d TCPStore that this worker serves until this value is dropped. All ranks of a generation
/// use the store of rank 0.
pub struct TcpStore {
    _handle: ShimHandle,
    address: String,
}

impl TcpStore {
    /// Starts a store at `host`, on a port that the operating system chooses.
    ///
    /// # Errors
    /// `host` is not an address of this machine, or the store cannot be started.
    pub fn serve(host: IpAddr) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).with_context(|| format!("cannot listen on {host}"))?;
        let address = listener.local_addr()?;
        let name = c_string(&host.to_string())?;
        let fd = listener.into_raw_fd();
        // SAFETY: `name` outlives the call; the store takes ownership of the socket.
        let handle = ShimHandle::new(dico_store_free, |error| unsafe {
            dico_store_serve(fd, name.as_ptr(), address.port(), error)
        })?;
        Ok(Self { _handle: handle, address: address.to_string() })
    }

    /// The address, host:port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// A client of a [`TcpStore`], restricted to one generation's keys.
pub(super) struct TcpStoreClient(ShimHandle);

impl TcpStoreClient {
    /// Connects to the store at `address` (host:port), with a prefix for all keys. `timeout` limits
    /// this call and each later call.
    ///
    /// # Errors
    /// `address` is not host:port, or the store did not answer within the timeout.
    pub fn connect(address: &str, prefix: &str, timeout: Duration) -> Result<Self> {
        let (host, port) = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host.trim_matches(['[', ']']), port.parse::<u16>().ok()?)))
            .ok_or_else(|| anyhow!("store address {address:?} is not host:port"))?;
        // Each generation has its own prefix: a fast rank must not read a peer's address of an
        // earlier generation.
        let (host, prefix) = (c_string(host)?, c_string(prefix)?);
        let timeout_ms = timeout.as_millis() as i64;
        // SAFETY: both strings outlive the call.
        let handle = ShimHandle::new(dico_store_free, |error| unsafe {
            dico_store_connect(host.as_ptr(), port, prefix.as_ptr(), timeout_ms, error)
        });
        Ok(Self(handle?))
    }

    pub fn pointer(&self) -> *mut c_void {
        self.0.pointer
    }

    /// Sets a value for the other ranks.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: key and value outlive the call.
        call_shim(|error| unsafe { dico_store_set(self.0.pointer, key.as_ptr(), value.as_ptr(), value.len(), error) })?;
        Ok(())
    }

    /// Waits until another rank has set the value of `key`, and copies it to `value`.
    ///
    /// # Errors
    /// No rank set the value within the timeout, its length is not that of `value`, or the store
    /// cannot be reached.
    pub fn get(&self, key: &str, value: &mut [u8]) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: as above.
        call_shim(|error| unsafe {
            dico_store_get(self.0.pointer, key.as_ptr(), value.as_mut_ptr(), value.len(), error)
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_generation_reads_only_its_own_values() {
        let store = TcpStore::serve(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        let client = |prefix, timeout| TcpStoreClient::connect(store.address(), prefix, timeout).unwrap();
        let timeout = Duration::from_secs(30);
        client("1", timeout).set("name", &[0, 1, 2]).unwrap();
        let mut value = [9; 3];
        client("1", timeout).get("name", &mut value).unwrap();
        assert_eq!(value, [0, 1, 2]);
        assert!(client("1", timeout).get("name", &mut [0; 4]).unwrap_err().to_string().contains("3 bytes, not 4"));
        assert!(client("2", Duration::from_millis(50)).get("name", &mut value).is_err());
        assert!(TcpStoreClient::connect("nonsense", "1", timeout).is_err());
    }
}
