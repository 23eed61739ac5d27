//! Tests that exposed metrics, their descriptions and the operations guide agree.

use std::collections::BTreeSet;

use config::testing;
use dico_engine::{Command, Engine, Event, RequestId, Time, WorkerId, restored::RestoredRun};
use proto::v1;

use super::{descriptions::Kind, *};

const OPERATIONS_GUIDE: &str = include_str!("../../../../docs/operations.md");

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    }
}

#[test]
fn the_operations_guide_lists_every_metric() {
    let documented: Vec<String> =
        OPERATIONS_GUIDE.lines().filter(|line| line.starts_with("| `dico_")).map(str::to_owned).collect();
    let row = |(name, kind, labels, meaning): (&str, Kind, &[&str], &str)| {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{name}` | {} | {} | {meaning} |", kind_name(kind), labels.join(", ")).replace("||", "\\|\\|")
    };
    let rows: Vec<String> = descriptions::all().map(row).collect();
    assert_eq!(documented, rows, "docs/operations.md should have these rows:\n{}\n", rows.join("\n"));
}

#[test]
fn every_exposed_metric_is_described() {
    let file = testing::run_file(vec![testing::stage("a", 12, 8, None, None)]);
    let mut metrics = Metrics::new(&file);
    let _refusals = metrics.refusals();
    metrics.disk("state").iter().for_each(|gauge| gauge.set(1.0));
    let mut engine = Engine::new(file, RestoredRun::default(), 0);
    for action in engine.on_event(Time::ZERO, Event::Control { request: RequestId(1), command: Command::Pause }) {
        if let dico_engine::Action::Record(record) = action {
            metrics.record(&record);
        }
    }
    metrics.publish(engine.state());
    let exposed = metrics.handle().render();
    let types = exposed.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let types: BTreeSet<&str> = types.collect();
    let described: BTreeSet<String> =
        descriptions::all().map(|(name, kind, ..)| format!("{name} {}", kind_name(kind))).collect();
    assert!(types.len() > 10, "{exposed}");
    assert_eq!(types.iter().find(|metric| !described.contains(**metric)), None);
    assert!(exposed.contains("dico_paused 1") && exposed.contains("dico_run_state{state=\"paused\"} 1"), "{exposed}");
}

#[test]
fn recovery_time_ends_with_the_first_step_of_the_next_generation() {
    let mut metrics = Metrics::new(&testing::run_file(vec![testing::stage("a", 12, 8, None, None)]));
    let step = |generation| {
        let position = v1::Position { stage: 0, step: 1, generation };
        Record::Step(StepStatistics::from_report(WorkerId(0), &v1::StepDone::default(), &position).unwrap())
    };
    let ended = |generation| Record::Ended { generation, reason: "a test".into() };
    let mut recoveries_after = |records: &[Record]| {
        records.iter().for_each(|record| metrics.record(record));
        let exposed = metrics.handle().render();
        let count = exposed.lines().find_map(|line| line.strip_prefix("dico_recovery_seconds_count "));
        count.map_or(0, |count| count.parse().unwrap())
    };
    // A worker joined.
    assert_eq!(recoveries_after(&[step(1), ended(1), Record::Ready { generation: 2, recovery: false }, step(2)]), 0);
    // A worker failed; reports of the others on the step in flight are recorded after the end.
    assert_eq!(recoveries_after(&[ended(2), step(2), Record::Ready { generation: 3, recovery: true }]), 0);
    assert_eq!(recoveries_after(&[step(3), step(3)]), 1);
}
