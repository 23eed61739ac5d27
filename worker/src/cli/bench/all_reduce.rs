use std::time::Instant;

use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::{synchronise, world};
use crate::cli::device::Compute;
use crate::collective::Collective;

/// Sums that are not counted: the first ones find memory and open the sockets' windows.
const WARM_UP: usize = 2;
/// Values repeat after so many; like all their sums they are whole numbers that a float holds exactly.
const PERIOD: i64 = 4096;

#[derive(clap::Args)]
#[command(after_help = "Example: worker bench all-reduce --world 2 --bytes 160000000 --threads 1")]
/// Time sums of a tensor over processes of this machine, as gradients are summed in training, and check them.
pub struct AllReduce {
    /// Ranks, each a process.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    world: u16,
    /// Size of the tensor, of 32-bit numbers.
    #[arg(long, default_value_t = 160_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(4..=1 << 36))]
    bytes: u64,
    /// Sums that are timed.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

impl AllReduce {
    pub fn run(self) -> Result<(), String> {
        if !self.bytes.is_multiple_of(4) {
            return Err(format!("--bytes {}: a 32-bit number has 4, so it must be a multiple of them", self.bytes));
        }
        let device = self.compute.prepare()?;
        let ranks = world::run(self.world, device, |device, collective| self.measure(device, collective))?;
        // A sum is there when the last rank has it.
        let mut seconds: Vec<f64> =
            (0..self.steps.into()).map(|step| ranks.iter().map(|seconds| seconds[step]).fold(0.0, f64::max)).collect();
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
            "{:.0} MB a second; a sum takes {median:.4} s, the median of {}",
            rate / 1e6,
            self.steps
        ))?;
        crate::cli::print(format_args!("fastest {fastest:.4}, slowest {slowest:.4}; all sums are right"))?;
        Ok(())
    }

    /// Seconds of each sum, on this rank.
    fn measure(&self, device: Device, collective: &dyn Collective) -> Result<Vec<f64>, String> {
        let own = values(self.bytes as i64 / 4, device);
        let (rank, world_size) = (collective.rank() as f64, collective.world_size() as f64);
        let expected = &own * world_size + world_size * (world_size - 1.0) / 2.0;
        let own = own + rank;
        let mut sum = own.copy();
        let together = Tensor::zeros([1], (Kind::Float, device));
        let mut seconds = Vec::with_capacity(self.steps.into());
        for step in 0..WARM_UP + usize::from(self.steps) {
            sum.copy_(&own);
            // All begin at once, and with nothing else to do.
            collective.all_reduce(&together).map_err(|broken| broken.to_string())?;
            synchronise(device);
            let started = Instant::now();
            collective.all_reduce(&sum).map_err(|broken| broken.to_string())?;
            let elapsed = started.elapsed().as_secs_f64();
            if !sum.equal(&expected) {
                return Err(format!("sum {step} is wrong"));
            }
            seconds.extend((step >= WARM_UP).then_some(elapsed));
        }
        Ok(seconds)
    }
}

/// Whole numbers that differ from place to place.
fn values(count: i64, device: Device) -> Tensor {
    Tensor::arange(count, (Kind::Int64, device)).remainder(PERIOD).to_kind(Kind::Float)
}
