use std::path::PathBuf;
use std::process::ExitStatus;

/// An error of a child process, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path of the running program is unknown.
    #[error("the path of this program is unknown: {0}")]
    OwnPath(std::io::Error),
    /// A program was not built.
    #[error("{} is missing: `cargo build --workspace --bins` builds it", path.display())]
    Missing {
        /// The expected path of the program.
        path: PathBuf,
    },
    /// The log file cannot be created.
    #[error("cannot create {}: {source}", path.display())]
    Log {
        /// The path of the log.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The operating system refuses to start or to watch a process.
    #[error("{name}: {source}")]
    Process {
        /// The name of the process.
        name: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The process has failed, or has ended too early.
    #[error("{name} ended with {status}: {} (log: {})", log_end(log), log.display())]
    Ended {
        /// The name of the process.
        name: String,
        /// Its exit status.
        status: ExitStatus,
        /// The path of its log.
        log: PathBuf,
    },
    /// The coordinator's first line has no addresses.
    #[error("{name} printed {line:?} where its addresses were expected")]
    NoAddress {
        /// The name of the process.
        name: String,
        /// The line.
        line: String,
    },
}

/// The last line of a log.
fn log_end(log: &std::path::Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("its log is empty").to_owned()
}
