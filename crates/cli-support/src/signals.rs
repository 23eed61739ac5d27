use std::io::Result;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that request a shutdown: SIGTERM, SIGINT, and SIGHUP of a closed terminal.
#[derive(Debug)]
pub struct ShutdownSignals {
    terminate: Signal,
    interrupt: Signal,
    /// None if the parent process has set SIGHUP to be ignored, as `nohup` does.
    hangup: Option<Signal>,
}

impl ShutdownSignals {
    /// Installs handlers of these signals. From then on SIGUSR1 and SIGUSR2, which batch systems
    /// send as a warning before a time limit, do not end this process.
    ///
    /// # Errors
    /// A handler cannot be installed.
    pub fn listen() -> Result<Self> {
        // tokio never removes a handler, so these signals do not end the process any more.
        for kind in [SignalKind::user_defined1(), SignalKind::user_defined2()] {
            drop(signal(kind)?);
        }
        let hangup = if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())?, hangup })
    }

    /// Waits for a shutdown signal.
    pub async fn received(&mut self) {
        let Self { terminate, interrupt, hangup } = self;
        let hangup_received = async {
            match hangup {
                Some(signal) => _ = signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = hangup_received => {}
        }
    }

    /// Waits for a second signal, with which the user requests an immediate shutdown. Ignores
    /// SIGHUP, which a closed terminal may send more than once.
    pub async fn received_again(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Whether this process ignores SIGHUP.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_ignored(&status, SignalKind::hangup())
}

/// Whether the mask of ignored signals in a process's `/proc/PID/status` contains this signal.
fn is_ignored(status: &str, kind: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_parsed_from_the_mask() {
        let status = |mask: &str| format!("Name:\tworker\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(is_ignored(&status("0000000000001001"), SignalKind::hangup()));
        assert!(!is_ignored(&status("0000000000001000"), SignalKind::hangup()));
        assert!(is_ignored(&status("0000000000004000"), SignalKind::terminate()));
        assert!(!is_ignored("", SignalKind::hangup()));
    }
}
