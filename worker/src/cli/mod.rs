//! The command line: one file per subcommand.
//!
//! Further files: `device_options` (`--device` and `--threads`), `evaluator_argument`
//! (`--evaluator`), `score_output` (the output of scores), and `launcher` (the worker id from
//! torchrun, mpirun, srun or Kubernetes).

mod bench;
mod caption;
mod correlate;
mod device_options;
mod encode;
mod evaluate;
mod evaluator_argument;
mod export;
mod export_evaluator;
mod import;
mod inspect;
mod join;
mod launcher;
mod score;
mod score_output;
mod synthesize;

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Error, Result};
use clap::{CommandFactory, Parser, Subcommand};
use cli_support::{Completions, LogArgs};

/// Parses the device on which unit tests run.
#[cfg(test)]
pub use device_options::parse_device;

use crate::errors;

/// Train image captioners as a worker of a coordinator, and caption, score, convert and measure.
#[derive(Parser)]
#[command(name = "worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logs: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    Join(join::Join),
    Encode(encode::Encode),
    Caption(caption::Caption),
    Evaluate(evaluate::Evaluate),
    Inspect(inspect::Inspect),
    Score(score::Score),
    Correlate(correlate::Correlate),
    Import(import::Import),
    Export(export::Export),
    ExportEvaluator(export_evaluator::ExportEvaluator),
    Synthesize(synthesize::Synthesize),
    Bench(bench::Bench),
    #[command(after_help = "Example: worker completions bash > ~/.local/share/bash-completion/completions/worker")]
    Completions(Completions),
}

/// Prints a line to standard output.
///
/// # Errors
/// Standard output cannot be written.
fn print(line: fmt::Arguments<'_>) -> Result<()> {
    writeln!(cli_support::stdout(), "{line}").map_err(Error::from)
}

/// Prints a warning, note or error to standard error, and ignores failure.
fn print_message(line: fmt::Arguments<'_>) {
    cli_support::print_error(format_args!("worker: {line}"));
}

/// Runs the command line. An error of a subcommand is one line on standard error, with exit status
/// 1; wrong arguments are reported by clap, with exit status 2.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logs.install();
    let success = |()| ExitCode::SUCCESS;
    let result = match cli.command {
        Command::Join(join) => join.run(),
        Command::Encode(encode) => encode.run().map(success),
        Command::Caption(caption) => caption.run().map(success),
        Command::Evaluate(evaluate) => evaluate.run().map(success),
        Command::Inspect(inspect) => inspect.run().map(success),
        Command::Score(score) => score.run().map(success),
        Command::Correlate(correlate) => correlate.run().map(success),
        Command::Import(import) => import.run().map(success),
        Command::Export(export) => export.run().map(success),
        Command::ExportEvaluator(export) => export.run().map(success),
        Command::Synthesize(synthesize) => synthesize.run().map(success),
        Command::Completions(completions) => completions.print(Cli::command()).map(success).map_err(Error::from),
        Command::Bench(bench) => bench.run().map(success),
    };
    match result {
        Ok(status) => status,
        Err(error) => {
            print_message(format_args!("error: {}", errors::one_line(&error)));
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
