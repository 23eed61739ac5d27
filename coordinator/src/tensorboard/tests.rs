use std::collections::BTreeMap;

use prost::Message;
use proto::v1;
use serde_json::json;
use statistics::Summary as Distribution;

use super::{
    event::{Content, EventContent},
    *,
};
use crate::{
    journal::Journal,
    run::{
        captions::Item,
        record::{EventKind, Record, Source},
        statistics::StepStatistics,
        testing,
    },
};

/// A run of two stages, of 10 and 20 steps.
struct TwoStages {
    folder: tempfile::TempDir,
    journal: Journal,
}

impl TwoStages {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stages = vec![testing::stage("a", 10, 4, None, None), testing::stage("b", 20, 4, None, None)];
        let journal = Journal::open(&folder.path().join("state"), &testing::run_file(stages)).unwrap();
        Self { folder, journal }
    }

    fn write(&mut self, records: impl IntoIterator<Item = Record>) {
        self.journal.write(&records.into_iter().collect::<Vec<_>>()).unwrap();
    }

    fn history(&self) -> History {
        History::open(&self.folder.path().join("state")).unwrap()
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// The events of the only file.
    fn events(&self) -> Vec<Event> {
        let files = own_files(&self.out()).unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
        let mut bytes = &std::fs::read(&files[0]).unwrap()[..];
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            events.push(Event::decode(&bytes[12..12 + length]).unwrap());
            bytes = &bytes[length + 16..];
        }
        events
    }

    /// The values of `tag` by step, as TensorBoard shows them in the end.
    fn curve(&self, tag: &str) -> BTreeMap<i64, f32> {
        let mut curve = BTreeMap::new();
        for event in self.events() {
            match event.what {
                Some(EventContent::SessionLog(_)) => curve.retain(|step, _| *step < event.step),
                Some(EventContent::Summary(summary)) => {
                    for value in summary.value.into_iter().filter(|value| value.tag == tag) {
                        let Some(Content::SimpleValue(value)) = value.content else { panic!("{tag} is a number") };
                        curve.insert(event.step, value);
                    }
                }
                _ => {}
            }
        }
        curve
    }
}

fn formed(generation: u64, start: Place) -> Record {
    Record::Formed { generation, term: 0, members: vec![], cause: "test".into(), start, source: Source::Seed }
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
    Record::Step(StepStatistics::read(0, &report, &v1::Position { stage, step, generation }).unwrap())
}

fn evaluated(stage: u32, step: u64, caption: &str) -> Record {
    let items = vec![Item {
        image: "1.jpg".into(),
        caption: caption.into(),
        references: vec!["a dog".into()],
        ..Item::default()
    }];
    Record::Evaluated {
        place: Place { stage, step },
        generation: 1,
        metrics: [("cider".into(), 1.5), ("pac_s".into(), f64::NAN)].into(),
        items,
    }
}

#[test]
fn steps_of_all_stages_are_in_one_order_and_hold_what_was_measured() {
    let mut place = TwoStages::new();
    place.write([formed(1, Place::default())]);
    // The first stage ends early, which does not shift later steps.
    place.write((1..=8).map(|n| step(0, n, 1, n as f64)).chain((1..=3).map(|n| step(1, n, 1, f64::NAN))));
    place.write([evaluated(1, 3, "a | <b>dog</b>")]);
    let (export, written) = Export::create(&place.out(), &place.history()).unwrap();
    assert_eq!(written, WrittenCounts { steps: 11, evaluations: 1 });
    let steps: Vec<i64> = place.curve("run/stage").into_keys().collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13]);
    // NaN values are left out.
    assert_eq!(place.curve("train/loss").into_values().collect::<Vec<_>>(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    assert_eq!(place.curve("speed/images_per_second")[&1], 8.0);
    assert!((place.curve("train/reward_chosen_p50")[&13] - 0.5).abs() < 0.01);
    assert_eq!((place.curve("evaluation/cider"), place.curve("evaluation/pac_s")), ([(13, 1.5)].into(), [].into()));
    let events = place.events();
    assert!(matches!(&events[0].what, Some(EventContent::FileVersion(version)) if version == "brain.Event:2"));
    let mut texts = events.iter().filter_map(|event| match &event.what {
        Some(EventContent::Summary(summary)) => summary.value.iter().find(|value| value.tag == "captions"),
        _ => None,
    });
    let Some(Content::Tensor(tensor)) = &texts.next_back().unwrap().content else { panic!("captions are text") };
    let text = String::from_utf8(tensor.string_val[0].clone()).unwrap();
    let row = text.lines().last().unwrap();
    assert_eq!(row, "| 1&#46;jpg | a &#124; &#60;b&#62;dog&#60;&#47;b&#62; | a dog |");
    // The writer of the file holds a lock.
    let error = Export::create(&place.out(), &place.history()).unwrap_err();
    assert!(error.to_string().contains("--out"), "{error}");
    drop(export);
    Export::create(&place.out(), &place.history()).unwrap();
    assert_eq!(place.curve("run/stage").len(), 11);
}

#[test]
fn what_is_given_up_is_purged_and_nothing_is_written_twice() {
    let mut place = TwoStages::new();
    place.write([formed(1, Place::default())]);
    place.write((1..=6).map(|n| step(0, n, 1, 1.0)));
    place.write([evaluated(0, 5, "a dog")]);
    let history = place.history();
    let (mut export, _) = Export::create(&place.out(), &history).unwrap();
    assert_eq!(export.catch_up(&history).unwrap(), WrittenCounts::default());
    place.write([step(0, 7, 1, 1.0)]);
    assert_eq!(export.catch_up(&history).unwrap(), WrittenCounts { steps: 1, evaluations: 0 });
    // The next generation gives up the steps after 4.
    place.write([formed(2, Place { stage: 0, step: 4 }), step(0, 5, 2, 2.0)]);
    assert_eq!(export.catch_up(&history).unwrap(), WrittenCounts { steps: 1, evaluations: 0 });
    let losses =
        |of: &TwoStages| of.curve("train/loss").into_iter().map(|(step, loss)| (step, loss as i64)).collect::<Vec<_>>();
    assert_eq!(losses(&place), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2)]);
    assert_eq!(place.curve("evaluation/cider"), BTreeMap::new());
    // The guard ends the stage with step 2.
    let detail = json!({ "stage": 0, "step": 2, "generation": 2, "cause": "guard", "reason": "test" });
    place.write([Record::Event { what: EventKind::StageEnded, detail }, formed(3, Place { stage: 0, step: 2 })]);
    place.write([step(1, 1, 3, 3.0)]);
    export.catch_up(&history).unwrap();
    assert_eq!(losses(&place), [(1, 1), (2, 1), (11, 3)]);
    let purges = place.events().iter().filter(|event| matches!(event.what, Some(EventContent::SessionLog(_)))).count();
    assert_eq!(purges, 3, "one at the beginning, and one each time that something was given up");
}

#[test]
fn what_was_trained_beyond_the_selected_state_stays() {
    let mut place = TwoStages::new();
    place.write([formed(1, Place::default())]);
    place.write((1..=6).map(|n| step(0, n, 1, 1.0)));
    place.write([evaluated(0, 2, "a dog"), evaluated(0, 6, "a cat")]);
    let history = place.history();
    let (mut export, _) = Export::create(&place.out(), &history).unwrap();
    let detail = json!({ "stage": 0, "step": 2, "generation": 1, "cause": "best_state", "reason": "test" });
    place.write([Record::Event { what: EventKind::StageEnded, detail }, formed(2, Place { stage: 0, step: 2 })]);
    place.write([step(1, 1, 2, 3.0)]);
    export.catch_up(&history).unwrap();
    assert_eq!(place.curve("train/loss").into_keys().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 11]);
    assert_eq!(place.curve("evaluation/cider").into_keys().collect::<Vec<_>>(), [2, 6]);
}
