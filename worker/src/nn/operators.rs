//! Operators that `torch_operators/operators.cpp` adds to libtorch.

use std::ffi::{CStr, c_char, c_void};

use anyhow::{Result, anyhow};
use tch::Tensor;

/// The size of an error buffer in bytes, as in `include/exceptions.h`.
const ERROR_LENGTH: usize = 512;

// SAFETY: declarations of the functions in torch_operators/operators.cpp, with the same types.
unsafe extern "C" {
    fn dico_linear(
        x: *const c_void,
        weight: *const c_void,
        bias: *const c_void,
        working: *const c_void,
        working_bias: *const c_void,
        error: *mut c_char,
    ) -> *mut c_void;
    fn dico_embedding(table: *const c_void, ids: *const c_void, error: *mut c_char) -> *mut c_void;
    fn dico_adam(
        parameters: *const c_void,
        gradient: *const c_void,
        first: *const c_void,
        second: *const c_void,
        step: f64,
        learning_rate: f64,
        beta_1: f64,
        beta_2: f64,
        epsilon: f64,
        divisor: f64,
        error: *mut c_char,
    ) -> *mut c_void;
    fn dico_is_grad_enabled() -> bool;
    fn dico_logits(hidden: *const c_void, working: *const c_void, error: *mut c_char) -> *mut c_void;
    fn dico_logsumexp(logits: *const c_void, error: *mut c_char) -> *mut c_void;
    fn dico_token_log_probabilities(
        hidden: *const c_void,
        table: *const c_void,
        working: *const c_void,
        nodes: *const c_void,
        targets: *const c_void,
        error: *mut c_char,
    ) -> *mut c_void;
}

/// A matrix or bias for products: 32-bit master weights and the working copy that products read, as
/// in mixed-precision training (Micikevicius et al. 2018).
pub struct MixedPrecisionParameter {
    /// The tensor that has gradients, in 32 bits.
    pub master: Tensor,
    /// The tensor that products read, of the same shape: the same memory, or a copy of another
    /// type.
    pub working: Tensor,
}

impl MixedPrecisionParameter {
    /// The same parameter, sharing its memory.
    pub fn shallow_clone(&self) -> Self {
        let [master, working] = [&self.master, &self.working].map(Tensor::shallow_clone);
        Self { master, working }
    }

    /// The parameter with its two dimensions transposed, sharing its memory.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let [master, working] = [&self.master, &self.working].map(|tensor| tensor.transpose(0, 1));
        Self { master, working }
    }
}

/// y = x W^T + b, as `torch.nn.functional.linear`: x is `[.., inputs]`, W is `[outputs, inputs]`, b
/// is `[outputs]`, and y is `[.., outputs]`, in the type of the working copies.
pub fn linear(x: &Tensor, weight: &MixedPrecisionParameter, bias: &MixedPrecisionParameter) -> Tensor {
    // SAFETY: tch's tensors are at::Tensor, and outlive the call.
    call_operator(|error| unsafe {
        let (weight_copy, bias_copy) = (as_pointer(&weight.working), as_pointer(&bias.working));
        dico_linear(as_pointer(x), as_pointer(&weight.master), as_pointer(&bias.master), weight_copy, bias_copy, error)
    })
}

/// The rows `ids` `[..]` of `table` `[entries, width]`, as `[.., width]`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Tensor {
    // SAFETY: as above.
    call_operator(|error| unsafe { dico_embedding(as_pointer(table), as_pointer(ids), error) })
}

/// The arguments of an Adam update.
pub struct AdamUpdate<'a> {
    /// First and second moment, `[trained]`.
    pub moments: [&'a Tensor; 2],
    /// The number of the update, from 1.
    pub step: u64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The decay rates of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// The divisor that is applied to the gradient first, in place.
    pub divisor: f64,
}

/// An update of Adam (Kingma and Ba 2015, algorithm 1) of `parameters` `[trained]` and of the
/// moments, in place. `gradient` is also `[trained]`.
pub fn adam(parameters: &Tensor, gradient: &Tensor, update: &AdamUpdate<'_>) {
    let &AdamUpdate { moments: [first, second], step, learning_rate, betas: [beta_1, beta_2], epsilon, divisor } =
        update;
    let (rate, step) = (learning_rate, step as f64);
    // SAFETY: as above.
    _ = call_operator(|error| unsafe {
        let [parameters, gradient, first, second] = [parameters, gradient, first, second].map(as_pointer);
        dico_adam(parameters, gradient, first, second, step, rate, beta_1, beta_2, epsilon, divisor, error)
    });
}

/// Whether this thread records computations for a backward pass, as `torch.is_grad_enabled`.
pub(super) fn is_grad_enabled() -> bool {
    // SAFETY: the function reads a variable of this thread.
    unsafe { dico_is_grad_enabled() }
}

/// Multiplies hidden states `[rows, width]` with `table` `[vocabulary, width]`. Returns logits
/// `[rows, vocabulary]` in the type of the table's working copy. Only for callers that record no
/// gradients.
pub fn logits(hidden: &Tensor, table: &MixedPrecisionParameter) -> Tensor {
    let hidden = hidden.to_kind(table.working.kind());
    // SAFETY: as above.
    call_operator(|error| unsafe { dico_logits(as_pointer(&hidden), as_pointer(&table.working), error) })
}

/// The logsumexp of each row of `logits` `[rows, vocabulary]`, `[rows]` in 32 bits; without
/// gradients.
pub fn logsumexp(logits: &Tensor) -> Tensor {
    // SAFETY: as above.
    call_operator(|error| unsafe { dico_logsumexp(as_pointer(logits), error) })
}

/// The log-probabilities `[predictions]` of the tokens `targets[i]` after the hidden states
/// `hidden[nodes[i]]`. `hidden` is `[nodes, width]`, `table` is `[vocabulary, width]`, `nodes` and
/// `targets` are `[predictions]`. Equals `log_softmax(hidden table^T)[nodes[i], targets[i]]`
/// without storing the log-softmax. Can be differentiated once.
pub fn token_log_probabilities(
    hidden: &Tensor,
    table: &MixedPrecisionParameter,
    nodes: &Tensor,
    targets: &Tensor,
) -> Tensor {
    let MixedPrecisionParameter { master, working } = table;
    // SAFETY: as above.
    call_operator(|error| unsafe {
        let [hidden, master, working] = [hidden, master, working].map(as_pointer);
        dico_token_log_probabilities(hidden, master, working, as_pointer(nodes), as_pointer(targets), error)
    })
}

fn as_pointer(tensor: &Tensor) -> *const c_void {
    tensor.as_ptr().cast()
}

/// Calls an operator. Returns its result.
///
/// # Panics
/// If it fails, e.g. for tensors of unsuitable shapes or lack of memory, as tch's operators do.
fn call_operator(call: impl FnOnce(*mut c_char) -> *mut c_void) -> Tensor {
    let pointer = checked_call(call).unwrap_or_else(|problem| panic!("{problem}"));
    // SAFETY: a new at::Tensor that nothing else owns.
    unsafe { Tensor::from_ptr(pointer.cast()) }
}

/// Calls a C function with an error buffer. Returns its pointer.
///
/// # Errors
/// The pointer is null. The error is the message in the buffer.
pub fn checked_call(call: impl FnOnce(*mut c_char) -> *mut c_void) -> Result<*mut c_void> {
    let mut error = [0 as c_char; ERROR_LENGTH];
    let pointer = call(error.as_mut_ptr());
    if pointer.is_null() {
        // SAFETY: the buffer starts as zeros, and C writes only strings that end with a zero.
        let message = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned();
        return Err(anyhow!(message));
    }
    Ok(pointer)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::testing::{device, each_code_path, f32_options};

    fn random_leaf(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, f32_options()).set_requires_grad(true)
    }

    fn index_tensor(values: &[i64]) -> Tensor {
        Tensor::from_slice(values).to_device(device())
    }

    /// A leaf tensor, and its copy of another type.
    fn mixed_precision_matrix(values: &Tensor, kind: Kind) -> MixedPrecisionParameter {
        let master = values.detach().set_requires_grad(true);
        let working = if kind == Kind::Float { master.shallow_clone() } else { values.detach().to_kind(kind) };
        MixedPrecisionParameter { master, working }
    }

    fn assert_near(name: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
        let scale = expected.abs().max().double_value(&[]).max(1e-6);
        let worst = (actual.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max().double_value(&[]);
        assert!(worst < tolerance * scale, "{name}: off by {worst}, of {scale}");
    }

    /// The tolerance for rounding errors of each type, relative to the largest value.
    const TOLERANCES: [(Kind, f64); 2] = [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)];

    #[test]
    fn linear_and_its_gradients_equal_those_of_libtorch() {
        each_code_path(check_linear);
    }

    fn check_linear() {
        tch::manual_seed(1);
        for (kind, tolerance) in TOLERANCES {
            for is_transposed in [false, true] {
                let stored = random_leaf(if is_transposed { &[12, 20] } else { &[20, 12] });
                let weight = mixed_precision_matrix(&stored, kind);
                let [(x, bias_values), (reference_x, reference_bias)] =
                    [(), ()].map(|()| (random_leaf(&[3, 5, 12]), random_leaf(&[20])));
                for (tested, reference) in [(&x, &reference_x), (&bias_values, &reference_bias)] {
                    tch::no_grad(|| tested.shallow_clone().copy_(reference));
                }
                let used = if is_transposed { weight.transposed() } else { weight.shallow_clone() };
                let bias = mixed_precision_matrix(&bias_values, kind);
                let actual = linear(&x, &used, &bias);
                assert_eq!((actual.kind(), actual.size()), (kind, vec![3, 5, 20]));
                let reference_weight = stored.detach().set_requires_grad(true);
                let oriented =
                    if is_transposed { reference_weight.transpose(0, 1) } else { reference_weight.shallow_clone() };
                let expected = reference_x.linear(&oriented, Some(&reference_bias));
                assert_near("y", &actual, &expected, tolerance);
                let incoming = Tensor::randn([3, 5, 20], f32_options());
                (actual.to_kind(Kind::Float) * &incoming).sum(Kind::Float).backward();
                (expected * &incoming).sum(Kind::Float).backward();
                assert_near("x", &x.grad(), &reference_x.grad(), tolerance);
                assert_near("weight", &weight.master.grad(), &reference_weight.grad(), tolerance);
                assert_near("bias", &bias.master.grad(), &reference_bias.grad(), tolerance);
            }
        }
    }

    #[test]
    fn token_log_probabilities_and_their_gradients_equal_those_of_a_log_softmax() {
        each_code_path(check_log_probabilities);
    }

    fn check_log_probabilities() {
        tch::manual_seed(2);
        // The vocabulary takes more than one block of columns, and some nodes have several targets.
        let (vocabulary, nodes) = (9001, [0_i64, 1, 1, 2, 4, 3, 3]);
        let targets = index_tensor(&[0, 4095, 4096, 9000, 17, 17, 8192]);
        let nodes = index_tensor(&nodes);
        for (kind, tolerance) in TOLERANCES {
            let values = random_leaf(&[vocabulary, 16]);
            let table = mixed_precision_matrix(&values, kind);
            let hidden = random_leaf(&[5, 16]);
            let actual = token_log_probabilities(&hidden, &table, &nodes, &targets);
            let (reference_hidden, reference_table) =
                (hidden.detach().set_requires_grad(true), values.detach().set_requires_grad(true));
            let log_softmax = reference_hidden.matmul(&reference_table.transpose(0, 1)).log_softmax(-1, Kind::Float);
            let expected = log_softmax.index_select(0, &nodes).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
            assert_near("log p", &actual, &expected, tolerance);
            let unrecorded = tch::no_grad(|| token_log_probabilities(&hidden, &table, &nodes, &targets));
            assert_eq!(unrecorded, actual);
            let incoming = Tensor::from_slice(&[1.0_f32, -0.5, 2.0, 0.25, -1.0, 0.75, 0.5]).to_device(device());
            (actual * &incoming).sum(Kind::Float).backward();
            (expected * &incoming).sum(Kind::Float).backward();
            assert_near("hidden", &hidden.grad(), &reference_hidden.grad(), tolerance);
            assert_near("table", &table.master.grad(), &reference_table.grad(), tolerance);
        }
    }

    #[test]
    fn gradients_of_a_table_accumulate_in_the_memory_of_the_leaf() {
        each_code_path(check_table_gradients);
    }

    fn check_table_gradients() {
        tch::manual_seed(3);
        let (ids, targets) = (index_tensor(&[3, 0, 3, 5]), index_tensor(&[1, 2, 3, 5]));
        let nodes = ids.clamp(0, 3);
        let values = random_leaf(&[6, 4]);
        let gradient = |rounds: i32| {
            let table = mixed_precision_matrix(&values, Kind::Float);
            for _ in 0..rounds {
                let hidden = embedding(&table.master, &ids);
                token_log_probabilities(&hidden, &table, &nodes, &targets).sum(Kind::Float).backward();
            }
            table.master.grad()
        };
        let reference = values.detach().set_requires_grad(true);
        let hidden = Tensor::embedding(&reference, &ids, -1, false, false);
        let log_softmax = hidden.matmul(&reference.transpose(0, 1)).log_softmax(-1, Kind::Float);
        let chosen = log_softmax.index_select(0, &nodes).gather(1, &targets.unsqueeze(1), false);
        chosen.sum(Kind::Float).backward();
        // The first round allocates the gradient, the others add to it.
        assert_near("once", &gradient(1), &reference.grad(), 1e-5);
        assert_near("three times", &gradient(3), &(reference.grad() * 3.0), 1e-5);
    }

    #[test]
    fn logsumexp_is_exact_for_large_values() {
        each_code_path(check_logsumexp);
    }

    fn check_logsumexp() {
        tch::manual_seed(4);
        let wide = Tensor::randn([7, 5003], f32_options()) * 8.0;
        let far = [-1e30_f32, -300.0, -88.0, 0.0, 88.0, 3e4, 3.0e38];
        let shifted = &wide + Tensor::from_slice(&far).to_device(device()).unsqueeze(1);
        let flat = Tensor::zeros([3, 1], f32_options());
        for logits in [wide.shallow_clone(), shifted, flat, wide.narrow(1, 11, 4099)] {
            for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
                let logits = logits.to_kind(kind);
                let expected = logits.to_kind(Kind::Double).logsumexp(1, false);
                let difference = (logsumexp(&logits).to_kind(Kind::Double) - &expected).abs();
                let allowed = expected.abs().clamp_min(1.0) * 1e-6;
                assert!(difference.le_tensor(&allowed).all().int64_value(&[]) == 1, "{kind:?}: {difference}");
            }
        }
        // NaN and infinite values have to be preserved: training stops when it finds one.
        for value in [f32::NAN, f32::from_bits(0x7FFF_FFFF), f32::from_bits(0x7FC0_0001), f32::INFINITY] {
            let logits = wide.copy();
            logits.get(2).narrow(0, 3000, 1).copy_(&Tensor::from_slice(&[value]));
            let actual = Vec::<f32>::try_from(logsumexp(&logits)).unwrap();
            assert_eq!(
                actual.iter().map(|actual| actual.is_finite()).collect::<Vec<_>>(),
                [true, true, false, true, true, true, true]
            );
        }
    }

    #[test]
    fn an_update_equals_adam_with_the_divided_gradient() {
        tch::manual_seed(5);
        let [parameters, gradient] = [(); 2].map(|()| Tensor::randn([1003], f32_options()));
        let [first, second] = [(); 2].map(|()| Tensor::zeros([1003], f32_options()));
        let (before, divided) = (parameters.to_kind(Kind::Double), gradient.to_kind(Kind::Double) / 5.0);
        let moments = [&first, &second];
        let (learning_rate, betas, epsilon) = (0.01, [0.9, 0.99], 1e-8);
        adam(&parameters, &gradient, &AdamUpdate { moments, step: 1, learning_rate, betas, epsilon, divisor: 5.0 });
        assert_near("first", &first, &(&divided * 0.1), 1e-6);
        assert_near("second", &second, &(divided.square() * 0.01), 1e-5);
        assert_near("parameters", &parameters, &(before - divided.sign() * learning_rate), 1e-5);
    }

    #[test]
    #[should_panic(expected = "shape")]
    fn operators_panic_with_the_problem_for_unsuitable_shapes() {
        let [x, weight, bias] = [random_leaf(&[2, 3]), random_leaf(&[4, 5]), random_leaf(&[4])];
        _ = linear(
            &x,
            &mixed_precision_matrix(&weight, Kind::BFloat16),
            &mixed_precision_matrix(&bias, Kind::BFloat16),
        );
    }
}
