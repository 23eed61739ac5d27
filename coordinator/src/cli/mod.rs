//! The command line: one file per subcommand.

mod admin;
mod audit;
mod control;
mod events;
mod history;
mod report;
mod schema;
mod security;
mod serve;
mod status;
mod tensorboard;
mod validate;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use cli_support::{Completions, Logs};
use proto::v1;

/// Plans a DiCO run, directs its workers and records what they report.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logs: Logs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Validate(validate::Validate),
    Schema(schema::SchemaCommand),
    Status(status::Status),
    /// Hold a run, after the steps that are granted; their state is saved.
    ///
    /// Workers stay, and others may come. `coordinator resume` lets the run go on.
    #[command(after_help = "Example:\n  coordinator pause --coordinator http://127.0.0.1:7070")]
    Pause(control::Control),
    /// Let a run go on that its guard or somebody has paused.
    ///
    /// Fails if the run is not paused. `coordinator status` says why it is.
    #[command(after_help = "Example:\n  coordinator resume --coordinator http://127.0.0.1:7070")]
    Resume(control::Control),
    /// Save the state that the run is about to reach; training goes on meanwhile.
    #[command(after_help = "Example:\n  coordinator checkpoint --coordinator http://127.0.0.1:7070")]
    Checkpoint(control::Control),
    /// Evaluate the state that the run is about to reach.
    ///
    /// In a stage with a metric it counts like any other evaluation: for the best state, and for patience.
    #[command(after_help = "Example:\n  coordinator evaluate --coordinator http://127.0.0.1:7070")]
    Evaluate(control::Control),
    /// Let a worker go after the step in flight; the others go on.
    ///
    /// It ends as if it had got SIGTERM. Whoever started it decides whether it is started again.
    #[command(after_help = "Example:\n  coordinator drain 3 --coordinator http://127.0.0.1:7070")]
    Drain(control::Drain),
    /// Save, send all workers away, and end the coordinator.
    ///
    /// Served again with the same run file, the run goes on from there.
    #[command(after_help = "Example:\n  coordinator stop --coordinator http://127.0.0.1:7070")]
    Stop(control::Control),
    Watch(watch::Watch),
    Audit(audit::Audit),
    Events(events::Events),
    Report(report::ReportCommand),
    Tensorboard(tensorboard::Tensorboard),
    #[command(
        after_help = "Example:\n  coordinator completions bash > ~/.local/share/bash-completion/completions/coordinator"
    )]
    Completions(Completions),
}

/// Runs the program; what goes wrong is one line on stderr.
#[must_use]
pub fn main() -> ExitCode {
    let Arguments { command, logs } = Arguments::parse();
    logs.start();
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
            cli_support::complain(format_args!("coordinator: error: {}", line(&error)));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one line; what an error says of its cause is not said again.
fn line(error: &anyhow::Error) -> String {
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
    fn the_command_line_is_consistent_and_every_subcommand_has_an_example() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            let help = subcommand.get_after_help().map(ToString::to_string).unwrap_or_default();
            let (name, example) = (subcommand.get_name(), format!("coordinator {}", subcommand.get_name()));
            assert!(help.contains("Example") && help.contains(&example), "{name} has no example");
        }
    }
}
