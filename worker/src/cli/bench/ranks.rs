//! The ranks of a measurement: processes of this program on this machine, which connect to each
//! other like the workers of a generation.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Cuda, Device};
use worker_protocol::StopFlag;

use crate::collective::{Collective, RendezvousParameters, SingleRankCollective, TcpStore};
use crate::errors;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// How long ranks wait for each other in the rendezvous: all have to start and load libtorch.
const RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(120);
/// The environment variables of a rank's process: its rank, and the address of the rendezvous
/// store.
const RANK_VARIABLE: &str = "DICO_BENCH_RANK";
const STORE_VARIABLE: &str = "DICO_BENCH_STORE";

/// Runs `body` on `world_size` ranks. Returns their results in order of rank.
///
/// A single rank runs in this process. Otherwise this process starts each rank as a process of this
/// program with the same arguments. In a rank's process this function runs `body` and exits. With
/// `cuda:N`, the ranks compute on that GPU and the following ones, and share GPUs if there are
/// fewer.
///
/// # Errors
/// The error of the first rank that fails; the other ranks are killed.
pub fn run<T: Serialize + DeserializeOwned>(
    world_size: u16,
    device: Device,
    body: impl FnOnce(Device, &dyn Collective) -> Result<T>,
) -> Result<Vec<T>> {
    if world_size == 1 {
        return Ok(vec![body(device, &SingleRankCollective)?]);
    }
    if let (Ok(rank), Ok(store)) = (std::env::var(RANK_VARIABLE), std::env::var(STORE_VARIABLE)) {
        let rank = rank.parse().map_err(|_| anyhow!("{RANK_VARIABLE}={rank} is not a rank: unset it"))?;
        run_rank(&store, rank, world_size.into(), device, body);
    }
    let store = TcpStore::serve(LOOPBACK)?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let commands = (0..world_size).map(|rank| {
        let mut command = Command::new(&program);
        command
            .args(std::env::args_os().skip(1))
            .env(RANK_VARIABLE, rank.to_string())
            .env(STORE_VARIABLE, store.address());
        if device.is_cuda() {
            // NCCL refuses two ranks on one GPU of one host. With different host ids it connects
            // them through sockets.
            command.env("NCCL_HOSTID", format!("rank-{rank}"));
        }
        command
    });
    collect_results(commands)
}

/// Runs a rank's process: connects to the other ranks, runs `body`, and prints the result for the
/// parent process.
fn run_rank<T: Serialize>(
    tcp_store_address: &str,
    rank: usize,
    world_size: usize,
    device: Device,
    body: impl FnOnce(Device, &dyn Collective) -> Result<T>,
) -> ! {
    let result = (|| {
        // The kernel kills this process if the parent ends without killing it.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let device = device_of_rank(device, rank);
        let (timeout, abandon) = (RENDEZVOUS_TIMEOUT, StopFlag::default());
        let parameters =
            RendezvousParameters { tcp_store_address, generation: 1, term: 0, rank, world_size, timeout, abandon };
        let collective = parameters.connect(device, LOOPBACK)?;
        body(device, &*collective)
    })();
    let result: Result<T, String> = result.map_err(|error: Error| errors::one_line(&error));
    println!("{}", serde_json::to_string(&result).expect("results are plain data"));
    std::process::exit(0)
}

/// The device of a rank; `device` is the device of rank 0.
fn device_of_rank(device: Device, rank: usize) -> Device {
    match device {
        Device::Cuda(first) => Device::Cuda((first + rank) % Cuda::device_count() as usize),
        other => other,
    }
}

/// Starts a process for each command, in order of rank, and collects the results that the processes
/// print.
fn collect_results<T: DeserializeOwned>(commands: impl IntoIterator<Item = Command>) -> Result<Vec<T>> {
    let mut processes = RankProcesses::default();
    let (sender, receiver) = channel();
    for (rank, mut command) in commands.into_iter().enumerate() {
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = started.with_context(|| format!("cannot start rank {rank}"))?;
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut line = String::new();
            _ = stdout.read_line(&mut line);
            // Fails if another rank has failed.
            _ = sender.send((rank, line));
        });
        processes.0.push(child);
    }
    let mut results: Vec<Option<T>> = processes.0.iter().map(|_| None).collect();
    for _ in 0..results.len() {
        // The first failure is the cause of later ones, so it is the one to report.
        let (rank, line) = receiver.recv().expect("this function keeps a sender");
        if line.is_empty() {
            let status = processes.0[rank].wait().with_context(|| format!("rank {rank}"))?;
            bail!("rank {rank} ended without a result: {status}");
        }
        let result: Result<T, String> = serde_json::from_str(&line)
            .map_err(|_| anyhow!("rank {rank} printed {:?} instead of a result", line.trim_end()))?;
        results[rank] = Some(result.map_err(|problem| anyhow!("rank {rank} failed: {problem}"))?);
    }
    Ok(results.into_iter().flatten().collect())
}

/// The processes of the ranks, which are killed when this is dropped.
#[derive(Default)]
struct RankProcesses(Vec<Child>);

impl Drop for RankProcesses {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Fails if the process has ended.
            _ = child.kill();
            _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs each rank as a shell script.
    fn run_scripts(scripts: &[&str]) -> Result<Vec<u32>> {
        collect_results(scripts.iter().map(|script| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        }))
    }

    #[test]
    fn results_are_in_order_of_rank() {
        assert_eq!(run_scripts(&["echo '{\"Ok\":5}'", "echo '{\"Ok\":7}'"]).unwrap(), [5, 7]);
    }

    #[test]
    fn the_failure_of_a_rank_is_reported_and_ends_the_others() {
        let forever = "exec sleep 1000000";
        let failed = |script| run_scripts(&[forever, script, forever]).unwrap_err().to_string();
        assert_eq!(failed("echo '{\"Err\":\"no memory\"}'; exec sleep 1000000"), "rank 1 failed: no memory");
        assert_eq!(failed("kill -KILL $$"), "rank 1 ended without a result: signal: 9 (SIGKILL)");
        assert_eq!(failed("exit 3"), "rank 1 ended without a result: exit status: 3");
        assert_eq!(failed("echo hello"), "rank 1 printed \"hello\" instead of a result");
    }

    #[test]
    fn a_single_rank_runs_in_this_process() {
        let process_ids = run(1, Device::Cpu, |device, collective| {
            assert_eq!((device, collective.rank(), collective.world_size()), (Device::Cpu, 0, 1));
            Ok(std::process::id())
        });
        assert_eq!(process_ids.unwrap(), [std::process::id()]);
    }
}
