//! The run files of `configs/`: each is accepted, without warnings.

use std::path::{Path, PathBuf};

use config::RunFile;

fn run_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.chain(folders.iter().flat_map(|folder| run_files(folder))).collect()
}

#[test]
fn run_files_that_people_copy_have_neither_errors_nor_warnings() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let paths = run_files(&configs);
    assert!(paths.len() >= 18, "{paths:?}");
    for path in paths {
        let (_, warnings) = RunFile::load_with_warnings(&path).unwrap_or_else(|error| panic!("{error}"));
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}
