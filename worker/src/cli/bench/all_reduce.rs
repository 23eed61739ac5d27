//! `worker bench all-reduce`: measures and checks the all-reduce.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::ranks;
use crate::cli::device_options::DeviceOptions;
use crate::collective::Collective;
use crate::cuda;

/// Number of all-reduces that are not measured: the first ones allocate memory and grow TCP
/// windows.
const WARM_UP_STEPS: usize = 2;
/// The values repeat with this period. They and their sums are integers that f32 represents
/// exactly.
const VALUE_PERIOD: i64 = 4096;

/// Measure the all-reduce of a tensor over processes on this machine, as of gradients in training.
///
/// Checks all results. Prints bytes per second and the median duration.
#[derive(clap::Args)]
#[command(after_help = "Example: worker bench all-reduce --world 2 --bytes 160000000 --threads 1")]
pub struct AllReduceBench {
    /// World size: number of ranks, each a process.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    world: u16,
    /// Size of the tensor in bytes; its elements are f32.
    #[arg(long, default_value_t = 160_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(4..=1 << 36))]
    bytes: u64,
    /// Number of measured all-reduces.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceOptions,
}

impl AllReduceBench {
    /// Runs the command.
    ///
    /// # Errors
    /// A rank fails, or a sum is wrong.
    pub fn run(self) -> Result<()> {
        if !self.bytes.is_multiple_of(4) {
            bail!("--bytes {}: must be a multiple of 4, the size of an f32", self.bytes);
        }
        let device = self.device.initialize()?;
        let seconds_by_rank = ranks::run(self.world, device, |device, collective| self.measure(device, collective))?;
        // An all-reduce is complete when the last rank has the sum.
        let mut seconds: Vec<f64> = (0..self.steps.into())
            .map(|step| seconds_by_rank.iter().map(|seconds| seconds[step]).fold(0.0, f64::max))
            .collect();
        seconds.sort_by(f64::total_cmp);
        let (median, fastest, slowest) = (seconds[seconds.len() / 2], seconds[0], seconds[seconds.len() - 1]);
        let rate = self.bytes as f64 / median;
        if self.json {
            crate::cli::print(format_args!(
                "{}",
                json!({
                    "world": self.world,
                    "bytes": self.bytes,
                    "bytes_per_s": rate,
                    "step_s": median,
                    "fastest_s": fastest,
                    "slowest_s": slowest,
                    "steps_s": seconds,
                    "device": format!("{device:?}"),
                    "threads": tch::get_num_threads(),
                })
            ))?;
            return Ok(());
        }
        crate::cli::print(format_args!(
            "{:.0} MB/s; an all-reduce takes {median:.4} s, the median of {}",
            rate / 1e6,
            self.steps
        ))?;
        crate::cli::print(format_args!("fastest {fastest:.4} s, slowest {slowest:.4} s; all sums are correct"))?;
        Ok(())
    }

    /// The duration of each all-reduce on this rank, in seconds.
    fn measure(&self, device: Device, collective: &dyn Collective) -> Result<Vec<f64>> {
        let input = integers(self.bytes as i64 / 4, device);
        let (rank, world_size) = (collective.rank() as f64, collective.world_size() as f64);
        // Each rank adds its number to the values. The numbers of N ranks sum to N (N - 1) / 2.
        let expected = &input * world_size + world_size * (world_size - 1.0) / 2.0;
        let input = input + rank;
        let mut sum = input.copy();
        let barrier = Tensor::zeros([1], (Kind::Float, device));
        let mut seconds = Vec::with_capacity(self.steps.into());
        for step in 0..WARM_UP_STEPS + usize::from(self.steps) {
            sum.copy_(&input);
            // All ranks start at the same time, without pending work.
            collective.all_reduce(&barrier)?;
            cuda::synchronize(device);
            let started_at = Instant::now();
            collective.all_reduce(&sum)?;
            let elapsed = started_at.elapsed().as_secs_f64();
            if !sum.equal(&expected) {
                bail!("the sum of all-reduce {step} is wrong");
            }
            seconds.extend((step >= WARM_UP_STEPS).then_some(elapsed));
        }
        Ok(seconds)
    }
}

/// Integers that differ between neighbouring elements.
fn integers(count: i64, device: Device) -> Tensor {
    Tensor::arange(count, (Kind::Int64, device)).remainder(VALUE_PERIOD).to_kind(Kind::Float)
}
