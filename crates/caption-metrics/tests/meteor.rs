//! METEOR against the values of the reference, from `tests/parity/meteor.py`.
//!
//! The runs without METEOR's own tables need no other files. The run with them needs `DICO_METEOR_JAR` and
//! `DICO_METEOR_PARAPHRASES`, which name `meteor-1.5.jar` and `paraphrase-en.gz`. All are compared with the committed
//! file and, if `DICO_PARITY` names a folder of full size that has one, with that.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, iter};

use caption_metrics::meteor::{Meteor, Tables};
use flate2::write::GzEncoder;
use serde::Deserialize;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// The numbers summed and their order are the same.
const TOLERANCE: f64 = 1e-12;

#[derive(Deserialize)]
struct Expected {
    groups: Vec<Group>,
    runs: BTreeMap<String, Run>,
}

#[derive(Deserialize)]
struct Group {
    candidate: String,
    references: Vec<String>,
}

#[derive(Deserialize)]
struct Run {
    items: Vec<f64>,
    corpus: f64,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/scoring")
}

/// The files to compare with.
fn files() -> Vec<PathBuf> {
    let full = env::var_os("DICO_PARITY").map(|folder| Path::new(&folder).join("scoring/meteor.json"));
    let full = full.filter(|file| file.exists());
    if full.is_none() {
        eprintln!("full size skipped: DICO_PARITY names no folder with scoring/meteor.json");
    }
    iter::once(golden().join("meteor.json")).chain(full).collect()
}

fn compare(run: &str, tables: &Tables) {
    for file in files() {
        let expected: Expected = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let values = &expected.runs[run];
        let mut meteor = Meteor::new(tables);
        let mut largest: f64 = 0.0;
        assert_eq!(expected.groups.len(), values.items.len());
        for (group, value) in iter::zip(&expected.groups, &values.items) {
            let Group { candidate, references } = group;
            let got = meteor.add(candidate, references);
            largest = largest.max((got - value).abs());
            assert!(largest <= TOLERANCE, "{got} is not {value}: {candidate:?} by {references:?}");
        }
        let corpus = (meteor.corpus() - values.corpus).abs();
        eprintln!("{run}: {} groups, largest difference {largest:e}, of all {corpus:e}", expected.groups.len());
        assert!(corpus <= TOLERANCE, "{} is not {}", meteor.corpus(), values.corpus);
    }
}

#[test]
fn exact_and_stem_are_those_of_the_reference() {
    compare("exact and stem", &Tables::open(None, None).unwrap());
}

#[test]
fn all_stages_are_those_of_the_reference() {
    let files = ["DICO_METEOR_JAR", "DICO_METEOR_PARAPHRASES"].map(env::var_os);
    let [Some(jar), Some(paraphrases)] = files else {
        eprintln!("skipped: DICO_METEOR_JAR and DICO_METEOR_PARAPHRASES do not name METEOR's tables");
        return;
    };
    compare("all", &Tables::open(Some(jar.as_ref()), Some(paraphrases.as_ref())).unwrap());
}

#[test]
fn all_stages_with_tables_of_our_own_are_those_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let table = |name: &str| fs::read(golden().join("meteor").join(name)).unwrap();

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

    compare("made up", &Tables::open(Some(&jar), Some(&paraphrases)).unwrap());
}
