//! Signals from the session to the training thread, which reach it while it is busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A one-way signal to another thread: to end a wait inside a collective, or to stop after the step
/// in flight. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Sets the signal. It stays set.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the signal is set.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The signals for one generation. Clones share the flags.
#[derive(Clone, Debug, Default)]
pub struct GenerationFlags {
    /// Release the generation at once.
    pub abandon: StopFlag,
    /// Release the generation after the step, or the range of images, in flight.
    pub halt: StopFlag,
}
