//! `worker bench`: measures parts of training, with random weights.
//!
//! | file | content |
//! |---|---|
//! | `step` | `worker bench step`: a DiCO step |
//! | `all_reduce` | `worker bench all-reduce` |
//! | `input` | `worker bench input`: image preprocessing |
//! | `ranks` | starts the ranks of a measurement as processes |
//! | `synthetic_images` | JPEG files like those of COCO |
//! | `trace` | traces of libtorch's profiler |

mod all_reduce;
mod input;
mod ranks;
mod step;
mod synthetic_images;
mod trace;

use anyhow::Result;
use clap::Subcommand;

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
    Step(step::StepBench),
    AllReduce(all_reduce::AllReduceBench),
    Input(input::InputBench),
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
