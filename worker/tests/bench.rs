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
