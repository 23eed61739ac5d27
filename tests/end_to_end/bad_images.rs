//! Bad images, which are left out and counted or refused, and photos with an EXIF orientation.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;

use journal::RecordedStep;
use serde_json::Value;
use test_support::{Coordinator, Process, Workspace, clip, error_line, parameters_sha256, run, run_to_completion};

/// A PNG with a valid header and end but without pixels. Only decoding shows that it is damaged.
fn undecodable_png() -> Vec<u8> {
    let header = [0, 0, 0, 32, 0, 0, 0, 32, 8, 2, 0, 0, 0];
    let mut crc = u32::MAX;
    for byte in b"IHDR".iter().chain(&header) {
        crc = (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()));
    }
    let data = b"\0\0\0\x04IDATdust\0\0\0\0\0\0\0\0IEND\xAE\x42\x60\x82";
    [&b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"[..], &header, &(!crc).to_be_bytes(), data].concat()
}

/// Reads the annotations of the data set.
fn read_annotations(workspace: &Workspace) -> Value {
    serde_json::from_slice(&std::fs::read(workspace.path("world/dataset.json")).unwrap()).unwrap()
}

/// The file names and numbers of captions of a split's images, in order.
fn images_of_split(annotations: &Value, split: &str) -> Vec<(String, u64)> {
    let images = annotations["images"].as_array().unwrap().iter().filter(|image| image["split"] == split);
    let name_and_captions = |image: &Value| {
        (image["filename"].as_str().unwrap().to_owned(), image["sentences"].as_array().unwrap().len() as u64)
    };
    images.map(name_and_captions).collect()
}

/// Writes the run file of a run with three workers and a stage of each objective. `stages` are the
/// settings of the stages; `annotations` is the file of annotations in the data set's folder.
fn run_file(workspace: &Workspace, name: &str, annotations: &str, skip_corrupt: bool, stages: [&str; 4]) -> PathBuf {
    let folder = workspace.path("").display().to_string();
    let optimizer = "optimizer: { learning_rate: 1.0e-3, epsilon: 1.0e-3 }";
    let objectives = ["contrastive", "cross_entropy", "scst", "dico"];
    let stages: String = objectives
        .iter()
        .zip(stages)
        .map(|(objective, settings)| {
            let own_objective = format!("objective: {objective}, ");
            let objective_key = if settings.contains("objective:") { "" } else { &own_objective };
            format!("  - {{ name: {objective}, {objective_key}{settings}, {optimizer} }}\n")
        })
        .collect();
    let text = format!(
        "name: test\nseed: 11\noutput: {folder}{name}\nworkers: {{ min: 3, max: 3 }}\n\
         data:\n  karpathy: {{ annotations: {folder}world/{annotations}, images: {folder}world/images }}\n  \
         positives: {{ images: {folder}world/positives/images, captions: {folder}world/positives/captions.json }}\n  \
         skip_corrupt: {skip_corrupt}\nvocabulary: corpus\nevaluator: {{ preset: tiny }}\n\
         captioner: {{ preset: tiny, dropout: 0.0 }}\ndecoding: {{ beams: 3, max_length: 12 }}\nstages:\n{stages}"
    );
    let path = workspace.path(&format!("{name}.yaml"));
    std::fs::write(&path, text).unwrap();
    path
}

/// Runs a run file to the end of the run. Returns the hash of the workers' parameters, which must
/// be equal, and their logs.
fn run_three_workers(workspace: &Workspace, run_file: &Path) -> (String, String) {
    let coordinator = Coordinator::start(workspace, run_file);
    let workers: Vec<Process> = (0..3).map(|worker_id| coordinator.start_worker(workspace, worker_id)).collect();
    let finished = workers.into_iter().map(|worker| {
        let (succeeded, printed) = worker.finish();
        assert!(succeeded);
        parameters_sha256(&printed).expect("a worker that finished the run prints the hash")
    });
    let hashes: BTreeSet<String> = finished.collect();
    assert!(coordinator.process.succeeds());
    assert_eq!(hashes.len(), 1, "the parameters of the workers differ");
    let log = |worker_id: u32| std::fs::read_to_string(workspace.path(&format!("worker-{worker_id}.log"))).unwrap();
    (hashes.into_iter().next().unwrap(), (0..3).map(log).collect())
}

/// Runs `coordinator validate` with further options.
fn validate(run_file: &Path, options: &[&str]) -> Output {
    let config = run_file.to_string_lossy();
    run("coordinator", &[&["validate", "--config", &*config][..], options].concat())
}

/// The file names of the bad images that `validate --json` lists.
fn bad_images(output: &Output) -> BTreeSet<String> {
    let printed: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("the output is not JSON: {output:?}"));
    let bad = printed["bad_images"].as_array().unwrap().iter();
    let name =
        |bad: &Value| Path::new(bad["image"].as_str().unwrap()).file_name().unwrap().to_string_lossy().into_owned();
    bad.map(name).collect()
}

/// The number of samples that each stage of a run trained on.
fn samples_by_stage(workspace: &Workspace, name: &str) -> Vec<u64> {
    let mut counts = vec![0; 4];
    for step in workspace.steps(name) {
        counts[step.position.stage as usize] += step.samples;
    }
    counts
}

/// Headers and ends of files show all 40 bad images before training. Both runs therefore have the
/// same list of images and the same permutation, so their parameters must be equal to the bit.
#[test]
fn a_run_that_skips_bad_images_equals_a_run_without_them() {
    let workspace = Workspace::with_images_and_positives(250);
    let mut annotations = read_annotations(&workspace);
    let train_images = images_of_split(&annotations, "train");
    assert_eq!(train_images.len(), 200);
    let bad_names: Vec<&str> = train_images.iter().step_by(5).map(|(name, _)| name.as_str()).collect();
    for (number, name) in bad_names.iter().enumerate() {
        let path = workspace.path("world/images").join(name);
        let content = std::fs::read(&path).unwrap();
        match number % 4 {
            0 => std::fs::write(&path, &content[..content.len() * 2 / 3]).unwrap(),
            1 => std::fs::write(&path, b"").unwrap(),
            2 => std::fs::write(&path, b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n").unwrap(),
            _ => std::fs::remove_file(&path).unwrap(),
        }
    }
    let is_bad = |image: &Value| bad_names.contains(&image["filename"].as_str().unwrap());
    annotations["images"].as_array_mut().unwrap().retain(|image| !is_bad(image));
    std::fs::write(workspace.path("world/good.json"), annotations.to_string()).unwrap();

    let stages = [
        "steps: 6, batch: 12, objective: { contrastive: { generated_images: 0.05, generated_captions: 0.1 } }",
        "steps: 6, batch: 12",
        "steps: 4, batch: 3",
        "steps: 4, batch: 3",
    ];
    let skipping = run_file(&workspace, "skipping", "dataset.json", true, stages);
    let names: BTreeSet<String> = bad_names.iter().map(|&name| name.to_owned()).collect();
    let validated = validate(&skipping, &["--decode-all", "--json"]);
    assert!(validated.status.success(), "{validated:?}");
    assert_eq!(bad_images(&validated), names);

    let (hash_with_bad_images, log) = run_three_workers(&workspace, &skipping);
    assert!(bad_names.iter().all(|name| log.contains(name)), "{log}");
    assert_eq!(workspace.journal("skipping").attached_workers().unwrap()[0].data_set.skipped_images, 40);
    let (hash_without, _) = run_three_workers(&workspace, &run_file(&workspace, "good", "good.json", false, stages));
    assert_eq!(hash_with_bad_images, hash_without);

    // Without skip_corrupt, `validate` also lists all bad images, and workers refuse to start.
    let strict = run_file(&workspace, "strict", "dataset.json", false, stages);
    let validated = validate(&strict, &["--decode-all", "--json"]);
    assert_eq!(bad_images(&validated), names);
    let error = error_line(&validated);
    assert!(
        error.contains("40 images") && error.contains(bad_names[0]) && error.contains("data.skip_corrupt"),
        "{error}"
    );
    let coordinator = Coordinator::start(&workspace, &strict);
    let error = error_line(&run("worker", &["join", "--coordinator", &coordinator.url, "--threads", "1"]));
    assert!(
        error.contains(bad_names[0]) && error.contains("39 more") && error.contains("data.skip_corrupt"),
        "{error}"
    );
}

/// Bad images that only decoding shows keep their positions in the permutation. Each stage is one
/// epoch, so it must train on each good image once. Batches are so small that no image of some
/// shares, and of some batches, can be decoded.
#[test]
fn shares_and_batches_without_decodable_images_have_weight_0() {
    let workspace = Workspace::with_images_and_positives(30);
    let annotations = read_annotations(&workspace);
    let (train_images, validation) = (images_of_split(&annotations, "train"), images_of_split(&annotations, "val"));
    assert_eq!((train_images.len(), validation.len()), (24, 3));
    let (bad, good): (Vec<_>, Vec<_>) = train_images.iter().enumerate().partition(|(number, _)| number % 6 > 1);
    let (bad_positive, _) = good[0].1;
    let bad_names: Vec<&str> =
        bad.into_iter().map(|(_, (name, _))| name.as_str()).chain([validation[0].0.as_str()]).collect();
    for name in &bad_names {
        std::fs::write(workspace.path("world/images").join(name), undecodable_png()).unwrap();
    }
    std::fs::write(workspace.path("world/positives/images").join(bad_positive), undecodable_png()).unwrap();
    let captions: u64 = train_images.iter().map(|(_, captions)| captions).sum();
    let stages = [
        "steps: 8, batch: 3, objective: { contrastive: { generated_images: 0.05, generated_captions: 0.1 } }"
            .to_owned(),
        format!("steps: {}, batch: 6", captions / 6),
        "steps: 8, batch: 3".to_owned(),
        "steps: 4, batch: 6, micro_batch: 1, evaluate_every: 4".to_owned(),
    ];
    let stages = stages.each_ref().map(String::as_str);
    let skipping = run_file(&workspace, "skipping", "dataset.json", true, stages);
    let (_, log) = run_three_workers(&workspace, &skipping);
    assert!(bad_names.iter().chain([&bad_positive.as_str()]).all(|name| log.contains(name)), "{log}");
    assert!(log.contains("the step changes nothing"), "{log}");
    let good_captions: u64 = good.iter().map(|(_, (_, captions))| captions).sum();
    assert_eq!(captions % 6, 0);
    assert_eq!(samples_by_stage(&workspace, "skipping"), [7, good_captions, 8, 8]);
    let is_empty = |step: &RecordedStep| (step.samples, step.loss, step.gradient_norm) == (0, None, Some(0.0));
    assert!(workspace.steps("skipping").iter().any(is_empty));
    let evaluations = workspace.evaluations("skipping");
    let captioned: BTreeSet<&String> =
        evaluations.iter().flat_map(|(_, captions)| captions.iter().map(|caption| &caption.image)).collect();
    assert_eq!(captioned.len(), 2);

    let strict = run_file(&workspace, "strict", "dataset.json", false, stages);
    let names: BTreeSet<String> = bad_names.iter().map(|&name| name.to_owned()).chain([bad_positive.clone()]).collect();
    for options in [&["--json"][..], &["--json", "--decode-all"]] {
        assert_eq!(bad_images(&validate(&strict, options)), names);
    }
    let text = String::from_utf8(validate(&strict, &[]).stdout).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("bad image: ")).count(), names.len(), "{text}");
    let one_worker = std::fs::read_to_string(&strict).unwrap().replace("{ min: 3, max: 3 }", "{ min: 1, max: 1 }");
    std::fs::write(&strict, one_worker).unwrap();
    let coordinator = Coordinator::start(&workspace, &strict);
    let error = error_line(&run("worker", &["join", "--coordinator", &coordinator.url, "--threads", "1"]));
    assert!(names.iter().any(|name| error.contains(name)) && error.contains("data.skip_corrupt"), "{error}");
}

#[test]
fn exif_orientation_is_applied_only_on_request_and_never_mixed_in_a_feature_store() {
    let workspace = Workspace::with_images(30);
    clip::write_random_weights(&workspace.path("evaluator.safetensors"), 1);
    let name = images_of_split(&read_annotations(&workspace), "val")[0].0.clone();
    let photo = workspace.path("world/images").join(name);
    let content = std::fs::read(&photo).unwrap();
    // Orientation 6: rotate by 90 degrees.
    let exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    std::fs::write(&photo, [&content[..2], &[0xFF, 0xE1], &length, exif, &content[2..]].concat()).unwrap();

    let folder = workspace.path("").display().to_string();
    let write_run_file = |name: &str, data: &str| {
        let text = format!(
            "name: test\nseed: 5\noutput: {folder}{name}\nworkers: {{ min: 1, max: 1 }}\n\
             data:\n  karpathy: {{ annotations: {folder}world/dataset.json, images: {folder}world/images }}\n{data}\
             vocabulary: corpus\ncaptioner: {{ preset: tiny, dropout: 0.0 }}\n\
             evaluator: {{ weights: {folder}evaluator.safetensors }}\ndecoding: {{ beams: 3, max_length: 8 }}\nstages:\n  \
             - {{ name: xe, objective: cross_entropy, steps: 2, batch: 4, optimizer: {{ learning_rate: 1.0e-3 }} }}\n"
        );
        let path = workspace.path(&format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        path
    };
    let (ignoring, applying) = (write_run_file("ignoring", ""), write_run_file("applying", "  exif: true\n"));
    let validation = |config: &Path| String::from_utf8(validate(config, &[]).stdout).unwrap();
    assert!(
        validation(&ignoring).contains("1 images have an EXIF orientation that is not applied"),
        "{}",
        validation(&ignoring)
    );
    assert!(!validation(&applying).contains("EXIF"));

    let encode = |config: &Path| {
        let (config, out) = (config.to_string_lossy().into_owned(), format!("{folder}features"));
        run("worker", &["encode", "--config", &config, "--split", "val", "--out", &out])
    };
    assert!(encode(&ignoring).status.success());
    let error = error_line(&encode(&applying));
    assert!(error.contains("another preprocessing") && error.contains("EXIF orientation applied"), "{error}");
    // Another crop offset is refused, too.
    let error = error_line(&encode(&write_run_file("floor", "  crop_offset: floor\n")));
    assert!(error.contains("another preprocessing") && error.contains("offset rounded down"), "{error}");

    run_to_completion(&workspace, &applying, 1);
    let (checkpoint, photo) =
        (workspace.last_checkpoint("applying").display().to_string(), photo.display().to_string());
    let caption = |options: &[&str]| {
        let output =
            run("worker", &[&["caption", "--checkpoint", &checkpoint, "--json", &photo][..], options].concat());
        assert!(output.status.success(), "{output:?}");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (unrotated, warning) = caption(&[]);
    assert!(warning.contains("EXIF orientation (6) is not applied") && warning.contains("--exif"), "{warning}");
    let (rotated, stderr) = caption(&["--exif"]);
    assert!(!stderr.contains("EXIF"), "{stderr}");
    assert_ne!(unrotated, rotated);
}
