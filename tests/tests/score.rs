//! `worker score`: captions against references, from files.

use dico_tests::{command, error_line, run};

/// Writes the files and runs `worker score` on them with `more` options.
fn score(references: &str, candidates: &str, more: &[&str]) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    let [refs, cands] = [("refs.json", references), ("cands.json", candidates)].map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    });
    let mut command = command("worker");
    // The tables of whoever runs the tests would change METEOR.
    command.env_remove("DICO_METEOR_JAR").env_remove("DICO_METEOR_PARAPHRASES");
    command.arg("score").arg("--references").arg(refs).arg("--candidates").arg(cands).args(more);
    command.output().unwrap()
}

const REFERENCES: &str = r#"{"a.jpg": ["A dog runs.", "The dog is running"], "7": ["two cats sleep on a mat"]}"#;

#[test]
fn json_has_all_metrics_of_all_items() {
    let output = score(REFERENCES, r#"{"a.jpg": "a dog runs", "7": "a mat with a"}"#, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for metric in ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider", "rep_1", "incorrect_endings"] {
        assert!(report["corpus"][metric].is_number(), "{metric} is missing: {report}");
        assert_eq!(report["items"][metric].as_object().unwrap().len(), 2, "{metric}");
    }
    assert!((report["items"]["bleu_1"]["a.jpg"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{report}");
    assert_eq!(report["items"]["incorrect_endings"]["7"], 1.0);
    // Without its tables METEOR says so.
    assert!(report["notes"][0].as_str().unwrap().contains("meteor-1.5.jar"), "{report}");
}

#[test]
fn cocos_own_files_give_the_same() {
    let annotations = r#"{"images": [], "annotations": [{"image_id": 1, "caption": "a dog runs"}, {"image_id": 2, "caption": "a cat"}]}"#;
    let results = r#"[{"image_id": 2, "caption": "a cat"}, {"image_id": 1, "caption": "a dog"}]"#;
    let coco = score(annotations, results, &["--per-item"]);
    let plain = score(r#"{"1": ["a dog runs"], "2": ["a cat"]}"#, r#"{"1": "a dog", "2": "a cat"}"#, &["--per-item"]);
    let text = String::from_utf8(coco.stdout.clone()).unwrap();
    assert!(text.starts_with("id\t") && text.lines().count() == 3, "{text}");
    assert_eq!(coco.stdout, plain.stdout);
}

#[test]
fn what_is_wrong_is_named() {
    let error =
        error_line(&run("worker", &["score", "--references", "/nowhere.json", "--candidates", "/nowhere.json"]));
    assert!(error.contains("/nowhere.json") && error.contains("No such file"), "{error}");
    let error = error_line(&score(REFERENCES, r#"{"b.jpg": "a dog"}"#, &[]));
    assert!(error.contains("refs.json") && error.contains("b.jpg"), "{error}");
    let error = error_line(&score("{", "{}", &[]));
    assert!(error.contains("refs.json") && error.contains("line 1"), "{error}");
}
