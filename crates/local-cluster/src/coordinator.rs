use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Process};

/// A coordinator process that listens on the loopback interface, on ports that the system chooses.
#[derive(Debug)]
pub struct Coordinator {
    /// The process.
    pub process: Process,
    /// Its gRPC address, host:port.
    pub grpc_address: String,
    /// Its HTTP address, host:port.
    pub http_address: String,
}

impl Coordinator {
    /// Starts `coordinator serve` with a run file, and waits until it listens. `command` runs the
    /// program; it may already have arguments before `serve`. `options` are further options of
    /// `serve`. The log is written to `log`.
    ///
    /// # Errors
    /// The process does not start, or does not print its addresses.
    pub fn start(mut command: Command, run_file: &Path, options: &[&str], log: PathBuf) -> Result<Self, Error> {
        command.arg("serve").arg("--config").arg(run_file);
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(options);
        let mut process = Process::start("coordinator", &mut command, log)?;
        let line = process.read_line()?;
        let address = |key| line.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        match (address("grpc="), address("http=")) {
            (Some(grpc_address), Some(http_address)) => Ok(Self { process, grpc_address, http_address }),
            _ => Err(Error::MissingAddress { name: "coordinator".to_owned(), line }),
        }
    }
}
