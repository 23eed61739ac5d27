//! The rendezvous store (a c10d TCPStore) in which the ranks of a generation exchange addresses.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::{IpAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::time::Duration;

/// The size of an error buffer in bytes, as in `gloo/shim.cpp`.
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

/// A pointer to an object of the C++ shim, freed when dropped. One thread at a time may use the
/// object.
pub(super) struct Handle {
    pub pointer: *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: c10d's objects are reference-counted atomically and tied to no thread.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim together with the function that frees it, and is freed once.
        unsafe { (self.free)(self.pointer) }
    }
}

impl Handle {
    pub fn new(
        free: unsafe extern "C" fn(*mut c_void),
        make: impl FnOnce(*mut c_char) -> *mut c_void,
    ) -> Result<Self, String> {
        Ok(Self { pointer: called(make)?, free })
    }
}

/// Calls a function of the shim. Returns its pointer, or its error message if that is null.
fn called(call: impl FnOnce(*mut c_char) -> *mut c_void) -> Result<*mut c_void, String> {
    let mut error = [0 as c_char; ERROR_LENGTH];
    let pointer = call(error.as_mut_ptr());
    if pointer.is_null() { Err(text(&error)) } else { Ok(pointer) }
}

pub(super) fn text(error: &[c_char; ERROR_LENGTH]) -> String {
    // SAFETY: the shim always ends what it writes with a zero, and the buffer starts as zeros.
    unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned()
}

pub(super) fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{text:?} has a zero byte in it"))
}

/// The store that this worker serves until it is dropped. The ranks of a generation use that of
/// rank 0.
pub struct Store {
    _handle: Handle,
    address: String,
}

impl Store {
    /// Starts a store at `host`, on a port that the operating system chooses.
    ///
    /// # Errors
    /// `host` is not an address of this machine.
    pub fn serve(host: IpAddr) -> Result<Self, String> {
        let listener = TcpListener::bind((host, 0)).map_err(|error| format!("cannot listen on {host}: {error}"))?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let name = c_string(&host.to_string())?;
        let fd = listener.into_raw_fd();
        // SAFETY: `name` outlives the call; the store takes the socket over.
        let handle = Handle::new(dico_store_free, |error| unsafe {
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

/// A client of another worker's store, restricted to one generation's keys.
pub(super) struct Client(Handle);

impl Client {
    /// Connects to the store at host:port, with `name` as the prefix of all keys. `patience` is the
    /// timeout of this and of later calls.
    pub fn connect(address: &str, name: &str, patience: Duration) -> Result<Self, String> {
        let (host, port) = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host.trim_matches(['[', ']']), port.parse::<u16>().ok()?)))
            .ok_or_else(|| format!("store address {address:?} is not host:port"))?;
        // Each generation has its own prefix: a fast rank must not read a peer's address of an
        // earlier generation.
        let (host, prefix) = (c_string(host)?, c_string(name)?);
        let timeout = patience.as_millis() as i64;
        // SAFETY: both strings outlive the call.
        let handle = Handle::new(dico_store_free, |error| unsafe {
            dico_store_connect(host.as_ptr(), port, prefix.as_ptr(), timeout, error)
        });
        Ok(Self(handle?))
    }

    pub fn pointer(&self) -> *mut c_void {
        self.0.pointer
    }

    /// Sets a value for the other ranks.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        let key = c_string(key)?;
        // SAFETY: key and value outlive the call.
        called(|error| unsafe { dico_store_set(self.0.pointer, key.as_ptr(), value.as_ptr(), value.len(), error) })?;
        Ok(())
    }

    /// Waits for a value, which must have the length of `value`.
    pub fn get(&self, key: &str, value: &mut [u8]) -> Result<(), String> {
        let key = c_string(key)?;
        // SAFETY: as above.
        called(|error| unsafe {
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
    fn a_generation_sees_its_own_values_only() {
        let store = Store::serve(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        let client = |name, patience| Client::connect(store.address(), name, patience).unwrap();
        let patience = Duration::from_secs(30);
        client("1", patience).set("name", &[0, 1, 2]).unwrap();
        let mut value = [9; 3];
        client("1", patience).get("name", &mut value).unwrap();
        assert_eq!(value, [0, 1, 2]);
        assert!(client("1", patience).get("name", &mut [0; 4]).unwrap_err().contains("3 bytes, not 4"));
        assert!(client("2", Duration::from_millis(50)).get("name", &mut value).is_err());
        assert!(Client::connect("nonsense", "1", patience).is_err());
    }
}
