//! Published weights: features encoded once, captions for images, and folders that go out and come back.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;
use test_support::{Workspace, clip, command, run_to_completion, error_line, run, read_tensors};

/// A run that sees through one CLIP and is judged by another, with `data` and `more` besides.
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

fn workspace() -> (Workspace, String) {
    let workspace = Workspace::new();
    clip::write_random_weights(&workspace.path("evaluator.safetensors"), 1);
    clip::write_random_weights(&workspace.path("eyes.safetensors"), 2);
    let scratch = format!("preset: tiny, vision_encoder: {}", workspace.path("eyes.safetensors").display());
    (workspace, scratch)
}

fn encode(workspace: &Workspace, run_file: &Path, split: &str) -> std::process::Output {
    let (config, out) =
        (run_file.to_string_lossy().into_owned(), workspace.path("features").to_string_lossy().into_owned());
    let arguments = ["encode", "--config", &config, "--split", split, "--out", &out, "--dtype", "f32", "--batch", "7"];
    run("worker", &arguments)
}

#[test]
fn training_from_stored_features_gives_what_training_from_images_does() {
    let (workspace, scratch) = workspace();
    // A second evaluator, which the captioner sees through: each row has its embedding, too.
    let second = workspace.path("eyes.safetensors");
    let vocabulary = format!("vocabulary: corpus\nevaluators: {{ clip_s: {{ weights: {} }} }}\n", second.display());
    let without = run_file(&workspace, "without", &vocabulary, &scratch);
    for split in ["train", "val"] {
        assert!(encode(&workspace, &without, split).status.success());
    }
    let features = format!("  features: {}\n{vocabulary}", workspace.path("features").display());
    let with = run_file(&workspace, "with", &features, &scratch);
    let validated = run("coordinator", &["validate", "--config", &with.to_string_lossy()]);
    assert!(validated.status.success(), "{validated:?}");
    run_to_completion(&workspace, &without, 1);
    // Nothing but the annotations and the stores is read.
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
    let evaluated = ["without", "with"].map(|run| {
        let query = "SELECT metrics_json FROM evaluations ORDER BY stage DESC LIMIT 1";
        let metrics: String = workspace.journal(run).query_row(query, [], |row| row.get(0)).unwrap();
        serde_json::from_str::<std::collections::BTreeMap<String, f64>>(&metrics).unwrap()
    });
    for name in ["pac_s", "ref_pac_s", "clip_s", "ref_clip_s"] {
        let [without, with] = evaluated.each_ref().map(|metrics| metrics[name]);
        assert!((without - with).abs() < 1e-3, "{name}: {without} and {with}");
    }
    let other =
        run_file(&workspace, "other", &features.replace("clip_s", "clip_s_2").replace("eyes", "evaluator"), &scratch);
    let error = error_line(&run("coordinator", &["validate", "--config", &other.to_string_lossy()]));
    assert!(error.contains("data.features") && error.contains("evaluators"), "{error}");
}

#[test]
fn an_interrupted_encoding_goes_on_and_other_weights_are_refused_with_both_hashes() {
    let (workspace, scratch) = workspace();
    let config = run_file(&workspace, "run", "", &scratch);
    assert!(encode(&workspace, &config, "val").status.success());
    let (features, checksums) =
        (workspace.path("features/val/features.bin"), workspace.path("features/val/checksums.bin"));
    let (whole, sums) = (std::fs::read(&features).unwrap(), std::fs::read(&checksums).unwrap());
    // As a crash in the middle of a row leaves it.
    std::fs::write(&features, &whole[..whole.len() / 2 + 3]).unwrap();
    assert!(encode(&workspace, &config, "val").status.success());
    assert!(std::fs::read(&features).unwrap() == whole && std::fs::read(&checksums).unwrap() == sums);

    let old = sha256_in(&workspace.path("features/val/manifest.json"));
    clip::write_random_weights(&workspace.path("eyes.safetensors"), 3);
    let error = error_line(&encode(&workspace, &config, "val"));
    assert!(error.contains("another vision encoder") && error.contains(&old), "{error}");
    let hashes = error.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64).count();
    assert_eq!(hashes, 2, "{error}");
}

/// The vision tower's hash in a manifest.
fn sha256_in(manifest: &Path) -> String {
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    manifest["vision"]["sha256"].as_str().unwrap().to_owned()
}

#[test]
fn a_checkpoint_captions_images_and_survives_export_and_import() {
    let (workspace, scratch) = workspace();
    run_to_completion(&workspace, &run_file(&workspace, "run", "", &scratch), 1);
    let checkpoint = workspace.last_checkpoint("run").to_string_lossy().into_owned();
    let mut images = std::fs::read_dir(workspace.path("world/images")).unwrap();
    let [first, second] = [(); 2].map(|()| images.next().unwrap().unwrap().path().to_string_lossy().into_owned());
    let missing = workspace.path("missing.jpg").to_string_lossy().into_owned();

    let plain = run("worker", &["caption", "--checkpoint", &checkpoint, "--max-length", "8", &first, &second]);
    let plain = String::from_utf8(plain.stdout).unwrap();
    let lines: Vec<_> = plain.lines().map(|line| line.split_once('\t').unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line.0).collect::<Vec<_>>(), [&first, &second]);

    let arguments = ["caption", "--checkpoint", &checkpoint, "--max-length", "8", "--beams", "4", "--json", "-"];
    let mut child = command("worker");
    let mut child =
        child.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    write!(child.stdin.take().unwrap(), "{second}\n{missing}\n\n{first}\n").unwrap();
    let output = child.wait_with_output().unwrap();
    // The others are captioned all the same.
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("missing.jpg"));
    let found: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0]["image"], second.as_str());
    let scores: Vec<f64> =
        found[0]["captions"].as_array().unwrap().iter().map(|caption| caption["score"].as_f64().unwrap()).collect();
    assert_eq!(scores.len(), 4);
    assert!(scores.is_sorted_by(|a, b| a >= b));

    let [released, imported, again] = ["released", "imported", "again"].map(|name| workspace.path(name));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    for (program, from, to) in [
        ("export", &PathBuf::from(&checkpoint), &released),
        ("import", &released, &imported),
        ("export", &imported, &again),
    ] {
        let output = run("worker", &[program, "--from", &text(from), "--to", &text(to)]);
        assert!(output.status.success(), "{program}: {output:?}");
    }
    for name in ["config.json", "model.safetensors"] {
        assert!(std::fs::read(released.join(name)).unwrap() == std::fs::read(again.join(name)).unwrap(), "{name}");
    }
    let trained = read_tensors(&Path::new(&checkpoint).join("captioner.safetensors"));
    assert_eq!(read_tensors(&imported.join("captioner.safetensors")), trained);
    let recaptioned =
        run("worker", &["caption", "--checkpoint", &text(&imported), "--max-length", "8", &first, &second]);
    assert_eq!(String::from_utf8(recaptioned.stdout).unwrap(), plain);

    // And a run can begin with it.
    let start = format!("weights: {}", imported.display());
    run_to_completion(&workspace, &run_file(&workspace, "second", "", &start), 1);
    let error = error_line(&run("worker", &["export", "--from", &checkpoint, "--to", &text(&released)]));
    assert!(error.contains("exists"), "{error}");
}

#[test]
fn a_captioner_that_knows_its_corpus_only_survives_export_and_import() {
    let (workspace, scratch) = workspace();
    run_to_completion(&workspace, &run_file(&workspace, "run", "vocabulary: corpus\n", &scratch), 1);
    let [exported, imported, again] = ["exported", "imported", "again"].map(|name| workspace.path(name));
    let checkpoint = workspace.last_checkpoint("run");
    for (program, from, to) in
        [("export", &checkpoint, &exported), ("import", &exported, &imported), ("export", &imported, &again)]
    {
        let output = run("worker", &[program, "--from", &from.to_string_lossy(), "--to", &to.to_string_lossy()]);
        assert!(output.status.success(), "{program}: {output:?}");
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
        assert!(std::fs::read(exported.join(name)).unwrap() == std::fs::read(again.join(name)).unwrap(), "{name}");
    }
    let read = |folder: &Path, name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
    };
    assert_eq!(read(&checkpoint, "models.json")["vocabulary"], read(&imported, "models.json")["vocabulary"]);
    let (config, generation) = (read(&exported, "config.json"), read(&exported, "generation_config.json"));
    assert!(config["decoder"]["vocab_size"].as_u64().unwrap() < 1000);
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"] {
        assert_eq!(config[key], generation[key], "{key}");
    }
    assert_eq!((&generation["num_beams"], &generation["max_length"]), (&5.into(), &30.into()));
    assert_eq!(read(&exported, "preprocessor_config.json")["crop_size"]["height"], 32);
    let card = std::fs::read_to_string(exported.join("README.md")).unwrap();
    assert!(card.contains("stage `dico` of run `test`, after step 2") && card.contains("(\"exported\""), "{card}");

    let image = std::fs::read_dir(workspace.path("world/images")).unwrap().next().unwrap().unwrap().path();
    let captions = [&checkpoint, &imported]
        .map(|folder| run("worker", &["caption", "--checkpoint", &folder.to_string_lossy(), &image.to_string_lossy()]));
    assert!(captions.iter().all(|output| output.status.success() && output.stderr.is_empty()), "{captions:?}");
    assert_eq!(captions[0].stdout, captions[1].stdout);
}

#[test]
fn captions_of_a_captioner_that_was_never_trained_come_with_a_warning() {
    let workspace = Workspace::new();
    run_to_completion(&workspace, &workspace.run_file("run", 1, ""), 1);
    let image = std::fs::read_dir(workspace.path("world/images")).unwrap().next().unwrap().unwrap().path();
    let first = workspace.path("run/checkpoints/0-evaluator-00000004");
    for (checkpoint, warns) in [(first, true), (workspace.last_checkpoint("run"), false)] {
        let checkpoint = checkpoint.to_string_lossy();
        let output = run("worker", &["caption", "--checkpoint", &checkpoint, &image.to_string_lossy()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.contains("its captioner was never trained"), warns, "{said}");
        assert_eq!(said.contains("stage `evaluator` of run `test`, after step 4"), warns, "{said}");
        let exported = workspace.path(&format!("exported-{warns}"));
        let output = run("worker", &["export", "--from", &checkpoint, "--to", &exported.to_string_lossy()]);
        assert_eq!(String::from_utf8_lossy(&output.stderr).contains("never trained"), warns, "{output:?}");
    }
}

#[test]
fn a_run_begins_with_the_captioner_of_another_and_sees_as_that_one_did() {
    let (workspace, _) = workspace();
    // Its captioner sees through an evaluator of its own.
    run_to_completion(&workspace, &workspace.run_file("first", 1, ""), 1);
    let start = format!("weights: {}", workspace.last_checkpoint("first").display());
    run_to_completion(&workspace, &run_file(&workspace, "second", "", &start), 1);
    let image = std::fs::read_dir(workspace.path("world/images")).unwrap().next().unwrap().unwrap().path();
    let checkpoint = workspace.last_checkpoint("second").to_string_lossy().into_owned();
    let output = run("worker", &["caption", "--checkpoint", &checkpoint, &image.to_string_lossy()]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn validation_names_what_is_missing_or_does_not_fit() {
    let (workspace, scratch) = workspace();
    let good = std::fs::read_to_string(run_file(&workspace, "run", "", &scratch)).unwrap();
    let validate = |text: &str| {
        std::fs::write(workspace.path("run.yaml"), text).unwrap();
        run("coordinator", &["validate", "--config", &workspace.path("run.yaml").to_string_lossy()])
    };
    let output = validate(&good);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("training images") && said.contains("5 hidden states of 64 at 32 pixels"), "{said}");

    let error = error_line(&validate(&good.replace("evaluator.safetensors", "nowhere.pth")));
    assert!(error.contains("evaluator.weights") && error.contains("nowhere.pth"), "{error}");
    let error = error_line(&validate(&good.replace("eyes.safetensors", "world/dataset.json")));
    assert!(error.contains("captioner.vision_encoder") && error.contains("dataset.json"), "{error}");
    let error = error_line(&validate(&good.replace("data:\n", "data:\n  features: nowhere\n")));
    assert!(error.contains("data.features") && error.contains("nowhere/train"), "{error}");
    let error =
        error_line(&validate(&good.replace(&scratch, &format!("weights: {}", workspace.path("world").display()))));
    assert!(error.contains("captioner.weights") && error.contains("is not a model folder"), "{error}");
    let error = error_line(&validate(&good.replace("karpathy:", "coco: {}\n  karpathy:")));
    assert!(error.contains("missing field"), "{error}");

    let weights = std::fs::read(workspace.path("evaluator.safetensors")).unwrap();
    std::fs::write(workspace.path("evaluator.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let error = error_line(&validate(&good));
    assert!(error.contains("evaluator.weights") && error.contains("evaluator.safetensors"), "{error}");
}

/// What `worker` prints as JSON.
fn scores(arguments: &[&str]) -> serde_json::Value {
    let output = run("worker", arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn captions_from_anywhere_are_scored_as_an_evaluation_scores_them() {
    let (workspace, scratch) = workspace();
    let config = run_file(&workspace, "run", "", &scratch);
    run_to_completion(&workspace, &config, 1);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (config, checkpoint, captions) =
        (text(&config), text(&workspace.last_checkpoint("run")), text(&workspace.path("captions.json")));
    let [images, cache, own, other] =
        ["world/images", "cache", "evaluator.safetensors", "eyes.safetensors"].map(|name| text(&workspace.path(name)));
    let evaluated = scores(&[
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
    let score = |more: &[&str]| {
        let basis = ["score", "--config", &config, "--split", "val", "--candidates", &captions, "--json"];
        scores(&[&basis[..], more].concat())
    };
    let by_own = score(&["--evaluator", "run"]);
    let file = format!("pac_s={own}");
    let from_folder = score(&["--evaluator", &file, "--images", &images, "--cache", &cache]);
    assert_eq!(from_folder, score(&["--evaluator", &file, "--images", &images, "--cache", &cache]), "from the cache");
    for found in [&by_own, &from_folder] {
        for (name, expected) in evaluated["corpus"].as_object().unwrap() {
            let (found, expected) = (found["corpus"][name].as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() < 1e-5, "{name}: {found}, not {expected}");
        }
        for (id, expected) in evaluated["items"]["ref_pac_s"].as_object().unwrap() {
            let matching = found["items"]["ref_pac_s"].as_object().unwrap();
            assert!(matching.len() == evaluated["items"]["ref_pac_s"].as_object().unwrap().len(), "{id}");
            assert!(matching.values().any(|value| (value.as_f64().unwrap() - expected.as_f64().unwrap()).abs() < 1e-5));
        }
    }
    // Two evaluators at once, each under its name.
    let clip_s = format!("clip_s={other}");
    let both = score(&["--evaluator", &file, "--evaluator", &clip_s]);
    assert_eq!(both["corpus"]["pac_s"], by_own["corpus"]["pac_s"]);
    let alone = score(&["--evaluator", &clip_s]);
    for (name, named) in [
        ("clip_s", "clip_s"),
        ("ref_clip_s", "ref_clip_s"),
        ("retrieval_r1", "clip_s_retrieval_r1"),
        ("retrieval_mrr", "clip_s_retrieval_mrr"),
    ] {
        assert!(alone["corpus"][name].is_number() && both["corpus"][named] == alone["corpus"][name], "{name}");
    }
    // The other form of an evaluator.
    std::fs::write(workspace.path("judge.yaml"), "weights: evaluator.safetensors\nscore: clip_s\nprefix: \"\"\n")
        .unwrap();
    let judge = format!("mine={}", text(&workspace.path("judge.yaml")));
    assert!(score(&["--evaluator", &judge])["corpus"]["ref_mine"].is_number());

    let refused = |more: &[&str]| {
        let basis = ["score", "--config", &config, "--split", "val", "--candidates", &captions];
        error_line(&run("worker", &[&basis[..], more].concat()))
    };
    std::fs::create_dir(workspace.path("few")).unwrap();
    std::fs::copy(first_image(&workspace), workspace.path("few/x.jpg")).unwrap();
    let few = text(&workspace.path("few"));
    let line = refused(&["--evaluator", "run", "--images", &few]);
    assert!(line.contains("there is no image of") && line.contains("few"), "{line}");
    let line = refused(&["--evaluator", &format!("pac_s={captions}")]);
    assert!(line.contains("evaluator pac_s") && line.contains("is neither safetensors nor"), "{line}");
}

#[test]
fn scores_are_correlated_with_ratings_and_pairs() {
    let (workspace, _) = workspace();
    let text = |name: &str| workspace.path(name).to_string_lossy().into_owned();
    let mut names: Vec<String> = std::fs::read_dir(workspace.path("world/images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let rated = |(number, name): (usize, &String)| {
        // The more of the reference there is in a caption, the better it is rated.
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
        let basis = ["correlate", "--judgements", &judgements, "--images", &images, "--cache", &cache, "--json"];
        scores(&[&basis[..], &["--evaluator", &evaluator]].concat())
    };
    let found = correlate("ratings.json");
    assert_eq!((&found["captions"], &found["metrics"]["rouge_l"]["tau_b"]), (&json!(12), &json!(1.0)));
    assert!(found["metrics"]["ref_pac_s"]["tau_c"].is_number());
    let found = correlate("pairs.json");
    // Of the last pair the shorter caption is preferred.
    assert_eq!(found["metrics"]["rouge_l"], json!({ "HC": 1.0, "HM": 2.0 / 3.0, "all": 0.8 }));
    std::fs::write(workspace.path("missing.json"), r#"[{"image": "q.jpg", "caption": "a", "rating": 1}]"#).unwrap();
    let [judgements, images] = [text("missing.json"), text("world/images")];
    let line = error_line(&run("worker", &["correlate", "--judgements", &judgements, "--images", &images]));
    assert!(line.contains("there is no image \"q.jpg\""), "{line}");
}

fn first_image(workspace: &Workspace) -> PathBuf {
    std::fs::read_dir(workspace.path("world/images")).unwrap().next().unwrap().unwrap().path()
}
