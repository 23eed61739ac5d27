// Settings of libtorch that tch does not reach.

#include <ATen/Context.h>

extern "C" {

// Lets libtorch use nothing but algorithms that give the same bits each time, and refuse what has none; 32-bit numbers are
// computed with as such. What was never written need not be filled for that. cuBLAS needs no setting: libtorch gives it workspaces of
// a fixed size, with which it gives the same bits.
void dico_compute_reproducibly() {
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(true, false);
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(true);
  context.setAllowTF32CuDNN(false);
}

}  // extern "C"
