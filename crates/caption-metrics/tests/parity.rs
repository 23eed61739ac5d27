//! Compares all values and tokens with those that pycocoevalcap gave for thousands of captions: what
//! `tests/parity/metrics.py` wrote into the folder that DICO_METRICS_PARITY names. Skipped without it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use caption_metrics::files::Captions;
use caption_metrics::{Files, Metrics, tokens};
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
struct Expected {
    corpus: BTreeMap<String, f64>,
    items: BTreeMap<String, BTreeMap<String, f64>>,
}

/// Captions shown of those that differ.
const SHOWN: usize = 20;

fn read<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("DICO_METRICS_PARITY").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: DICO_METRICS_PARITY does not name a folder that tests/parity/metrics.py wrote");
    }
    // Cargo runs tests in the folder of the package.
    folder.map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder))
}

#[test]
fn values_are_those_of_the_reference() {
    let Some(folder) = folder() else { return };
    let captions = Captions::read(&folder.join("refs.json"), &folder.join("cands.json"), None).unwrap();
    let expected: Expected = read(&folder.join("expected.json"));
    let table = |name| std::env::var_os(name).map(PathBuf::from);
    let (meteor_jar, meteor_paraphrases) = (table("DICO_METEOR_JAR"), table("DICO_METEOR_PARAPHRASES"));
    let has_tables = meteor_jar.is_some() && meteor_paraphrases.is_some();
    let files = Files { meteor_jar, meteor_paraphrases, ..Files::default() };
    let report = Metrics::open(&files).unwrap().score(&captions.items);

    let mut failed = false;
    for (name, theirs) in &expected.items {
        if name == "meteor" && !has_tables {
            eprintln!(
                "meteor: not compared, because DICO_METEOR_JAR and DICO_METEOR_PARAPHRASES do not name its tables"
            );
            continue;
        }
        let ours = &report.items[name.as_str()];
        let tolerance = if name == "meteor" { 1e-4 } else { 1e-6 };
        let off = |id: &str, value: f64| (value - theirs[id]).abs();
        let (id, value) =
            captions.ids.iter().zip(ours).max_by(|a, b| off(a.0, *a.1).total_cmp(&off(b.0, *b.1))).unwrap();
        let item = off(id, *value);
        let beyond = captions.ids.iter().zip(ours).filter(|(id, value)| off(id, **value) > tolerance).count();
        let corpus = (report.corpus[name.as_str()] - expected.corpus[name]).abs();
        let number = ours.len();
        eprintln!(
            "{name}: largest difference {item:.1e} by item ({id}), {corpus:.1e} of all; {beyond} of {number} differ"
        );
        failed |= beyond > 0 || corpus > tolerance;
    }
    assert!(!failed, "values differ");
}

#[test]
fn tokens_are_those_of_the_reference() {
    let Some(folder) = folder() else { return };
    let expected: Vec<(String, String)> = read(&folder.join("tokens.json"));
    let differ = |(caption, theirs): &&(String, String)| tokens::tokenise(caption).join(" ") != *theirs;
    let wrong: Vec<_> = expected.iter().filter(differ).collect();
    eprintln!("tokens: {} of {} captions differ", wrong.len(), expected.len());
    for (caption, theirs) in wrong.iter().take(SHOWN) {
        eprintln!("  {caption:?}\n    ours   {}\n    theirs {theirs}", tokens::tokenise(caption).join(" "));
    }
    assert!(wrong.is_empty(), "tokens differ");
}
