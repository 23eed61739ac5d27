//! Benchmarks of the journal of a long run with many generations: its audit, its opening and its
//! report. Audit and opening read and hash each record.

use std::path::Path;

use config::RunFile;
use dico_coordinator::{audit::audit, report::Report};
use dico_engine::WorkerId;
use dico_engine::plan::Position;
use dico_engine::record::{Attachment, Record, StateSource};
use dico_engine::statistics::StepStatistics;
use divan::{Bencher, counter::ItemsCount};
use journal::{Journal, ReadOnlyJournal};
use proto::v1;
use summary_statistics::Summary;
use tempfile::TempDir;

/// The number of steps of the run.
const STEPS: u64 = 250_000;
/// The number of steps of each generation.
const STEPS_PER_GENERATION: u64 = 250;

fn main() {
    divan::main();
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn audit_long_run(bencher: Bencher<'_, '_>) {
    let folder = write_journal();
    bencher.counter(ItemsCount::new(STEPS)).bench_local(|| {
        let audit = audit(&ReadOnlyJournal::open(folder.path()).unwrap()).unwrap();
        assert!(audit.clean && audit.samples.committed == STEPS * 8, "{audit:?}");
    });
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn open_long_journal(bencher: Bencher<'_, '_>) {
    let folder = write_journal();
    bencher.counter(ItemsCount::new(STEPS)).bench_local(|| Journal::open(folder.path(), &run_file()).unwrap());
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn report_long_run(bencher: Bencher<'_, '_>) {
    let folder = write_journal();
    bencher.counter(ItemsCount::new(STEPS)).bench_local(|| {
        let report = Report::read(&ReadOnlyJournal::open(folder.path()).unwrap()).unwrap();
        assert_eq!(report.stages[0].steps, STEPS);
    });
}

fn run_file() -> RunFile {
    let text = format!(
        "
name: bench
output: /nowhere
workers: {{ min: 1, max: 8 }}
data: {{ karpathy: {{ annotations: annotations.json, images: images }} }}
captioner: {{ weights: none }}
evaluator: {{ weights: none }}
stages: [{{ name: dico, objective: dico, steps: {STEPS}, batch: 8, optimizer: {{ learning_rate: 1.0e-3 }} }}]
"
    );
    RunFile::parse(Path::new("bench.yaml"), &text).expect("the text above is a run file")
}

/// The folder of a journal with all steps of the run, each with the summaries that DiCO reports. A
/// generation is one transaction.
fn write_journal() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), &run_file()).unwrap();
    let data_set = v1::DataSet { train_images: 118_287, train_captions: 591_753, ..Default::default() };
    let attached = Attachment { worker_id: WorkerId(0), host: String::new(), data_set, held_position: None };
    journal.write(&[Record::Attached(attached)]).unwrap();
    let formed = |generation, step| Record::Formed {
        term: 0,
        generation,
        members: vec![],
        cause: "a worker joined".into(),
        start: Position { stage: 0, step },
        source: StateSource::Member(WorkerId(0)),
    };
    let summaries = metric_catalogue::TRAINING_METRICS
        .into_iter()
        .map(|name| (name.to_owned(), v1::Summary::from(&Summary::of([0.25, 0.5, 0.75, 0.875, 1.0]))))
        .collect();
    let report = v1::StepDone { loss_sum: 1.0, loss_weight: 1.0, samples: 8, summaries, ..Default::default() };
    let step = |step, generation| {
        let position = v1::Position { stage: 0, step, generation };
        Record::Step(StepStatistics::from_report(WorkerId(0), &report, &position).unwrap())
    };
    for (generation, start) in (1..).zip((0..STEPS).step_by(STEPS_PER_GENERATION as usize)) {
        let steps = (start + 1..=start + STEPS_PER_GENERATION).map(|number| step(number, generation));
        journal.write(&[formed(generation, start)].into_iter().chain(steps).collect::<Vec<_>>()).unwrap();
    }
    folder
}
