//! Computations that are captured and replayed as CUDA graphs.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use tch::{Device, Tensor};

use super::operators::{checked_call, is_grad_enabled};
use super::uses_gpu_path;

// SAFETY: declarations of the functions in cuda/graph.cpp, with the same types.
unsafe extern "C" {
    fn dico_graph_begin(device: i64, pool: *const u64, error: *mut c_char) -> *mut c_void;
    fn dico_graph_end(graph: *mut c_void, pool: *mut u64, error: *mut c_char) -> *mut c_void;
    fn dico_graph_replay(graph: *mut c_void, error: *mut c_char) -> *mut c_void;
    fn dico_graph_free(graph: *mut c_void);
}

/// Cleared when a graph cannot be captured or launched: from then on the process computes without
/// graphs.
static IS_SUPPORTED: AtomicBool = AtomicBool::new(true);

/// The id of a memory pool for the intermediate results of graphs that are replayed one after
/// another (`graph_pool_handle` in PyTorch). A replay may overwrite everything in the pool.
#[derive(Default)]
pub struct GraphPool([u64; 2]);

/// A computation that reads and writes the same tensors in each run.
///
/// On a GPU, most operations take longer to launch than to execute. There, the first run executes
/// the operations one by one, so that libraries initialize themselves (warm-up). The second run
/// captures them as a CUDA graph, and from then on the graph is replayed. On a CPU every run
/// executes the operations.
#[derive(Default)]
pub enum GraphedComputation {
    /// Before the first run.
    #[default]
    New,
    /// After the first run.
    WarmedUp,
    /// After the second run.
    Captured(CudaGraph),
}

impl GraphedComputation {
    /// Calls `compute`, or replays the operations that it launched on `device` during the capture.
    ///
    /// `compute` must launch the same operations on the same tensors in each call, and write its
    /// results to tensors that existed before. It must not synchronize with the device, draw random
    /// numbers, or have other effects. If a graph cannot be captured or launched, the process warns
    /// once and computes without graphs from then on.
    pub fn run(&mut self, device: Device, pool: &mut GraphPool, compute: impl Fn()) {
        let Device::Cuda(index) = device else { return compute() };
        if !IS_SUPPORTED.load(Ordering::Relaxed) {
            return compute();
        }
        let result = match self {
            Self::New => {
                *self = Self::WarmedUp;
                return compute();
            }
            Self::WarmedUp => CudaGraph::capture(index, pool, &compute).and_then(|graph| {
                graph.replay()?;
                *self = Self::Captured(graph);
                Ok(())
            }),
            Self::Captured(graph) => graph.replay(),
        };
        if let Err(problem) = result {
            IS_SUPPORTED.store(false, Ordering::Relaxed);
            tracing::warn!("CUDA graphs cannot be used, which makes steps slower: {problem}");
            compute();
        }
    }
}

/// A function of one tensor, which a GPU replays as a CUDA graph for input shapes that occurred
/// before.
#[derive(Default)]
pub struct GraphedFunction {
    /// One call for each input shape, the most recently used first.
    calls: RefCell<Vec<GraphedCall>>,
}

/// Maximal number of input shapes whose graphs are kept. Most batches have one shape, and the last
/// batch of an evaluation has another.
const MAX_SHAPES: usize = 2;

/// The static tensors and the graph for inputs of one shape.
struct GraphedCall {
    input: Tensor,
    output: Tensor,
    computation: GraphedComputation,
    pool: GraphPool,
}

impl GraphedFunction {
    /// Returns `function(input)`. The function must satisfy the requirements of
    /// [`GraphedComputation::run`], and be the same in each call. While gradients are recorded,
    /// `function` is called without a graph.
    pub fn apply(&self, input: &Tensor, function: impl Fn(&Tensor) -> Tensor) -> Tensor {
        if !uses_gpu_path(input.device()) || is_grad_enabled() {
            return function(input);
        }
        let mut calls = self.calls.borrow_mut();
        let index = calls.iter().position(|call| call.input.size() == input.size());
        let mut call = index.map(|index| calls.remove(index));
        let output = match &mut call {
            Some(GraphedCall { input: static_input, output, computation, pool }) => {
                static_input.copy_(input);
                computation.run(input.device(), pool, || output.shallow_clone().copy_(&function(static_input)));
                output.copy()
            }
            None => function(input),
        };
        let call = call.unwrap_or_else(|| GraphedCall {
            input: input.empty_like(),
            output: output.empty_like(),
            computation: GraphedComputation::WarmedUp,
            pool: GraphPool::default(),
        });
        calls.truncate(MAX_SHAPES - 1);
        calls.insert(0, call);
        output
    }
}

/// A captured CUDA graph.
pub struct CudaGraph(*mut c_void);

// SAFETY: a CUDA graph may be launched and destroyed by any thread.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Captures the operations that `compute` launches on GPU `index`, without executing them.
    fn capture(index: usize, pool: &mut GraphPool, compute: impl Fn()) -> Result<Self> {
        // SAFETY: the pool and the error buffer outlive the call.
        let capture = checked_call(|error| unsafe { dico_graph_begin(index as i64, pool.0.as_ptr(), error) })?;
        // tch panics when an operation fails. The capture has to be ended in any case.
        let result = catch_unwind(AssertUnwindSafe(compute));
        // SAFETY: as above; this thread started the capture and does not use the pointer again.
        let graph = checked_call(|error| unsafe { dico_graph_end(capture, pool.0.as_mut_ptr(), error) }).map(Self);
        if let Err(panic) = result {
            let text = panic.downcast_ref::<String>().map_or("an operation failed", String::as_str);
            bail!("{}", text.lines().next().unwrap_or_default());
        }
        graph
    }

    fn replay(&self) -> Result<()> {
        // SAFETY: the graph was captured, and only `drop` frees it.
        checked_call(|error| unsafe { dico_graph_replay(self.0, error) }).map(|_| ())
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: nothing else owns the graph.
        unsafe { dico_graph_free(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tch::Kind;

    use super::*;
    use crate::testing::{device, each_code_path, f32_options};

    #[test]
    fn a_replay_reads_the_current_values_of_its_inputs() {
        tch::manual_seed(1);
        let (input, output) = (Tensor::zeros([4, 8], f32_options()), Tensor::zeros([4], f32_options()));
        let weight = Tensor::randn([8, 8], f32_options());
        let compute = || {
            let sums = input.matmul(&weight).softmax(1, Kind::Float).square().sum_dim_intlist(1, false, Kind::Float);
            output.shallow_clone().copy_(&sums);
        };
        let (mut computations, mut pool) = ([GraphedComputation::New, GraphedComputation::New], GraphPool::default());
        for round in 0..5 {
            tch::no_grad(|| {
                input.shallow_clone().copy_(&Tensor::randn([4, 8], f32_options()));
                computations[round % 2].run(device(), &mut pool, compute);
                let replayed = output.copy();
                compute();
                assert_eq!(replayed, output, "round {round}");
            });
        }
        assert_eq!(
            computations.iter().all(|computation| matches!(computation, GraphedComputation::Captured(_))),
            device().is_cuda()
        );
    }

    #[test]
    fn without_cuda_each_run_computes() {
        if device().is_cuda() {
            return;
        }
        let (mut computation, mut pool, count) = (GraphedComputation::default(), GraphPool::default(), Cell::new(0));
        (0..3).for_each(|_| computation.run(Device::Cuda(0), &mut pool, || count.set(count.get() + 1)));
        assert_eq!(count.get(), 3);
        assert!(CudaGraph::capture(0, &mut pool, || ()).is_err_and(|problem| !problem.to_string().is_empty()));
    }

    #[test]
    #[ignore = "disables CUDA graphs for its process: `tests/gpu/run` runs it in a separate process"]
    fn operations_that_cannot_be_captured_are_computed() {
        let (input, output) = (Tensor::ones([4], f32_options()), Tensor::zeros([4], f32_options()));
        // A capture cannot synchronize with the device.
        let compute = || output.shallow_clone().copy_(&(&input * input.sum(Kind::Float).double_value(&[])));
        let (mut computations, mut pool) = ([GraphedComputation::New, GraphedComputation::New], GraphPool::default());
        for round in 1..6 {
            _ = input.shallow_clone().fill_(f64::from(round));
            computations[round as usize % 2].run(device(), &mut pool, compute);
            assert_eq!(output, Tensor::full([4], f64::from(4 * round * round), f32_options()), "round {round}");
        }
        assert_eq!(IS_SUPPORTED.load(Ordering::Relaxed), !device().is_cuda());
        assert!(!computations.iter().any(|computation| matches!(computation, GraphedComputation::Captured(_))));
    }

    #[test]
    fn a_graphed_function_returns_the_result_of_a_direct_call() {
        each_code_path(|| {
            let function = GraphedFunction::default();
            let compute = |x: &Tensor| x.softmax(-1, Kind::Float) + 1.0;
            let mut returned = Vec::new();
            for rows in [2, 3, 2, 2, 4, 2, 2, 3, 4, 4, 4, 2] {
                let input = Tensor::randn([rows, 5], f32_options());
                returned.push((tch::no_grad(|| function.apply(&input, compute)), compute(&input)));
            }
            // Earlier results are not overwritten.
            assert!(returned.iter().all(|(actual, expected)| actual == expected));
            let input = Tensor::ones([2, 5], f32_options()).set_requires_grad(true);
            assert!(function.apply(&input, compute).requires_grad());
        });
    }
}
