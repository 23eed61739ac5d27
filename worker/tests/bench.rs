//! `worker bench`: runs without errors, and prints the expected fields. Speed is not tested.

use std::process::{Command, Output};

use serde_json::Value;

fn run_bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_worker")).arg("bench").args(arguments).output().unwrap()
}

/// The JSON object that the command prints.
fn run_bench_json(arguments: &[&str]) -> Value {
    let output = run_bench(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn all_reduce_works_over_one_and_several_processes() {
    for world in [1, 3] {
        let world_size = world.to_string();
        let result = run_bench_json(&[
            "all-reduce",
            "--world",
            &world_size,
            "--bytes",
            "40000",
            "--steps",
            "3",
            "--threads",
            "1",
        ]);
        assert_eq!(
            (&result["world"], &result["bytes"], &result["threads"]),
            (&world.into(), &40_000.into(), &1.into())
        );
        assert_eq!(result["steps_s"].as_array().map(Vec::len), Some(3));
        let [fastest, median, slowest] =
            ["fastest_s", "step_s", "slowest_s"].map(|name| result[name].as_f64().unwrap());
        assert!(fastest <= median && median <= slowest && result["bytes_per_s"].as_f64().unwrap() > 0.0, "{result}");
    }
}

/// A step of two short candidates for one image.
#[test]
fn steps_run_with_images_on_several_processes_and_with_stored_features() {
    let step = "step --batch 1 --beams 2 --max-length 4 --min-length 4 --vocabulary 100 --steps 2 --threads 1";
    for (further, world) in [("--world 2", 2), ("--cached-features --vision rn50", 1)] {
        let result = run_bench_json(&step.split(' ').chain(further.split(' ')).collect::<Vec<_>>());
        assert_eq!(
            (&result["world"], &result["threads"], &result["same_ranking"]),
            (&world.into(), &1.into(), &Value::Null)
        );
        assert_eq!(result["steps_s"].as_array().map(Vec::len), Some(2));
        let step_seconds = result["step_s"].as_f64().unwrap();
        assert!((result["images_per_s"].as_f64().unwrap() * step_seconds - f64::from(world)).abs() < 1e-6, "{result}");
        let phases = result["phases"].as_object().unwrap();
        let names: Vec<&str> = phases.keys().map(String::as_str).collect();
        assert_eq!(names, ["all_reduce", "learn", "load", "reference", "reward", "search", "vision"]);
        assert!(phases.values().all(|seconds| seconds.as_f64().unwrap() >= 0.0), "{result}");
        assert!(
            ["learn", "reference", "reward", "search"].iter().all(|name| phases[*name].as_f64() > Some(0.0)),
            "{result}"
        );
        assert!(result["peak_memory_bytes"].as_u64().unwrap() > 1 << 20, "{result}");
    }
}

#[test]
fn the_error_names_an_invalid_number_of_bytes() {
    let output = run_bench(&["all-reduce", "--bytes", "4001"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--bytes 4001"));
}

#[test]
fn created_images_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let created = run_bench_json(&["input", "--images", "2", "--steps", "1", "--make", path]);
    let read = run_bench_json(&["input", "--images", "9", "--steps", "1", "--size", "32", "--threads", "2", path]);
    assert_eq!((&created["images"], &created["size"]), (&2.into(), &224.into()));
    assert_eq!((&read["images"], &read["size"], &read["threads"]), (&2.into(), &32.into(), &2.into()));
    assert_eq!(created["bytes_per_image"], read["bytes_per_image"]);
    assert!(read["images_per_core_s"].as_f64().unwrap() > 0.0 && read["images_per_s"].as_f64().unwrap() > 0.0);
}
