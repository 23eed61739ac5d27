//! One file per subcommand.

mod bench;
mod caption;
mod correlate;
mod device;
mod encode;
mod evaluate;
mod evaluator;
mod export;
mod export_evaluator;
mod import;
mod inspect;
mod join;
mod launcher;
mod report;
mod score;
mod synthesize;

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use cli_support::{Completions, Logs};

#[cfg(test)]
pub use device::parse as parse_device;

/// Trains image captioners as one of a coordinator's workers, and all that goes with it.
#[derive(Parser)]
#[command(name = "worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logs: Logs,
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
    Inspect(inspect::Inspect),
    /// Score captions against references, as pycocoevalcap does.
    Score(score::Score),
    /// Measure how well scores go together with human judgements of captions.
    Correlate(correlate::Correlate),
    /// Make a model folder of a published Hugging Face folder.
    Import(import::Import),
    /// Make a folder that transformers loads, in the published layout, of a checkpoint or model folder.
    Export(export::Export),
    /// Write the evaluator that a run trained as a PyTorch file with OpenAI's names, as PAC-S is published.
    ExportEvaluator(export_evaluator::ExportEvaluator),
    /// Draw the built-in world: images, captions and scene graphs.
    Synthesize(synthesize::Synthesize),
    Bench(bench::Bench),
    #[command(after_help = "Example: worker completions bash > ~/.local/share/bash-completion/completions/worker")]
    Completions(Completions),
}

/// Prints a line.
///
/// # Errors
/// Standard output cannot be written.
fn print(line: fmt::Arguments<'_>) -> Result<(), String> {
    writeln!(cli_support::out(), "{line}").map_err(|error| error.to_string())
}

/// Says something beside what is printed, if that is possible.
fn warn(line: fmt::Arguments<'_>) {
    cli_support::complain(format_args!("worker: {line}"));
}

/// Runs the command line; an error is one line on stderr and exit code 1.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logs.start();
    let done = |()| ExitCode::SUCCESS;
    let result = match cli.command {
        Command::Join(join) => join.run(),
        Command::Encode(encode) => encode.run().map(done),
        Command::Caption(caption) => caption.run().map(done),
        Command::Evaluate(evaluate) => evaluate.run().map(done),
        Command::Inspect(inspect) => inspect.run().map(done),
        Command::Score(score) => score.run().map(done),
        Command::Correlate(correlate) => correlate.run().map(done),
        Command::Import(import) => import.run().map(done),
        Command::Export(export) => export.run().map(done),
        Command::ExportEvaluator(export) => export.run().map(done),
        Command::Synthesize(synthesize) => synthesize.run().map(done),
        Command::Completions(completions) => {
            completions.print(Cli::command()).map(done).map_err(|error| error.to_string())
        }
        Command::Bench(bench) => bench.run().map(done),
    };
    match result {
        Ok(status) => status,
        Err(problem) => {
            warn(format_args!("error: {problem}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_subcommand_has_an_example() {
        let command = Cli::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            let help = subcommand.get_after_help().map(ToString::to_string).unwrap_or_default();
            let (name, example) = (subcommand.get_name(), format!("worker {}", subcommand.get_name()));
            assert!(help.contains("Example") && help.contains(&example), "{name} has no example");
        }
    }
}
