use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt};

/// The command line's flags for logs.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// How logs are written to stderr; RUST_LOG filters them (default: info).
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Human, env = "DICO_LOG_FORMAT", global = true)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// Lines for people, in colours on a terminal.
    Human,
    /// One JSON object per line.
    Json,
}

impl LogArgs {
    /// Installs the log subscriber of this process.
    ///
    /// # Panics
    /// If one is installed already.
    pub fn install(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let colours = std::io::stderr().is_terminal() && !crate::no_color();
        let logs = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).with_ansi(colours);
        // If standard error is closed, errors cannot be reported there.
        let logs = logs.log_internal_errors(false);
        match self.log_format {
            LogFormat::Human => logs.init(),
            LogFormat::Json => logs.json().init(),
        }
    }
}
