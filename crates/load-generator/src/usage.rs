//! The resource usage of a process, from /proc.

/// The resource usage of a process so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU seconds in user and kernel mode.
    pub cpu_seconds: f64,
    /// The peak of the resident memory, in bytes.
    pub peak_memory_bytes: u64,
}

impl Usage {
    /// The usage of the process with this id; none if it has ended.
    pub fn of(process_id: u32) -> Option<Self> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{process_id}/{file}")).ok();
        // The name of the program, field 2, is in parentheses and may contain spaces. User and
        // system time are fields 14 and 15.
        let (stat, status) = (read("stat")?, read("status")?);
        let ticks = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map_while(|field| field.parse::<u64>().ok()).sum();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = peak.trim().strip_suffix(" kB")?.parse().ok()?;
        let cpu_seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Some(Self { cpu_seconds, peak_memory_bytes: kibibytes * 1024 })
    }
}
