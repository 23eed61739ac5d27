//! Which operations a computation is made of. On a CPU they are chosen for its caches. On a GPU starting an operation takes
//! longer than most of them run, so they are few and large, and all of them are libtorch's own.

use tch::Device;

/// Whether what is computed on `device` should be few, large operations.
pub fn prefers_few_operations(device: Device) -> bool {
    device.is_cuda() || pretence::is_on()
}

#[cfg(not(test))]
mod pretence {
    pub const fn is_on() -> bool {
        false
    }
}

#[cfg(test)]
pub use pretence::as_on_gpus;

#[cfg(test)]
mod pretence {
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

    /// Lets this thread compute on a CPU by the operations that GPUs are given, while `compute` runs.
    pub fn as_on_gpus<T>(compute: impl FnOnce() -> T) -> T {
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
