//! `worker score`: scores captions in files against references in files.

use test_support::{command, error_line, run};

/// Writes references and candidates to files, and runs `worker score` on them with further options.
fn score(references: &str, candidates: &str, options: &[&str]) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    let [references, candidates] = [("refs.json", references), ("cands.json", candidates)].map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    });
    let mut command = command("worker");
    // The tables that these variables name would change METEOR.
    command.env_remove("DICO_METEOR_JAR").env_remove("DICO_METEOR_PARAPHRASES");
    command.arg("score").arg("--references").arg(references).arg("--candidates").arg(candidates).args(options);
    command.output().unwrap()
}

const REFERENCES: &str = r#"{"a.jpg": ["A dog runs.", "The dog is running"], "7": ["two cats sleep on a mat"]}"#;

#[test]
fn json_output_has_all_metrics_of_all_items() {
    let output = score(REFERENCES, r#"{"a.jpg": "a dog runs", "7": "a mat with a"}"#, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for metric in ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider", "rep_1", "incorrect_endings"] {
        assert!(report["corpus"][metric].is_number(), "{metric} is missing: {report}");
        assert_eq!(report["items"][metric].as_object().unwrap().len(), 2, "{metric}");
    }
    assert!((report["items"]["bleu_1"]["a.jpg"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{report}");
    assert_eq!(report["items"]["incorrect_endings"]["7"], 1.0);
    // A note says that METEOR has no tables.
    assert!(report["notes"][0].as_str().unwrap().contains("meteor-1.5.jar"), "{report}");
}

#[test]
fn files_in_cocos_format_give_the_same_scores() {
    let annotations = r#"{"images": [], "annotations": [{"image_id": 1, "caption": "a dog runs"}, {"image_id": 2, "caption": "a cat"}]}"#;
    let results = r#"[{"image_id": 2, "caption": "a cat"}, {"image_id": 1, "caption": "a dog"}]"#;
    let coco = score(annotations, results, &["--per-item"]);
    let plain = score(r#"{"1": ["a dog runs"], "2": ["a cat"]}"#, r#"{"1": "a dog", "2": "a cat"}"#, &["--per-item"]);
    let text = String::from_utf8(coco.stdout.clone()).unwrap();
    assert!(text.starts_with("id\t") && text.lines().count() == 3, "{text}");
    assert_eq!(coco.stdout, plain.stdout);
}

#[test]
fn either_file_can_be_read_from_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let candidates = r#"{"a.jpg": "a dog runs", "7": "a mat with a"}"#;
    let expected = score(REFERENCES, candidates, &["--per-item"]).stdout;
    for (file, piped, from_stdin) in
        [("--references", candidates, "--candidates"), ("--candidates", REFERENCES, "--references")]
    {
        let (path, input) = (folder.path().join("file.json"), folder.path().join("piped.json"));
        std::fs::write(&path, if piped == candidates { REFERENCES } else { candidates }).unwrap();
        // With a byte order mark, as PowerShell writes it.
        std::fs::write(&input, format!("\u{feff}{piped}")).unwrap();
        let mut command = command("worker");
        command.env_remove("DICO_METEOR_JAR").env_remove("DICO_METEOR_PARAPHRASES");
        command.arg("score").arg(file).arg(&path).args([from_stdin, "-", "--per-item"]);
        let output = command.stdin(std::fs::File::open(&input).unwrap()).output().unwrap();
        assert!(output.status.success() && output.stdout == expected, "{output:?}");
    }
    let error = error_line(&run("worker", &["score", "--references", "-", "--candidates", "-"]));
    assert!(error.contains("standard input"), "{error}");
}

#[test]
fn notes_name_blank_candidates_and_undefined_metrics() {
    let output = score(r#"{"7": ["two cats sleep on a mat"]}"#, r#"{"7": ""}"#, &[]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("worker: cider: 0, because"), "{stderr}");
    assert!(stderr.contains("1 of 1 candidates are blank and score 0, such as that of image \"7\""), "{stderr}");
}

#[test]
fn errors_name_the_file_and_the_image() {
    let error =
        error_line(&run("worker", &["score", "--references", "/nowhere.json", "--candidates", "/nowhere.json"]));
    assert!(error.contains("/nowhere.json") && error.contains("No such file"), "{error}");
    let error = error_line(&score(REFERENCES, r#"{"b.jpg": "a dog"}"#, &[]));
    assert!(error.contains("refs.json") && error.contains("b.jpg"), "{error}");
    let error = error_line(&score(r#"{"7": ["two cats", " "]}"#, r#"{"7": "a dog"}"#, &[]));
    assert!(error.contains("refs.json: reference 2 of image \"7\" is blank"), "{error}");
    let error = error_line(&score("{", "{}", &[]));
    assert!(error.contains("refs.json") && error.contains("line 1"), "{error}");
}
