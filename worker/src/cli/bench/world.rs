//! The ranks of a bench: processes of this very program on this machine, which meet as the workers of a generation do.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Cuda, Device};

use crate::collective::{Collective, Flag, RendezvousPlan, Solo, Store};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// How long ranks wait for each other at first: each has to start, and to load libtorch.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where a process finds that it is a rank, which, and where the others are.
const RANK: &str = "DICO_BENCH_RANK";
const STORE: &str = "DICO_BENCH_STORE";

/// Runs `body` on `size` ranks and returns what it returned on each, in order of rank.
///
/// A world of one is this process. Otherwise each rank is this program again, with the same arguments, which comes to this
/// very call and does not return from it. With `cuda:N` ranks compute on that GPU and those after it; they share what there is.
///
/// # Errors
/// The first that a rank failed with; the other ranks are ended.
pub fn run<T: Serialize + DeserializeOwned>(
    size: u16,
    device: Device,
    body: impl FnOnce(Device, &dyn Collective) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    if size == 1 {
        return Ok(vec![body(device, &Solo)?]);
    }
    if let (Ok(rank), Ok(store)) = (std::env::var(RANK), std::env::var(STORE)) {
        let rank = rank.parse().map_err(|_| format!("{RANK}={rank} is set, but it is no rank"))?;
        take_part(&store, rank, size.into(), device, body);
    }
    let store = Store::serve(LOOPBACK)?;
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let commands = (0..size).map(|rank| {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1)).env(RANK, rank.to_string()).env(STORE, store.address());
        if device.is_cuda() {
            // NCCL refuses two ranks on one GPU of one host; those of two hosts it connects through sockets.
            command.env("NCCL_HOSTID", format!("rank-{rank}"));
        }
        command
    });
    outcomes(commands)
}

/// A rank: meets the others, runs `body`, and leaves what came of it to the parent.
fn take_part<T: Serialize>(
    store_address: &str,
    rank: usize,
    world_size: usize,
    device: Device,
    body: impl FnOnce(Device, &dyn Collective) -> Result<T, String>,
) -> ! {
    let outcome = (|| {
        // What the parent does not live to end ends with it.
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| error.to_string())?;
        let device = own(device, rank);
        let (patience, abandon) = (PATIENCE, Flag::default());
        let meeting = RendezvousPlan { store_address, generation: 1, term: 0, rank, world_size, patience, abandon };
        let collective = meeting.hold(device, LOOPBACK).map_err(|broken| broken.to_string())?;
        body(device, &*collective)
    })();
    println!("{}", serde_json::to_string(&outcome).expect("outcomes are plain data"));
    std::process::exit(0)
}

/// The GPU of a rank, when that of rank 0 is given.
fn own(device: Device, rank: usize) -> Device {
    match device {
        Device::Cuda(first) => Device::Cuda((first + rank) % Cuda::device_count() as usize),
        other => other,
    }
}

/// What each command's process says, when all have said something.
fn outcomes<T: DeserializeOwned>(commands: impl IntoIterator<Item = Command>) -> Result<Vec<T>, String> {
    let mut ranks = Ranks::default();
    let (sender, receiver) = channel();
    for (rank, mut command) in commands.into_iter().enumerate() {
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = started.map_err(|error| format!("rank {rank} could not be started: {error}"))?;
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout was asked for"));
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut line = String::new();
            _ = stdout.read_line(&mut line);
            // Nobody listens any more when another rank has failed.
            _ = sender.send((rank, line));
        });
        ranks.0.push(child);
    }
    let mut said: Vec<Option<T>> = ranks.0.iter().map(|_| None).collect();
    for _ in 0..said.len() {
        // The first to fail says why: that others miss it follows from that.
        let (rank, line) = receiver.recv().expect("this function has a sender, too");
        let failed = |problem: String| format!("rank {rank} {problem}");
        if line.is_empty() {
            let status = ranks.0[rank].wait().map_err(|error| failed(error.to_string()))?;
            return Err(failed(format!("ended before it was done: {status}")));
        }
        let outcome: Result<T, String> =
            serde_json::from_str(&line).map_err(|_| failed(format!("said {:?}", line.trim_end())))?;
        said[rank] = Some(outcome.map_err(|problem| failed(format!("failed: {problem}")))?);
    }
    Ok(said.into_iter().flatten().collect())
}

/// The processes of the ranks, none of which outlives this.
#[derive(Default)]
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It has said all that it had to say, or nobody wants to hear it; it may have ended by itself.
            _ = child.kill();
            _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(scripts: &[&str]) -> Result<Vec<u32>, String> {
        outcomes(scripts.iter().map(|script| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        }))
    }

    #[test]
    fn what_each_rank_said_comes_in_order() {
        assert_eq!(ranks(&["echo '{\"Ok\":5}'", "echo '{\"Ok\":7}'"]), Ok(vec![5, 7]));
    }

    #[test]
    fn one_that_fails_ends_the_others() {
        let forever = "exec sleep 1000000";
        let failed = |script| ranks(&[forever, script, forever]).unwrap_err();
        assert_eq!(failed("echo '{\"Err\":\"no memory\"}'; exec sleep 1000000"), "rank 1 failed: no memory");
        assert_eq!(failed("kill -KILL $$"), "rank 1 ended before it was done: signal: 9 (SIGKILL)");
        assert_eq!(failed("exit 3"), "rank 1 ended before it was done: exit status: 3");
        assert_eq!(failed("echo hello"), "rank 1 said \"hello\"");
    }

    #[test]
    fn a_world_of_one_is_this_process() {
        let own = run(1, Device::Cpu, |device, collective| {
            assert_eq!((device, collective.rank(), collective.world_size()), (Device::Cpu, 0, 1));
            Ok(std::process::id())
        });
        assert_eq!(own, Ok(vec![std::process::id()]));
    }
}
