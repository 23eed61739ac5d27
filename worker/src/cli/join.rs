use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use connection::Address;

use super::device::Compute;
use crate::session::{self, Ending, Options};

/// Where launchers put a process's rank.
const RANK_VARIABLES: [&str; 3] = ["RANK", "SLURM_PROCID", "JOB_COMPLETION_INDEX"];

#[derive(clap::Args)]
/// Take part in a run until it is complete.
///
/// On SIGTERM or SIGINT the worker finishes the step in flight, hands over what only it holds, and ends; a second signal ends it at
/// once. While the coordinator is away it waits for it to be back, as it may hold what nobody else does.
#[command(after_help = "Example: worker join --coordinator http://10.0.0.1:7070 --device cuda:0")]
pub struct Join {
    #[command(flatten)]
    address: Address,
    /// This worker's identity in the cluster [default: RANK, SLURM_PROCID or JOB_COMPLETION_INDEX, else the coordinator's
    /// choice].
    #[arg(long, value_name = "N")]
    rank: Option<u32>,
    #[command(flatten)]
    compute: Compute,
    /// Address at which other workers reach this one [default: that of the route to the coordinator].
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Seconds to go on trying when the coordinator cannot be reached, at first or after it was lost; the state is held meanwhile.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    join_timeout: u64,
    /// Exit status if this worker was asked to end before the run is complete. Launchers that start again only what failed need
    /// another than 0, such as 75.
    #[arg(long, default_value_t = 0, value_name = "STATUS")]
    left_status: u8,
}

impl Join {
    pub fn run(self) -> Result<ExitCode, String> {
        let rank = match self.rank {
            Some(rank) => Some(rank),
            None => rank_of_environment(|name| std::env::var(name).ok())?,
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
            Ending::Finished => Ok(ExitCode::SUCCESS),
            Ending::Left => Ok(ExitCode::from(self.left_status)),
        }
    }
}

fn rank_of_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<u32>, String> {
    let Some((name, value)) = RANK_VARIABLES.iter().find_map(|&name| Some((name, variable(name)?))) else {
        return Ok(None);
    };
    value.parse().map(Some).map_err(|_| format!("environment variable {name} is {value:?}, not a rank"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_launcher_that_knows_the_rank_is_heard() {
        let environment = |name: &str| match name {
            "SLURM_PROCID" => Some("3".to_owned()),
            "JOB_COMPLETION_INDEX" => Some("9".to_owned()),
            _ => None,
        };
        assert_eq!(rank_of_environment(environment), Ok(Some(3)));
        assert_eq!(rank_of_environment(|_| None), Ok(None));
        let error = rank_of_environment(|_| Some("one".to_owned())).unwrap_err();
        assert_eq!(error, "environment variable RANK is \"one\", not a rank");
    }
}
