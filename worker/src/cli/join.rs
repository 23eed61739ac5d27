//! `worker join`: takes part in a run.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use transport::ConnectionArgs;

use super::device_options::DeviceOptions;
use super::launcher;
use crate::coordinator_session::{self, JoinOptions, RequestedWorkerId, WorkerExit, WorkerIdSource};

/// Join a run and train in it until it is complete.
///
/// Needs a running coordinator, from which it gets the run file, and read access to the data and
/// weights that the run file names. Prints `finished rank=N parameters_sha256=HASH` at the end of
/// the run, or `left rank=N` if it leaves earlier.
///
/// On SIGTERM, SIGINT or SIGHUP the worker finishes the step in flight, transfers or saves state
/// that no other worker has, and ends. A second SIGTERM or SIGINT ends it at once. If it loses
/// the connection to the coordinator, it keeps its state and reconnects.
#[derive(clap::Args)]
#[command(after_help = "Example: worker join --coordinator http://10.0.0.1:7070 --device cuda:0")]
pub struct Join {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Worker id: the identity of this worker in the run, kept across restarts. Ranks in a
    /// generation follow the order of worker ids [default: the rank that torchrun, mpirun or srun
    /// sets in an environment variable for several tasks, or the completion index of a Kubernetes
    /// Job; otherwise the coordinator chooses].
    #[arg(long, value_name = "N")]
    rank: Option<u32>,
    #[command(flatten)]
    device: DeviceOptions,
    /// IP address at which other workers reach this one [default: the local address of the
    /// connection to the coordinator].
    #[arg(long, value_name = "ADDRESS", value_parser = parse_host)]
    host: Option<IpAddr>,
    /// How long to retry when the coordinator cannot be reached, at the start or after a lost
    /// connection. The worker keeps its state meanwhile.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    join_timeout: u64,
    /// Exit status if this worker leaves before the run is complete: after a signal, a drain, or
    /// the coordinator's stop. Launchers that restart only failed processes need a status other
    /// than 0, such as 75.
    #[arg(long, default_value_t = 0, value_name = "STATUS")]
    left_status: u8,
}

impl Join {
    /// Runs the command.
    ///
    /// # Errors
    /// The device cannot be used, the coordinator refuses the worker, or the worker cannot
    /// continue.
    pub fn run(self) -> Result<ExitCode> {
        cli_support::share_new_files_with_group();
        let requested_id = match self.rank {
            Some(worker_id) => Some(RequestedWorkerId { worker_id, source: WorkerIdSource::Flag }),
            None => launcher::requested_id(|name| std::env::var(name).ok())?,
        };
        let options = JoinOptions {
            coordinator: self.connection.connector()?,
            requested_id,
            device: self.device.initialize()?,
            host: self.host,
            join_timeout: Duration::from_secs(self.join_timeout),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        match runtime?.block_on(coordinator_session::run_worker(options))? {
            WorkerExit::Finished => Ok(ExitCode::SUCCESS),
            WorkerExit::Left => Ok(ExitCode::from(self.left_status)),
        }
    }
}

/// Parses the address of one machine, not an unspecified or multicast address.
fn parse_host(text: &str) -> Result<IpAddr> {
    let Ok(address) = text.parse::<IpAddr>() else { bail!("not an IP address") };
    if address.is_unspecified() || address.is_multicast() {
        bail!("other workers cannot reach this machine by it");
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_one_machine_are_accepted() {
        for address in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "localhost", ""] {
            assert!(parse_host(address).is_err(), "{address}");
        }
        for address in ["127.0.0.1", "10.0.0.1", "::1", "fd00::1"] {
            assert_eq!(parse_host(address).unwrap().to_string(), address);
        }
    }
}
