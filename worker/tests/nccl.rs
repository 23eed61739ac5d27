//! NCCL on a real GPU, between processes. Where there is none it says so and succeeds.
//!
//! All ranks share GPU 0: each has a `NCCL_HOSTID` of its own and so takes the others for other machines, which NCCL reaches through
//! sockets.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use dico_worker::collective::{Collective, CollectiveError, Flag, Nccl, RendezvousPlan, Store};
use dico_worker::cuda;
use tch::{Cuda, Device, Kind, Tensor};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Values of the tensor that is reduced again and again: 160 MB.
const MANY: i64 = 40_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, store, generation, rank, world_size] = &arguments[..]
        && ["all", "loop", "wait"].contains(&role.as_str())
    {
        cuda::load().expect("the parent could load it");
        let number = |text: &String| text.parse().expect("a number");
        return take_part(role, store, [generation, rank, world_size].map(number));
    }
    match cuda::load() {
        Err(problem) => return println!("skipped, there is no CUDA here: {problem}"),
        Ok(()) if Cuda::device_count() == 0 => return println!("skipped, there is no GPU here"),
        Ok(()) => {}
    }
    let store = Store::serve(IpAddr::V4(Ipv4Addr::LOCALHOST)).expect("loopback is there");
    let start = |role, generation, rank, world_size| Rank::start(role, store.address(), generation, rank, world_size);

    start("all", 1, 0, 1).expect("done");

    let ranks = [0, 1].map(|rank| start("all", 2, rank, 2));
    ranks.into_iter().for_each(|mut rank| _ = rank.expect("done"));

    // A peer dies in the middle of an all-reduce.
    let [mut survivor, mut victim] = [0, 1].map(|rank| start("loop", 3, rank, 2));
    [&mut survivor, &mut victim].into_iter().for_each(|rank| _ = rank.expect("reducing"));
    victim.child.kill().expect("it can be killed");
    println!("a killed peer: {}", survivor.expect("broken"));
    let mut newcomer = start("all", 4, 1, 2);
    survivor.tell("4");
    [&mut survivor, &mut newcomer].into_iter().for_each(|rank| _ = rank.expect("done"));

    // A peer hangs: only the flag can end the wait.
    let [mut survivor, mut hanging] = [0, 1].map(|rank| start("loop", 5, rank, 2));
    [&mut survivor, &mut hanging].into_iter().for_each(|rank| _ = rank.expect("reducing"));
    let stopped = Command::new("kill").arg("-STOP").arg(hanging.child.id().to_string()).status();
    assert!(stopped.expect("kill is there").success());
    survivor.tell("abandon");
    let broken = survivor.expect("broken");
    assert!(broken.contains("abandoned"), "{broken}");
    println!("a hanging peer: {broken}");
    let mut newcomer = start("all", 6, 1, 2);
    survivor.tell("6");
    [&mut survivor, &mut newcomer].into_iter().for_each(|rank| _ = rank.expect("done"));

    // The other rank does not join.
    let mut waiting = start("wait", 7, 0, 2);
    println!("nobody came: {}", waiting.expect("broken"));
    let mut waiting = start("wait", 8, 0, 2);
    waiting.tell("abandon");
    let broken = waiting.expect("broken");
    assert!(broken.contains("abandoned"), "{broken}");
}

/// A rank, seen from the test.
struct Rank {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Rank {
    fn start(role: &str, store: &str, generation: u64, rank: usize, world_size: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a program knows its own path"));
        let numbers = [generation.to_string(), rank.to_string(), world_size.to_string()];
        command.arg(role).arg(store).args(numbers).env("NCCL_HOSTID", format!("host-{generation}-{rank}"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let stdin = child.stdin.take().expect("stdin was asked for");
        let stdout = BufReader::new(child.stdout.take().expect("stdout was asked for"));
        Self { child, stdin, stdout }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("it listens");
    }

    /// The next line that begins with `word`; others are shown.
    fn expect(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            self.stdout.read_line(&mut line).expect("stdout can be read");
            assert!(!line.is_empty(), "it ended before it was {word}");
            print!("{line}");
            if line.starts_with(word) {
                return line.trim_end().to_owned();
            }
        }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// What a rank does.
fn take_part(role: &str, store_address: &str, [generation, rank, world_size]: [u64; 3]) {
    let abandon = Flag::default();
    let meet = |generation, patience, abandon: &Flag| {
        let (rank, world_size, abandon) = (rank as usize, world_size as usize, abandon.clone());
        Nccl::meet(&RendezvousPlan { store_address, generation, term: 0, rank, world_size, patience, abandon }, 0)
    };
    let (listened, lines) = std::sync::mpsc::channel();
    let flag = abandon.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if line == "abandon" { flag.raise() } else { _ = listened.send(line) }
        }
    });
    let started = Instant::now();
    if role == "wait" {
        let broken = meet(generation, Duration::from_secs(3), &abandon).err().expect("nobody comes");
        return println!("broken after {:.1} s: {broken}", started.elapsed().as_secs_f64());
    }
    let nccl = meet(generation, PATIENCE, &abandon).expect("the others come");
    println!("rank {rank} of {world_size} met in {:.2} s", started.elapsed().as_secs_f64());
    if role == "all" {
        check(&nccl);
        return println!("done");
    }
    let gradient = Tensor::ones([MANY], (Kind::Float, Device::Cuda(0)));
    nccl.all_reduce(&gradient).expect("all are there");
    println!("reducing");
    let (broken, waited) = loop {
        let started = Instant::now();
        if let Err(broken) = nccl.all_reduce(&gradient) {
            break (broken, started.elapsed());
        }
    };
    drop(nccl);
    println!("broken after {:.3} s: {broken}", waited.as_secs_f64());
    assert!(broken == CollectiveError::Abandoned || matches!(broken, CollectiveError::Failed(_)));
    let next = lines.recv().expect("the test goes on").parse().expect("a generation");
    let started = Instant::now();
    let nccl = meet(next, PATIENCE, &Flag::default()).expect("the others come");
    println!("rank {rank} met again in {:.2} s", started.elapsed().as_secs_f64());
    check(&nccl);
    println!("done");
}

fn check(nccl: &Nccl) {
    let (rank, world_size) = (nccl.rank() as i64, nccl.world_size() as i64);
    let options = (Kind::Float, Device::Cuda(0));
    let own = Tensor::full([5], (rank + 1) as f64, options);
    let sum = own.copy();
    nccl.all_reduce(&sum).expect("all are there");
    assert_eq!(numbers(&sum), [(world_size * (world_size + 1) / 2) as f32; 5]);
    let copied = own.copy();
    nccl.broadcast(&copied, world_size as usize - 1).expect("all are there");
    assert_eq!(numbers(&copied), [world_size as f32; 5]);
    let gathered = nccl.all_gather(&own.narrow(0, 0, 2)).expect("all are there");
    let expected: Vec<f32> = (1..=world_size).flat_map(|rank| [rank as f32; 2]).collect();
    assert_eq!(numbers(&Tensor::cat(&gathered, 0)), expected);
    let counts = nccl.all_gather(&Tensor::from_slice(&[rank]).to_device(Device::Cuda(0))).expect("all are there");
    assert_eq!(
        counts.iter().map(|count| count.int64_value(&[0])).collect::<Vec<_>>(),
        (0..world_size).collect::<Vec<_>>()
    );
    // What was asked of libtorch before has to be there when it is sent.
    let many = Tensor::zeros([MANY], options);
    for _ in 0..3 {
        let product = (&many + 1.0).sqrt() * 2.0;
        nccl.all_reduce(&product).expect("all are there");
        assert_eq!(product.max().double_value(&[]), 2.0 * world_size as f64);
        assert_eq!(product.min().double_value(&[]), 2.0 * world_size as f64);
    }
    let mut seconds: Vec<f64> = (0..10)
        .map(|_| {
            let started = Instant::now();
            nccl.all_reduce(&many).expect("all are there");
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!("rank {rank} of {world_size}: an all-reduce of 160 MB takes {:.4} s, the median of ten", seconds[5]);
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor).expect("a vector of floats")
}
