use rustix::fs::Mode;

/// Permissions that new files and folders do not get: to write for the group, and all for others.
const MASK: Mode = Mode::from_bits_retain(0o027);

/// Makes this process create files with mode 0640 and folders with mode 0750 from now on, whatever its umask was. What runs write
/// (journals, captions, checkpoints) is for their user and group.
///
/// It holds for the whole process and what it starts, so only programs call it, first of all.
pub fn share_new_files_with_group() {
    // The umask that it replaces is what nothing is to depend on.
    _ = rustix::process::umask(MASK);
}
