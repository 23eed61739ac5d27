use tokio::runtime::{Builder, Handle, Runtime};

/// A small tokio runtime that lets synchronous threads wait for `object_store`.
#[derive(Debug)]
pub struct Blocking {
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Blocking {
    /// A runtime whose threads have this name.
    ///
    /// # Errors
    /// The operating system cannot create threads.
    pub fn new(name: &str) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }

    /// Waits for a future. Must not be called by asynchronous code.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }

    /// The handle of the runtime, to wait for tasks that it runs.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        // Waiting for its threads would panic if the owner is dropped by asynchronous code.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
