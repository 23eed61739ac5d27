//! Atomic files and folders: they appear under their names only when they are complete.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The temporary path for `path`: beside it, with the suffix `.partial`.
pub fn scratch(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".partial");
    path.with_file_name(name)
}

/// Writes a file and syncs it to disk.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let written = File::create(path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|error| format!("{}: {error}", path.display()))
}

/// Creates the folder `path` with the content that `fill` writes.
pub fn new_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
    let scratch = scratch(path);
    if let Some(there) = [path, &scratch].into_iter().find(|path| path.exists()) {
        return Err(format!("{} exists: choose another folder or remove it", there.display()));
    }
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    std::fs::create_dir_all(&scratch).map_err(failed)?;
    fill(&scratch).and_then(|()| std::fs::rename(&scratch, path).map_err(failed)).inspect_err(|_| {
        // The error is reported already; the next attempt names a folder that remains.
        _ = std::fs::remove_dir_all(&scratch);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["v1.0", "v1.1"].map(|name| folder.path().join(name));
        assert_ne!(scratch(&one), scratch(&two));
        assert_eq!(new_folder(&one, |_| Err("the disk is full".into())), Err("the disk is full".into()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        new_folder(&two, |inside| write(&inside.join("file"), b"1")).unwrap();
        assert_eq!(std::fs::read(two.join("file")).unwrap(), b"1");
        assert!(new_folder(&two, |_| Ok(())).unwrap_err().contains("exists"));
        std::fs::create_dir(scratch(&one)).unwrap();
        assert!(new_folder(&one, |_| Ok(())).unwrap_err().contains("v1.0.partial exists"));
    }
}
