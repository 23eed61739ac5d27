//! The C allocator, from which libtorch takes what it computes in on a CPU.

// SAFETY: a declaration of the function in cuda/settings.cpp.
unsafe extern "C" {
    fn dico_keep_freed_memory();
}

/// Keeps freed memory for what is allocated next, as each step frees and takes the same again. To be called while there is one
/// thread.
pub fn keep_freed() {
    // SAFETY: it only sets parameters of the allocator, which may be done at any time.
    unsafe { dico_keep_freed_memory() };
}
