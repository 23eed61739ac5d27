// Operators that libtorch has not, or has slower, or that tch does not reach: matrix products of 32-bit numbers by oneDNN,
// log-probabilities of tokens without the whole log-softmax, gradients of tables in place, and Adam in one pass.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "exponentials.h"
#include "guarded.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Columns of the vocabulary that are projected onto at a time: what comes out of it for a batch should stay in a CPU's cache.
constexpr int64_t CACHED_COLUMNS = 4096;

// Set by tests alone: lets a thread compute on a CPU by the operations that GPUs are given.
thread_local bool is_as_on_gpus = false;

// Whether operations for CPUs' caches and vectors are to be used.
bool is_for_cpu(const Tensor& tensor) {
  return tensor.is_cpu() && !is_as_on_gpus;
}

using Scalars = c10::List<std::optional<at::Scalar>>;
using Pointwise = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, std::string_view,
                         Scalars, std::optional<std::string_view>);

// oneDNN's linear layer, which libtorch itself takes for 16-bit numbers only. It has kernels for whatever vectors the machine
// has; MKL, which libtorch takes for 32-bit numbers, keeps to narrow ones unless the machine is Intel's.
std::optional<c10::TypedOperatorHandle<Pointwise>> one_dnn() {
  static const auto found = [] {
    const auto handle = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    return handle ? std::optional(handle->typed<Pointwise>()) : std::nullopt;
  }();
  return found;
}

// x w^T + b: [m, k], [n, k] and [n] to [m, n]; x and w of one type, in any layout.
Tensor product(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b = std::nullopt) {
  if (is_for_cpu(x) && x.scalar_type() == at::kFloat && x.numel() > 0) {
    if (const auto handle = one_dnn()) return handle->call(x, w, b, "none", Scalars(), std::nullopt);
  }
  return at::linear(x, w, b);
}

// A gradient of the matrix [n, k] behind `weight`: rows [m, n] and columns [m, k] to their sum of outer products, laid out as it is.
Tensor outer(const Tensor& rows, const Tensor& columns, const Tensor& weight) {
  if (weight.is_contiguous()) return product(rows.t(), columns.t());
  return product(columns.t(), rows.t()).t();
}

// log of the sum of exponentials of [n, v], in 32 bits: [n].
Tensor log_normalisers(const Tensor& logits) {
  if (is_for_cpu(logits) && dico::has_exponentials(logits)) return dico::log_sum_exp(logits);
  // On a GPU a log-softmax is one kernel, and libtorch's logsumexp is six.
  const Tensor first = logits.select(1, 0).to(at::kFloat);
  return first - at::log_softmax(logits, 1, at::kFloat).select(1, 0);
}

// exp(values - normalisers) weights, of values [n, v] and two [n], written over the values or not.
Tensor weighted_softmax(const Tensor& values, const Tensor& normalisers, const Tensor& weights) {
  if (is_for_cpu(values) && dico::has_exponentials(values)) {
    dico::weighted_softmax_(values, normalisers, weights);
    return values;
  }
  const Tensor softmax = (values.to(at::kFloat) - normalisers.unsqueeze(1)).exp_();
  return softmax.mul_(weights.unsqueeze(1)).to(values.scalar_type());
}

// y = x w^T + b. Products read `working` and `working_bias`: the weight and the bias themselves, or their
// copies of another type.
struct Linear : Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& working, const Tensor& working_bias) {
    const Tensor rows = x.reshape({-1, x.size(-1)}).to(working.scalar_type());
    context->save_for_backward({rows, working});
    auto shape = x.sizes().vec();
    shape.back() = working.size(0);
    return product(rows, working, working_bias).view(shape);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &rows = saved[0], &working = saved[1], &incoming = gradients[0];
    const Tensor flat = incoming.reshape({-1, incoming.size(-1)}).to(working.scalar_type());
    Tensor of_x, of_weight, of_bias;
    if (context->needs_input_grad(0)) {
      auto shape = incoming.sizes().vec();
      shape.back() = rows.size(1);
      of_x = product(flat, working.t()).view(shape);
    }
    if (context->needs_input_grad(1)) of_weight = outer(flat, rows, working).to(at::kFloat);
    if (context->needs_input_grad(2)) of_bias = flat.sum(0, false, at::kFloat);
    return {of_x, of_weight, of_bias, Tensor(), Tensor()};
  }
};

// What the gradient of a table is added to: the memory that the leaf has for it, in which case there is nothing to hand on, or
// fresh memory. A table has so many rows that one more pass over all of them counts.
struct TableGradient {
  explicit TableGradient(const Tensor& table) : is_own(table.grad().defined() && table.grad().sizes() == table.sizes()) {
    sum = is_own ? table.grad() : at::zeros(table.sizes(), table.options());
  }
  Tensor handed_on() const { return is_own ? Tensor() : sum; }

  bool is_own;
  Tensor sum;
};

// Rows `ids` [..] of a table [v, w]: [.., w].
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
    return {gradient.handed_on(), Tensor()};
  }
};

// log p of tokens: log-softmax of hidden [n, w] times table [v, w], of which only value (node_i, target_i) is wanted for each i.
// The vocabulary is gone through in pieces, and only the logits are kept for the gradient, which is written over them.
struct TokenLogProbabilities : Function<TokenLogProbabilities> {
  static Tensor forward(AutogradContext* context, const Tensor& hidden, const Tensor& table, const Tensor& working,
                        const Tensor& nodes, const Tensor& targets, bool is_kept) {
    const Tensor rows = hidden.to(working.scalar_type());
    variable_list logits;
    variable_list sums;
    // On a GPU starting to compute takes longer than fetching what does not fit into a cache: it is all one piece there.
    const int64_t width = is_for_cpu(working) ? CACHED_COLUMNS : std::max<int64_t>(working.size(0), 1);
    for (const Tensor& part : working.split(width)) {
      const Tensor values = product(rows, part);
      sums.push_back(log_normalisers(values));
      if (is_kept) logits.push_back(values);
    }
    const Tensor normalisers = at::logsumexp(at::stack(sums, 1), 1);
    // Rounded as those in the sum are, so that the two agree where all the probability is the target's.
    const Tensor factors = rows.index_select(0, nodes).to(at::kFloat) * working.index_select(0, targets).to(at::kFloat);
    const Tensor chosen = factors.sum(1).to(working.scalar_type()).to(at::kFloat);
    if (is_kept) {
      context->save_for_backward({rows, table, working, nodes, targets, normalisers});
      context->saved_data["logits"] = logits;
    }
    return chosen - normalisers.index_select(0, nodes);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &rows = saved[0], &working = saved[2], &nodes = saved[3], &targets = saved[4], &normalisers = saved[5];
    const auto logits = context->saved_data["logits"].toTensorVector();
    context->saved_data.clear();
    const Tensor& incoming = gradients[0];
    const Tensor weights = at::zeros_like(normalisers).index_add_(0, nodes, incoming).neg_();
    const Tensor each = incoming.unsqueeze(1);
    Tensor of_hidden = at::zeros(rows.sizes(), rows.options().dtype(at::kFloat));
    TableGradient of_table(saved[1]);
    int64_t from = 0;
    for (const Tensor& values : logits) {
      const int64_t width = values.size(1);
      const Tensor slope = weighted_softmax(values, normalisers, weights);
      of_hidden.add_(product(slope, working.narrow(0, from, width).t()));
      of_table.sum.narrow(0, from, width).add_(product(slope.t(), rows.t()));
      from += width;
    }
    of_hidden.index_add_(0, nodes, each * working.index_select(0, targets).to(at::kFloat));
    of_table.sum.index_add_(0, targets, each * rows.index_select(0, nodes).to(at::kFloat));
    return {of_hidden, of_table.handed_on(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

bool is_recorded(const Tensor& activations, const Tensor& weights) {
  return at::GradMode::is_enabled() && (activations.requires_grad() || weights.requires_grad());
}

const Tensor& tensor(const void* pointer) {
  return *static_cast<const Tensor*>(pointer);
}

}  // namespace

extern "C" {

// Tensors are `at::Tensor*`, as in tch; what is returned is the caller's.

void* dico_linear(const void* x, const void* weight, const void* bias, const void* working, const void* working_bias,
                  char* error) {
  return dico::guarded(error, [&]() -> void* {
    return new Tensor(Linear::apply(tensor(x), tensor(weight), tensor(bias), tensor(working).detach(),
                                    tensor(working_bias).detach()));
  });
}

void* dico_embedding(const void* table, const void* ids, char* error) {
  return dico::guarded(error, [&]() -> void* { return new Tensor(Embedding::apply(tensor(table), tensor(ids))); });
}

void* dico_logits(const void* hidden, const void* working, char* error) {
  return dico::guarded(error, [&]() -> void* { return new Tensor(product(tensor(hidden), tensor(working))); });
}

void* dico_log_normalisers(const void* logits, char* error) {
  return dico::guarded(error, [&]() -> void* {
    const at::NoGradGuard no_gradients;
    return new Tensor(log_normalisers(tensor(logits)));
  });
}

void* dico_token_log_probabilities(const void* hidden, const void* table, const void* working, const void* nodes,
                                   const void* targets, char* error) {
  return dico::guarded(error, [&]() -> void* {
    return new Tensor(TokenLogProbabilities::apply(tensor(hidden), tensor(table), tensor(working).detach(), tensor(nodes),
                                                   tensor(targets), is_recorded(tensor(hidden), tensor(table))));
  });
}

// Update number `step` of Adam in one pass over all values, by `gradient` over `divisor`. Returns the parameters.
void* dico_adam(const void* parameters, const void* gradient, const void* first, const void* second, double step,
                double learning_rate, double beta_1, double beta_2, double epsilon, double divisor, char* error) {
  return dico::guarded(error, [&]() -> void* {
    const at::NoGradGuard no_gradients;
    const auto scalar = [&](double value) { return at::full({}, value, tensor(parameters).options()); };
    at::_fused_adam_({tensor(parameters)}, {tensor(gradient)}, {tensor(first)}, {tensor(second)}, {}, {scalar(step)},
                     learning_rate, beta_1, beta_2, 0.0, epsilon, false, false, scalar(divisor));
    return new Tensor(tensor(parameters));
  });
}

bool dico_records_gradients() {
  return at::GradMode::is_enabled();
}

// For tests: see `is_as_on_gpus`. Backward passes on a CPU run on the thread that asks for them.
void dico_compute_as_on_gpus(bool is_on) {
  is_as_on_gpus = is_on;
}

}  // extern "C"
