use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Process};

/// A coordinator on ports of the loopback that the system chooses.
#[derive(Debug)]
pub struct Coordinator {
    /// The process.
    pub process: Process,
    /// Its gRPC address, host:port.
    pub grpc: String,
    /// Its HTTP address, host:port.
    pub http: String,
}

impl Coordinator {
    /// Runs `coordinator serve` with a run file, by a command for the program to which options may
    /// have been added, and waits until it listens.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(mut command: Command, run_file: &Path, options: &[&str], log: PathBuf) -> Result<Self, Error> {
        command.arg("serve").arg("--config").arg(run_file);
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(options);
        let mut process = Process::start("coordinator", &mut command, log)?;
        let line = process.line()?;
        let address = |key| line.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        match (address("grpc="), address("http=")) {
            (Some(grpc), Some(http)) => Ok(Self { process, grpc, http }),
            _ => Err(Error::NoAddress { name: "coordinator".to_owned(), line }),
        }
    }
}
