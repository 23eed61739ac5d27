//! One file per subcommand.

mod caption;
mod device;
mod encode;
mod export;
mod import;
mod join;
mod synthesize;

use std::path::Path;
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
    /// Take part in a coordinator's run until it is complete.
    Join(join::Join),
    /// Store what the frozen towers see of each image of a split.
    Encode(encode::Encode),
    /// Caption images.
    Caption(caption::Caption),
    /// Make a model folder of a published Hugging Face folder.
    Import(import::Import),
    /// Make a published Hugging Face folder of a checkpoint or model folder.
    Export(export::Export),
    /// Draw the built-in world: images, captions and scene graphs.
    Synthesize(synthesize::Synthesize),
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
        Command::Import(import) => import.run(),
        Command::Export(export) => export.run(),
        Command::Synthesize(synthesize) => synthesize.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("worker: error: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the folder `path` with what `fill` writes to it; it appears only when it is complete.
fn new_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if path.exists() {
        return Err(format!("{} exists: choose another folder or remove it", path.display()));
    }
    let scratch = path.with_extension("partial");
    match std::fs::remove_dir_all(&scratch) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    std::fs::create_dir_all(&scratch).map_err(failed)?;
    fill(&scratch).and_then(|()| std::fs::rename(&scratch, path).map_err(failed)).inspect_err(|_| {
        // What went wrong is told already; a scratch folder that stays is overwritten by the next attempt.
        _ = std::fs::remove_dir_all(&scratch);
    })
}
