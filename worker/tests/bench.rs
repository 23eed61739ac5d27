//! `worker bench`: that it runs and says what it should; how fast this machine is, no test knows.

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_worker")).arg("bench").args(arguments).output().unwrap()
}

fn object(arguments: &[&str]) -> Value {
    let output = bench(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn ranks_of_several_processes_sum() {
    for world in [1, 3] {
        let world_size = world.to_string();
        let found =
            object(&["all-reduce", "--world", &world_size, "--bytes", "40000", "--steps", "3", "--threads", "1"]);
        assert_eq!((&found["world"], &found["bytes"], &found["threads"]), (&world.into(), &40_000.into(), &1.into()));
        assert_eq!(found["steps_s"].as_array().map(Vec::len), Some(3));
        let [fastest, median, slowest] = ["fastest_s", "step_s", "slowest_s"].map(|name| found[name].as_f64().unwrap());
        assert!(fastest <= median && median <= slowest && found["bytes_per_s"].as_f64().unwrap() > 0.0, "{found}");
    }
}

#[test]
fn a_number_that_does_not_fit_is_refused_by_name() {
    let output = bench(&["all-reduce", "--bytes", "4001"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--bytes 4001"));
}

#[test]
fn images_that_were_made_can_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let made = object(&["input", "--images", "2", "--steps", "1", "--make", path]);
    let read = object(&["input", "--images", "9", "--steps", "1", "--size", "32", "--threads", "2", path]);
    assert_eq!((&made["images"], &made["size"]), (&2.into(), &224.into()));
    assert_eq!((&read["images"], &read["size"], &read["threads"]), (&2.into(), &32.into(), &2.into()));
    assert_eq!(made["bytes_per_image"], read["bytes_per_image"]);
    assert!(read["images_per_core_s"].as_f64().unwrap() > 0.0 && read["images_per_s"].as_f64().unwrap() > 0.0);
}
