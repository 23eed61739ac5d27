//! Runs the load generator with a coordinator and fifty simulated workers.

use std::process::Command;

#[test]
fn a_load_test_reports_its_measurements() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_load-generator"));
    command.args(["--workers", "50", "--steps", "20", "--step-seconds", "0", "--json"]);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |pointer: &str| report.pointer(pointer).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
    for (pointer, expected) in [
        ("/workers", 50.0),
        ("/connections", 50.0),
        ("/join_storm/joined", 50.0),
        ("/generations", 1.0),
        ("/steps", 20.0),
        ("/steps_recorded", 20.0),
    ] {
        assert_eq!(number(pointer), expected, "{pointer} in {report}");
    }
    // At least two directives: the first one, and one after the boundary in the middle.
    assert!(number("/fan_out/directives") >= 2.0, "{report}");
    // At least the first heartbeat of each worker.
    assert!(number("/heartbeat/sent") >= 50.0, "{report}");
    for pointer in ["/coordinator/peak_memory_bytes", "/messages/sent_bytes", "/messages/received_bytes"] {
        assert!(number(pointer) > 0.0, "{pointer} in {report}");
    }
    for (section, measure) in [("/join_storm", "join"), ("/fan_out", "spread"), ("/heartbeat", "round_trip")] {
        let [p50, p99, max] = ["p50", "p99", "max"].map(|q| number(&format!("{section}/{measure}_seconds/{q}")));
        assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{measure} in {report}");
    }
}

#[test]
fn options_out_of_range_are_refused() {
    for (option, value) in [("--workers", "0"), ("--steps", "0"), ("--step-seconds", "-1")] {
        let argument = format!("{option}={value}");
        let output = Command::new(env!("CARGO_BIN_EXE_load-generator")).arg(&argument).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(option), "{errors}");
    }
}
