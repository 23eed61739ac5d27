//! Simulated machines on this one: network namespaces on a switch, whose links can be cut.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts the networks of this process.
static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// A switch with the machines on it, removed when dropped.
pub struct Network {
    name: String,
    machines: u32,
}

impl Network {
    /// A network of this number of machines; none if this process may not create network
    /// namespaces.
    #[must_use]
    pub fn new(machines: u32) -> Option<Self> {
        let name = format!("d{}x{}", std::process::id() % 100_000, NETWORKS.fetch_add(1, Ordering::Relaxed));
        let mut network = Self { name, machines: 0 };
        let switch = network.switch();
        if !(ip(&format!("netns add {switch}")) && ip(&format!("-n {switch} link add br0 type bridge"))) {
            eprintln!("SKIPPED: pulling cables needs network namespaces, which this process may not make");
            return None;
        }
        assert!(ip(&format!("-n {switch} link set br0 up")));
        for machine in 0..machines {
            network.machines += 1;
            let own = network.namespace(machine);
            let address = network.address(machine);
            for command in [
                format!("netns add {own}"),
                format!("-n {switch} link add p{machine} type veth peer name eth0 netns {own}"),
                format!("-n {switch} link set p{machine} master br0 up"),
                format!("-n {own} address add {address}/24 dev eth0"),
                format!("-n {own} link set eth0 up"),
                format!("-n {own} link set lo up"),
            ] {
                assert!(ip(&command), "ip {command}");
            }
        }
        Some(network)
    }

    fn switch(&self) -> String {
        format!("{}s", self.name)
    }

    fn namespace(&self, machine: u32) -> String {
        format!("{}m{machine}", self.name)
    }

    /// The address of a machine.
    #[must_use]
    pub fn address(&self, machine: u32) -> String {
        format!("10.213.7.{}", machine + 1)
    }

    /// The same command, on one of the machines.
    #[must_use]
    pub fn on(&self, machine: u32, command: &Command) -> Command {
        let mut there = Command::new("ip");
        there.args(["netns", "exec", &self.namespace(machine)]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => there.env(name, value),
                None => there.env_remove(name),
            };
        }
        there.stdin(Stdio::null());
        there
    }

    /// Cuts a machine's link.
    pub fn pull(&self, machine: u32) {
        assert!(ip(&format!("-n {} link set p{machine} down", self.switch())));
    }

    /// Restores the link.
    pub fn plug(&self, machine: u32) {
        assert!(ip(&format!("-n {} link set p{machine} up", self.switch())));
    }

    /// Drops all packets between two machines from now on.
    pub fn separate(&self, one: u32, other: u32) {
        for (from, to) in [(one, other), (other, one)] {
            assert!(ip(&format!("-n {} route add blackhole {}/32", self.namespace(from), self.address(to))));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let machines = (0..self.machines).map(|machine| self.namespace(machine));
        for namespace in machines.chain([self.switch()]) {
            ip(&format!("netns delete {namespace}"));
        }
    }
}

fn ip(command: &str) -> bool {
    let status = Command::new("ip").args(command.split_whitespace()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
