// Operators that libtorch does not have, that are slower in libtorch, or for which tch has no
// interface: 32-bit matrix products by oneDNN, log-probabilities of tokens without the whole
// log-softmax, gradients of embedding tables in place, and fused Adam.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "exceptions.h"
#include "exponentials.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The number of tokens of the vocabulary whose logits are computed at a time on a CPU: the logits
// of a batch for these tokens should fit the cache.
constexpr int64_t VOCABULARY_BLOCK = 4096;

// Set only by tests: makes a thread use the GPU path on a CPU.
thread_local bool is_gpu_path_forced = false;

// Whether the CPU path is used: operations for the caches and vector instructions of CPUs.
bool uses_cpu_path(const Tensor& tensor) {
  return tensor.is_cpu() && !is_gpu_path_forced;
}

using Scalars = c10::List<std::optional<at::Scalar>>;
using LinearPointwise = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, std::string_view,
                         Scalars, std::optional<std::string_view>);

// oneDNN's linear layer, which libtorch itself uses only for 16-bit numbers. It has kernels for all
// vector widths. MKL, which libtorch uses for 32-bit numbers, uses only narrow vectors on
// processors that are not Intel's.
std::optional<c10::TypedOperatorHandle<LinearPointwise>> one_dnn_linear() {
  static const auto handle = [] {
    const auto handle = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    return handle ? std::optional(handle->typed<LinearPointwise>()) : std::nullopt;
  }();
  return handle;
}

// x w^T + b, [m, n]: x is [m, k], w is [n, k], b is [n]. x and w have the same type and any layout.
Tensor matrix_product(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b = std::nullopt) {
  if (uses_cpu_path(x) && x.scalar_type() == at::kFloat && x.numel() > 0) {
    if (const auto handle = one_dnn_linear()) return handle->call(x, w, b, "none", Scalars(), std::nullopt);
  }
  return at::linear(x, w, b);
}

// The gradient of a weight [n, k]: the sum of the outer products of `rows` [m, n] and `columns` [m,
// k], in the memory layout of `weight`.
Tensor sum_of_outer_products(const Tensor& rows, const Tensor& columns, const Tensor& weight) {
  if (weight.is_contiguous()) return matrix_product(rows.t(), columns.t());
  return matrix_product(columns.t(), rows.t()).t();
}

// The logsumexp of each row of `logits` [n, v]: [n], in 32 bits.
Tensor row_logsumexp(const Tensor& logits) {
  if (uses_cpu_path(logits) && dico::supports_exponentials(logits)) return dico::log_sum_exp(logits);
  // On a GPU log_softmax launches one kernel, and libtorch's logsumexp six. Each logit minus its
  // log-softmax is the logsumexp.
  const Tensor first = logits.select(1, 0).to(at::kFloat);
  return first - at::log_softmax(logits, 1, at::kFloat).select(1, 0);
}

// exp(values - log_normalizers) weights: `values` is [n, v], the others are [n]. May overwrite
// `values`.
Tensor weighted_softmax(const Tensor& values, const Tensor& log_normalizers, const Tensor& weights) {
  if (uses_cpu_path(values) && dico::supports_exponentials(values)) {
    dico::weighted_softmax_(values, log_normalizers, weights);
    return values;
  }
  const Tensor softmax = (values.to(at::kFloat) - log_normalizers.unsqueeze(1)).exp_();
  return softmax.mul_(weights.unsqueeze(1)).to(values.scalar_type());
}

// y = x w^T + b: x is [.., k], w is [n, k], b is [n], and y is [.., n]. Products read the working
// copies `working` and `working_bias`: the weight and the bias themselves, or copies of another
// type.
struct Linear : Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& working, const Tensor& working_bias) {
    const Tensor rows = x.reshape({-1, x.size(-1)}).to(working.scalar_type());
    context->save_for_backward({rows, working});
    auto shape = x.sizes().vec();
    shape.back() = working.size(0);
    return matrix_product(rows, working, working_bias).view(shape);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &rows = saved[0], &working = saved[1], &grad_output = gradients[0];
    const Tensor flat = grad_output.reshape({-1, grad_output.size(-1)}).to(working.scalar_type());
    Tensor grad_x, grad_weight, grad_bias;
    if (context->needs_input_grad(0)) {
      auto shape = grad_output.sizes().vec();
      shape.back() = rows.size(1);
      grad_x = matrix_product(flat, working.t()).view(shape);
    }
    if (context->needs_input_grad(1)) grad_weight = sum_of_outer_products(flat, rows, working).to(at::kFloat);
    if (context->needs_input_grad(2)) grad_bias = flat.sum(0, false, at::kFloat);
    return {grad_x, grad_weight, grad_bias, Tensor(), Tensor()};
  }
};

// The gradient of an embedding table [v, w]. If the leaf has memory for its gradient, the gradient
// is accumulated there, and autograd receives none; otherwise new memory is allocated. Tables are
// so large that autograd's additional pass for the accumulation would take noticeable time.
struct TableGradient {
  explicit TableGradient(const Tensor& table) : accumulates_in_leaf(table.grad().defined() && table.grad().sizes() == table.sizes()) {
    sum = accumulates_in_leaf ? table.grad() : at::zeros(table.sizes(), table.options());
  }
  // The gradient that autograd accumulates into the leaf.
  Tensor for_autograd() const { return accumulates_in_leaf ? Tensor() : sum; }

  bool accumulates_in_leaf;
  Tensor sum;
};

// The rows `ids` [..] of a table [v, w]: [.., w].
struct Embedding : Function<Embedding> {
  static Tensor forward(AutogradContext* context, const Tensor& table, const Tensor& ids) {
    context->save_for_backward({table, ids});
    auto shape = ids.sizes().vec();
    shape.push_back(table.size(1));
    return table.index_select(0, ids.reshape(-1)).view(shape);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    TableGradient gradient(saved[0]);
    gradient.sum.index_add_(0, saved[1].reshape(-1), gradients[0].reshape({-1, saved[0].size(1)}));
    return {gradient.for_autograd(), Tensor()};
  }
};

// The log-probabilities of tokens, [predictions]: the values (nodes[i], targets[i]) of the
// log-softmax of hidden [n, w] times table^T, table [v, w]. The vocabulary is processed in blocks.
// Of the tensors [n, v] only the logits are kept for the backward pass, which on a CPU overwrites
// them with their gradient.
struct TokenLogProbabilities : Function<TokenLogProbabilities> {
  static Tensor forward(AutogradContext* context, const Tensor& hidden, const Tensor& table, const Tensor& working,
                        const Tensor& nodes, const Tensor& targets, bool needs_backward) {
    const Tensor rows = hidden.to(working.scalar_type());
    variable_list logits;
    variable_list sums;
    // On a GPU the launch of an operation takes longer than memory accesses: the whole vocabulary
    // is one block.
    const int64_t block = uses_cpu_path(working) ? VOCABULARY_BLOCK : std::max<int64_t>(working.size(0), 1);
    for (const Tensor& table_block : working.split(block)) {
      const Tensor values = matrix_product(rows, table_block);
      sums.push_back(row_logsumexp(values));
      if (needs_backward) logits.push_back(values);
    }
    const Tensor log_normalizers = at::logsumexp(at::stack(sums, 1), 1);
    // The logits of the targets are rounded in the same way as those in `log_normalizers`, so that
    // logit and normalizer are equal if the target has all the probability.
    const Tensor factors = rows.index_select(0, nodes).to(at::kFloat) * working.index_select(0, targets).to(at::kFloat);
    const Tensor chosen = factors.sum(1).to(working.scalar_type()).to(at::kFloat);
    if (needs_backward) {
      context->save_for_backward({rows, table, working, nodes, targets, log_normalizers});
      context->saved_data["logits"] = logits;
    }
    return chosen - log_normalizers.index_select(0, nodes);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &rows = saved[0], &working = saved[2], &nodes = saved[3], &targets = saved[4], &log_normalizers = saved[5];
    const auto logits = context->saved_data["logits"].toTensorVector();
    context->saved_data.clear();
    const Tensor& grad_output = gradients[0];
    const Tensor weights = at::zeros_like(log_normalizers).index_add_(0, nodes, grad_output).neg_();
    const Tensor grad_column = grad_output.unsqueeze(1);
    Tensor grad_hidden = at::zeros(rows.sizes(), rows.options().dtype(at::kFloat));
    TableGradient grad_table(saved[1]);
    int64_t from = 0;
    for (const Tensor& values : logits) {
      const int64_t width = values.size(1);
      const Tensor logits_gradient = weighted_softmax(values, log_normalizers, weights);
      grad_hidden.add_(matrix_product(logits_gradient, working.narrow(0, from, width).t()));
      grad_table.sum.narrow(0, from, width).add_(matrix_product(logits_gradient.t(), rows.t()));
      from += width;
    }
    grad_hidden.index_add_(0, nodes, grad_column * working.index_select(0, targets).to(at::kFloat));
    grad_table.sum.index_add_(0, targets, grad_column * rows.index_select(0, nodes).to(at::kFloat));
    return {grad_hidden, grad_table.for_autograd(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

bool records_gradients(const Tensor& activations, const Tensor& weights) {
  return at::GradMode::is_enabled() && (activations.requires_grad() || weights.requires_grad());
}

const Tensor& tensor(const void* pointer) {
  return *static_cast<const Tensor*>(pointer);
}

}  // namespace

extern "C" {

// Tensors are `at::Tensor*`, as in tch. The caller owns the returned tensor, which is null if the
// function fails.

void* dico_linear(const void* x, const void* weight, const void* bias, const void* working, const void* working_bias,
                  char* error) {
  return dico::catch_exceptions(error, [&]() -> void* {
    return new Tensor(Linear::apply(tensor(x), tensor(weight), tensor(bias), tensor(working).detach(),
                                    tensor(working_bias).detach()));
  });
}

void* dico_embedding(const void* table, const void* ids, char* error) {
  return dico::catch_exceptions(error, [&]() -> void* { return new Tensor(Embedding::apply(tensor(table), tensor(ids))); });
}

void* dico_logits(const void* hidden, const void* working, char* error) {
  return dico::catch_exceptions(error, [&]() -> void* { return new Tensor(matrix_product(tensor(hidden), tensor(working))); });
}

void* dico_logsumexp(const void* logits, char* error) {
  return dico::catch_exceptions(error, [&]() -> void* {
    const at::NoGradGuard no_gradients;
    return new Tensor(row_logsumexp(tensor(logits)));
  });
}

void* dico_token_log_probabilities(const void* hidden, const void* table, const void* working, const void* nodes,
                                   const void* targets, char* error) {
  return dico::catch_exceptions(error, [&]() -> void* {
    return new Tensor(TokenLogProbabilities::apply(tensor(hidden), tensor(table), tensor(working).detach(), tensor(nodes),
                                                   tensor(targets), records_gradients(tensor(hidden), tensor(table))));
  });
}

// Update number `step` of Adam in one pass over all values, with the gradient `gradient` /
// `divisor`. Returns the parameters.
void* dico_adam(const void* parameters, const void* gradient, const void* first_moment, const void* second_moment, double step,
                double learning_rate, double beta_1, double beta_2, double epsilon, double divisor, char* error) {
  return dico::catch_exceptions(error, [&]() -> void* {
    const at::NoGradGuard no_gradients;
    const auto scalar = [&](double value) { return at::full({}, value, tensor(parameters).options()); };
    const double weight_decay = 0.0;
    const bool amsgrad = false, maximize = false;
    at::_fused_adam_({tensor(parameters)}, {tensor(gradient)}, {tensor(first_moment)}, {tensor(second_moment)}, {}, {scalar(step)},
                     learning_rate, beta_1, beta_2, weight_decay, epsilon, amsgrad, maximize, scalar(divisor));
    return new Tensor(tensor(parameters));
  });
}

bool dico_is_grad_enabled() {
  return at::GradMode::is_enabled();
}

// For tests: see `is_gpu_path_forced`. Backward passes on a CPU run on the calling thread, so a
// thread-local variable is enough.
void dico_force_gpu_path(bool is_on) {
  is_gpu_path_forced = is_on;
}

}  // extern "C"
