//! Computations that are replayed as CUDA graphs.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Device, Tensor};

use super::operators::{guarded, records_gradients};
use super::takes_gpu_path;

// SAFETY: declarations of the functions in cuda/graph.cpp, with the same types.
unsafe extern "C" {
    fn dico_graph_begin(device: i64, pool: *const u64, error: *mut c_char) -> *mut c_void;
    fn dico_graph_end(graph: *mut c_void, pool: *mut u64, error: *mut c_char) -> *mut c_void;
    fn dico_graph_replay(graph: *mut c_void, error: *mut c_char) -> *mut c_void;
    fn dico_graph_free(graph: *mut c_void);
}

/// Cleared when a graph fails: from then on the process computes without graphs.
static IS_SUPPORTED: AtomicBool = AtomicBool::new(true);

/// Memory for the intermediate results of graphs that are replayed one after another. Nothing in it is
/// valid after a replay.
#[derive(Default)]
pub struct GraphPool([u64; 2]);

/// A computation that reads and writes the same tensors each time.
///
/// On a GPU, starting an operation takes longer than running most of them. There, the first run
/// executes the operations one by one, which also lets libraries initialise themselves. The second run
/// captures them as a CUDA graph, and from then on the graph is replayed. On a CPU every run executes
/// the operations.
#[derive(Default)]
pub enum Replay {
    /// Before the first run.
    #[default]
    New,
    /// After the first run.
    Computed,
    /// After the second run.
    Captured(Graph),
}

impl Replay {
    /// Calls `compute`, or replays the operations that it started on `device` when they were captured.
    ///
    /// `compute` must start the same operations on the same tensors in each call, and write its
    /// results to tensors that exist before. It must neither wait for the device nor draw random
    /// numbers, and have no other effects. If a graph cannot be captured or launched, the process
    /// warns once and computes without graphs from then on.
    pub fn run(&mut self, device: Device, pool: &mut GraphPool, compute: impl Fn()) {
        let Device::Cuda(index) = device else { return compute() };
        if !IS_SUPPORTED.load(Ordering::Relaxed) {
            return compute();
        }
        let replayed = match self {
            Self::New => {
                *self = Self::Computed;
                return compute();
            }
            Self::Computed => Graph::capture(index, pool, &compute).and_then(|graph| {
                graph.replay()?;
                *self = Self::Captured(graph);
                Ok(())
            }),
            Self::Captured(graph) => graph.replay(),
        };
        if let Err(problem) = replayed {
            IS_SUPPORTED.store(false, Ordering::Relaxed);
            tracing::warn!("CUDA graphs cannot be used, which makes steps slower: {problem}");
            compute();
        }
    }
}

/// A function of one tensor that is replayed on a GPU for inputs of a shape that it has seen before.
#[derive(Default)]
pub struct ReplayedFunction {
    /// One for each shape, the most recent first.
    calls: RefCell<Vec<Call>>,
}

/// Shapes that are kept: of most batches, and of the last batch of an epoch.
const MAX_CALLS: usize = 2;

struct Call {
    input: Tensor,
    output: Tensor,
    replay: Replay,
    pool: GraphPool,
}

impl ReplayedFunction {
    /// Returns `function(input)`. The function must satisfy the requirements of [`Replay::run`], and be
    /// the same in each call. While gradients are recorded it is called without a graph.
    pub fn apply(&self, input: &Tensor, function: impl Fn(&Tensor) -> Tensor) -> Tensor {
        if !takes_gpu_path(input.device()) || records_gradients() {
            return function(input);
        }
        let mut calls = self.calls.borrow_mut();
        let known = calls.iter().position(|call| call.input.size() == input.size());
        let mut call = known.map(|known| calls.remove(known));
        let output = match &mut call {
            Some(Call { input: kept, output, replay, pool }) => {
                kept.copy_(input);
                replay.run(input.device(), pool, || output.shallow_clone().copy_(&function(kept)));
                output.copy()
            }
            None => function(input),
        };
        let call = call.unwrap_or_else(|| Call {
            input: input.empty_like(),
            output: output.empty_like(),
            replay: Replay::Computed,
            pool: GraphPool::default(),
        });
        calls.truncate(MAX_CALLS - 1);
        calls.insert(0, call);
        output
    }
}

/// A captured CUDA graph.
pub struct Graph(*mut c_void);

// SAFETY: a CUDA graph may be launched and destroyed by any thread.
unsafe impl Send for Graph {}

impl Graph {
    /// Captures the operations that `compute` starts on GPU `index`, without executing them.
    fn capture(index: usize, pool: &mut GraphPool, compute: impl Fn()) -> Result<Self, String> {
        // SAFETY: the pool and the error's buffer outlive the call.
        let begun = guarded(|error| unsafe { dico_graph_begin(index as i64, pool.0.as_ptr(), error) })?;
        // The capture is ended whether or not an operation fails: tch panics where one does.
        let computed = catch_unwind(AssertUnwindSafe(compute));
        // SAFETY: as above; the capture is this thread's, and is not used any more.
        let graph = guarded(|error| unsafe { dico_graph_end(begun, pool.0.as_mut_ptr(), error) }).map(Self);
        if let Err(panic) = computed {
            let text = panic.downcast_ref::<String>().map_or("an operation failed", String::as_str);
            return Err(text.lines().next().unwrap_or_default().to_owned());
        }
        graph
    }

    fn replay(&self) -> Result<(), String> {
        // SAFETY: it was captured, and is freed by nothing but `drop`.
        guarded(|error| unsafe { dico_graph_replay(self.0, error) }).map(|_| ())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nothing else has it.
        unsafe { dico_graph_free(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tch::Kind;

    use super::*;
    use crate::testing::{device, each_code_path, floats};

    #[test]
    fn a_replay_reads_what_its_inputs_are_now() {
        tch::manual_seed(1);
        let (input, output) = (Tensor::zeros([4, 8], floats()), Tensor::zeros([4], floats()));
        let weight = Tensor::randn([8, 8], floats());
        let compute = || {
            let sums = input.matmul(&weight).softmax(1, Kind::Float).square().sum_dim_intlist(1, false, Kind::Float);
            output.shallow_clone().copy_(&sums);
        };
        let (mut replays, mut pool) = ([Replay::New, Replay::New], GraphPool::default());
        for round in 0..5 {
            tch::no_grad(|| {
                input.shallow_clone().copy_(&Tensor::randn([4, 8], floats()));
                replays[round % 2].run(device(), &mut pool, compute);
                let replayed = output.copy();
                compute();
                assert_eq!(replayed, output, "round {round}");
            });
        }
        assert_eq!(replays.iter().all(|replay| matches!(replay, Replay::Captured(_))), device().is_cuda());
    }

    #[test]
    fn without_cuda_everything_is_computed_each_time() {
        if device().is_cuda() {
            return;
        }
        let (mut replay, mut pool, count) = (Replay::default(), GraphPool::default(), Cell::new(0));
        (0..3).for_each(|_| replay.run(Device::Cuda(0), &mut pool, || count.set(count.get() + 1)));
        assert_eq!(count.get(), 3);
        assert!(Graph::capture(0, &mut pool, || ()).is_err_and(|problem| !problem.is_empty()));
    }

    #[test]
    #[ignore = "ends the use of graphs in its process: `tests/gpu/run` runs it in one of its own"]
    fn what_cannot_be_captured_is_computed() {
        let (input, output) = (Tensor::ones([4], floats()), Tensor::zeros([4], floats()));
        // A capture cannot synchronize with the device.
        let compute = || output.shallow_clone().copy_(&(&input * input.sum(Kind::Float).double_value(&[])));
        let (mut replays, mut pool) = ([Replay::New, Replay::New], GraphPool::default());
        for round in 1..6 {
            _ = input.shallow_clone().fill_(f64::from(round));
            replays[round as usize % 2].run(device(), &mut pool, compute);
            assert_eq!(output, Tensor::full([4], f64::from(4 * round * round), floats()), "round {round}");
        }
        assert_eq!(IS_SUPPORTED.load(Ordering::Relaxed), !device().is_cuda());
        assert!(!replays.iter().any(|replay| matches!(replay, Replay::Captured(_))));
    }

    #[test]
    fn a_replayed_function_returns_what_it_would_if_it_were_called() {
        each_code_path(|| {
            let function = ReplayedFunction::default();
            let compute = |x: &Tensor| x.softmax(-1, Kind::Float) + 1.0;
            let mut returned = Vec::new();
            for rows in [2, 3, 2, 2, 4, 2, 2, 3, 4, 4, 4, 2] {
                let input = Tensor::randn([rows, 5], floats());
                returned.push((tch::no_grad(|| function.apply(&input, compute)), compute(&input)));
            }
            // Earlier results are not overwritten.
            assert!(returned.iter().all(|(found, expected)| found == expected));
            let input = Tensor::ones([2, 5], floats()).set_requires_grad(true);
            assert!(function.apply(&input, compute).requires_grad());
        });
    }
}
