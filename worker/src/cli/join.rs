use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use transport::Address;

use super::{device::Compute, launcher};
use crate::session::{self, Options, RankSource, RequestedId, WorkerExit};

#[derive(clap::Args)]
/// Take part in a run until it is complete.
///
/// On SIGTERM or SIGINT the worker finishes the step in flight, hands over what only it holds, and ends; a second signal ends it at
/// once. While the coordinator is away it waits for it to be back, as it may hold what nobody else does.
#[command(after_help = "Example: worker join --coordinator http://10.0.0.1:7070 --device cuda:0")]
pub struct Join {
    #[command(flatten)]
    address: Address,
    /// This worker's identity in the cluster [default: where torchrun, mpirun or srun started
    /// several tasks, or in an indexed Job of Kubernetes, that of their environment variables; else
    /// the coordinator's choice].
    #[arg(long, value_name = "N")]
    rank: Option<u32>,
    #[command(flatten)]
    compute: Compute,
    /// Address at which other workers reach this one [default: that of the route to the coordinator].
    #[arg(long, value_name = "ADDRESS", value_parser = host)]
    host: Option<IpAddr>,
    /// Seconds to go on trying when the coordinator cannot be reached, at first or after it was lost; the state is held meanwhile.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    join_timeout: u64,
    /// Exit status if this worker ends in good order before the run is complete: it got a signal, was drained, or the coordinator
    /// stopped. Launchers that start again only what failed need another than 0, such as 75.
    #[arg(long, default_value_t = 0, value_name = "STATUS")]
    left_status: u8,
}

impl Join {
    pub fn run(self) -> Result<ExitCode, String> {
        cli_support::share_new_files_with_group();
        let rank = match self.rank {
            Some(rank) => Some(RequestedId { rank, source: RankSource::Flag }),
            None => launcher::rank(|name| std::env::var(name).ok())?,
        };
        let options = Options {
            coordinator: self.address.link().map_err(|error| error.to_string())?,
            rank,
            device: self.compute.prepare()?,
            host: self.host,
            patience: Duration::from_secs(self.join_timeout),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        match runtime.map_err(|error| error.to_string())?.block_on(session::run(options))? {
            WorkerExit::Finished => Ok(ExitCode::SUCCESS),
            WorkerExit::Left => Ok(ExitCode::from(self.left_status)),
        }
    }
}

/// An address by which one machine can be told from others.
fn host(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| "not an IP address".to_owned())?;
    if address.is_unspecified() || address.is_multicast() {
        return Err("other workers cannot reach this machine by it".to_owned());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_do_not_advertise_what_is_no_machines_address() {
        for address in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "localhost", ""] {
            assert!(host(address).is_err(), "{address}");
        }
        for address in ["127.0.0.1", "10.0.0.1", "::1", "fd00::1"] {
            assert_eq!(host(address).map(|ip| ip.to_string()), Ok(address.to_owned()));
        }
    }
}
