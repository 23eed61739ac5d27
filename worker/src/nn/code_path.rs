//! The two code paths of models, with the same results up to rounding. The CPU path uses operations
//! that fit a CPU's caches. On a GPU, most operations take longer to launch than to execute, so the
//! GPU path uses few and large operations, all of them libtorch's own.

use tch::Device;

/// Whether computations on `device` use the GPU path: on a GPU, and in tests that force it.
#[must_use]
pub fn uses_gpu_path(device: Device) -> bool {
    device.is_cuda() || forced::is_on()
}

#[cfg(not(test))]
mod forced {
    pub const fn is_on() -> bool {
        false
    }
}

#[cfg(test)]
pub use forced::with_forced_gpu_path;

#[cfg(test)]
mod forced {
    use std::cell::Cell;

    // SAFETY: a declaration of the function in torch_operators/operators.cpp.
    unsafe extern "C" {
        fn dico_force_gpu_path(is_on: bool);
    }

    thread_local! {
        static IS_ON: Cell<bool> = const { Cell::new(false) };
    }

    pub fn is_on() -> bool {
        IS_ON.get()
    }

    fn set(is_on: bool) {
        IS_ON.set(is_on);
        // SAFETY: the function sets a variable of this thread.
        unsafe { dico_force_gpu_path(is_on) };
    }

    /// Forces the GPU path on this thread while `compute` runs, also on a CPU.
    pub fn with_forced_gpu_path<T>(compute: impl FnOnce() -> T) -> T {
        struct Restore;
        impl Drop for Restore {
            fn drop(&mut self) {
                set(false);
            }
        }
        set(true);
        let _restore = Restore;
        compute()
    }
}
