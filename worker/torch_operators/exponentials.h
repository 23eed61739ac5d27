// The exponentials of a softmax over a vocabulary, on a CPU: one pass over each row while it is in
// the cache. libtorch would write the result of each operation to memory.

#pragma once

#include <ATen/core/Tensor.h>

namespace dico {

// Whether `log_sum_exp` and `weighted_softmax_` support a tensor: [n, v] in the memory of a CPU,
// with contiguous rows, of 32-bit numbers or bfloat16.
bool supports_exponentials(const at::Tensor& values);

// The logsumexp of each row of `values` [n, v]: [n], in 32 bits.
at::Tensor log_sum_exp(const at::Tensor& values);

// Overwrites each value x of row i of `values` [n, v] with exp(x - log_normalizers[i]) weights[i].
// `log_normalizers` and `weights` are [n], in 32 bits and contiguous.
void weighted_softmax_(const at::Tensor& values, const at::Tensor& log_normalizers, const at::Tensor& weights);

}  // namespace dico
