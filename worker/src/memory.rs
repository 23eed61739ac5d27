//! The C allocator, from which libtorch takes what it computes in on a CPU.

// SAFETY: declarations of the functions in cuda/settings.cpp.
unsafe extern "C" {
    fn dico_keep_freed_memory();
    fn dico_give_freed_memory_back();
}

/// Keeps freed memory for what is allocated next, as each step frees and takes the same again. To be called while there is one
/// thread.
pub fn keep_freed() {
    // SAFETY: it only sets parameters of the allocator, which may be done at any time.
    unsafe { dico_keep_freed_memory() };
}

/// Gives it back once: after what is seldom done and takes more, or other, memory than a step.
pub fn give_back() {
    // SAFETY: the allocator locks what it looks at.
    unsafe { dico_give_freed_memory_back() };
}
