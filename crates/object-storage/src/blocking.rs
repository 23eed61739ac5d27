use tokio::runtime::{Builder, Handle, Runtime};

/// A tokio runtime of two threads, with which synchronous code runs the futures of `object_store`.
#[derive(Debug)]
pub struct BlockingRuntime {
    /// Some until `drop` takes it.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl BlockingRuntime {
    /// Creates a runtime whose threads have this name.
    ///
    /// # Errors
    /// The operating system cannot create threads.
    pub fn new(name: &str) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }

    /// Runs a future to completion. Must not be called by asynchronous code.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }

    /// The handle of the runtime.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for BlockingRuntime {
    fn drop(&mut self) {
        // Dropping the `Runtime` would wait for its threads, which panics in asynchronous code.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
