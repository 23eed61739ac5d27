//! One file per subcommand.

mod bench;
mod caption;
mod device;
mod encode;
mod evaluate;
mod export;
mod import;
mod join;
mod progress;
mod report;
mod score;
mod synthesize;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Trains image captioners as one of a coordinator's workers, and all that goes with it.
#[derive(Parser)]
#[command(name = "worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Join(join::Join),
    /// Store what the frozen towers see of each image of a split.
    Encode(encode::Encode),
    /// Caption images.
    Caption(caption::Caption),
    /// Caption a split and score the captions.
    Evaluate(evaluate::Evaluate),
    /// Score captions against references, as pycocoevalcap does.
    Score(score::Score),
    /// Make a model folder of a published Hugging Face folder.
    Import(import::Import),
    /// Make a published Hugging Face folder of a checkpoint or model folder.
    Export(export::Export),
    /// Draw the built-in world: images, captions and scene graphs.
    Synthesize(synthesize::Synthesize),
    Bench(bench::Bench),
}

/// Runs the command line; an error is one line on stderr and exit code 1.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    let result = match cli.command {
        Command::Join(join) => join.run(),
        Command::Encode(encode) => encode.run(),
        Command::Caption(caption) => caption.run(),
        Command::Evaluate(evaluate) => evaluate.run(),
        Command::Score(score) => score.run(),
        Command::Import(import) => import.run(),
        Command::Export(export) => export.run(),
        Command::Synthesize(synthesize) => synthesize.run(),
        Command::Bench(bench) => bench.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("worker: error: {problem}");
            ExitCode::FAILURE
        }
    }
}
