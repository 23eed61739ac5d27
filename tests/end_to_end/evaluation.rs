//! Evaluations: their results do not depend on the number of workers, on failures, or on whether a
//! worker of a run or `worker evaluate` computes them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use journal::Caption;
use test_support::{Coordinator, Process, Workspace, clip, error_line, run, run_to_completion, wait_for};

/// A workspace whose validation split has several ranges, and a checkpoint of a short run.
fn workspace_with_checkpoint() -> (Workspace, PathBuf) {
    let workspace = Workspace::with_images(1100);
    run_to_completion(&workspace, &workspace.run_file("first", 1, ""), 1);
    let checkpoint = workspace.last_checkpoint("first");
    clip::write_random_weights(&workspace.path("clip.safetensors"), 1);
    (workspace, checkpoint)
}

/// Writes the run file of a run that starts from `checkpoint` and is evaluated before each of its
/// `steps` steps. It has three evaluators: that of the checkpoint, another one, and that of the
/// checkpoint under another name.
fn run_file(workspace: &Workspace, name: &str, checkpoint: &Path, workers: &str, steps: u32) -> PathBuf {
    let (folder, checkpoint) = (workspace.path("").display().to_string(), checkpoint.display());
    let text = format!(
        "name: test\nseed: 11\noutput: {folder}{name}\nworkers: {workers}\n\
         data:\n  karpathy: {{ annotations: {folder}world/dataset.json, images: {folder}world/images }}\n  \
         scenes: {folder}world/scenes.json\nvocabulary: corpus\n\
         evaluator: {{ weights: {checkpoint}, prefix: \"\" }}\nevaluators:\n  \
         clip_s: {{ weights: {folder}clip.safetensors }}\n  \
         pac_s_again: {{ weights: {checkpoint}, prefix: \"\" }}\n\
         captioner: {{ weights: {checkpoint}, dropout: 0.0 }}\n\
         decoding: {{ beams: 3, max_length: 12 }}\nstages:\n  \
         - {{ name: dico, objective: {{ dico: {{ reward: {{ pac_s: 0.5, clip_s: 0.5 }} }} }}, steps: {steps}, batch: 6, \
             evaluate_first: true, evaluate_every: 1, \
             optimizer: {{ learning_rate: 1.0e-4 }} }}\n"
    );
    let path = workspace.path(&format!("{name}.yaml"));
    std::fs::write(&path, text).unwrap();
    path
}

/// The scores and captions of the evaluation before the first step.
fn first_evaluation(workspace: &Workspace, name: &str) -> (BTreeMap<String, f64>, Vec<Caption>) {
    let (evaluation, captions) = workspace.evaluations(name).swap_remove(0);
    assert_eq!(evaluation.id.position.step, 0);
    (evaluation.scores, captions)
}

#[test]
fn an_evaluation_is_the_same_on_one_two_and_three_workers_and_by_worker_evaluate() {
    let (workspace, checkpoint) = workspace_with_checkpoint();
    let evaluations = [1, 2, 3].map(|workers| {
        let name = format!("by-{workers}");
        let config = run_file(&workspace, &name, &checkpoint, &format!("{{ min: {workers}, max: {workers} }}"), 1);
        run_to_completion(&workspace, &config, workers);
        first_evaluation(&workspace, &name)
    });
    assert_eq!(evaluations[0].1.len(), 110);
    assert_eq!(evaluations[0], evaluations[1]);
    assert_eq!(evaluations[0], evaluations[2]);

    let [checkpoint, config] =
        [&checkpoint, &workspace.path("by-1.yaml")].map(|path| path.to_string_lossy().into_owned());
    let captions = workspace.path("captions.json").to_string_lossy().into_owned();
    let arguments = [
        "evaluate",
        "--checkpoint",
        &checkpoint,
        "--config",
        &config,
        "--split",
        "val",
        "--json",
        "--captions",
        &captions,
    ];
    let arguments = arguments.into_iter().chain(["--threads", "1"]).collect::<Vec<_>>();
    let output = run("worker", &arguments);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let metrics = serde_json::json!(evaluations[0].0);
    assert_eq!(report["corpus"], metrics);
    for name in ["pac_s", "ref_pac_s", "retrieval_r1", "retrieval_mrr"] {
        let second_name = match name.strip_prefix("retrieval") {
            Some(rest) => format!("pac_s_again_retrieval{rest}"),
            None => format!("{name}_again"),
        };
        assert!(metrics[name].is_number() && metrics[&second_name] == metrics[name], "{second_name}: {metrics}");
    }
    for name in ["clip_s", "ref_clip_s", "clip_s_retrieval_r5"] {
        assert!(metrics[name].is_number(), "{name} is missing in {metrics}");
    }
    assert_ne!(metrics["clip_s"], metrics["pac_s"]);
    for metric in ["pac_s", "ref_pac_s", "cider", "meteor", "rouge_l", "rep_1", "retrieval_r10", "grammatical"] {
        assert!(metrics[metric].is_number(), "{metric} is missing in {metrics}");
    }
    // COCO's result format, written by the command and by the coordinator.
    let by_command = std::fs::read_to_string(&captions).unwrap();
    let by_coordinator = std::fs::read_to_string(workspace.path("by-2/captions/0-dico-00000000.json")).unwrap();
    assert_eq!(by_command, by_coordinator);
    let results: Vec<serde_json::Value> = serde_json::from_str(&by_command).unwrap();
    let ids: BTreeSet<u64> = results.iter().map(|result| result["image_id"].as_u64().unwrap()).collect();
    assert_eq!((results.len(), ids.len()), (110, 110));
    assert!(results.iter().all(|result| result["caption"].is_string()));

    let error = error_line(&run("worker", &["evaluate", "--checkpoint", "/nowhere", "--config", &config]));
    assert!(error.contains("/nowhere") && error.contains("is not a model folder"), "{error}");
}

#[test]
fn an_evaluation_continues_after_a_failure_and_captions_each_image_once() {
    let (workspace, checkpoint) = workspace_with_checkpoint();
    let config = run_file(&workspace, "with-failures", &checkpoint, "{ min: 1, max: 3 }", 40);
    let coordinator = Coordinator::start(&workspace, &config);
    let mut workers: BTreeMap<u32, Process> =
        (0..3).map(|worker_id| (worker_id, coordinator.start_worker(&workspace, worker_id))).collect();
    // Kills workers until one was killed in the middle of an evaluation.
    let mut next_id = 3;
    let step = loop {
        let (worker_id, generation) = wait_for("an evaluation", || evaluating_worker(&coordinator, &workers));
        workers.remove(&worker_id);
        if let Some(step) = continued_evaluation(&workspace, generation) {
            break step;
        }
        workers.insert(next_id, coordinator.start_worker(&workspace, next_id));
        next_id += 1;
    };
    let evaluations = workspace.evaluations("with-failures");
    let (_, captions) = evaluations.iter().find(|(evaluation, _)| evaluation.id.position.step == step).unwrap();
    let images: BTreeSet<&String> = captions.iter().map(|caption| &caption.image).collect();
    assert_eq!((captions.len(), images.len()), (110, 110));
}

/// A worker that takes part in an evaluation with others: its id, and the generation.
fn evaluating_worker(coordinator: &Coordinator, workers: &BTreeMap<u32, Process>) -> Option<(u32, u64)> {
    let status = coordinator.status();
    let members = status["members"].as_array().unwrap();
    let evaluating = members.iter().filter(|member| members.len() > 1 && member["phase"] == "evaluate");
    let mut worker_ids = evaluating.map(|member| member["rank"].as_u64().unwrap() as u32);
    let worker_id = worker_ids.rfind(|worker_id| workers.contains_key(worker_id))?;
    Some((worker_id, status["generation"].as_u64().unwrap()))
}

/// The step of the evaluation that was in progress when `failed_generation` lost a member, and that
/// a later generation finished; none if `failed_generation` had finished it.
fn continued_evaluation(workspace: &Workspace, failed_generation: u64) -> Option<u64> {
    let journal = workspace.journal("with-failures");
    // The next generation first finishes the evaluation, at the step at which it starts.
    let next_generation = wait_for("the next generation", || {
        journal.generations().unwrap().into_iter().find(|generation| generation.number > failed_generation)
    });
    let start = next_generation.start;
    let evaluation = wait_for("its evaluation", || {
        journal.evaluations(None).unwrap().into_iter().find(|evaluation| evaluation.id.position == start)
    });
    (evaluation.id.generation > failed_generation).then_some(start.step)
}

/// Moves the images of the validation split to two folders, so that pairs of images have the same
/// file name. Changes the annotations and scenes accordingly, and returns the annotations.
fn create_duplicate_file_names(workspace: &Workspace) -> serde_json::Value {
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(workspace.path(&format!("world/{name}.json"))).unwrap()).unwrap()
    };
    let (mut dataset, mut scenes) = (read("dataset"), read("scenes"));
    let images = workspace.path("world/images");
    let mut index = 0;
    for image in dataset["images"].as_array_mut().unwrap() {
        if image["split"] != "val" {
            continue;
        }
        let (folder, name) = (["a", "b"][index % 2], format!("{}.jpg", index / 2));
        std::fs::create_dir_all(images.join(folder)).unwrap();
        let old_name = image["filename"].as_str().unwrap().to_owned();
        std::fs::rename(images.join(&old_name), images.join(folder).join(&name)).unwrap();
        scenes[format!("{folder}/{name}")] = scenes[&old_name].clone();
        (image["filepath"], image["filename"]) = (folder.into(), name.into());
        index += 1;
    }
    for (name, value) in [("dataset", &dataset), ("scenes", &scenes)] {
        std::fs::write(workspace.path(&format!("world/{name}.json")), value.to_string()).unwrap();
    }
    dataset
}

#[test]
fn images_with_the_same_file_name_are_all_evaluated_and_scored() {
    let workspace = Workspace::new();
    let dataset = create_duplicate_file_names(&workspace);
    run_to_completion(&workspace, &workspace.run_file("duplicates", 1, ""), 1);

    let images = ["a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg"];
    let mut evaluations = workspace.evaluations("duplicates");
    evaluations.retain(|(evaluation, _)| evaluation.id.position.stage == 2);
    assert_eq!(evaluations.len(), 2);
    for (_, captions) in evaluations {
        assert!(captions.iter().map(|caption| caption.image.as_str()).eq(images), "{captions:?}");
        assert!(captions.iter().all(|caption| caption.scores.contains_key("truthful")), "{captions:?}");
    }

    // Scores the captions of the run against the annotations in COCO's format and in Karpathy's.
    let validation_images = || dataset["images"].as_array().unwrap().iter().filter(|image| image["split"] == "val");
    let annotations = validation_images().flat_map(|image| {
        let sentences = image["sentences"].as_array().unwrap();
        sentences.iter().map(|sentence| serde_json::json!({ "image_id": image["cocoid"], "caption": sentence["raw"] }))
    });
    let coco = serde_json::json!({ "images": [], "annotations": annotations.collect::<Vec<_>>() });
    std::fs::write(workspace.path("coco.json"), coco.to_string()).unwrap();
    let score = |references: &str, options: &[&str]| {
        let [references, candidates] = [references, "duplicates/captions/2-dico-00000004.json"]
            .map(|name| workspace.path(name).display().to_string());
        let arguments = ["score", "--references", &references, "--candidates", &candidates, "--json"];
        let output = run("worker", &[&arguments[..], options].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let coco_scores = score("coco.json", &[]);
    assert_eq!(coco_scores["items"]["cider"].as_object().unwrap().len(), 6);
    assert_eq!(score("world/dataset.json", &["--split", "val"])["corpus"], coco_scores["corpus"]);

    // The report has all of the images.
    let [config, report] = ["duplicates.yaml", "report.html"].map(|name| workspace.path(name).display().to_string());
    let output = run("coordinator", &["report", "--config", &config, "--out", &report]);
    assert!(output.status.success(), "{output:?}");
    let report = std::fs::read_to_string(report).unwrap();
    assert!(images.iter().all(|image| report.contains(image)) && report.contains("data:image/jpeg;base64,"));
    check_evaluation_without_references(&workspace);
}

/// Evaluates a checkpoint on images without captions, as for an evaluation server. Images have
/// domains, as in nocaps.
fn check_evaluation_without_references(workspace: &Workspace) {
    let images = (0..3).zip(["a/0.jpg", "b/0.jpg", "a/1.jpg"]).map(|(id, name)| {
        serde_json::json!({ "id": 100 + id, "file_name": name, "domain": if id == 0 { "in-domain" } else { "out-domain" } })
    });
    let list = serde_json::json!({ "info": {}, "images": images.collect::<Vec<_>>() });
    std::fs::write(workspace.path("list.json"), list.to_string()).unwrap();
    let folder = workspace.path("").display().to_string();
    let config = std::fs::read_to_string(workspace.path("duplicates.yaml")).unwrap();
    let karpathy = format!("karpathy: {{ annotations: {folder}world/dataset.json, images: {folder}world/images }}");
    let split = format!("{{ annotations: {folder}list.json, images: {folder}world/images }}");
    let coco = format!("coco: {{ train: {split}, validation: {split}, test: {split} }}");
    assert!(config.contains(&karpathy));
    std::fs::write(workspace.path("listed.yaml"), config.replace(&karpathy, &coco)).unwrap();

    let path = |name: &str| workspace.path(name).display().to_string();
    let error = error_line(&run("coordinator", &["validate", "--config", &path("listed.yaml")]));
    let expected = "list.json: split `train` has no captions: stage `evaluator` (contrastive) trains on them";
    assert!(error.contains(expected), "{error}");

    let checkpoint = workspace.last_checkpoint("duplicates").display().to_string();
    let (config, captions) = (path("listed.yaml"), path("server-captions.json"));
    let arguments = ["evaluate", "--checkpoint", &checkpoint, "--config", &config, "--captions", &captions, "--json"];
    let output = run("worker", &[&arguments[..], &["--threads", "1"]].concat());
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (scores, domains) = (report["corpus"].as_object().unwrap(), report["domains"].as_object().unwrap());
    assert!(scores.contains_key("pac_s") && scores.contains_key("retrieval_r1") && scores.contains_key("mean_length"));
    assert!(!scores.contains_key("cider") && !scores.contains_key("ref_pac_s"));
    assert_eq!(domains.keys().collect::<Vec<_>>(), ["in-domain", "out-domain"]);
    assert_eq!(domains["in-domain"]["pac_s"], report["items"]["pac_s"]["a/0.jpg"]);
    let results: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(captions).unwrap()).unwrap();
    let ids: BTreeSet<u64> = results.iter().map(|result| result["image_id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [100, 101, 102].into());
}
