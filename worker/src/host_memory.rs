//! Host memory: settings of glibc's allocator, which libtorch uses for tensors on a CPU.

// SAFETY: declarations of the functions in cuda/settings.cpp.
unsafe extern "C" {
    fn dico_disable_heap_trimming();
    fn dico_trim_heap();
}

/// Makes the allocator keep freed memory instead of returning it to the operating system
/// (`mallopt`): each step allocates and frees the same sizes. Must be called while there is only
/// one thread.
pub fn disable_trimming() {
    // SAFETY: the function only sets parameters of the allocator, which is allowed at any time.
    unsafe { dico_disable_heap_trimming() };
}

/// Returns the memory that is free now to the operating system (`malloc_trim`). Called after rare
/// operations that allocate more than a step, or other sizes.
pub fn trim() {
    // SAFETY: the allocator is thread-safe.
    unsafe { dico_trim_heap() };
}
