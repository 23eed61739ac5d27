//! Data sets of users: `worker inspect`, runs without captions, and `worker score` with the
//! captions of a run.

use std::path::Path;
use std::process::{Command, Output};

use journal::Caption;
use serde_json::{Value, json};
use test_support::{Workspace, command, error_line, run, run_to_completion};

/// Runs `worker inspect` in the workspace.
fn inspect(workspace: &Workspace, arguments: &[&str]) -> Output {
    command("worker").arg("inspect").args(arguments).current_dir(workspace.path("")).output().unwrap()
}

/// The JSON in a program's stdout.
fn json_output(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The strings of a JSON array.
fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

/// The file names of the images of a split, in order.
fn image_names(dataset: &Value, split: &str) -> Vec<String> {
    let images = dataset["images"].as_array().unwrap();
    let images_of_split = images.iter().filter(|image| image["split"] == split);
    images_of_split.map(|image| image["filename"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn inspect_shows_statistics_samples_and_all_problems() {
    let workspace = Workspace::new();
    let output = inspect(&workspace, &["world/dataset.json", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report = json_output(&output);
    let path = workspace.path("world/dataset.json");
    let mut dataset = read_json(&path);
    for split in ["train", "val", "test"] {
        let summary = &report["splits"][split];
        assert_eq!(summary["images"], image_names(&dataset, split).len(), "{split}");
        assert_eq!(summary["captions"], 5 * image_names(&dataset, split).len(), "{split}");
        assert_eq!(summary["captions_per_image"], json!({ "min": 5, "max": 5 }), "{split}");
        assert_eq!(summary["samples"].as_array().unwrap().len(), 5, "{split}");
        let (words, tokens) = (&summary["words"], &summary["tokens"]);
        assert!(words["vocabulary"].as_u64() > Some(5) && tokens["vocabulary"].as_u64() > Some(5), "{summary}");
        // Captions have two more tokens than words: the begin and the end.
        assert!(tokens["median"].as_u64() > words["median"].as_u64(), "{summary}");
    }
    assert_eq!(report["splits"]["train"]["samples"][0]["captions"].as_array().unwrap().len(), 5);
    assert_eq!((&report["problems"], &report["notes"]), (&json!([]), &json!([])));

    let (train, val, test) =
        (image_names(&dataset, "train"), image_names(&dataset, "val"), image_names(&dataset, "test"));
    std::fs::remove_file(workspace.path("world/images").join(&train[0])).unwrap();
    std::fs::write(workspace.path("world/images").join(&val[0]), "no image").unwrap();
    for image in dataset["images"].as_array_mut().unwrap() {
        if image["filename"] == test[0].as_str() {
            image["sentences"] = json!([]);
        }
        if image["filename"] == test[1].as_str() {
            image["split"] = json!("holdout");
        }
        if image["filename"] == train[1].as_str() {
            image["sentences"][0]["raw"] = json!("a circle ".repeat(60));
        }
    }
    let mut duplicate = dataset["images"]
        .as_array()
        .unwrap()
        .iter()
        .find(|image| image["filename"] == val[1].as_str())
        .cloned()
        .unwrap();
    duplicate["split"] = json!("train");
    dataset["images"].as_array_mut().unwrap().push(duplicate);
    std::fs::write(&path, dataset.to_string()).unwrap();
    let output = inspect(&workspace, &["world/dataset.json", "--json"]);
    assert_eq!(error_line(&output), "world/dataset.json: 3 problems");
    let report = json_output(&output);
    let (problems, notes) = (strings(&report["problems"]).join("\n"), strings(&report["notes"]).join("\n"));
    for (image, problem) in [
        (&train[0], "No such file"),
        (&val[0], "not a JPEG, PNG or WebP"),
        (&test[0], "no sentences, others of split `test` have some"),
    ] {
        let is_named = problems.lines().any(|line| line.contains(image.as_str()) && line.contains(problem));
        assert!(is_named, "{image}: {problems}");
    }
    for note in [
        "not used: 1 images of split `holdout`".to_owned(),
        format!("1 images are in both `train` and `val`, world/images/{} for one", val[1]),
        "1 captions have more than 77 tokens".to_owned(),
    ] {
        assert!(notes.contains(&note), "{note}: {notes}");
    }
    // The text output has the same problems and notes.
    let text = String::from_utf8(inspect(&workspace, &["world/dataset.json"]).stdout).unwrap();
    assert!(text.contains("train: ") && text.contains("problems: 3\n") && text.contains("notes: 3\n"), "{text}");
    assert!(problems.lines().chain(notes.lines()).all(|line| text.contains(line)), "{text}");
}

#[test]
fn inspect_reads_run_files_and_tars_and_refuses_other_inputs() {
    let workspace = Workspace::new();
    let folder = format!("{}/", workspace.path("").display()).replace("//", "/");
    let text = std::fs::read_to_string(workspace.run_file("run", 1, "")).unwrap();
    // Paths are relative to the run file, not to the current folder.
    std::fs::create_dir(workspace.path("configs")).unwrap();
    std::fs::write(workspace.path("configs/run.yaml"), text.replace(&folder, "../")).unwrap();
    let output = inspect(&workspace, &["configs/run.yaml", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(json_output(&output)["splits"].as_object().unwrap().len(), 3);
    let validated =
        run("coordinator", &["validate", "--config", &workspace.path("configs/run.yaml").to_string_lossy()]);
    assert!(validated.status.success(), "{validated:?}");
    let moved = workspace.path("configs/moved.yaml");
    std::fs::write(&moved, text.replace(&folder, "")).unwrap();
    // A path that exists only relative to the current folder is accepted with a warning, as in
    // earlier versions.
    let output = inspect(&workspace, &["configs/moved.yaml", "--json"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && stderr.contains("`world/images` is taken from the current folder"), "{stderr}");

    let (photos, dataset) = (workspace.path("photos"), read_json(&workspace.path("world/dataset.json")));
    std::fs::create_dir(&photos).unwrap();
    let captions = [
        ("txt", "A red circle.\nA circle\n\n"),
        ("json", r#"{"caption": "A star.", "id": 7}"#),
        ("json", r#"["A cross.", "One cross", "The cross"]"#),
        ("json", r#"{"title": "A square.", "license": 3}"#),
    ];
    for (index, (image, (extension, text))) in image_names(&dataset, "train").iter().zip(captions).enumerate() {
        std::fs::copy(workspace.path("world/images").join(image), photos.join(format!("{index}.jpg"))).unwrap();
        std::fs::write(photos.join(format!("{index}.{extension}")), text).unwrap();
    }
    let error = error_line(&inspect(&workspace, &["photos"]));
    assert!(error.contains("photos: is a folder: ") && error.contains("`tar -cf NAME.tar -C photos .`"), "{error}");
    let tar_status = Command::new("tar").args(["-cf", "photos.tar", "-C", "photos", "."]).current_dir(&folder).status();
    assert!(tar_status.unwrap().success());
    let output = inspect(&workspace, &["photos.tar", "--json"]);
    assert_eq!(error_line(&output), "photos.tar: 1 problem");
    let report = json_output(&output);
    let summary = &report["splits"]["train"];
    assert_eq!((&summary["images"], &summary["captions"]), (&3.into(), &6.into()));
    assert_eq!(summary["captions_per_image"], json!({ "min": 1, "max": 3 }));
    let problem = &strings(&report["problems"])[0];
    let expected = "3 in photos.tar: an image without captions: its .json has the keys `license`, `title`, and none of \
                    `captions`, `caption`, `text` is a text or a list of texts";
    assert!(problem.contains(expected), "{problem}");

    let error = error_line(&inspect(&workspace, &["missing.json"]));
    assert_eq!(error, "missing.json: there is no such file");
    std::fs::write(workspace.path("other.json"), r#"{"photos": []}"#).unwrap();
    let output = inspect(&workspace, &["other.json"]);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        !output.status.success() && stdout.contains("missing field `images`") && stdout.contains("`photos`"),
        "{stdout}"
    );
}

/// Writes COCO annotations of two images, of which `NAME.jpg` is missing. Returns the split for a
/// run file.
fn write_coco_split(workspace: &Workspace, name: &str) -> String {
    let annotations = json!({
        "images": [{ "id": 1, "file_name": format!("{name}.jpg") }, { "id": 2, "file_name": "valid.jpg" }],
        "annotations": [{ "image_id": 1, "caption": "a star" }, { "image_id": 2, "caption": "a star" }],
    });
    std::fs::write(workspace.path(&format!("{name}.json")), annotations.to_string()).unwrap();
    format!("{{ annotations: {name}.json, images: photos }}")
}

#[test]
fn inspect_reads_the_other_splits_if_one_cannot_be_read() {
    let workspace = Workspace::new();
    let text = std::fs::read_to_string(workspace.run_file("run", 1, "")).unwrap();
    let dataset = read_json(&workspace.path("world/dataset.json"));
    std::fs::create_dir(workspace.path("photos")).unwrap();
    let image = workspace.path("world/images").join(&image_names(&dataset, "train")[0]);
    std::fs::copy(image, workspace.path("photos/valid.jpg")).unwrap();
    let [train, val, test] = ["t", "v", "u"].map(|name| write_coco_split(&workspace, name));
    let start = text.find("  karpathy:").unwrap();
    let end = start + text[start..].find('\n').unwrap();
    // `val` is another name of the key `validation`.
    let coco = format!("  coco: {{ train: {train}, val: {val}, test: {test} }}");
    let text = text.replace(&text[start..end], &coco);
    std::fs::write(workspace.path("coco.yaml"), &text).unwrap();
    std::fs::write(workspace.path("v.json"), r#"{"annotations": [], "pictures": []}"#).unwrap();
    let output = inspect(&workspace, &["coco.yaml", "--json"]);
    assert_eq!(error_line(&output), "coco.yaml: 3 problems");
    let report = json_output(&output);
    let problems = strings(&report["problems"]).join("\n");
    for expected in [
        "v.json: missing field `images`",
        "its keys are `annotations`, `pictures`",
        "train: ",
        "photos/t.jpg: ",
        "photos/u.jpg: ",
    ] {
        assert!(problems.contains(expected), "{expected}: {problems}");
    }
    assert_eq!((&report["splits"]["train"]["images"], &report["splits"]["test"]["images"]), (&1.into(), &1.into()));

    _ = write_coco_split(&workspace, "v");
    std::fs::write(workspace.path("coco.yaml"), text.replace("data:\n", "data:\n  skip_corrupt: true\n")).unwrap();
    let output = inspect(&workspace, &["coco.yaml", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let notes = strings(&json_output(&output)["notes"]);
    assert_eq!(notes.iter().filter(|note| note.starts_with("left out: ") && note.contains("No such file")).count(), 3);
    assert!(notes.iter().any(|note| note.starts_with("1 images are in both `train` and `val`")), "{notes:?}");
}

/// Writes annotations without captions to `world/without-captions.json`.
fn write_annotations_without_captions(workspace: &Workspace) {
    let mut dataset = read_json(&workspace.path("world/dataset.json"));
    for image in dataset["images"].as_array_mut().unwrap() {
        image["sentences"] = json!([]);
    }
    std::fs::write(workspace.path("world/without-captions.json"), dataset.to_string()).unwrap();
}

#[test]
fn captions_of_a_run_are_scored_and_dico_trains_without_reference_captions() {
    let workspace = Workspace::new();
    let config = workspace.run_file("first", 1, "");
    run_to_completion(&workspace, &config, 1);

    let score = |options: &[&str]| {
        let mut command = command("worker");
        // The tables that these variables name would change METEOR.
        command.env_remove("DICO_METEOR_JAR").env_remove("DICO_METEOR_PARAPHRASES");
        command.arg("score").arg("--config").arg(&config).args(options).output().unwrap()
    };
    let output = score(&["--split", "validation", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report = json_output(&output);
    let last = workspace.journal("first").latest_evaluations(1).unwrap().pop().unwrap();
    assert_eq!(last.id.position.stage, 2);
    for metric in ["cider", "bleu_4", "meteor", "rouge_l", "mean_length"] {
        assert_eq!(report["corpus"][metric], last.scores[metric], "{metric}");
    }
    let notes = strings(&report["notes"]);
    let names_captions = |note: &String| note.ends_with("first/captions/2-dico-00000004.json");
    assert!(notes.iter().any(names_captions), "{notes:?}");
    // The same captions, by file name.
    let captions = read_json(&workspace.path("first/captions/2-dico-00000004.json"));
    let names = image_names(&read_json(&workspace.path("world/dataset.json")), "val");
    let dataset = read_json(&workspace.path("world/dataset.json"));
    let caption_of = |name: &str| {
        let image = dataset["images"].as_array().unwrap().iter().find(|image| image["filename"] == name).unwrap();
        captions.as_array().unwrap().iter().find(|result| result["image_id"] == image["cocoid"]).unwrap()["caption"]
            .clone()
    };
    let captions_by_name: serde_json::Map<String, Value> =
        names.iter().map(|name| (format!("photos/{name}"), caption_of(name))).collect();
    let path = workspace.path("captions-by-name.json");
    std::fs::write(&path, Value::from(captions_by_name).to_string()).unwrap();
    let path = path.to_string_lossy();
    let output = score(&["--split", "val", "--candidates", &path, "--json"]);
    assert_eq!(json_output(&output)["corpus"], report["corpus"]);
    assert!(strings(&json_output(&output)["notes"]).contains(&"images are matched by file name".to_owned()));
    let error = error_line(&score(&["--split", "test"]));
    assert!(error.contains("are of the split `val`, not of `test`: name a file with --candidates"), "{error}");
    let error = error_line(&score(&["--split", "train", "--candidates", &path]));
    assert!(error.contains("first.yaml: has no references for 6 of the candidates' images"), "{error}");

    write_annotations_without_captions(&workspace);
    let (folder, checkpoint) = (workspace.path("").display().to_string(), workspace.last_checkpoint("first"));
    let validate_captionless = |objective: &str| {
        let checkpoint = checkpoint.display();
        let text = format!(
            "name: captionless\nseed: 11\noutput: {folder}captionless\nworkers: {{ min: 1, max: 1 }}\n\
             data: {{ karpathy: {{ annotations: {folder}world/without-captions.json, images: {folder}world/images }} }}\n\
             evaluator: {{ weights: {checkpoint}, prefix: \"\" }}\ncaptioner: {{ weights: {checkpoint}, dropout: 0.0 }}\n\
             decoding: {{ beams: 3, max_length: 12 }}\nstages:\n  \
             - {{ name: tune, steps: 4, batch: 6, evaluate_every: 2, optimizer: {{ learning_rate: 1.0e-4 }}, {objective} }}\n"
        );
        std::fs::write(workspace.path("captionless.yaml"), text).unwrap();
        run("coordinator", &["validate", "--config", &workspace.path("captionless.yaml").to_string_lossy()])
    };
    for (objective, problem) in [
        ("objective: cross_entropy", "split `train` has no captions: stage `tune` (cross_entropy) trains on them"),
        (
            "objective: { dico: { reward: { cider: 1 } } }",
            "split `train` has no captions: stage `tune` rewards `cider`",
        ),
        ("objective: dico, metric: ref_pac_s", "split `val` has no captions: stage `tune` watches `ref_pac_s`"),
    ] {
        let error = error_line(&validate_captionless(objective));
        assert!(error.contains("without-captions.json: ") && error.contains(problem), "{error}");
    }
    let validated = validate_captionless("objective: dico, metric: pac_s");
    assert!(validated.status.success(), "{validated:?}");
    let inspected = inspect(&workspace, &["captionless.yaml"]);
    let text = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(
        inspected.status.success() && text.contains("split `train` has no captions: dico and scst stages"),
        "{text}"
    );
    run_to_completion(&workspace, &workspace.path("captionless.yaml"), 1);
    let evaluations = workspace.evaluations("captionless");
    assert_eq!(evaluations.len(), 2);
    for (evaluation, captions) in evaluations {
        assert!(evaluation.scores["pac_s"] > 0.0 && !evaluation.scores.contains_key("cider"), "{evaluation:?}");
        assert_eq!(captions.len(), 6);
        let is_scored_alone = |caption: &Caption| caption.references.is_empty() && !caption.caption.is_empty();
        assert!(captions.iter().all(is_scored_alone), "{captions:?}");
    }
    let error =
        error_line(&run("worker", &["score", "--config", &workspace.path("captionless.yaml").to_string_lossy()]));
    assert!(error.ends_with("split `val` has no captions: there is nothing to score against"), "{error}");
}

#[test]
fn control_characters_in_captions_are_escaped_in_terminal_output() {
    let workspace = Workspace::new();
    let path = workspace.path("world/dataset.json");
    let mut dataset = read_json(&path);
    for image in dataset["images"].as_array_mut().unwrap() {
        image["sentences"][0]["raw"] = "a \u{1b}[31mred\u{9b}0m circle".into();
    }
    std::fs::write(&path, dataset.to_string()).unwrap();
    let output = inspect(&workspace, &["world/dataset.json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("a \\u001b[31mred\\u009b0m circle"), "{text}");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    // JSON output has the captions unchanged.
    let report = json_output(&inspect(&workspace, &["world/dataset.json", "--json"]));
    let captions = &report["splits"]["train"]["samples"][0]["captions"];
    assert!(captions.to_string().contains("\\u001b[31mred"), "{captions}");
    assert_eq!(captions[0], "a \u{1b}[31mred\u{9b}0m circle");
}
