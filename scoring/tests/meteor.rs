//! METEOR against the values of the reference, from `tests/parity/meteor.py`.
//!
//! The runs without METEOR's own tables need no other files. The run with them needs `DICO_METEOR_JAR` and
//! `DICO_METEOR_PARAPHRASES`, which name `meteor-1.5.jar` and `paraphrase-en.gz`. `DICO_PARITY_DIR` names a folder of
//! full size to compare with, in place of the committed one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, iter};

use dico_scoring::meteor::{Meteor, Tables};
use flate2::write::GzEncoder;
use serde::Deserialize;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Values are sums and powers of few numbers.
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
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/scoring")
}

fn compare(run: &str, tables: &Tables) {
    let folder = env::var_os("DICO_PARITY_DIR").map_or_else(golden, |folder| Path::new(&folder).join("scoring"));
    let expected: Expected = serde_json::from_slice(&fs::read(folder.join("meteor.json")).unwrap()).unwrap();
    let run = &expected.runs[run];
    let mut meteor = Meteor::new(tables);
    assert_eq!(expected.groups.len(), run.items.len());
    for (group, value) in iter::zip(&expected.groups, &run.items) {
        let got = meteor.add(&group.candidate, &group.references);
        let Group { candidate, references } = group;
        assert!((got - value).abs() <= TOLERANCE, "{got} is not {value}: {candidate:?} by {references:?}");
    }
    let corpus = meteor.corpus();
    assert!((corpus - run.corpus).abs() <= TOLERANCE, "{corpus} is not {}", run.corpus);
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
