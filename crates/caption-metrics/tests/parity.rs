//! Compares metrics and tokens of thousands of captions with those of pycocoevalcap, which
//! `tests/parity/metrics.py` wrote into the folder that DICO_METRICS_PARITY names. The tests are
//! skipped if DICO_METRICS_PARITY is not set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use caption_metrics::files::CaptionSet;
use caption_metrics::{MetricFiles, Metrics, ptb_tokenizer};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The values that pycocoevalcap computed, by metric, and for items by image id.
#[derive(Deserialize)]
struct ExpectedScores {
    corpus: BTreeMap<String, f64>,
    items: BTreeMap<String, BTreeMap<String, f64>>,
}

/// Maximal number of differing captions that are printed.
const MAX_SHOWN: usize = 20;

fn read<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("DICO_METRICS_PARITY").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: DICO_METRICS_PARITY does not name a folder that tests/parity/metrics.py wrote");
    }
    // The path is relative to the root of the repository, but Cargo runs tests in the package's
    // folder.
    folder.map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder))
}

#[test]
fn metrics_equal_those_of_pycocoevalcap() {
    let Some(folder) = folder() else { return };
    let captions = CaptionSet::read(&folder.join("refs.json"), &folder.join("cands.json"), None).unwrap();
    let expected: ExpectedScores = read(&folder.join("expected.json"));
    let path_in = |name| std::env::var_os(name).map(PathBuf::from);
    let (meteor_jar, meteor_paraphrases) = (path_in("DICO_METEOR_JAR"), path_in("DICO_METEOR_PARAPHRASES"));
    let has_tables = meteor_jar.is_some() && meteor_paraphrases.is_some();
    let files = MetricFiles { meteor_jar, meteor_paraphrases, ..MetricFiles::default() };
    let report = Metrics::open(&files).unwrap().score(&captions.items);

    let mut failed = false;
    for (name, reference) in &expected.items {
        if name == "meteor" && !has_tables {
            eprintln!(
                "meteor: not compared, because DICO_METEOR_JAR and DICO_METEOR_PARAPHRASES do not name its tables"
            );
            continue;
        }
        let own = &report.items[name.as_str()];
        let tolerance = if name == "meteor" { 1e-4 } else { 1e-6 };
        let difference = |id: &str, value: f64| (value - reference[id]).abs();
        let (id, value) = captions
            .ids
            .iter()
            .zip(own)
            .max_by(|a, b| difference(a.0, *a.1).total_cmp(&difference(b.0, *b.1)))
            .unwrap();
        let max_difference = difference(id, *value);
        let failures = captions.ids.iter().zip(own).filter(|(id, value)| difference(id, **value) > tolerance).count();
        let corpus_difference = (report.corpus[name.as_str()] - expected.corpus[name]).abs();
        let total = own.len();
        eprintln!(
            "{name}: largest difference {max_difference:.1e} by item ({id}), {corpus_difference:.1e} of the corpus value; {failures} of {total} differ"
        );
        failed |= failures > 0 || corpus_difference > tolerance;
    }
    assert!(!failed, "values differ");
}

#[test]
fn tokens_equal_those_of_pycocoevalcap() {
    let Some(folder) = folder() else { return };
    let expected: Vec<(String, String)> = read(&folder.join("tokens.json"));
    let differ = |(caption, reference): &&(String, String)| ptb_tokenizer::tokenize(caption).join(" ") != *reference;
    let mismatches: Vec<_> = expected.iter().filter(differ).collect();
    eprintln!("tokens: {} of {} captions differ", mismatches.len(), expected.len());
    for (caption, reference) in mismatches.iter().take(MAX_SHOWN) {
        eprintln!(
            "  {caption:?}\n    own       {}\n    reference {reference}",
            ptb_tokenizer::tokenize(caption).join(" ")
        );
    }
    assert!(mismatches.is_empty(), "tokens differ");
}
