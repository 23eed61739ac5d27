//! Tests that exposed metrics, their descriptions and the operations guide agree.

use std::collections::BTreeSet;

use proto::v1;

use super::{catalogue::Kind, *};
use crate::run::{Command, Event, RequestId, Time, record::RestoredRun, testing};

const RUN_BOOK: &str = include_str!("../../../../docs/operations.md");

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    }
}

#[test]
fn the_run_book_has_every_metric() {
    let listed: Vec<String> = RUN_BOOK.lines().filter(|line| line.starts_with("| `dico_")).map(str::to_owned).collect();
    let row = |(name, of, labels, meaning): (&str, Kind, &[&str], &str)| {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{name}` | {} | {} | {meaning} |", kind(of), labels.join(", ")).replace("||", "\\|\\|")
    };
    let rows: Vec<String> = catalogue::ALL.into_iter().map(row).collect();
    assert_eq!(listed, rows, "docs/operations.md should have these rows:\n{}\n", rows.join("\n"));
}

#[test]
fn nothing_is_exposed_that_is_not_described() {
    let file = testing::run_file(vec![testing::stage("a", 12, 8, None, None)]);
    let mut metrics = Metrics::new(&file);
    let _refusals = metrics.refusals();
    metrics.disk("state").iter().for_each(|gauge| gauge.set(1.0));
    let mut run = Run::new(file, RestoredRun::default(), 0);
    for action in run.on_event(Time::ZERO, Event::Control { request: RequestId(1), command: Command::Pause }) {
        if let crate::run::Action::Record(record) = action {
            metrics.record(&record);
        }
    }
    metrics.publish(&run);
    let exposed = metrics.handle().render();
    let types = exposed.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let types: BTreeSet<&str> = types.collect();
    let known: BTreeSet<String> = catalogue::ALL.iter().map(|(name, of, ..)| format!("{name} {}", kind(*of))).collect();
    assert!(types.len() > 10, "{exposed}");
    assert_eq!(types.iter().find(|found| !known.contains(**found)), None);
    assert!(exposed.contains("dico_paused 1") && exposed.contains("dico_run_state{state=\"paused\"} 1"), "{exposed}");
}

#[test]
fn a_recovery_lasts_until_a_step_of_the_next_generation() {
    let mut metrics = Metrics::new(&testing::run_file(vec![testing::stage("a", 12, 8, None, None)]));
    let step = |generation| {
        let at = v1::Position { stage: 0, step: 1, generation };
        Record::Step(StepStatistics::read(0, &v1::StepDone::default(), &at).unwrap())
    };
    let ended = |generation| Record::Ended { generation, reason: "a test".into() };
    let mut recoveries = |records: &[Record]| {
        records.iter().for_each(|record| metrics.record(record));
        let exposed = metrics.handle().render();
        let count = exposed.lines().find_map(|line| line.strip_prefix("dico_recovery_seconds_count "));
        count.map_or(0, |count| count.parse().unwrap())
    };
    // A worker joined.
    assert_eq!(recoveries(&[step(1), ended(1), Record::Ready { generation: 2, recovery: false }, step(2)]), 0);
    // A worker failed; reports of the others on the step in flight are recorded after the end.
    assert_eq!(recoveries(&[ended(2), step(2), Record::Ready { generation: 3, recovery: true }]), 0);
    assert_eq!(recoveries(&[step(3), step(3)]), 1);
}
