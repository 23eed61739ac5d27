//! Complete run files with the earlier names of renamed keys.

use std::path::Path;

use config::RunFile;

#[test]
fn run_files_with_earlier_keys_are_accepted_with_warnings() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/earlier_keys");
    let (mut files, mut renamed, mut moved) = (0, 0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let (_, warnings) = RunFile::load_with_warnings(&path).unwrap();
        let count = |key: &str| std::fs::read_to_string(&path).unwrap().matches(&format!("{key}:")).count();
        let expected = count("begin_counts_when_cut") + count("  vision") + count("\nprecision") + count("lost_after");
        let found = warnings.iter().filter(|warning| warning.problem.contains("was renamed: write `")).count();
        assert_eq!(found, expected, "{}: {warnings:?}", path.display());
        let of_objective = |key| count(&format!("\n    {key}"));
        let expected = of_objective("dico") + of_objective("scst") + of_objective("contrastive");
        let found_moved =
            warnings.iter().filter(|warning| warning.problem.contains("are part of `objective` now")).count();
        assert_eq!(found_moved, expected, "{}: {warnings:?}", path.display());
        moved += found_moved;
        files += 1;
        renamed += found;
    }
    assert_eq!((files, renamed > 5, moved), (6, true, 4));
}
