//! `worker bench`: what training is made of, timed under random weights.

mod all_reduce;
mod input;
mod pictures;
mod step;
mod trace;
mod world;

use clap::Subcommand;
use tch::{Cuda, Device};

#[derive(clap::Args)]
/// Time what training is made of, under random weights.
#[command(after_help = "Example: worker bench step --batch 8 --beams 5 --min-length 30 --threads 2")]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Step(step::Step),
    AllReduce(all_reduce::AllReduce),
    Input(input::Input),
}

impl Bench {
    pub fn run(self) -> Result<(), String> {
        match self.what {
            What::Step(step) => step.run(),
            What::AllReduce(all_reduce) => all_reduce.run(),
            What::Input(input) => input.run(),
        }
    }
}

/// Waits until a GPU has done all that it was asked for.
fn synchronise(device: Device) {
    if let Device::Cuda(number) = device {
        Cuda::synchronize(number as i64);
    }
}
