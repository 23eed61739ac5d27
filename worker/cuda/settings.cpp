// Settings of libtorch, and of the allocator below it, that neither tch nor Rust reach.

#include <ATen/Context.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

extern "C" {

// Lets libtorch use nothing but algorithms that give the same bits each time, and refuse what has none; 32-bit numbers are
// computed with as such. What was never written need not be filled for that. cuBLAS needs no setting: libtorch gives it workspaces of
// a fixed size, with which it gives the same bits. cuDNN's attention, which libtorch prefers for 16-bit
// numbers on Hopper, is switched off: it builds a plan for each new shape, which takes tens of
// milliseconds, and trees of captions have a new shape in almost every step.
void dico_compute_reproducibly() {
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(true, false);
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(true);
  context.setAllowTF32CuDNN(false);
  context.setSDPUseCuDNN(false);
}

// Keeps freed memory for what is allocated next. A step frees and takes hundreds of megabytes; given back to the system, each of
// their pages would have to be cleared anew, which can take as long as all that is computed. One arena, as the others cannot hold
// what is large.
void dico_keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

// Gives what is free back to the system, wherever in the heap it is.
void dico_give_freed_memory_back() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // extern "C"
