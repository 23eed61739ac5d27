//! Compares METEOR with the values of the reference that `tests/parity/meteor.py` wrote.
//!
//! The test with METEOR's own tables needs `DICO_METEOR_JAR` and `DICO_METEOR_PARAPHRASES`, which
//! name `meteor-1.5.jar` and `paraphrase-en.gz`; the others need no files. All compare with the
//! committed file and, if `DICO_PARITY` names a folder of full size, with the file there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, iter};

use caption_metrics::meteor::{MeteorScorer, MeteorTables};
use flate2::write::GzEncoder;
use serde::Deserialize;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Sums have the same terms in the same order, so differences are tiny.
const TOLERANCE: f64 = 1e-12;

/// The content of a file that `tests/parity/meteor.py` wrote.
#[derive(Deserialize)]
struct MeteorGolden {
    /// The captions that METEOR scored.
    groups: Vec<CaptionGroup>,
    /// The values of METEOR, by the tables that it used.
    runs: BTreeMap<String, MeteorValues>,
}

#[derive(Deserialize)]
struct CaptionGroup {
    candidate: String,
    references: Vec<String>,
}

#[derive(Deserialize)]
struct MeteorValues {
    items: Vec<f64>,
    corpus: f64,
}

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/scoring")
}

/// The files with expected values.
fn golden_files() -> Vec<PathBuf> {
    let full = env::var_os("DICO_PARITY").map(|folder| Path::new(&folder).join("scoring/meteor.json"));
    let full = full.filter(|file| file.exists());
    if full.is_none() {
        eprintln!("full size skipped: DICO_PARITY names no folder with scoring/meteor.json");
    }
    iter::once(golden_folder().join("meteor.json")).chain(full).collect()
}

fn assert_equals_reference(run: &str, tables: &MeteorTables) {
    for file in golden_files() {
        let expected: MeteorGolden = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let values = &expected.runs[run];
        let mut meteor = MeteorScorer::new(tables);
        let mut max_difference: f64 = 0.0;
        assert_eq!(expected.groups.len(), values.items.len());
        for (group, value) in iter::zip(&expected.groups, &values.items) {
            let CaptionGroup { candidate, references } = group;
            let got = meteor.add(candidate, references);
            max_difference = max_difference.max((got - value).abs());
            assert!(max_difference <= TOLERANCE, "{got} is not {value}: {candidate:?} by {references:?}");
        }
        let corpus_difference = (meteor.corpus() - values.corpus).abs();
        eprintln!(
            "{run}: {} groups, largest difference {max_difference:e}, of the corpus value {corpus_difference:e}",
            expected.groups.len()
        );
        assert!(corpus_difference <= TOLERANCE, "{} is not {}", meteor.corpus(), values.corpus);
    }
}

#[test]
fn exact_and_stem_stages_equal_the_reference() {
    assert_equals_reference("exact and stem", &MeteorTables::open(None, None).unwrap());
}

#[test]
fn all_stages_equal_the_reference() {
    let files = ["DICO_METEOR_JAR", "DICO_METEOR_PARAPHRASES"].map(env::var_os);
    let [Some(jar), Some(paraphrases)] = files else {
        eprintln!("skipped: DICO_METEOR_JAR and DICO_METEOR_PARAPHRASES do not name METEOR's tables");
        return;
    };
    assert_equals_reference("all", &MeteorTables::open(Some(jar.as_ref()), Some(paraphrases.as_ref())).unwrap());
}

#[test]
fn all_stages_with_generated_tables_equal_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let table = |name: &str| fs::read(golden_folder().join("meteor").join(name)).unwrap();

    let jar = folder.path().join("tables.jar");
    let mut archive = ZipWriter::new(File::create(&jar).unwrap());
    for (name, content) in [
        ("function/english.words", table("english.words")),
        ("nonbreaking/english.prefixes", Vec::new()),
        ("synonym/english.synsets", table("english.synsets")),
        ("synonym/english.exceptions", table("english.exceptions")),
    ] {
        archive.start_file(name, SimpleFileOptions::default()).unwrap();
        archive.write_all(&content).unwrap();
    }
    archive.finish().unwrap();

    let paraphrases = folder.path().join("paraphrases.gz");
    let mut packed = GzEncoder::new(File::create(&paraphrases).unwrap(), flate2::Compression::default());
    packed.write_all(&table("paraphrases")).unwrap();
    packed.finish().unwrap();

    assert_equals_reference("made up", &MeteorTables::open(Some(&jar), Some(&paraphrases)).unwrap());
}
