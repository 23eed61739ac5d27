//! The command line: one file per subcommand. Two exceptions: `control` has all subcommands that
//! change a run (`pause`, `resume`, `checkpoint`, `evaluate`, `drain` and `stop`), and
//! `completions` is in the crate `cli-support`.
//!
//! - `connection_args`: the arguments of subcommands that call a coordinator: its address, TLS
//!   files, and a token.
//! - `journal_args`: the arguments of subcommands that read a journal: the folder that contains it.
//! - `security_args`: the arguments of `serve` that decide which clients it accepts: TLS files,
//!   tokens, `--insecure`.
//! - `serve`: runs the coordinator.
//! - `validate`, `schema`: check and document run files.
//! - `status`, `watch`, `control`: calls to a running coordinator.
//! - `audit`, `events`, `report`, `tensorboard`: read the journal of a run.

mod audit;
mod connection_args;
mod control;
mod events;
mod journal_args;
mod report;
mod schema;
mod security_args;
mod serve;
mod status;
mod tensorboard;
mod validate;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use cli_support::{Completions, LogArgs};
use proto::v1;

/// Plan a DiCO run, direct its workers and record their reports.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logs: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeCommand),
    Validate(validate::ValidateCommand),
    Schema(schema::SchemaCommand),
    Status(status::StatusCommand),
    /// Pause a run after the steps that are granted.
    ///
    /// The coordinator saves a checkpoint. Workers stay connected, and others may join.
    /// `coordinator resume` continues the run. Prints the coordinator's answer.
    #[command(after_help = "Example:\n  coordinator pause --coordinator http://127.0.0.1:7070")]
    Pause(control::ControlCommand),
    /// Continue a run that its guard or `coordinator pause` has paused.
    ///
    /// Fails if the run is not paused. `coordinator status` shows why a run is paused. Prints the
    /// coordinator's answer.
    #[command(after_help = "Example:\n  coordinator resume --coordinator http://127.0.0.1:7070")]
    Resume(control::ControlCommand),
    /// Save a checkpoint at the end of the steps that are granted.
    ///
    /// Training continues meanwhile. Prints the coordinator's answer.
    #[command(after_help = "Example:\n  coordinator checkpoint --coordinator http://127.0.0.1:7070")]
    Checkpoint(control::ControlCommand),
    /// Evaluate the captioner at the end of the steps that are granted.
    ///
    /// In a stage with a metric the evaluation counts like any other: for the selection of the best
    /// checkpoint, and for early stopping. Prints the coordinator's answer.
    #[command(after_help = "Example:\n  coordinator evaluate --coordinator http://127.0.0.1:7070")]
    Evaluate(control::ControlCommand),
    /// Remove a worker from a run after the step in flight.
    ///
    /// The worker ends as on SIGTERM, and the others continue. The launcher of the worker decides
    /// whether to start it again. Prints the coordinator's answer.
    #[command(after_help = "Example:\n  coordinator drain 3 --coordinator http://127.0.0.1:7070")]
    Drain(control::DrainCommand),
    /// Save a checkpoint, stop all workers, and end the coordinator.
    ///
    /// `coordinator serve` with the same run file continues the run from there. Prints the
    /// coordinator's answer.
    #[command(after_help = "Example:\n  coordinator stop --coordinator http://127.0.0.1:7070")]
    Stop(control::ControlCommand),
    Watch(watch::WatchCommand),
    Audit(audit::AuditCommand),
    Events(events::EventsCommand),
    Report(report::ReportCommand),
    Tensorboard(tensorboard::TensorboardCommand),
    #[command(
        after_help = "Example:\n  coordinator completions bash > ~/.local/share/bash-completion/completions/coordinator"
    )]
    Completions(Completions),
}

/// Runs the program. Prints an error as one line on standard error.
#[must_use]
pub fn main() -> ExitCode {
    let Arguments { command, logs } = Arguments::parse();
    logs.install();
    cli_support::share_new_files_with_group();
    let result = match command {
        Command::Serve(serve) => serve.run(),
        Command::Validate(validate) => validate.run(),
        Command::Schema(schema) => schema.run(),
        Command::Status(status) => status.run(),
        Command::Pause(control) => control.run(v1::Command::Pause),
        Command::Resume(control) => control.run(v1::Command::Resume),
        Command::Checkpoint(control) => control.run(v1::Command::Checkpoint),
        Command::Evaluate(control) => control.run(v1::Command::Evaluate),
        Command::Drain(drain) => drain.run(),
        Command::Stop(control) => control.run(v1::Command::Stop),
        Command::Watch(watch) => watch.run(),
        Command::Audit(audit) => audit.run(),
        Command::Events(events) => events.run(),
        Command::Report(report) => report.run(),
        Command::Tensorboard(tensorboard) => tensorboard.run(),
        Command::Completions(completions) => completions.print(Arguments::command()).map_err(anyhow::Error::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli_support::print_error(format_args!("coordinator: error: {}", format_error(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Formats an error and its causes in one line. Leaves out a cause whose text is already in the
/// line.
fn format_error(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line = if line.is_empty() { cause } else { format!("{line}: {cause}") };
        }
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_valid_and_every_subcommand_has_an_example() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            let help = subcommand.get_after_help().map(ToString::to_string).unwrap_or_default();
            let (name, example) = (subcommand.get_name(), format!("coordinator {}", subcommand.get_name()));
            assert!(help.contains("Example") && help.contains(&example), "{name} has no example");
        }
    }
}
