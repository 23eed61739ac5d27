//! Folders that appear under their names only when they are complete, and files that are synced to
//! disk.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The temporary path for `path`: beside it, with the suffix `.partial`.
fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".partial");
    path.with_file_name(name)
}

/// Writes a file and syncs it to disk. Not atomic by itself: files of a folder are complete when
/// [`create_folder`] renames the folder.
///
/// # Errors
/// The file cannot be written.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create(path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.with_context(|| path.display().to_string())
}

/// Creates the folder `path` with the content that `fill` writes. If `fill` fails, no folder
/// remains.
///
/// # Errors
/// The folder, or its temporary folder, exists; `fill` fails; or the folder cannot be created.
pub fn create_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = partial_path(path);
    if let Some(existing) = [path, &partial].into_iter().find(|path| path.exists()) {
        bail!("{} exists: choose another folder or remove it", existing.display());
    }
    std::fs::create_dir_all(&partial).with_context(|| path.display().to_string())?;
    let filled =
        fill(&partial).and_then(|()| std::fs::rename(&partial, path).with_context(|| path.display().to_string()));
    filled.inspect_err(|_| {
        // If the removal fails, the next attempt names the remaining folder.
        _ = std::fs::remove_dir_all(&partial);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_complete_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let [failed, complete] = ["v1.0", "v1.1"].map(|name| folder.path().join(name));
        assert_ne!(partial_path(&failed), partial_path(&complete));
        assert_eq!(create_folder(&failed, |_| bail!("the disk is full")).unwrap_err().to_string(), "the disk is full");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        create_folder(&complete, |partial| write_synced(&partial.join("file"), b"1")).unwrap();
        assert_eq!(std::fs::read(complete.join("file")).unwrap(), b"1");
        assert!(create_folder(&complete, |_| Ok(())).unwrap_err().to_string().contains("exists"));
        std::fs::create_dir(partial_path(&failed)).unwrap();
        assert!(create_folder(&failed, |_| Ok(())).unwrap_err().to_string().contains("v1.0.partial exists"));
    }
}
