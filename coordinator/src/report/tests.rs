use std::path::Path;

use dico_engine::{
    Outcome, WorkerId,
    checkpoint::Checkpoint,
    membership::Machine,
    model_selection::{EndCause, EndDecision, LaterState},
    record::{Attachment, HistoryMove, Record, StateSource},
    statistics::StepStatistics,
};
use journal::{EvaluatedCaption, Journal};
use proto::v1;
use serde_json::json;
use summary_statistics::Summary;

use super::*;
use config::testing;

/// A caption, or the reason of a failure, with a script, as an attacker might send it.
const MALICIOUS_CAPTION: &str = "</style><script>alert('a dog')</script>";

fn step(stage: u32, step: u64, generation: u64) -> Record {
    let summaries = ["reward_chosen", "reward_rejected", "kl"];
    let report = v1::StepDone {
        loss_sum: 1.0 / step as f64,
        loss_weight: 1.0,
        samples: 4,
        seconds: 0.5,
        summaries: summaries.map(|name| (name.to_owned(), (&Summary::of([0.5, 0.75])).into())).into(),
        ..v1::StepDone::default()
    };
    Record::Step(StepStatistics::from_report(WorkerId(0), &report, &v1::Position { stage, step, generation }).unwrap())
}

/// An evaluation of 30 images with the same caption, which the journal gets. Its repetition `rep_1`
/// also has the value `cider`.
fn evaluated(journal: &mut Journal, (stage, step): (u32, u64), generation: u64, caption: &str, cider: f64) -> Record {
    let caption_of = |image: u32| EvaluatedCaption {
        image: format!("{image:03}.jpg"),
        caption: caption.into(),
        references: vec!["a <dog>".into()],
        ..EvaluatedCaption::default()
    };
    let evaluation = generation << 32 | u64::from(stage) << 16 | step;
    journal.stage_captions(evaluation, (0..30).map(caption_of).collect());
    let metrics = [("cider".to_owned(), cider), ("rep_1".to_owned(), cider)].into();
    Record::Evaluated { position: Position { stage, step }, generation, evaluation, metrics }
}

fn formed(generation: u64, stage: u32, step: u64) -> Record {
    let member = |id| (WorkerId(id), Machine { host: "here".into(), version: "0.1.0".into(), device: "cpu".into() });
    let start = Position { stage, step };
    Record::Formed {
        generation,
        term: 0,
        members: vec![member(0), member(1)],
        cause: "worker 1 failed: its stream closed".into(),
        start,
        source: StateSource::Seed,
    }
}

fn run_ended(outcome: Outcome) -> Record {
    let reason = match &outcome {
        Outcome::Failed(reason) => reason.clone(),
        _ => "a test".to_owned(),
    };
    Record::RunEnded { outcome, position: Position { stage: 1, step: 8 }, reason, result: None }
}

/// Writes the journal of a run of two stages. A generation failed in the second stage, and its
/// steps beyond 3 were given up. The records `extra` follow.
fn write_journal(folder: &Path, extra: Vec<Record>) -> ReadOnlyJournal {
    let batch = 4;
    let stages = [("a", 4), ("b", 8)].map(|(name, steps)| testing::stage(name, steps, batch, None, None)).into();
    let mut journal = Journal::open(folder, &testing::run_file(stages)).unwrap();
    let data_set =
        v1::DataSet { train_images: 16, train_captions: 16, validation_images: 30, ..v1::DataSet::default() };
    let attachment = Attachment { worker_id: WorkerId(0), host: "here".into(), data_set, held_position: None };
    let mut records = vec![Record::Attached(attachment), formed(1, 0, 0)];
    records.extend((1..=4).map(|n| step(0, n, 1)));
    records.push(evaluated(&mut journal, (0, 4), 1, "a cat", 1.0));
    records.extend((1..=5).map(|n| step(1, n, 1)));
    records.push(evaluated(&mut journal, (1, 4), 1, "given up", 9.0));
    let detail = json!({ "rank": 1, "host": "here", "reason": MALICIOUS_CAPTION });
    records.push(Record::Event { kind: EventKind::Lost, detail });
    records.push(Record::Ended { generation: 1, reason: "lost".into() });
    let at = |step| Position { stage: 1, step };
    let source = StateSource::Member(WorkerId(0));
    records.push(Record::HistoryMoved(HistoryMove { from: at(5), to: at(3), generation: 2, source }));
    records.push(formed(2, 1, 3));
    records.extend((4..=8).map(|n| step(1, n, 2)));
    records.push(evaluated(&mut journal, (1, 8), 2, MALICIOUS_CAPTION, 2.0));
    let (position, name) = (Position { stage: 1, step: 8 }, "1-b-00000008".to_owned());
    let (run_id, parameters_sha256) = ("3fa2".into(), "ab".repeat(32));
    records.push(Record::Saved(Checkpoint { position, generation: 2, run_id, name, parameters_sha256 }));
    records.extend(extra);
    journal.write(&records).unwrap();
    ReadOnlyJournal::open(folder).unwrap()
}

fn report(extra: Vec<Record>) -> Report {
    let folder = tempfile::tempdir().unwrap();
    Report::read(&write_journal(folder.path(), extra)).unwrap()
}

#[test]
fn a_report_summarizes_the_journal() {
    let report = report(vec![run_ended(Outcome::Finished)]);
    assert_eq!(report.outcome, RunOutcome::Finished);
    let stages: Vec<_> = report.stages.iter().map(|stage| (stage.name.as_str(), stage.steps, stage.samples)).collect();
    assert_eq!(stages, [("a", 4, 16), ("b", 8, 32)]);
    assert_eq!(report.stages[1].curves["loss"].mean, [1.0, 0.5, 1.0 / 3.0, 0.25, 0.2, 1.0 / 6.0, 1.0 / 7.0, 0.125]);
    assert_eq!(report.stages[1].curves["images_per_second"].mean, [8.0; 8]);
    let Recoveries { lost, count, given_up, .. } = report.recoveries;
    assert_eq!((lost, count, given_up, report.audit.clean), (1, 1, 2, true));
    // Low repetition and high CIDEr are best. The evaluation that was given up is not listed.
    let best: Vec<Vec<&String>> =
        report.evaluations.iter().map(|evaluation| evaluation.best.iter().collect()).collect();
    assert_eq!(best, [["rep_1"], ["cider"]]);
    let captions = report.captions.as_ref().unwrap();
    assert_eq!((captions.before, captions.after), (Some((0, 4)), (1, 8)));
    assert_eq!((captions.images.len(), captions.images[0].image.as_str()), (12, "000.jpg"));
    assert!(
        captions
            .images
            .iter()
            .all(|image| image.before.as_deref() == Some("a cat") && image.after == MALICIOUS_CAPTION)
    );
    // The data set does not exist.
    assert!(captions.no_pictures.as_ref().unwrap().contains("annotations.json"));
    let machine = MachineGroup {
        host: "here".into(),
        device: "cpu".into(),
        version: "0.1.0".into(),
        worker_ids: [WorkerId(0), WorkerId(1)].into(),
    };
    assert_eq!(report.machines, [machine]);
    assert_eq!(report.checkpoints.len(), 1);
}

#[test]
fn the_checkpoint_that_a_stage_ended_with_is_marked_and_scores_of_references_are_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    let batch = 4;
    let mut stages = [("a", 2), ("b", 8)].map(|(name, steps)| testing::stage(name, steps, batch, None, None));
    stages[0].objective = config::Objective::Contrastive(config::Contrastive::default());
    let mut journal = Journal::open(folder.path(), &testing::run_file(stages.into())).unwrap();
    let mut records =
        vec![formed(1, 0, 0), step(0, 1, 1), step(0, 2, 1), evaluated(&mut journal, (0, 2), 1, "people", 9.0)];
    records.extend((1..=8).map(|n| step(1, n, 1)));
    records.extend([
        evaluated(&mut journal, (1, 2), 1, "bad", 1.0),
        evaluated(&mut journal, (1, 4), 1, "good", 3.0),
        evaluated(&mut journal, (1, 8), 1, "fair", 2.0),
    ]);
    let at = |step| Position { stage: 1, step };
    let later = LaterState { position: at(8), score: Some(2.0), reason: "its score is not better".into() };
    let (cause, reason) = (EndCause::BestState, "it is the best".into());
    let end = EndDecision { position: at(4), cause, reason, later_states: vec![later] };
    records.extend([Record::StageEnded { generation: 1, end }, run_ended(Outcome::Finished)]);
    journal.write(&records).unwrap();
    let report = Report::read(&ReadOnlyJournal::open(folder.path()).unwrap()).unwrap();
    let end = EarlyEnd { step: 4, cause: "best_state", reason: "it is the best".into() };
    assert_eq!((&report.stages[0].end, &report.stages[1].end), (&None, &Some(end)));
    assert_eq!((report.stages[1].steps, report.stages[1].curves["loss"].step.len()), (8, 8));
    let marks = |is_marked: fn(&EvaluationEntry) -> bool| report.evaluations.iter().map(is_marked).collect::<Vec<_>>();
    assert_eq!(marks(|evaluation| evaluation.captioner == Captioner::People), [true, false, false, false]);
    assert_eq!(marks(|evaluation| evaluation.is_selected), [false, false, true, false]);
    assert_eq!(marks(|evaluation| evaluation.best.contains("cider")), [false, false, true, false]);
    let captions = report.captions.as_ref().unwrap();
    assert_eq!((captions.before, captions.after), (Some((1, 2)), (1, 4)));
    let html = report.to_html();
    assert!(html.contains("with the checkpoint of step 4: it is the best"), "{html}");
    // The event log says why later checkpoints were not selected.
    assert!(html.contains("step 8 (score 2) was not selected: its score is not better"));
    assert!(html.contains("was 1 at the first evaluation"), "the first evaluation of the model");
    assert!(html.contains(r#"class="selected""#));
}

#[test]
fn captions_and_reasons_are_escaped_in_the_html() {
    let html = report(vec![]).to_html();
    assert!(!html.contains("<script") && !html.contains("<dog>"), "something is not escaped");
    // The caption, and the reason why a worker failed.
    assert!(html.matches("&lt;/style&gt;&lt;script&gt;alert('a dog')&lt;/script&gt;").count() >= 13);
    // There are no external resources.
    assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("url("));
}

#[test]
fn the_html_has_the_outcome_with_its_reason() {
    let position = Position { stage: 1, step: 8 };
    let paused = Record::Paused { position, reason: "kl is 9".into() };
    for (records, words) in [
        (vec![], "unfinished"),
        (vec![run_ended(Outcome::Finished)], "finished"),
        (vec![run_ended(Outcome::Failed("the data differ".into()))], "the data differ"),
        (vec![paused], "kl is 9"),
    ] {
        let html = report(records).to_html();
        let header = html.split("</header>").next().unwrap();
        assert!(header.contains(words), "{words}: {header}");
    }
}

#[test]
fn a_report_of_a_run_without_steps_is_possible() {
    let folder = tempfile::tempdir().unwrap();
    let (steps, batch) = (4, 4);
    let file = testing::run_file(vec![testing::stage("a", steps, batch, None, None)]);
    Journal::open(folder.path(), &file).unwrap();
    let report = Report::read(&ReadOnlyJournal::open(folder.path()).unwrap()).unwrap();
    assert!(report.stages.is_empty() && report.captions.is_none());
    assert!(report.to_html().contains("unfinished"));
}

#[test]
fn the_html_of_a_long_run_is_small() {
    let steps = (9..=5_008).map(|n| step(1, n, 2)).collect();
    let html = report(steps).to_html();
    assert!(html.len() < 200_000, "{} bytes", html.len());
    // Many generations and events are truncated, too.
    let mut many: Vec<Record> = (3..1_003).map(|number| formed(number, 1, 8)).collect();
    many.extend((0..1_000).map(|rank| Record::Event { kind: EventKind::Lost, detail: json!({ "rank": rank }) }));
    let html = report(many).to_html();
    assert!(html.len() < 200_000 && html.contains("802 earlier generations"), "{} bytes", html.len());
}

#[test]
fn the_html_is_well_formed() {
    let html = report(vec![run_ended(Outcome::Finished)]).to_html();
    let void_elements = ["!doctype", "meta", "br", "img", "input", "hr", "link"];
    let mut open: Vec<String> = Vec::new();
    for tag in html.split('<').skip(1) {
        let name: String =
            tag.chars().take_while(|c| !c.is_whitespace() && *c != '>').collect::<String>().to_lowercase();
        match name.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop().as_deref(), Some(closed)),
            None if void_elements.contains(&name.as_str()) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
    // Every heading that a section refers to exists.
    for id in html.split("aria-labelledby=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(html.contains(&format!("id=\"{id}\"")), "{id}");
    }
}
