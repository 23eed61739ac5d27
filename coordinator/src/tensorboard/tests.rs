use std::collections::BTreeMap;

use dico_engine::{
    WorkerId,
    model_selection::{EndCause, EndDecision},
    record::{Record, StateSource},
    statistics::StepStatistics,
};
use journal::{EvaluatedCaption, Journal};
use prost::Message;
use proto::v1;
use summary_statistics::Summary as Distribution;

use super::{
    event::{EventContent, ValueContent},
    *,
};
use config::testing;

/// A run of two stages, of 10 and 20 steps.
struct TwoStages {
    folder: tempfile::TempDir,
    journal: Journal,
}

impl TwoStages {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let batch = 4;
        let stages = [("a", 10), ("b", 20)].map(|(name, steps)| testing::stage(name, steps, batch, None, None)).into();
        let journal = Journal::open(&folder.path().join("state"), &testing::run_file(stages)).unwrap();
        Self { folder, journal }
    }

    /// An evaluation of one image, whose caption the journal gets.
    fn evaluated(&mut self, stage: u32, step: u64, caption: &str) -> Record {
        let (image, caption, references) = ("1.jpg".into(), caption.into(), vec!["a dog".into()]);
        let captions = vec![EvaluatedCaption { image, caption, references, scores: BTreeMap::new() }];
        let evaluation = u64::from(stage) << 32 | step;
        self.journal.stage_captions(evaluation, captions);
        let metrics = [("cider".into(), 1.5), ("pac_s".into(), f64::NAN)].into();
        Record::Evaluated { position: Position { stage, step }, generation: 1, evaluation, metrics }
    }

    fn write(&mut self, records: impl IntoIterator<Item = Record>) {
        self.journal.write(&records.into_iter().collect::<Vec<_>>()).unwrap();
    }

    fn open_read_only(&self) -> ReadOnlyJournal {
        ReadOnlyJournal::open(&self.folder.path().join("state")).unwrap()
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// The events of the only file.
    fn events(&self) -> Vec<Event> {
        let files = exported_files(&self.out()).unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
        let mut bytes = &std::fs::read(&files[0]).unwrap()[..];
        let mut events = Vec::new();
        while !bytes.is_empty() {
            // The framing is 8 bytes of length, 4 of its checksum, and 4 of the data's checksum.
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            events.push(Event::decode(&bytes[12..12 + length]).unwrap());
            bytes = &bytes[length + 16..];
        }
        events
    }

    /// The values of `tag` by step that TensorBoard shows.
    fn curve(&self, tag: &str) -> BTreeMap<i64, f32> {
        let mut curve = BTreeMap::new();
        for event in self.events() {
            match event.content {
                Some(EventContent::SessionLog(_)) => curve.retain(|step, _| *step < event.step),
                Some(EventContent::Summary(summary)) => {
                    for value in summary.value.into_iter().filter(|value| value.tag == tag) {
                        let Some(ValueContent::SimpleValue(value)) = value.content else { panic!("{tag} is a number") };
                        curve.insert(event.step, value);
                    }
                }
                _ => {}
            }
        }
        curve
    }
}

fn formed(generation: u64, start: Position) -> Record {
    Record::Formed { generation, term: 0, members: vec![], cause: "test".into(), start, source: StateSource::Seed }
}

fn step(stage: u32, step: u64, generation: u64, loss: f64) -> Record {
    let report = v1::StepDone {
        loss_sum: loss,
        loss_weight: 1.0,
        samples: 4,
        seconds: 0.5,
        summaries: [("reward_chosen".into(), (&Distribution::of([0.5])).into())].into(),
        ..v1::StepDone::default()
    };
    Record::Step(StepStatistics::from_report(WorkerId(0), &report, &v1::Position { stage, step, generation }).unwrap())
}

fn stage_ended(step: u64, generation: u64, cause: EndCause) -> Record {
    let (position, reason) = (Position { stage: 0, step }, "test".into());
    Record::StageEnded { generation, end: EndDecision { position, cause, reason, later_states: vec![] } }
}

#[test]
fn steps_of_all_stages_have_one_counter_and_their_metrics() {
    let mut run = TwoStages::new();
    run.write([formed(1, Position::default())]);
    // The first stage ends early. That does not shift the steps of the second.
    run.write((1..=8).map(|n| step(0, n, 1, n as f64)).chain((1..=3).map(|n| step(1, n, 1, f64::NAN))));
    let records = [run.evaluated(1, 3, "a | <b>dog</b>")];
    run.write(records);
    let (export, written) = EventFileWriter::create(&run.out(), &run.open_read_only()).unwrap();
    assert_eq!(written, WrittenCounts { steps: 11, evaluations: 1 });
    let steps: Vec<i64> = run.curve("run/stage").into_keys().collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13]);
    // The export leaves out NaN.
    assert_eq!(run.curve("train/loss").into_values().collect::<Vec<_>>(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    assert_eq!(run.curve("speed/images_per_second")[&1], 8.0);
    assert!((run.curve("train/reward_chosen_p50")[&13] - 0.5).abs() < 0.01);
    assert_eq!((run.curve("evaluation/cider"), run.curve("evaluation/pac_s")), ([(13, 1.5)].into(), [].into()));
    let events = run.events();
    assert!(matches!(&events[0].content, Some(EventContent::FileVersion(version)) if version == "brain.Event:2"));
    let mut texts = events.iter().filter_map(|event| match &event.content {
        Some(EventContent::Summary(summary)) => summary.value.iter().find(|value| value.tag == "captions"),
        _ => None,
    });
    let Some(ValueContent::Tensor(tensor)) = &texts.next_back().unwrap().content else { panic!("captions are text") };
    let text = String::from_utf8(tensor.string_val[0].clone()).unwrap();
    let row = text.lines().last().unwrap();
    assert_eq!(row, "| 1&#46;jpg | a &#124; &#60;b&#62;dog&#60;&#47;b&#62; | a dog |");
    // The first export has locked the file.
    let error = EventFileWriter::create(&run.out(), &run.open_read_only()).unwrap_err();
    assert!(error.to_string().contains("--out"), "{error}");
    drop(export);
    EventFileWriter::create(&run.out(), &run.open_read_only()).unwrap();
    assert_eq!(run.curve("run/stage").len(), 11);
}

#[test]
fn steps_that_were_given_up_are_purged_and_no_step_is_written_twice() {
    let mut run = TwoStages::new();
    run.write([formed(1, Position::default())]);
    run.write((1..=6).map(|n| step(0, n, 1, 1.0)));
    let records = [run.evaluated(0, 5, "a dog")];
    run.write(records);
    let journal = run.open_read_only();
    let (mut export, _) = EventFileWriter::create(&run.out(), &journal).unwrap();
    assert_eq!(export.write_new(&journal).unwrap(), WrittenCounts::default());
    run.write([step(0, 7, 1, 1.0)]);
    assert_eq!(export.write_new(&journal).unwrap(), WrittenCounts { steps: 1, evaluations: 0 });
    // The next generation gives up the steps after 4.
    run.write([formed(2, Position { stage: 0, step: 4 }), step(0, 5, 2, 2.0)]);
    assert_eq!(export.write_new(&journal).unwrap(), WrittenCounts { steps: 1, evaluations: 0 });
    let losses = |run: &TwoStages| {
        run.curve("train/loss").into_iter().map(|(step, loss)| (step, loss as i64)).collect::<Vec<_>>()
    };
    assert_eq!(losses(&run), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2)]);
    assert_eq!(run.curve("evaluation/cider"), BTreeMap::new());
    // The guard ends the stage with step 2.
    run.write([stage_ended(2, 2, EndCause::Guard), formed(3, Position { stage: 0, step: 2 })]);
    run.write([step(1, 1, 3, 3.0)]);
    export.write_new(&journal).unwrap();
    assert_eq!(losses(&run), [(1, 1), (2, 1), (11, 3)]);
    let purges = run.events().iter().filter(|event| matches!(event.content, Some(EventContent::SessionLog(_)))).count();
    assert_eq!(purges, 3, "one at the beginning, and one each time that steps were given up");
}

#[test]
fn steps_after_the_checkpoint_that_a_stage_ended_with_stay_visible() {
    let mut run = TwoStages::new();
    run.write([formed(1, Position::default())]);
    run.write((1..=6).map(|n| step(0, n, 1, 1.0)));
    let records = [run.evaluated(0, 2, "a dog"), run.evaluated(0, 6, "a cat")];
    run.write(records);
    let journal = run.open_read_only();
    let (mut export, _) = EventFileWriter::create(&run.out(), &journal).unwrap();
    run.write([stage_ended(2, 1, EndCause::BestState), formed(2, Position { stage: 0, step: 2 })]);
    run.write([step(1, 1, 2, 3.0)]);
    export.write_new(&journal).unwrap();
    assert_eq!(run.curve("train/loss").into_keys().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 11]);
    assert_eq!(run.curve("evaluation/cider").into_keys().collect::<Vec<_>>(), [2, 6]);
}
