//! Settings of the C allocator, which libtorch uses for tensors on a CPU.

// SAFETY: declarations of the functions in cuda/settings.cpp.
unsafe extern "C" {
    fn dico_keep_freed_memory();
    fn dico_give_freed_memory_back();
}

/// Keeps freed memory for later allocations, because each step allocates and frees the same sizes.
/// Has to be called while there is only one thread.
pub fn keep_freed() {
    // SAFETY: it only sets parameters of the allocator, which may be done at any time.
    unsafe { dico_keep_freed_memory() };
}

/// Returns freed memory to the operating system once: after rare operations that need more memory
/// than a step, or other sizes.
pub fn give_back() {
    // SAFETY: the allocator locks what it looks at.
    unsafe { dico_give_freed_memory_back() };
}
