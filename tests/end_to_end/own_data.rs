//! Data of users' own: what `worker inspect` says of them, runs without captions, and scores of
//! what a run wrote.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use test_support::{Workspace, command, complete, error_line, run};

fn inspect(workspace: &Workspace, arguments: &[&str]) -> Output {
    command("worker").arg("inspect").args(arguments).current_dir(workspace.path("")).output().unwrap()
}

fn printed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn lines(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

/// File names of the images of a split of the world.
fn images(dataset: &Value, split: &str) -> Vec<String> {
    let all = dataset["images"].as_array().unwrap();
    let of_split = all.iter().filter(|image| image["split"] == split);
    of_split.map(|image| image["filename"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn inspect_shows_figures_and_samples_and_all_problems_at_once() {
    let workspace = Workspace::new();
    let output = inspect(&workspace, &["world/dataset.json", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report = printed(&output);
    let path = workspace.path("world/dataset.json");
    let mut dataset = read_json(&path);
    for split in ["train", "val", "test"] {
        let found = &report["splits"][split];
        assert_eq!(found["images"], images(&dataset, split).len(), "{split}");
        assert_eq!(found["captions"], 5 * images(&dataset, split).len(), "{split}");
        assert_eq!(found["captions_per_image"], json!({ "min": 5, "max": 5 }), "{split}");
        assert_eq!(found["samples"].as_array().unwrap().len(), 5, "{split}");
        let (words, tokens) = (&found["words"], &found["tokens"]);
        assert!(words["vocabulary"].as_u64() > Some(5) && tokens["vocabulary"].as_u64() > Some(5), "{found}");
        // Begin and end are no words.
        assert!(tokens["median"].as_u64() > words["median"].as_u64(), "{found}");
    }
    assert_eq!(report["splits"]["train"]["samples"][0]["captions"].as_array().unwrap().len(), 5);
    assert_eq!((&report["problems"], &report["notes"]), (&json!([]), &json!([])));

    let (train, val, test) = (images(&dataset, "train"), images(&dataset, "val"), images(&dataset, "test"));
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
    let mut leak = dataset["images"]
        .as_array()
        .unwrap()
        .iter()
        .find(|image| image["filename"] == val[1].as_str())
        .cloned()
        .unwrap();
    leak["split"] = json!("train");
    dataset["images"].as_array_mut().unwrap().push(leak);
    std::fs::write(&path, dataset.to_string()).unwrap();
    let output = inspect(&workspace, &["world/dataset.json", "--json"]);
    assert_eq!(error_line(&output), "world/dataset.json: 3 problems");
    let report = printed(&output);
    let (problems, notes) = (lines(&report["problems"]).join("\n"), lines(&report["notes"]).join("\n"));
    for (image, problem) in [
        (&train[0], "No such file"),
        (&val[0], "not a JPEG, PNG or WebP"),
        (&test[0], "no sentences, others of split `test` have some"),
    ] {
        let named = problems.lines().any(|line| line.contains(image.as_str()) && line.contains(problem));
        assert!(named, "{image}: {problems}");
    }
    for note in [
        "not used: 1 images of split `holdout`".to_owned(),
        format!("1 images are in both `train` and `val`, world/images/{} for one", val[1]),
        "1 captions have more than 77 tokens".to_owned(),
    ] {
        assert!(notes.contains(&note), "{note}: {notes}");
    }
    // The same for people.
    let text = String::from_utf8(inspect(&workspace, &["world/dataset.json"]).stdout).unwrap();
    assert!(text.contains("train: ") && text.contains("problems: 3\n") && text.contains("notes: 3\n"), "{text}");
    assert!(problems.lines().chain(notes.lines()).all(|line| text.contains(line)), "{text}");
}

#[test]
fn inspect_takes_run_files_and_tars_and_says_what_else_it_is_given() {
    let workspace = Workspace::new();
    let folder = format!("{}/", workspace.path("").display()).replace("//", "/");
    let text = std::fs::read_to_string(workspace.run_file("run", 1, "")).unwrap();
    // Relative to the run file, not to the current folder.
    std::fs::create_dir(workspace.path("configs")).unwrap();
    std::fs::write(workspace.path("configs/run.yaml"), text.replace(&folder, "../")).unwrap();
    let output = inspect(&workspace, &["configs/run.yaml", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(printed(&output)["splits"].as_object().unwrap().len(), 3);
    let validated =
        run("coordinator", &["validate", "--config", &workspace.path("configs/run.yaml").to_string_lossy()]);
    assert!(validated.status.success(), "{validated:?}");
    let moved = workspace.path("configs/moved.yaml");
    std::fs::write(&moved, text.replace(&folder, "")).unwrap();
    // As earlier versions had it: found in the current folder, with a warning.
    let output = inspect(&workspace, &["configs/moved.yaml", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("`world/images` is taken from the current folder"), "{said}");

    let (photos, dataset) = (workspace.path("photos"), read_json(&workspace.path("world/dataset.json")));
    std::fs::create_dir(&photos).unwrap();
    let captions = [
        ("txt", "A red circle.\nA circle\n\n"),
        ("json", r#"{"caption": "A star.", "id": 7}"#),
        ("json", r#"["A cross.", "One cross", "The cross"]"#),
        ("json", r#"{"title": "A square.", "license": 3}"#),
    ];
    for (at, (image, (extension, text))) in images(&dataset, "train").iter().zip(captions).enumerate() {
        std::fs::copy(workspace.path("world/images").join(image), photos.join(format!("{at}.jpg"))).unwrap();
        std::fs::write(photos.join(format!("{at}.{extension}")), text).unwrap();
    }
    let error = error_line(&inspect(&workspace, &["photos"]));
    assert!(error.contains("photos: is a folder: ") && error.contains("`tar -cf NAME.tar -C photos .`"), "{error}");
    let packed = Command::new("tar").args(["-cf", "photos.tar", "-C", "photos", "."]).current_dir(&folder).status();
    assert!(packed.unwrap().success());
    let output = inspect(&workspace, &["photos.tar", "--json"]);
    assert_eq!(error_line(&output), "photos.tar: 1 problem");
    let report = printed(&output);
    let found = &report["splits"]["train"];
    assert_eq!((&found["images"], &found["captions"]), (&3.into(), &6.into()));
    assert_eq!(found["captions_per_image"], json!({ "min": 1, "max": 3 }));
    let problem = &lines(&report["problems"])[0];
    let expected = "3 in photos.tar: an image without captions: its .json has the keys `license`, `title`, and none of \
                    `captions`, `caption`, `text` is a text or a list of texts";
    assert!(problem.contains(expected), "{problem}");

    let error = error_line(&inspect(&workspace, &["missing.json"]));
    assert_eq!(error, "missing.json: there is no such file");
    std::fs::write(workspace.path("other.json"), r#"{"photos": []}"#).unwrap();
    let output = inspect(&workspace, &["other.json"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && said.contains("missing field `images`") && said.contains("`photos`"), "{said}");
}

/// COCO's annotations of one image, which is missing, as a split of a run file.
fn coco_split(workspace: &Workspace, name: &str) -> String {
    let annotations = json!({
        "images": [{ "id": 1, "file_name": format!("{name}.jpg") }, { "id": 2, "file_name": "sound.jpg" }],
        "annotations": [{ "image_id": 1, "caption": "a star" }, { "image_id": 2, "caption": "a star" }],
    });
    std::fs::write(workspace.path(&format!("{name}.json")), annotations.to_string()).unwrap();
    format!("{{ annotations: {name}.json, images: photos }}")
}

#[test]
fn inspect_reads_each_split_where_another_cannot_be_read() {
    let workspace = Workspace::new();
    let text = std::fs::read_to_string(workspace.run_file("run", 1, "")).unwrap();
    let dataset = read_json(&workspace.path("world/dataset.json"));
    std::fs::create_dir(workspace.path("photos")).unwrap();
    let image = workspace.path("world/images").join(&images(&dataset, "train")[0]);
    std::fs::copy(image, workspace.path("photos/sound.jpg")).unwrap();
    let [train, val, test] = ["t", "v", "u"].map(|name| coco_split(&workspace, name));
    let start = text.find("  karpathy:").unwrap();
    let end = start + text[start..].find('\n').unwrap();
    // `val` is another name of the key.
    let coco = format!("  coco: {{ train: {train}, val: {val}, test: {test} }}");
    let text = text.replace(&text[start..end], &coco);
    std::fs::write(workspace.path("coco.yaml"), &text).unwrap();
    std::fs::write(workspace.path("v.json"), r#"{"annotations": [], "pictures": []}"#).unwrap();
    let output = inspect(&workspace, &["coco.yaml", "--json"]);
    assert_eq!(error_line(&output), "coco.yaml: 3 problems");
    let report = printed(&output);
    let problems = lines(&report["problems"]).join("\n");
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

    _ = coco_split(&workspace, "v");
    std::fs::write(workspace.path("coco.yaml"), text.replace("data:\n", "data:\n  skip_corrupt: true\n")).unwrap();
    let output = inspect(&workspace, &["coco.yaml", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let notes = lines(&printed(&output)["notes"]);
    assert_eq!(notes.iter().filter(|note| note.starts_with("left out: ") && note.contains("No such file")).count(), 3);
    assert!(notes.iter().any(|note| note.starts_with("1 images are in both `train` and `val`")), "{notes:?}");
}

/// Takes the captions out of the training and validation split of the world.
fn silence(workspace: &Workspace) {
    let mut dataset = read_json(&workspace.path("world/dataset.json"));
    for image in dataset["images"].as_array_mut().unwrap() {
        image["sentences"] = json!([]);
    }
    std::fs::write(workspace.path("world/silent.json"), dataset.to_string()).unwrap();
}

#[test]
fn what_a_run_wrote_is_scored_and_dico_goes_on_without_captions() {
    let workspace = Workspace::new();
    let config = workspace.run_file("first", 1, "");
    complete(&workspace, &config, 1);

    let score = |more: &[&str]| {
        let mut command = command("worker");
        // Tables that the environment names would change METEOR.
        command.env_remove("DICO_METEOR_JAR").env_remove("DICO_METEOR_PARAPHRASES");
        command.arg("score").arg("--config").arg(&config).args(more).output().unwrap()
    };
    let output = score(&["--split", "validation", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report = printed(&output);
    let journal = workspace.journal("first");
    let query = "SELECT metrics_json FROM evaluations WHERE stage = 2 ORDER BY step DESC LIMIT 1";
    let metrics: Value =
        serde_json::from_str(&journal.query_row(query, [], |row| row.get::<_, String>(0)).unwrap()).unwrap();
    for metric in ["cider", "bleu_4", "meteor", "rouge_l", "mean_length"] {
        assert_eq!(report["corpus"][metric], metrics[metric], "{metric}");
    }
    let notes = lines(&report["notes"]);
    let of_the_run = |note: &String| note.ends_with("first/captions/2-dico-00000004.json");
    assert!(notes.iter().any(of_the_run), "{notes:?}");
    // The same captions under file names.
    let written = read_json(&workspace.path("first/captions/2-dico-00000004.json"));
    let names = images(&read_json(&workspace.path("world/dataset.json")), "val");
    let dataset = read_json(&workspace.path("world/dataset.json"));
    let of_name = |name: &str| {
        let image = dataset["images"].as_array().unwrap().iter().find(|image| image["filename"] == name).unwrap();
        written.as_array().unwrap().iter().find(|result| result["image_id"] == image["cocoid"]).unwrap()["caption"]
            .clone()
    };
    let renamed: serde_json::Map<String, Value> =
        names.iter().map(|name| (format!("photos/{name}"), of_name(name))).collect();
    let path = workspace.path("renamed.json");
    std::fs::write(&path, Value::from(renamed).to_string()).unwrap();
    let path = path.to_string_lossy();
    let output = score(&["--split", "val", "--candidates", &path, "--json"]);
    assert_eq!(printed(&output)["corpus"], report["corpus"]);
    assert!(lines(&printed(&output)["notes"]).contains(&"images are matched by file name".to_owned()));
    let error = error_line(&score(&["--split", "test"]));
    assert!(error.contains("are of the split `val`, not of `test`: name a file with --candidates"), "{error}");
    let error = error_line(&score(&["--split", "train", "--candidates", &path]));
    assert!(error.contains("first.yaml: has no references of 6 of the candidates' images"), "{error}");

    silence(&workspace);
    let (folder, checkpoint) = (workspace.path("").display().to_string(), workspace.last_checkpoint("first"));
    let silent = |objective: &str| {
        let checkpoint = checkpoint.display();
        let text = format!(
            "name: silent\nseed: 11\noutput: {folder}silent\nworkers: {{ min: 1, max: 1 }}\n\
             data: {{ karpathy: {{ annotations: {folder}world/silent.json, images: {folder}world/images }} }}\n\
             evaluator: {{ weights: {checkpoint}, prefix: \"\" }}\ncaptioner: {{ weights: {checkpoint}, dropout: 0.0 }}\n\
             decoding: {{ beams: 3, max_length: 12 }}\nstages:\n  \
             - {{ name: tune, steps: 4, batch: 6, evaluate_every: 2, optimizer: {{ learning_rate: 1.0e-4 }}, {objective} }}\n"
        );
        std::fs::write(workspace.path("silent.yaml"), text).unwrap();
        run("coordinator", &["validate", "--config", &workspace.path("silent.yaml").to_string_lossy()])
    };
    for (objective, problem) in [
        ("objective: cross_entropy", "split `train` has no captions: stage `tune` (cross_entropy) trains on them"),
        (
            "objective: dico, dico: { reward: { cider: 1 } }",
            "split `train` has no captions: stage `tune` rewards `cider`",
        ),
        ("objective: dico, metric: ref_pac_s", "split `val` has no captions: stage `tune` watches `ref_pac_s`"),
    ] {
        let error = error_line(&silent(objective));
        assert!(error.contains("silent.json: ") && error.contains(problem), "{error}");
    }
    let validated = silent("objective: dico, metric: pac_s");
    assert!(validated.status.success(), "{validated:?}");
    let inspected = inspect(&workspace, &["silent.yaml"]);
    let text = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(
        inspected.status.success() && text.contains("split `train` has no captions: it can be captioned"),
        "{text}"
    );
    complete(&workspace, &workspace.path("silent.yaml"), 1);
    let journal = workspace.journal("silent");
    let query =
        "SELECT count(*) FROM evaluations WHERE metrics_json ->> 'pac_s' > 0 AND metrics_json ->> 'cider' IS NULL";
    assert_eq!(journal.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap(), 2);
    let query = "SELECT count(*) FROM evaluation_items WHERE references_json = '[]' AND caption != ''";
    assert_eq!(journal.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap(), 12);
    let error = error_line(&run("worker", &["score", "--config", &workspace.path("silent.yaml").to_string_lossy()]));
    assert!(error.ends_with("split `val` has no captions: there is nothing to score against"), "{error}");
}

#[test]
fn captions_do_not_steer_the_terminal() {
    let workspace = Workspace::new();
    let path = workspace.path("world/dataset.json");
    let mut dataset = read_json(&path);
    for image in dataset["images"].as_array_mut().unwrap() {
        image["sentences"][0]["raw"] = "a \u{1b}[31mred\u{9b}0m circle".into();
    }
    std::fs::write(&path, dataset.to_string()).unwrap();
    let shown = inspect(&workspace, &["world/dataset.json"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("a \\u001b[31mred\\u009b0m circle"), "{shown}");
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    // JSON reads what was written as what it was.
    let report = printed(&inspect(&workspace, &["world/dataset.json", "--json"]));
    let captions = &report["splits"]["train"]["samples"][0]["captions"];
    assert!(captions.to_string().contains("\\u001b[31mred"), "{captions}");
    assert_eq!(captions[0], "a \u{1b}[31mred\u{9b}0m circle");
}
