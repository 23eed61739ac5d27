//! What a process has used, from /proc.

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Seconds of CPU, in user and in kernel mode.
    pub cpu_seconds: f64,
    /// The most memory it ever held, in bytes.
    pub peak_memory: u64,
}

impl Usage {
    /// Of this process; none if it is gone.
    pub fn of(process: u32) -> Option<Self> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{process}/{file}")).ok();
        // The name of the program, in parentheses, may have spaces; user and system time are the 14th and 15th field of all.
        let (stat, status) = (read("stat")?, read("status")?);
        let ticks = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map_while(|field| field.parse::<u64>().ok()).sum();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = peak.trim().strip_suffix(" kB")?.parse().ok()?;
        let cpu_seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Some(Self { cpu_seconds, peak_memory: kibibytes * 1024 })
    }
}
