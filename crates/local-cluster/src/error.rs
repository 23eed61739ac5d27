use std::path::PathBuf;
use std::process::ExitStatus;

/// Why a child process cannot be started, watched or used. The message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system cannot report the path of the running program.
    #[error("the path of this program is unknown: {0}")]
    CurrentExe(std::io::Error),
    /// There is no program at the expected path: it has not been built.
    #[error("{} is missing: `cargo build --workspace --bins` builds it", path.display())]
    MissingProgram {
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
    /// The operating system cannot start the process, or report its output or status.
    #[error("{name}: {source}")]
    Process {
        /// The name of the process.
        name: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The process failed, or ended before it printed the expected line.
    #[error("{name} ended with {status}: {last_line} (log: {})", log.display())]
    UnexpectedExit {
        /// The name of the process.
        name: String,
        /// Its exit status.
        status: ExitStatus,
        /// The last line of its log.
        last_line: String,
        /// The path of its log.
        log: PathBuf,
    },
    /// The first line that the coordinator printed has no addresses.
    #[error("{name} printed {line:?} where its addresses were expected")]
    MissingAddress {
        /// The name of the process.
        name: String,
        /// The line that the process printed.
        line: String,
    },
}
