use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises this process's limit of open files, and so of connections, to the hard limit. Returns the
/// limit, which is the earlier one if it cannot be raised.
pub fn raise_open_files_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = if raised.is_ok() { maximum } else { current };
    limit.unwrap_or(u64::MAX)
}
