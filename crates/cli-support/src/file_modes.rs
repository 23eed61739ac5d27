use rustix::fs::Mode;

/// The umask: new files and folders get no write permission for the group, and none for others.
const UMASK: Mode = Mode::from_bits_retain(0o027);

/// Makes this process create files with mode 0640 and folders with mode 0750 from now on, in place
/// of the umask that it inherited. The files of runs (journals, captions, checkpoints) are readable
/// by user and group.
///
/// Affects the whole process and its children, so only programs call it, before anything else.
pub fn share_new_files_with_group() {
    // The previous umask does not matter.
    _ = rustix::process::umask(UMASK);
}
