//! Network namespaces as machines: each is linked to a common switch, and links can be taken down.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The number of calls of [`Network::new`] in this process, for unique names.
static NETWORK_COUNT: AtomicU32 = AtomicU32::new(0);

/// A switch and the machines that are linked to it. Dropping this removes them.
pub struct Network {
    name: String,
    machines: u32,
}

impl Network {
    /// Creates a network of this number of machines; none if this process may not create network
    /// namespaces.
    #[must_use]
    pub fn new(machines: u32) -> Option<Self> {
        let name = format!("d{}x{}", std::process::id() % 100_000, NETWORK_COUNT.fetch_add(1, Ordering::Relaxed));
        let mut network = Self { name, machines: 0 };
        let switch = network.switch();
        if !(ip(&format!("netns add {switch}")) && ip(&format!("-n {switch} link add br0 type bridge"))) {
            eprintln!("SKIPPED: the test needs network namespaces, and this process may not create them");
            return None;
        }
        assert!(ip(&format!("-n {switch} link set br0 up")));
        for machine in 0..machines {
            network.machines += 1;
            let namespace = network.namespace(machine);
            let address = network.address(machine);
            for command in [
                format!("netns add {namespace}"),
                format!("-n {switch} link add p{machine} type veth peer name eth0 netns {namespace}"),
                format!("-n {switch} link set p{machine} master br0 up"),
                format!("-n {namespace} address add {address}/24 dev eth0"),
                format!("-n {namespace} link set eth0 up"),
                format!("-n {namespace} link set lo up"),
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

    /// A command that runs `command` on a machine, with its arguments and environment variables.
    #[must_use]
    pub fn command_on(&self, machine: u32, command: &Command) -> Command {
        let mut on_machine = Command::new("ip");
        on_machine
            .args(["netns", "exec", &self.namespace(machine)])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => on_machine.env(name, value),
                None => on_machine.env_remove(name),
            };
        }
        on_machine.stdin(Stdio::null());
        on_machine
    }

    /// Takes a machine's link down.
    pub fn disconnect(&self, machine: u32) {
        assert!(ip(&format!("-n {} link set p{machine} down", self.switch())));
    }

    /// Takes a machine's link up again.
    pub fn reconnect(&self, machine: u32) {
        assert!(ip(&format!("-n {} link set p{machine} up", self.switch())));
    }

    /// Drops all packets between two machines from now on.
    pub fn block_traffic_between(&self, one: u32, other: u32) {
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

/// Runs `ip` with these arguments. Returns whether it succeeded.
fn ip(command: &str) -> bool {
    let status = Command::new("ip").args(command.split_whitespace()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
