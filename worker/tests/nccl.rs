//! NCCL on a GPU, between processes. Without a GPU the test is skipped.
//!
//! All ranks share GPU 0. Each has its own `NCCL_HOSTID`, so that NCCL treats them as processes on
//! different machines and connects them through sockets.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use dico_worker::collective::{Collective, CollectiveError, NcclCollective, RendezvousParameters, TcpStore};
use dico_worker::cuda;
use tch::{Cuda, Device, Kind, Tensor};
use worker_protocol::StopFlag;

/// The timeout of a rendezvous that is expected to succeed.
const RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of elements of the large tensor: 160 MB.
const LARGE_TENSOR_ELEMENTS: i64 = 40_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, store, generation, rank, world_size] = &arguments[..]
        && ["all", "loop", "wait"].contains(&role.as_str())
    {
        cuda::load().expect("the parent process could load it");
        let number = |text: &String| text.parse().expect("a number");
        return run_rank(role, store, [generation, rank, world_size].map(number));
    }
    match cuda::load() {
        Err(problem) => return println!("skipped, there is no CUDA here: {problem}"),
        Ok(()) if Cuda::device_count() == 0 => return println!("skipped, there is no GPU here"),
        Ok(()) => {}
    }
    let store = TcpStore::serve(IpAddr::V4(Ipv4Addr::LOCALHOST)).expect("the loopback is available");
    let start =
        |role, generation, rank, world_size| RankProcess::start(role, store.address(), generation, rank, world_size);

    start("all", 1, 0, 1).expect("done");

    let ranks = [0, 1].map(|rank| start("all", 2, rank, 2));
    ranks.into_iter().for_each(|mut rank| _ = rank.expect("done"));

    // A peer is killed during an all-reduce.
    let [mut survivor, mut killed] = [0, 1].map(|rank| start("loop", 3, rank, 2));
    [&mut survivor, &mut killed].into_iter().for_each(|rank| _ = rank.expect("reducing"));
    killed.child.kill().expect("the process can be killed");
    println!("a killed peer: {}", survivor.expect("broken"));
    let mut newcomer = start("all", 4, 1, 2);
    survivor.send_line("4");
    [&mut survivor, &mut newcomer].into_iter().for_each(|rank| _ = rank.expect("done"));

    // A peer hangs: only the abandon flag ends the wait.
    let [mut survivor, mut hanging] = [0, 1].map(|rank| start("loop", 5, rank, 2));
    [&mut survivor, &mut hanging].into_iter().for_each(|rank| _ = rank.expect("reducing"));
    let stopped = Command::new("kill").arg("-STOP").arg(hanging.child.id().to_string()).status();
    assert!(stopped.expect("the program kill exists").success());
    survivor.send_line("abandon");
    let message = survivor.expect("broken");
    assert!(message.contains("abandoned"), "{message}");
    println!("a hanging peer: {message}");
    let mut newcomer = start("all", 6, 1, 2);
    survivor.send_line("6");
    [&mut survivor, &mut newcomer].into_iter().for_each(|rank| _ = rank.expect("done"));

    // The other rank does not join.
    let mut waiting = start("wait", 7, 0, 2);
    println!("an absent peer: {}", waiting.expect("broken"));
    let mut waiting = start("wait", 8, 0, 2);
    waiting.send_line("abandon");
    let message = waiting.expect("broken");
    assert!(message.contains("abandoned"), "{message}");
}

/// The process of a rank.
struct RankProcess {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl RankProcess {
    fn start(role: &str, store: &str, generation: u64, rank: usize, world_size: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("the path of this program is known"));
        let numbers = [generation.to_string(), rank.to_string(), world_size.to_string()];
        command.arg(role).arg(store).args(numbers).env("NCCL_HOSTID", format!("host-{generation}-{rank}"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, stdin, stdout }
    }

    fn send_line(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("the process reads its standard input");
    }

    /// Waits for a line that begins with `word`. Prints all lines.
    fn expect(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            self.stdout.read_line(&mut line).expect("stdout can be read");
            assert!(!line.is_empty(), "the process ended before it printed {word}");
            print!("{line}");
            if line.starts_with(word) {
                return line.trim_end().to_owned();
            }
        }
    }
}

impl Drop for RankProcess {
    fn drop(&mut self) {
        // Fails if the process has ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Runs a rank's process in one of the roles: `all` checks all operations, `loop` reduces until
/// that fails and then joins the generation that it reads from standard input, and `wait` expects
/// the rendezvous to fail.
fn run_rank(role: &str, tcp_store_address: &str, [generation, rank, world_size]: [u64; 3]) {
    let abandon = StopFlag::default();
    let connect = |generation, timeout, abandon: &StopFlag| {
        let (rank, world_size, abandon) = (rank as usize, world_size as usize, abandon.clone());
        let parameters =
            RendezvousParameters { tcp_store_address, generation, term: 0, rank, world_size, timeout, abandon };
        NcclCollective::connect(&parameters, 0)
    };
    let (line_sender, lines) = std::sync::mpsc::channel();
    let flag = abandon.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if line == "abandon" { flag.raise() } else { _ = line_sender.send(line) }
        }
    });
    let started = Instant::now();
    if role == "wait" {
        let error = connect(generation, Duration::from_secs(3), &abandon).err().expect("the other rank does not join");
        return println!("broken after {:.1} s: {error}", started.elapsed().as_secs_f64());
    }
    let nccl = connect(generation, RENDEZVOUS_TIMEOUT, &abandon).expect("the other ranks join");
    println!("rank {rank} of {world_size} met in {:.2} s", started.elapsed().as_secs_f64());
    if role == "all" {
        check_operations(&nccl);
        return println!("done");
    }
    let gradient = Tensor::ones([LARGE_TENSOR_ELEMENTS], (Kind::Float, Device::Cuda(0)));
    nccl.all_reduce(&gradient).expect("all ranks are running");
    println!("reducing");
    let (error, waited) = loop {
        let started = Instant::now();
        if let Err(error) = nccl.all_reduce(&gradient) {
            break (error, started.elapsed());
        }
    };
    drop(nccl);
    println!("broken after {:.3} s: {error}", waited.as_secs_f64());
    assert!(error == CollectiveError::Abandoned || matches!(error, CollectiveError::Failed(_)));
    let next_generation = lines.recv().expect("the test sends the next generation").parse().expect("a generation");
    let started = Instant::now();
    let nccl = connect(next_generation, RENDEZVOUS_TIMEOUT, &StopFlag::default()).expect("the other ranks join");
    println!("rank {rank} met again in {:.2} s", started.elapsed().as_secs_f64());
    check_operations(&nccl);
    println!("done");
}

/// Checks the results of all operations, and measures the all-reduce.
fn check_operations(nccl: &NcclCollective) {
    let (rank, world_size) = (nccl.rank() as i64, nccl.world_size() as i64);
    let options = (Kind::Float, Device::Cuda(0));
    let input = Tensor::full([5], (rank + 1) as f64, options);
    let sum = input.copy();
    nccl.all_reduce(&sum).expect("all ranks are running");
    assert_eq!(floats(&sum), [(world_size * (world_size + 1) / 2) as f32; 5]);
    let broadcast = input.copy();
    nccl.broadcast(&broadcast, world_size as usize - 1).expect("all ranks are running");
    assert_eq!(floats(&broadcast), [world_size as f32; 5]);
    let gathered = nccl.all_gather(&input.narrow(0, 0, 2)).expect("all ranks are running");
    let expected: Vec<f32> = (1..=world_size).flat_map(|rank| [rank as f32; 2]).collect();
    assert_eq!(floats(&Tensor::cat(&gathered, 0)), expected);
    let counts =
        nccl.all_gather(&Tensor::from_slice(&[rank]).to_device(Device::Cuda(0))).expect("all ranks are running");
    assert_eq!(
        counts.iter().map(|count| count.int64_value(&[0])).collect::<Vec<_>>(),
        (0..world_size).collect::<Vec<_>>()
    );
    // An all-reduce waits for the work that libtorch has queued before it.
    let large_tensor = Tensor::zeros([LARGE_TENSOR_ELEMENTS], options);
    for _ in 0..3 {
        let product = (&large_tensor + 1.0).sqrt() * 2.0;
        nccl.all_reduce(&product).expect("all ranks are running");
        assert_eq!(product.max().double_value(&[]), 2.0 * world_size as f64);
        assert_eq!(product.min().double_value(&[]), 2.0 * world_size as f64);
    }
    let mut seconds: Vec<f64> = (0..10)
        .map(|_| {
            let started = Instant::now();
            nccl.all_reduce(&large_tensor).expect("all ranks are running");
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!("rank {rank} of {world_size}: an all-reduce of 160 MB takes {:.4} s, the median of ten", seconds[5]);
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor).expect("a vector of floats")
}
