#include "exponentials.h"

#include <ATen/ATen.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// A function with this attribute is compiled for several generations of processors. When the
// program starts, it selects the newest version that the machine supports.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_WIDE_VECTORS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_WIDE_VECTORS
#endif
// A function with this attribute is compiled for the instruction set of its caller.
#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace {

// The number of values of a row that are processed at a time: they fit the first-level cache.
constexpr int64_t BLOCK_LENGTH = 2048;

ALWAYS_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

ALWAYS_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// A bfloat16: the upper half of the bits of a 32-bit number.
struct BFloat16 {
  uint16_t bits;
};

ALWAYS_INLINE float load(float value) {
  return value;
}

ALWAYS_INLINE float load(BFloat16 value) {
  return from_bits(static_cast<uint32_t>(value.bits) << 16);
}

ALWAYS_INLINE void store(float& target, float value) {
  target = value;
}

// Rounds to the nearest bfloat16, ties to even. NaN stays NaN.
ALWAYS_INLINE void store(BFloat16& target, float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  target.bits = static_cast<uint16_t>(value == value ? rounded : (bits >> 16) | 0x40);
}

// e^x to within 2 units in the last place for x in -87 .. 88. Smaller x give e^-87, which is
// 1.6e-38.
ALWAYS_INLINE float exponential(float x) {
  constexpr float LOG2_E = 1.44269504F;
  constexpr float LN_2_HIGH = 0.693359375F;
  constexpr float LN_2_LOW = -2.12194440e-4F;
  // 1.5 * 2^23. Adding it rounds to an integer, which is then in the last bits of the sum.
  constexpr float ROUNDING_OFFSET = 12582912.0F;
  x = std::max(x, -87.0F);
  const float shifted = x * LOG2_E + ROUNDING_OFFSET;
  const float exponent = shifted - ROUNDING_OFFSET;
  const float rest = (x - exponent * LN_2_HIGH) - exponent * LN_2_LOW;
  // The Taylor series up to the term that |rest| <= ln 2 / 2 requires.
  float sum = 1.0F / 5040.0F;
  sum = sum * rest + 1.0F / 720.0F;
  sum = sum * rest + 1.0F / 120.0F;
  sum = sum * rest + 1.0F / 24.0F;
  sum = sum * rest + 1.0F / 6.0F;
  sum = sum * rest + 0.5F;
  sum = sum * rest + 1.0F;
  sum = sum * rest + 1.0F;
  // Multiplies with 2^exponent; 0x3F800000 are the bits of 1. NaN stays NaN.
  return sum * from_bits((bits_of(shifted) << 23) + 0x3F800000);
}

template <typename T>
ALWAYS_INLINE float row_log_sum_exp(const T* row, int64_t width) {
  float row_max = -std::numeric_limits<float>::infinity();
  double total = 0.0;
  for (int64_t from = 0; from < width; from += BLOCK_LENGTH) {
    const int64_t length = std::min(BLOCK_LENGTH, width - from);
    const T* block = row + from;
    float block_max = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : block_max)
    for (int64_t i = 0; i < length; ++i) block_max = std::max(block_max, load(block[i]));
    if (block_max > row_max) {
      total *= std::exp(static_cast<double>(row_max) - block_max);
      row_max = block_max;
    }
    if (row_max == -std::numeric_limits<float>::infinity()) continue;
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < length; ++i) sum += exponential(load(block[i]) - row_max);
    total += sum;
  }
  return row_max + static_cast<float>(std::log(total));
}

template <typename T>
ALWAYS_INLINE void row_weighted_softmax(T* row, int64_t width, float log_normalizer, float weight) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) store(row[i], exponential(load(row[i]) - log_normalizer) * weight);
}

FOR_WIDE_VECTORS void log_sum_exps(const float* rows, int64_t stride, int64_t width, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] = row_log_sum_exp(rows + i * stride, width);
}

FOR_WIDE_VECTORS void log_sum_exps(const BFloat16* rows, int64_t stride, int64_t width, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] = row_log_sum_exp(rows + i * stride, width);
}

FOR_WIDE_VECTORS void weighted_softmaxes(float* rows, int64_t stride, int64_t width, int64_t count, const float* log_normalizers,
                                         const float* weights) {
  for (int64_t i = 0; i < count; ++i) row_weighted_softmax(rows + i * stride, width, log_normalizers[i], weights[i]);
}

FOR_WIDE_VECTORS void weighted_softmaxes(BFloat16* rows, int64_t stride, int64_t width, int64_t count, const float* log_normalizers,
                                         const float* weights) {
  for (int64_t i = 0; i < count; ++i) row_weighted_softmax(rows + i * stride, width, log_normalizers[i], weights[i]);
}

// Calls `compute(rows, from, to)` on libtorch's threads; `rows` points to row `from`, in the type
// of `values`. Uses a TensorIterator over the indices of the rows: at::parallel_for is a template
// that is compiled into its caller, which would have to be linked with the same OpenMP.
template <typename F>
void for_rows(const at::Tensor& values, const F& compute) {
  if (values.size(0) == 0) return;
  const at::Tensor indices = at::arange(values.size(0), at::kLong);
  auto iterator = at::TensorIterator::nullary_op(const_cast<at::Tensor&>(indices));
  iterator.for_each(
      [&](char** data, const int64_t*, int64_t count) {
        const int64_t from = *reinterpret_cast<const int64_t*>(data[0]);
        const int64_t offset = from * values.stride(0);
        if (values.scalar_type() == at::kFloat) {
          compute(static_cast<float*>(values.data_ptr()) + offset, from, from + count);
        } else {
          compute(static_cast<BFloat16*>(values.data_ptr()) + offset, from, from + count);
        }
      },
      1);
}

}  // namespace

namespace dico {

bool supports_exponentials(const at::Tensor& values) {
  const auto type = values.scalar_type();
  return values.is_cpu() && values.dim() == 2 && values.stride(1) == 1 && (type == at::kFloat || type == at::kBFloat16);
}

at::Tensor log_sum_exp(const at::Tensor& values) {
  const at::Tensor sums = at::empty({values.size(0)}, values.options().dtype(at::kFloat));
  float* results = sums.data_ptr<float>();
  for_rows(values, [&](const auto* rows, int64_t from, int64_t to) {
    log_sum_exps(rows, values.stride(0), values.size(1), to - from, results + from);
  });
  return sums;
}

void weighted_softmax_(const at::Tensor& values, const at::Tensor& log_normalizers, const at::Tensor& weights) {
  const float *subtracted = log_normalizers.data_ptr<float>(), *factors = weights.data_ptr<float>();
  for_rows(values, [&](auto* rows, int64_t from, int64_t to) {
    weighted_softmaxes(rows, values.stride(0), values.size(1), to - from, subtracted + from, factors + from);
  });
}

}  // namespace dico
