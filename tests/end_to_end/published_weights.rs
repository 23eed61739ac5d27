//! Published weights: `worker encode`, `caption`, `export` and `import`, and scores of captions
//! from other programs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;
use test_support::{Workspace, clip, command, error_line, read_tensors, run, run_to_completion};

/// Writes a run file. `data` is YAML that continues the key `data`; other top-level keys may
/// follow in it. `captioner` has the settings that name the weights of the captioner.
fn run_file(workspace: &Workspace, name: &str, data: &str, captioner: &str) -> PathBuf {
    let folder = workspace.path("").display().to_string();
    let optimizer = "optimizer: { learning_rate: 1.0e-3, epsilon: 1.0e-3 }";
    let text = format!(
        "name: test\nseed: 5\noutput: {folder}/{name}\nworkers: {{ min: 1, max: 1 }}\n\
         data:\n  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}\n{data}\
         captioner: {{ {captioner}, dropout: 0.0 }}\nevaluator: {{ weights: {folder}/evaluator.safetensors }}\n\
         decoding: {{ beams: 3, max_length: 8 }}\nstages:\n  \
         - {{ name: xe, objective: cross_entropy, steps: 3, batch: 8, {optimizer} }}\n  \
         - {{ name: dico, objective: dico, steps: 2, batch: 4, {optimizer} }}\n"
    );
    let path = workspace.path(&format!("{name}.yaml"));
    std::fs::write(&path, text).unwrap();
    path
}

/// A workspace with the weights of an evaluator and of a vision encoder, and the settings of a new
/// captioner with that vision encoder.
fn workspace_with_weights() -> (Workspace, String) {
    let workspace = Workspace::new();
    clip::write_random_weights(&workspace.path("evaluator.safetensors"), 1);
    clip::write_random_weights(&workspace.path("vision_encoder.safetensors"), 2);
    let vision_encoder_path = workspace.path("vision_encoder.safetensors");
    let new_captioner = format!("preset: tiny, vision_encoder: {}", vision_encoder_path.display());
    (workspace, new_captioner)
}

/// Runs `worker encode`.
fn encode(workspace: &Workspace, run_file: &Path, split: &str) -> std::process::Output {
    let (config, out) =
        (run_file.to_string_lossy().into_owned(), workspace.path("features").to_string_lossy().into_owned());
    let arguments = ["encode", "--config", &config, "--split", split, "--out", &out, "--dtype", "f32", "--batch", "7"];
    run("worker", &arguments)
}

#[test]
fn training_from_a_feature_store_equals_training_from_images() {
    let (workspace, new_captioner) = workspace_with_weights();
    // The second evaluator is the vision encoder's CLIP, so each row of the store also has its
    // embedding.
    let second_evaluator = workspace.path("vision_encoder.safetensors");
    let settings =
        format!("vocabulary: corpus\nevaluators: {{ clip_s: {{ weights: {} }} }}\n", second_evaluator.display());
    let without = run_file(&workspace, "without", &settings, &new_captioner);
    for split in ["train", "val"] {
        assert!(encode(&workspace, &without, split).status.success());
    }
    let features = format!("  features: {}\n{settings}", workspace.path("features").display());
    let with = run_file(&workspace, "with", &features, &new_captioner);
    let validated = run("coordinator", &["validate", "--config", &with.to_string_lossy()]);
    assert!(validated.status.success(), "{validated:?}");
    run_to_completion(&workspace, &without, 1);
    // The second run reads only the annotations and the feature stores.
    std::fs::remove_dir_all(workspace.path("world/images")).unwrap();
    run_to_completion(&workspace, &with, 1);
    let (without, with) = (workspace.parameters("without"), workspace.parameters("with"));
    assert_eq!(without.keys().collect::<Vec<_>>(), with.keys().collect::<Vec<_>>());
    assert!(without.keys().any(|name| name.starts_with("reference.")));
    for (name, values) in &without {
        for (a, b) in values.iter().zip(&with[name]) {
            assert!((a - b).abs() < 2e-5, "{name}: {a} and {b}");
        }
    }
    let evaluations =
        ["without", "with"].map(|run| workspace.journal(run).latest_evaluations(1).unwrap().pop().unwrap().scores);
    for name in ["pac_s", "ref_pac_s", "clip_s", "ref_clip_s"] {
        let [without, with] = evaluations.each_ref().map(|metrics| metrics[name]);
        assert!((without - with).abs() < 1e-3, "{name}: {without} and {with}");
    }
    let other = run_file(
        &workspace,
        "other",
        &features.replace("clip_s", "clip_s_2").replace("vision_encoder.safetensors", "evaluator.safetensors"),
        &new_captioner,
    );
    let error = error_line(&run("coordinator", &["validate", "--config", &other.to_string_lossy()]));
    assert!(error.contains("data.features") && error.contains("evaluators"), "{error}");
}

#[test]
fn encode_resumes_after_a_crash_and_refuses_other_weights() {
    let (workspace, new_captioner) = workspace_with_weights();
    let config = run_file(&workspace, "run", "", &new_captioner);
    assert!(encode(&workspace, &config, "val").status.success());
    let (features, checksums) =
        (workspace.path("features/val/features.bin"), workspace.path("features/val/checksums.bin"));
    let (complete_features, complete_checksums) =
        (std::fs::read(&features).unwrap(), std::fs::read(&checksums).unwrap());
    // A crash in the middle of a row leaves an incomplete file.
    std::fs::write(&features, &complete_features[..complete_features.len() / 2 + 3]).unwrap();
    assert!(encode(&workspace, &config, "val").status.success());
    assert!(std::fs::read(&features).unwrap() == complete_features);
    assert!(std::fs::read(&checksums).unwrap() == complete_checksums);

    let old_hash = vision_encoder_sha256(&workspace.path("features/val/manifest.json"));
    clip::write_random_weights(&workspace.path("vision_encoder.safetensors"), 3);
    let error = error_line(&encode(&workspace, &config, "val"));
    assert!(error.contains("another vision encoder") && error.contains(&old_hash), "{error}");
    let hash_count = error.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64).count();
    assert_eq!(hash_count, 2, "{error}");
}

/// The hash of the vision encoder in a manifest.
fn vision_encoder_sha256(manifest: &Path) -> String {
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    manifest["vision"]["sha256"].as_str().unwrap().to_owned()
}

#[test]
fn a_checkpoint_captions_images_and_is_unchanged_by_export_and_import() {
    let (workspace, new_captioner) = workspace_with_weights();
    run_to_completion(&workspace, &run_file(&workspace, "run", "", &new_captioner), 1);
    let checkpoint = workspace.last_checkpoint("run").to_string_lossy().into_owned();
    let mut images = std::fs::read_dir(workspace.path("world/images")).unwrap();
    let [first, second] = [(); 2].map(|()| images.next().unwrap().unwrap().path().to_string_lossy().into_owned());
    let missing = workspace.path("missing.jpg").to_string_lossy().into_owned();

    let output = run("worker", &["caption", "--checkpoint", &checkpoint, "--max-length", "8", &first, &second]);
    let captions = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = captions.lines().map(|line| line.split_once('\t').unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line.0).collect::<Vec<_>>(), [&first, &second]);

    let arguments = ["caption", "--checkpoint", &checkpoint, "--max-length", "8", "--beams", "4", "--json", "-"];
    let mut child = command("worker");
    let mut child =
        child.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    write!(child.stdin.take().unwrap(), "{second}\n{missing}\n\n{first}\n").unwrap();
    let output = child.wait_with_output().unwrap();
    // A missing image does not prevent the captions of the others.
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("missing.jpg"));
    let results: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0]["image"], second.as_str());
    let scores: Vec<f64> =
        results[0]["captions"].as_array().unwrap().iter().map(|caption| caption["score"].as_f64().unwrap()).collect();
    assert_eq!(scores.len(), 4);
    assert!(scores.is_sorted_by(|a, b| a >= b));

    let [exported, imported, exported_again] =
        ["exported", "imported", "exported-again"].map(|name| workspace.path(name));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    for (subcommand, from, to) in [
        ("export", &PathBuf::from(&checkpoint), &exported),
        ("import", &exported, &imported),
        ("export", &imported, &exported_again),
    ] {
        let output = run("worker", &[subcommand, "--from", &text(from), "--to", &text(to)]);
        assert!(output.status.success(), "{subcommand}: {output:?}");
    }
    for name in ["config.json", "model.safetensors"] {
        assert!(
            std::fs::read(exported.join(name)).unwrap() == std::fs::read(exported_again.join(name)).unwrap(),
            "{name}"
        );
    }
    let trained = read_tensors(&Path::new(&checkpoint).join("captioner.safetensors"));
    assert_eq!(read_tensors(&imported.join("captioner.safetensors")), trained);
    let output = run("worker", &["caption", "--checkpoint", &text(&imported), "--max-length", "8", &first, &second]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), captions);

    // A run can start from the imported captioner.
    let start = format!("weights: {}", imported.display());
    run_to_completion(&workspace, &run_file(&workspace, "second", "", &start), 1);
    let error = error_line(&run("worker", &["export", "--from", &checkpoint, "--to", &text(&exported)]));
    assert!(error.contains("exists"), "{error}");
}

#[test]
fn a_captioner_with_a_corpus_vocabulary_is_unchanged_by_export_and_import() {
    let (workspace, new_captioner) = workspace_with_weights();
    run_to_completion(&workspace, &run_file(&workspace, "run", "vocabulary: corpus\n", &new_captioner), 1);
    let [exported, imported, exported_again] =
        ["exported", "imported", "exported-again"].map(|name| workspace.path(name));
    let checkpoint = workspace.last_checkpoint("run");
    for (subcommand, from, to) in
        [("export", &checkpoint, &exported), ("import", &exported, &imported), ("export", &imported, &exported_again)]
    {
        let output = run("worker", &[subcommand, "--from", &from.to_string_lossy(), "--to", &to.to_string_lossy()]);
        assert!(output.status.success(), "{subcommand}: {output:?}");
    }
    let mut names: Vec<_> =
        std::fs::read_dir(&exported).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = [
        "README.md",
        "config.json",
        "generation_config.json",
        "image_processing_dico.py",
        "model.safetensors",
        "modeling_dico.py",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    for name in expected.into_iter().filter(|&name| name != "README.md") {
        assert!(
            std::fs::read(exported.join(name)).unwrap() == std::fs::read(exported_again.join(name)).unwrap(),
            "{name}"
        );
    }
    let read_json = |folder: &Path, name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
    };
    assert_eq!(read_json(&checkpoint, "models.json")["vocabulary"], read_json(&imported, "models.json")["vocabulary"]);
    let (config, generation) = (read_json(&exported, "config.json"), read_json(&exported, "generation_config.json"));
    assert!(config["decoder"]["vocab_size"].as_u64().unwrap() < 1000);
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"] {
        assert_eq!(config[key], generation[key], "{key}");
    }
    assert_eq!((&generation["num_beams"], &generation["max_length"]), (&5.into(), &30.into()));
    assert_eq!(read_json(&exported, "preprocessor_config.json")["crop_size"]["height"], 32);
    let card = std::fs::read_to_string(exported.join("README.md")).unwrap();
    assert!(card.contains("stage `dico` of run `test`, after step 2") && card.contains("(\"exported\""), "{card}");

    let image = std::fs::read_dir(workspace.path("world/images")).unwrap().next().unwrap().unwrap().path();
    let captions = [&checkpoint, &imported]
        .map(|folder| run("worker", &["caption", "--checkpoint", &folder.to_string_lossy(), &image.to_string_lossy()]));
    assert!(captions.iter().all(|output| output.status.success() && output.stderr.is_empty()), "{captions:?}");
    assert_eq!(captions[0].stdout, captions[1].stdout);
}

#[test]
fn caption_and_export_warn_about_a_captioner_that_was_never_trained() {
    let workspace = Workspace::new();
    run_to_completion(&workspace, &workspace.run_file("run", 1, ""), 1);
    let image = std::fs::read_dir(workspace.path("world/images")).unwrap().next().unwrap().unwrap().path();
    let untrained = workspace.path("run/checkpoints/0-evaluator-00000004");
    for (checkpoint, has_warning) in [(untrained, true), (workspace.last_checkpoint("run"), false)] {
        let checkpoint = checkpoint.to_string_lossy();
        let output = run("worker", &["caption", "--checkpoint", &checkpoint, &image.to_string_lossy()]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr.contains("its captioner was never trained"), has_warning, "{stderr}");
        assert_eq!(stderr.contains("stage `evaluator` of run `test`, after step 4"), has_warning, "{stderr}");
        let exported = workspace.path(&format!("exported-{has_warning}"));
        let output = run("worker", &["export", "--from", &checkpoint, "--to", &exported.to_string_lossy()]);
        assert_eq!(String::from_utf8_lossy(&output.stderr).contains("never trained"), has_warning, "{output:?}");
    }
}

#[test]
fn a_run_starts_from_the_captioner_of_another_run_with_its_vision_encoder() {
    let (workspace, _) = workspace_with_weights();
    // The captioner of the first run has the vision encoder of that run's evaluator.
    run_to_completion(&workspace, &workspace.run_file("first", 1, ""), 1);
    let start = format!("weights: {}", workspace.last_checkpoint("first").display());
    run_to_completion(&workspace, &run_file(&workspace, "second", "", &start), 1);
    let image = std::fs::read_dir(workspace.path("world/images")).unwrap().next().unwrap().unwrap().path();
    let checkpoint = workspace.last_checkpoint("second").to_string_lossy().into_owned();
    let output = run("worker", &["caption", "--checkpoint", &checkpoint, &image.to_string_lossy()]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn validation_names_missing_and_unsuitable_files() {
    let (workspace, new_captioner) = workspace_with_weights();
    let valid = std::fs::read_to_string(run_file(&workspace, "run", "", &new_captioner)).unwrap();
    let validate = |text: &str| {
        std::fs::write(workspace.path("run.yaml"), text).unwrap();
        run("coordinator", &["validate", "--config", &workspace.path("run.yaml").to_string_lossy()])
    };
    let output = validate(&valid);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("training images") && stdout.contains("5 hidden states of 64 at 32 pixels"), "{stdout}");

    let error = error_line(&validate(&valid.replace("evaluator.safetensors", "nowhere.pth")));
    assert!(error.contains("evaluator.weights") && error.contains("nowhere.pth"), "{error}");
    let error = error_line(&validate(&valid.replace("vision_encoder.safetensors", "world/dataset.json")));
    assert!(error.contains("captioner.vision_encoder") && error.contains("dataset.json"), "{error}");
    let error = error_line(&validate(&valid.replace("data:\n", "data:\n  features: nowhere\n")));
    assert!(error.contains("data.features") && error.contains("nowhere/train"), "{error}");
    let error = error_line(&validate(
        &valid.replace(&new_captioner, &format!("weights: {}", workspace.path("world").display())),
    ));
    assert!(error.contains("captioner.weights") && error.contains("is not a model folder"), "{error}");
    let error = error_line(&validate(&valid.replace("karpathy:", "coco: {}\n  karpathy:")));
    assert!(error.contains("missing field"), "{error}");

    let weights = std::fs::read(workspace.path("evaluator.safetensors")).unwrap();
    std::fs::write(workspace.path("evaluator.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let error = error_line(&validate(&valid));
    assert!(error.contains("evaluator.weights") && error.contains("evaluator.safetensors"), "{error}");
}

/// Runs `worker`. Returns the JSON that it prints.
fn worker_json(arguments: &[&str]) -> serde_json::Value {
    let output = run("worker", arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn score_and_evaluate_give_the_same_scores() {
    let (workspace, new_captioner) = workspace_with_weights();
    let config = run_file(&workspace, "run", "", &new_captioner);
    run_to_completion(&workspace, &config, 1);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (config, checkpoint, captions) =
        (text(&config), text(&workspace.last_checkpoint("run")), text(&workspace.path("captions.json")));
    let [images, cache, run_evaluator, other_evaluator] =
        ["world/images", "cache", "evaluator.safetensors", "vision_encoder.safetensors"]
            .map(|name| text(&workspace.path(name)));
    let evaluation = worker_json(&[
        "evaluate",
        "--config",
        &config,
        "--checkpoint",
        &checkpoint,
        "--split",
        "val",
        "--captions",
        &captions,
        "--json",
    ]);
    let score = |options: &[&str]| {
        let common_options = ["score", "--config", &config, "--split", "val", "--candidates", &captions, "--json"];
        worker_json(&[&common_options[..], options].concat())
    };
    let by_run_evaluator = score(&["--evaluator", "run"]);
    let pac_s = format!("pac_s={run_evaluator}");
    let by_weights = score(&["--evaluator", &pac_s, "--images", &images, "--cache", &cache]);
    assert_eq!(
        by_weights,
        score(&["--evaluator", &pac_s, "--images", &images, "--cache", &cache]),
        "the cache changes scores"
    );
    for scores in [&by_run_evaluator, &by_weights] {
        for (name, expected) in evaluation["corpus"].as_object().unwrap() {
            let (score, expected) = (scores["corpus"][name].as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((score - expected).abs() < 1e-5, "{name}: {score}, not {expected}");
        }
        for (id, expected) in evaluation["items"]["ref_pac_s"].as_object().unwrap() {
            let item_scores = scores["items"]["ref_pac_s"].as_object().unwrap();
            assert!(item_scores.len() == evaluation["items"]["ref_pac_s"].as_object().unwrap().len(), "{id}");
            assert!(
                item_scores.values().any(|value| (value.as_f64().unwrap() - expected.as_f64().unwrap()).abs() < 1e-5)
            );
        }
    }
    // Two evaluators at once. Scores of the second have its name.
    let clip_s = format!("clip_s={other_evaluator}");
    let both = score(&["--evaluator", &pac_s, "--evaluator", &clip_s]);
    assert_eq!(both["corpus"]["pac_s"], by_run_evaluator["corpus"]["pac_s"]);
    let clip_s_only = score(&["--evaluator", &clip_s]);
    for (name, prefixed_name) in [
        ("clip_s", "clip_s"),
        ("ref_clip_s", "ref_clip_s"),
        ("retrieval_r1", "clip_s_retrieval_r1"),
        ("retrieval_mrr", "clip_s_retrieval_mrr"),
    ] {
        assert!(
            clip_s_only["corpus"][name].is_number() && both["corpus"][prefixed_name] == clip_s_only["corpus"][name],
            "{name}"
        );
    }
    // An evaluator can also be described by a YAML file.
    std::fs::write(workspace.path("evaluator.yaml"), "weights: evaluator.safetensors\nscore: clip_s\nprefix: \"\"\n")
        .unwrap();
    let described = format!("mine={}", text(&workspace.path("evaluator.yaml")));
    assert!(score(&["--evaluator", &described])["corpus"]["ref_mine"].is_number());

    let score_error = |options: &[&str]| {
        let common_options = ["score", "--config", &config, "--split", "val", "--candidates", &captions];
        error_line(&run("worker", &[&common_options[..], options].concat()))
    };
    std::fs::create_dir(workspace.path("few")).unwrap();
    std::fs::copy(first_image(&workspace), workspace.path("few/x.jpg")).unwrap();
    let few = text(&workspace.path("few"));
    let line = score_error(&["--evaluator", "run", "--images", &few]);
    assert!(line.contains("there is no image of") && line.contains("few"), "{line}");
    let line = score_error(&["--evaluator", &format!("pac_s={captions}")]);
    assert!(line.contains("evaluator pac_s") && line.contains("is neither safetensors nor"), "{line}");
}

#[test]
fn correlate_compares_scores_with_ratings_and_preferences() {
    let (workspace, _) = workspace_with_weights();
    let text = |name: &str| workspace.path(name).to_string_lossy().into_owned();
    let mut names: Vec<String> = std::fs::read_dir(workspace.path("world/images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let rated = |(number, name): (usize, &String)| {
        // Captions with more words of the reference have a higher rating.
        let caption = ["a", "a red", "a red circle", "a red circle here"][number % 4];
        json!({ "image": name, "caption": caption, "references": ["a red circle here"], "rating": number % 4 })
    };
    let ratings: Vec<_> = names.iter().take(12).enumerate().map(rated).collect();
    std::fs::write(workspace.path("ratings.json"), serde_json::to_vec(&ratings).unwrap()).unwrap();
    let pair = |(number, name): (usize, &String)| {
        let captions = if number < 3 { ["a red circle here", "a"] } else { ["a", "a red circle here"] };
        json!({
            "image": name, "captions": captions, "references": ["a red circle here"],
            "preferred": usize::from(number == 3), "category": if number < 2 { "HC" } else { "HM" },
        })
    };
    let pairs: Vec<_> = names.iter().take(5).enumerate().map(pair).collect();
    std::fs::write(workspace.path("pairs.json"), serde_json::to_vec(&pairs).unwrap()).unwrap();
    let evaluator = format!("pac_s={}", text("evaluator.safetensors"));
    let correlate = |file: &str| {
        let [judgements, images, cache] = [text(file), text("world/images"), text("cache")];
        let common_options =
            ["correlate", "--judgements", &judgements, "--images", &images, "--cache", &cache, "--json"];
        worker_json(&[&common_options[..], &["--evaluator", &evaluator]].concat())
    };
    let report = correlate("ratings.json");
    assert_eq!((&report["captions"], &report["metrics"]["rouge_l"]["tau_b"]), (&json!(12), &json!(1.0)));
    assert!(report["metrics"]["ref_pac_s"]["tau_c"].is_number());
    let report = correlate("pairs.json");
    // In the fourth pair the shorter caption is preferred.
    assert_eq!(report["metrics"]["rouge_l"], json!({ "HC": 1.0, "HM": 2.0 / 3.0, "all": 0.8 }));
    std::fs::write(workspace.path("missing.json"), r#"[{"image": "q.jpg", "caption": "a", "rating": 1}]"#).unwrap();
    let [judgements, images] = [text("missing.json"), text("world/images")];
    let line = error_line(&run("worker", &["correlate", "--judgements", &judgements, "--images", &images]));
    assert!(line.contains("there is no image \"q.jpg\""), "{line}");
}

fn first_image(workspace: &Workspace) -> PathBuf {
    std::fs::read_dir(workspace.path("world/images")).unwrap().next().unwrap().unwrap().path()
}
