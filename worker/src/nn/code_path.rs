//! The two code paths of models. On a CPU, operations are chosen for its caches. On a GPU,
//! launching an operation takes longer than executing most of them, so operations are few and
//! large, and all of them are libtorch's own.

use tch::Device;

/// Whether computations on `device` take the code path of GPUs.
pub fn takes_gpu_path(device: Device) -> bool {
    device.is_cuda() || forced::is_on()
}

#[cfg(not(test))]
mod forced {
    pub const fn is_on() -> bool {
        false
    }
}

#[cfg(test)]
pub use forced::on_gpu_path;

#[cfg(test)]
mod forced {
    use std::cell::Cell;

    // SAFETY: a declaration of the function in operators/operators.cpp.
    unsafe extern "C" {
        fn dico_compute_as_on_gpus(is_on: bool);
    }

    thread_local! {
        static IS_ON: Cell<bool> = const { Cell::new(false) };
    }

    pub fn is_on() -> bool {
        IS_ON.get()
    }

    fn set(is_on: bool) {
        IS_ON.set(is_on);
        // SAFETY: it sets a variable of this thread.
        unsafe { dico_compute_as_on_gpus(is_on) };
    }

    /// Makes this thread take the code path of GPUs on a CPU while `compute` runs.
    pub fn on_gpu_path<T>(compute: impl FnOnce() -> T) -> T {
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
