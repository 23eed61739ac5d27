// The exponentials of a softmax over a vocabulary, on a CPU: one pass over a row that is in its cache, where libtorch writes the
// result of each operation to memory.

#pragma once

#include <ATen/core/Tensor.h>

namespace dico {

// Whether the two below can be used on a tensor: [n, v] in a CPU's memory, rows contiguous, of 32-bit numbers or bfloat16.
bool has_exponentials(const at::Tensor& values);

// log of the sum of the exponentials of each row: [n], in 32 bits.
at::Tensor log_sum_exp(const at::Tensor& values);

// Overwrites each value x of row i with exp(x - normalisers[i]) weights[i]; both are [n], in 32 bits and contiguous.
void weighted_softmax_(const at::Tensor& values, const at::Tensor& normalisers, const at::Tensor& weights);

}  // namespace dico
