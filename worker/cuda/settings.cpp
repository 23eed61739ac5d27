// Settings of libtorch and of glibc's allocator for which tch has no interface.

#include <ATen/Context.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

extern "C" {

// Makes libtorch use only deterministic algorithms, and fail for operations without one. Disables
// TF32, so 32-bit products have full precision. libtorch does not fill uninitialized memory:
// deterministic results do not need that. cuBLAS needs no setting: libtorch gives it workspaces of
// a fixed size, with which it is deterministic. cuDNN's attention, which libtorch prefers for
// 16-bit numbers on Hopper, is disabled: it builds a plan for each new shape, which takes tens of
// milliseconds, and prefix trees have a new shape in almost every step.
void dico_use_deterministic_algorithms() {
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(true, false);
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(true);
  context.setAllowTF32CuDNN(false);
  context.setSDPUseCuDNN(false);
}

// Makes the allocator keep freed memory for later allocations. A step allocates and frees hundreds
// of megabytes. If they were returned to the operating system, it would clear each page again,
// which can take as long as the computation. There is one arena, because other arenas cannot
// contain large blocks.
void dico_disable_heap_trimming() {
#ifdef __GLIBC__
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

// Returns all free memory of the heap to the operating system.
void dico_trim_heap() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // extern "C"
