//! A communicator of NCCL, and the wait for a call or an operation to complete.

use std::ffi::c_int;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId};
use worker_protocol::StopFlag;

use super::api::{IN_PROGRESS, NcclApi, ResultCode, SUCCESS};
use crate::collective::CollectiveError;

/// A wait spins for this long at first, so that short operations end without the delay of a sleep.
const SPIN_DURATION: Duration = Duration::from_millis(2);
/// Interval at which a wait polls after that.
const POLL_INTERVAL: Duration = Duration::from_micros(200);
/// Time limit for finalizing a communicator, which first sends the data that peers still wait for.
const FINALIZE_TIMEOUT: Duration = Duration::from_secs(10);

/// A non-blocking NCCL communicator: its calls return before they have completed.
pub struct Communicator {
    pub api: &'static NcclApi,
    pub pointer: ncclComm_t,
}

// SAFETY: a communicator is not bound to a thread; one thread at a time uses it.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Starts to connect to the other ranks. The communicator is usable once [`Self::is_ready`]
    /// returns true.
    ///
    /// # Errors
    /// NCCL returned no communicator. Failures to connect are errors of [`Self::is_ready`].
    pub fn start(api: &'static NcclApi, id: ncclUniqueId, rank: usize, world_size: usize) -> Result<Self> {
        let (rank, world_size) = (rank as c_int, world_size as c_int);
        let mut pointer = std::ptr::null_mut();
        let mut config = non_blocking_config();
        // SAFETY: all pointers outlive the call.
        let code = unsafe { (api.comm_init_rank_config)(&raw mut pointer, world_size, id, rank, &raw mut config) };
        if pointer.is_null() {
            bail!(api.error_message(code, pointer));
        }
        Ok(Self { api, pointer })
    }

    /// Checks `code`, which a call returned. The call may still be in progress.
    ///
    /// # Errors
    /// The code is that of an error.
    pub fn check(&self, code: ResultCode) -> Result<()> {
        match code {
            SUCCESS | IN_PROGRESS => Ok(()),
            _ => bail!(self.api.error_message(code, self.pointer)),
        }
    }

    /// Whether the last call has completed on the host. Its work on the GPU may still run.
    ///
    /// # Errors
    /// The communicator has failed, for example because a peer has.
    pub fn is_ready(&self) -> Result<bool> {
        let mut async_error = SUCCESS;
        // SAFETY: the communicator lives as long as `self`.
        let code = unsafe { (self.api.comm_get_async_error)(self.pointer, &raw mut async_error) };
        self.check(code)?;
        self.check(async_error)?;
        Ok(async_error == SUCCESS)
    }

    /// Finalizes and destroys the communicator if all its operations have completed. Aborts it
    /// otherwise, and if finalizing fails or takes longer than [`FINALIZE_TIMEOUT`].
    pub fn shut_down(self, operations_completed: bool) {
        let Self { api, pointer } = self;
        // SAFETY: as for `is_ready`; nothing else uses the communicator any more.
        let is_finalizing = operations_completed && self.check(unsafe { (api.comm_finalize)(pointer) }).is_ok();
        let deadline = Instant::now() + FINALIZE_TIMEOUT;
        let is_finalized = is_finalizing
            && wait_until(&StopFlag::default(), || match self.is_ready() {
                Ok(false) if Instant::now() >= deadline => bail!("timed out"),
                ready => ready,
            })
            .is_ok();
        // SAFETY: as above. An error is ignored: the communicator is not used again.
        _ = unsafe { if is_finalized { (api.comm_destroy)(pointer) } else { (api.comm_abort)(pointer) } };
    }
}

/// Polls until `is_done` returns true.
///
/// # Errors
/// `is_done` failed, or the generation was abandoned.
pub fn wait_until(abandon: &StopFlag, is_done: impl Fn() -> Result<bool>) -> Result<(), CollectiveError> {
    let started = Instant::now();
    while !is_done()? {
        if abandon.is_raised() {
            return Err(CollectiveError::Abandoned);
        }
        if started.elapsed() < SPIN_DURATION { std::hint::spin_loop() } else { std::thread::sleep(POLL_INTERVAL) }
    }
    Ok(())
}

/// `NCCL_CONFIG_INITIALIZER` of NCCL 2.28's nccl.h, but non-blocking.
fn non_blocking_config() -> ncclConfig_t {
    const UNDEFINED: c_int = c_int::MIN;
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: 0xcafe_beef,
        version: 22_800,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: std::ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::ffi::{c_char, c_void};
    use std::sync::atomic::{AtomicU32, Ordering};

    use cudarc::nccl::sys::{cudaStream_t, ncclDataType_t};

    use super::*;

    /// A communicator of the fake library.
    #[derive(Default)]
    struct FakeCommunicator {
        /// The result code that it reports.
        state: AtomicU32,
        /// `DESTROYED`, `ABORTED`, or 0.
        outcome: AtomicU32,
    }

    const DESTROYED: u32 = 1;
    const ABORTED: u32 = 2;
    const REMOTE_ERROR: ResultCode = 6;

    fn fake_of<'a>(pointer: ncclComm_t) -> &'a FakeCommunicator {
        // SAFETY: the pointer comes from `communicator`, and the tests keep the fake that it points
        // to until the communicator has been used for the last time.
        unsafe { &*pointer.cast::<FakeCommunicator>() }
    }

    /// A fake of NCCL that moves no data: operations succeed at once, and connecting always fails.
    /// Its communicators are [`FakeCommunicator`]s.
    pub fn fake_api() -> &'static NcclApi {
        unsafe extern "C" fn get_unique_id(id: *mut ncclUniqueId) -> ResultCode {
            // SAFETY: the caller has room for it.
            unsafe { (*id).internal = [42; 128] };
            SUCCESS
        }
        unsafe extern "C" fn init(
            _: *mut ncclComm_t,
            _: c_int,
            _: ncclUniqueId,
            _: c_int,
            config: *mut ncclConfig_t,
        ) -> ResultCode {
            // SAFETY: the caller has a configuration.
            assert_eq!(unsafe { ((*config).blocking, (*config).size) }, (0, size_of::<ncclConfig_t>()));
            REMOTE_ERROR
        }
        unsafe extern "C" fn state(comm: ncclComm_t, state: *mut ResultCode) -> ResultCode {
            // SAFETY: the caller has room for it.
            unsafe { *state = fake_of(comm).state.load(Ordering::Relaxed) };
            SUCCESS
        }
        unsafe extern "C" fn finalize(_: ncclComm_t) -> ResultCode {
            IN_PROGRESS
        }
        unsafe extern "C" fn destroy(comm: ncclComm_t) -> ResultCode {
            fake_of(comm).outcome.store(DESTROYED, Ordering::Relaxed);
            SUCCESS
        }
        unsafe extern "C" fn abort(comm: ncclComm_t) -> ResultCode {
            fake_of(comm).outcome.store(ABORTED, Ordering::Relaxed);
            SUCCESS
        }
        unsafe extern "C" fn reduce(
            _: *const c_void,
            _: *mut c_void,
            _: usize,
            _: ncclDataType_t,
            _: c_int,
            _: ncclComm_t,
            _: cudaStream_t,
        ) -> ResultCode {
            SUCCESS
        }
        unsafe extern "C" fn gather(
            _: *const c_void,
            _: *mut c_void,
            _: usize,
            _: ncclDataType_t,
            _: ncclComm_t,
            _: cudaStream_t,
        ) -> ResultCode {
            SUCCESS
        }
        unsafe extern "C" fn error_string(_: ResultCode) -> *const c_char {
            c"remote process exited".as_ptr()
        }
        unsafe extern "C" fn last_error(_: ncclComm_t) -> *const c_char {
            c"connection closed by 10.0.0.2\n".as_ptr()
        }
        static API: NcclApi = NcclApi {
            get_unique_id,
            comm_init_rank_config: init,
            comm_get_async_error: state,
            comm_finalize: finalize,
            comm_destroy: destroy,
            comm_abort: abort,
            all_reduce: reduce,
            broadcast: reduce,
            all_gather: gather,
            get_error_string: error_string,
            get_last_error: last_error,
        };
        &API
    }

    fn communicator(fake: &FakeCommunicator) -> Communicator {
        Communicator { api: fake_api(), pointer: std::ptr::from_ref(fake).cast_mut().cast() }
    }

    #[test]
    fn a_wait_ends_on_completion_on_a_peers_failure_and_on_abandon() {
        let (fake, flag) = (FakeCommunicator::default(), StopFlag::default());
        let communicator = communicator(&fake);
        let wait = || wait_until(&flag, || communicator.is_ready());
        assert_eq!(wait(), Ok(()));
        fake.state.store(REMOTE_ERROR, Ordering::Relaxed);
        let text = "NCCL: remote process exited: connection closed by 10.0.0.2";
        assert_eq!(wait(), Err(CollectiveError::Failed(text.to_owned())));
        fake.state.store(IN_PROGRESS, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| fake.state.store(SUCCESS, Ordering::Relaxed));
            assert_eq!(wait(), Ok(()));
        });
        fake.state.store(IN_PROGRESS, Ordering::Relaxed);
        flag.raise();
        assert_eq!(wait(), Err(CollectiveError::Abandoned));
    }

    #[test]
    fn a_communicator_is_aborted_if_an_operation_did_not_complete_or_it_has_failed() {
        let outcome = |operations_completed, state: ResultCode| {
            let fake = FakeCommunicator { state: state.into(), ..FakeCommunicator::default() };
            communicator(&fake).shut_down(operations_completed);
            fake.outcome.into_inner()
        };
        assert_eq!(outcome(true, SUCCESS), DESTROYED);
        assert_eq!(outcome(true, REMOTE_ERROR), ABORTED);
        assert_eq!(outcome(false, SUCCESS), ABORTED);
    }

    #[test]
    fn the_error_has_nccls_explanation_when_a_communicator_cannot_be_started() {
        let error = Communicator::start(fake_api(), ncclUniqueId { internal: [0; 128] }, 0, 1).err().unwrap();
        assert_eq!(error.to_string(), "NCCL: remote process exited: connection closed by 10.0.0.2");
    }
}
