//! `worker bench`: measurements of training's parts, with random weights.

mod all_reduce;
mod input;
mod ranks;
mod step;
mod synthetic_images;
mod trace;

use anyhow::Result;
use clap::Subcommand;
use tch::{Cuda, Device};

/// Measure the speed of a training step, of the all-reduce, or of image preprocessing.
///
/// Needs no data and no weights.
#[derive(clap::Args)]
#[command(after_help = "Example: worker bench step --batch 8 --beams 5 --min-length 30 --threads 2")]
pub struct Bench {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    Step(step::Step),
    AllReduce(all_reduce::AllReduce),
    Input(input::Input),
}

impl Bench {
    /// Runs the command.
    ///
    /// # Errors
    /// The measurement fails.
    pub fn run(self) -> Result<()> {
        match self.command {
            BenchCommand::Step(step) => step.run(),
            BenchCommand::AllReduce(all_reduce) => all_reduce.run(),
            BenchCommand::Input(input) => input.run(),
        }
    }
}

/// Waits until a GPU has completed all queued work.
fn synchronize_device(device: Device) {
    if let Device::Cuda(number) = device {
        Cuda::synchronize(number as i64);
    }
}
