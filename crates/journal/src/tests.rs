use std::collections::BTreeMap;

use config::{GuardAction, Rule};
use dico_engine::{
    Engine, EventKind, Outcome, WorkerId,
    checkpoint::Checkpoint,
    data::{DataChange, SplitSize},
    lineage::{BranchPoints, StateFate},
    membership::Machine,
    model_selection::{EndCause, EndDecision, Scores},
    plan::{Boundary, Position},
    record::{Attachment, StateSource},
    restored::RestoredRun,
    statistics::StepStatistics,
    term_log::TermLog,
};
use proptest::prelude::*;
use proto::v1;
use serde_json::json;
use summary_statistics::Summary;

use super::*;
use config::testing;

/// The definition of the present history, in SQL: whether the row `own` belongs to it.
const IS_CURRENT: &str = "NOT EXISTS (SELECT 1 FROM cuts
    WHERE cuts.generation >= own.generation AND (cuts.stage, cuts.step) < (own.stage, own.step))";

/// SQL, for a row `own` that is not [`IS_CURRENT`]: whether it is not selected, because its stage
/// ended with an earlier checkpoint that had the best score. Otherwise the row was given up.
const IS_NOT_SELECTED: &str = "EXISTS (SELECT 1 FROM stage_ends AS ended
    WHERE ended.cause IN ('best_state', 'early_stopping') AND ended.stage = own.stage AND ended.step < own.step
    AND ended.generation >= own.generation
    AND NOT EXISTS (SELECT 1 FROM cuts WHERE cuts.generation >= ended.generation
        AND (cuts.stage, cuts.step) < (ended.stage, ended.step))
    AND NOT EXISTS (SELECT 1 FROM cuts WHERE cuts.generation >= own.generation
        AND cuts.generation < ended.generation AND (cuts.stage, cuts.step) < (own.stage, own.step)))";

// Beyond `i64::MAX`, because SQLite's integers are signed.
const TERM: u64 = 0xF000_0000_0000_0007;

fn file() -> RunFile {
    let (steps, batch, checkpoint_every, evaluate_every) = (20, 4, Some(5), Some(5));
    testing::run_file(vec![testing::stage("a", steps, batch, checkpoint_every, evaluate_every)])
}

fn formed(generation: u64, step: u64, source: StateSource) -> Record {
    let members = vec![(WorkerId(3), Machine { host: "here".into(), ..Machine::default() })];
    Record::Formed {
        generation,
        term: TERM,
        members,
        cause: "start".into(),
        start: Position { stage: 0, step },
        source,
    }
}

/// A step with the values 0.5 and 1.5 of `kl`, whose mean is 1. Its loss is not finite.
fn step(step: u64, generation: u64) -> Record {
    let position = v1::Position { stage: 0, step, generation };
    let report = v1::StepDone {
        loss_sum: f64::NAN,
        loss_weight: 1.0,
        summaries: [("kl".into(), (&Summary::of([0.5, 1.5])).into())].into(),
        ..Default::default()
    };
    Record::Step(StepStatistics::from_report(WorkerId(3), &report, &position).unwrap())
}

fn saved(step: u64, generation: u64) -> Checkpoint {
    let name = format!("0-a-{step:08}");
    let (run_id, parameters_sha256) = ("3fa2".into(), "ab".into());
    Checkpoint { position: Position { stage: 0, step }, generation, run_id, name, parameters_sha256 }
}

fn branch_points<const N: usize>(starts: [(u64, u64); N]) -> BranchPoints {
    let mut branch_points = BranchPoints::default();
    starts.into_iter().for_each(|(generation, step)| branch_points.add(generation, Position { stage: 0, step }));
    branch_points
}

fn stage_ended(step: u64, generation: u64, cause: EndCause) -> Record {
    let (position, reason) = (Position { stage: 0, step }, "a test".into());
    Record::StageEnded { generation, end: EndDecision { position, cause, reason, later_states: vec![] } }
}

fn evaluated(step: u64, generation: u64) -> Record {
    let metrics = [("cider".to_owned(), 1.0)].into();
    Record::Evaluated { position: Position { stage: 0, step }, generation, evaluation: step, metrics }
}

#[test]
fn a_restarted_coordinator_does_not_fire_a_guard_rule_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = file();
    let rule = |above: f64, for_: u32| Rule {
        metric: "kl".into(),
        above: Some(above),
        below: None,
        for_,
        action: GuardAction::Pause,
    };
    file.stages[0].guard = vec![rule(0.5, 2), rule(0.9, 1)];
    let mut journal = Journal::open(folder.path(), &file).unwrap();
    let mut records = vec![formed(1, 0, StateSource::Seed)];
    records.extend((1..=6).map(|s| step(s, 1)));
    records.extend([formed(2, 5, StateSource::Member(WorkerId(3))), step(6, 2), step(7, 2)]);
    journal.write(&records).unwrap();
    let step_means = journal.restore().unwrap().step_means;
    let steps: Vec<u64> = step_means.iter().map(|(position, _)| position.step).collect();
    assert_eq!(steps, [6, 7], "as many as the largest `for`");
    assert!(step_means.iter().all(|(_, means)| means["kl"] == 1.0), "{step_means:?}");

    // A rule that has fired fires again only after the metric was within the bound.
    let engine = Engine::new(file, journal.restore().unwrap(), TERM);
    let mut guard = engine.state().stage.guard.clone();
    let mut fired_bounds = |step: u64, kl: f64| {
        let value = |name: &str| (name == "kl").then_some(kl);
        guard.check_step(Position { stage: 0, step }, value).into_iter().map(|rule| rule.bound).collect::<Vec<_>>()
    };
    assert_eq!(fired_bounds(8, 1.0), [0.0; 0]);
    assert_eq!(fired_bounds(9, 0.7), [0.0; 0]);
    assert_eq!(fired_bounds(10, 1.0), [0.9]);
    assert_eq!(fired_bounds(11, 0.4), [0.0; 0]);
    assert_eq!(fired_bounds(12, 1.0), [0.9]);
    assert_eq!(fired_bounds(13, 1.0), [0.5]);
}

#[test]
fn changed_data_take_effect_at_the_earliest_later_start() {
    let folder = tempfile::tempdir().unwrap();
    let before = SplitSize { images: 9, captions: 45 };
    let change = |generation, from: Option<u64>| DataChange {
        generation,
        from: from.map(|step| Position { stage: 0, step }),
        before,
    };
    let change_event = |generation| Record::DataChanged {
        change: change(generation, None),
        after: SplitSize { images: 8, captions: 40 },
    };
    let validation = Record::Event {
        kind: EventKind::DataChanged,
        detail: json!({ "split": "validation", "images_before_and_after": [1, 2] }),
    };
    let mut journal = Journal::open(folder.path(), &file()).unwrap();
    journal.write(&[formed(1, 0, StateSource::Seed), change_event(2), validation]).unwrap();
    assert_eq!(journal.restore().unwrap().data_changes, [change(2, None)]);
    let member = || StateSource::Member(WorkerId(3));
    journal.write(&[formed(2, 10, member()), formed(3, 5, member()), change_event(4), formed(4, 7, member())]).unwrap();
    assert_eq!(journal.restore().unwrap().data_changes, [change(2, Some(5)), change(4, Some(7))]);
}

#[test]
fn a_restarted_coordinator_restores_the_position_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let data_set = v1::DataSet {
        train_images: 2,
        train_captions: 10,
        skipped_images: 0,
        validation_images: 7,
        training_fingerprint: "t".into(),
        validation_fingerprint: "v".into(),
        models_fingerprint: "m".into(),
    };
    let mut records = vec![
        Record::Attached(Attachment { worker_id: WorkerId(3), host: "here".into(), data_set, held_position: None }),
        formed(1, 0, StateSource::Seed),
        Record::Ready { generation: 1, recovery: false },
    ];
    records.extend((1..=5).map(|s| step(s, 1)));
    records.extend([Record::Saved(saved(5, 1)), evaluated(5, 1)]);
    records.extend((6..=10).map(|s| step(s, 1)));
    records.extend([Record::Saved(saved(10, 1)), Record::Deleting(saved(5, 1).name), evaluated(10, 1)]);
    records.extend((11..=15).map(|s| step(s, 1)));
    records.push(evaluated(15, 1));
    records.push(Record::Ended { generation: 1, reason: "lost".into() });
    // Generation 2 resumes from the checkpoint. Later steps are given up, and so is the evaluation
    // at step 15.
    records.extend([formed(2, 10, StateSource::Checkpoint(saved(10, 1).name)), step(11, 2)]);
    records.extend([formed(3, 11, StateSource::Member(WorkerId(3))), step(12, 3)]);
    let mut journal = Journal::open(folder.path(), &file()).unwrap();
    journal.write(&records).unwrap();
    drop(journal);

    let at = |step| Position { stage: 0, step };
    let mut term_log = TermLog::default();
    (1..=3).for_each(|generation| term_log.record(generation, TERM));
    let expected = RestoredRun {
        term_log,
        last_generation: 3,
        branch_points: branch_points([(1, 0), (2, 10), (3, 11)]),
        committed: at(12),
        checkpoints: vec![saved(10, 1)],
        passed_boundaries: [5, 10]
            .into_iter()
            .flat_map(|s| [(at(s), Boundary::Checkpoint), (at(s), Boundary::Evaluation)])
            .collect(),
        data_set: Some(v1::DataSet {
            train_images: 2,
            train_captions: 10,
            skipped_images: 0,
            training_fingerprint: "t".into(),
            validation_fingerprint: "v".into(),
            models_fingerprint: "m".into(),
            validation_images: 7,
        }),
        is_finished: false,
        scores: [5, 10].map(|step| (at(step), [("cider".to_owned(), 1.0)].into())).into(),
        ..RestoredRun::default()
    };
    let journal = Journal::open(folder.path(), &file()).unwrap();
    let restored = journal.restore().unwrap();
    assert_eq!(restored, RestoredRun { run_id: restored.run_id.clone(), ..expected });
    let summaries: String = journal
        .connection
        .query_row("SELECT summaries_json FROM steps WHERE step = 12 AND loss IS NULL", [], |row| row.get(0))
        .unwrap();
    let summaries: serde_json::Value = serde_json::from_str(&summaries).unwrap();
    assert_eq!((&summaries["kl"]["min"], &summaries["kl"]["mean"]), (&json!(0.5), &json!(1.0)));
}

#[test]
fn a_restarted_coordinator_restores_pauses_and_stage_ends() {
    let mut journal = Journal::in_memory(&file()).unwrap();
    let mut records = vec![formed(1, 0, StateSource::Seed)];
    records.extend((1..=15).map(|s| step(s, 1)));
    records.extend([5, 10, 15].into_iter().flat_map(|s| [Record::Saved(saved(s, 1)), evaluated(s, 1)]));
    let position = Position { stage: 0, step: 15 };
    records.push(Record::Paused { position, reason: "kl is 9".into() });
    journal.write(&records).unwrap();
    let restored = journal.restore().unwrap();
    assert_eq!((restored.pause_reason.as_deref(), restored.branch_points), (Some("kl is 9"), branch_points([(1, 0)])));
    assert_eq!((restored.committed, restored.scores.len()), (Position { stage: 0, step: 15 }, 3));

    // The coordinator dies when only the end of the stage is on disk.
    let resumed = Record::Resumed { position, reason: "kl is 9".into() };
    let records = [resumed, stage_ended(10, 1, EndCause::EarlyStopping), step(16, 1)];
    journal.write(&records).unwrap();
    let restored = journal.restore().unwrap();
    let at = |step| Position { stage: 0, step };
    assert_eq!((restored.pause_reason, restored.selected_steps), (None, [(0, 10)].into()));
    assert_eq!((restored.committed, restored.branch_points), (at(10), branch_points([(1, 0), (2, 10)])));
    assert_eq!(restored.checkpoints, [saved(5, 1), saved(10, 1)]);
    assert_eq!(restored.superseded_checkpoints, [saved(15, 1)], "kept for the user");
    assert_eq!(restored.scores.into_keys().collect::<Vec<_>>(), [at(5), at(10)]);
    // Checkpoints of a later generation beyond the end of the stage belong to the present history.
    journal.write(&[formed(2, 10, StateSource::Checkpoint(saved(10, 1).name)), Record::Saved(saved(11, 2))]).unwrap();
    assert_eq!(journal.restore().unwrap().checkpoints.last(), Some(&saved(11, 2)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Generations of a stage begin at or before the position that the previous one has reached.
    /// Then the stage may end, and generations continue in the next stage. The readers agree with
    /// the definition on each row. `first_stage` has for each generation how many steps before that
    /// position it starts, and how many steps it trains. `end` has how many steps before that
    /// position the stage ends, and the index of the cause. `next_stage` has for each generation
    /// the step at which it starts, and how many steps it trains.
    #[test]
    fn the_fate_of_each_step_is_as_defined(
        first_stage in prop::collection::vec((0..9_u64, 0..5_u64), 1..5), end in prop::option::of((0..9_u64, 0..3_usize)),
        next_stage in prop::collection::vec((prop::option::of(0..4_u64), 0..5_u64), 0..4),
    ) {
        let (steps, batch) = (20, 4);
        let stages = ["a", "b"].map(|name| testing::stage(name, steps, batch, None, None)).into();
        let mut journal = Journal::in_memory(&testing::run_file(stages)).unwrap();
        let (mut generation, mut reached) = (0, Position::default());
        let mut train = |journal: &mut Journal, start: Position, steps: u64| {
            generation += 1;
            let (members, cause) = (vec![], "x".into());
            let formed = Record::Formed { generation, term: TERM, members, cause, start, source: StateSource::Seed };
            let stepped = (1..=steps).map(|more| {
                let position = start.after(more).in_generation(generation);
                Record::Step(StepStatistics::from_report(WorkerId(0), &v1::StepDone::default(), &position).unwrap())
            });
            journal.write(&[formed].into_iter().chain(stepped).collect::<Vec<_>>()).unwrap();
            generation
        };
        let mut last_generation = 0;
        for (steps_back, steps) in first_stage {
            let start = Position { stage: 0, step: reached.step.saturating_sub(steps_back) };
            last_generation = train(&mut journal, start, steps);
            reached = start.after(steps);
        }
        if let Some((steps_back, cause)) = end {
            let end = reached.step.saturating_sub(steps_back);
            journal.write(&[stage_ended(end, last_generation, EndCause::ALL[cause])]).unwrap();
            for (start, steps) in next_stage {
                let position = |step| Position { stage: 1, step };
                // `None`: the generation starts at the end of the previous stage, where the next
                // stage begins.
                train(&mut journal, start.map_or(Position { stage: 0, step: end }, position), start.map_or(0, |_| steps));
            }
        }
        let restored = journal.restore().unwrap();
        let journal = journal.into_read_only();
        let query = format!("SELECT {IS_CURRENT}, {IS_NOT_SELECTED} FROM steps AS own ORDER BY stage, step, generation");
        let fates = journal.query_all(&query, |row| Ok(match (row.get(0)?, row.get(1)?) {
            (true, _) => StateFate::Current,
            (false, true) => StateFate::NotSelected,
            (false, false) => StateFate::GivenUp,
        }));
        let (steps, fates) = (journal.steps().unwrap(), fates.unwrap());
        let mut shown = Vec::new();
        journal.for_each_step(Position::default(), |step| shown.push((step.position, step.generation))).unwrap();
        let is_shown = |(step, fate): (&Step, &StateFate)| {
            (*fate != StateFate::GivenUp).then_some((step.position, step.generation))
        };
        prop_assert_eq!(shown, steps.iter().zip(&fates).filter_map(is_shown).collect::<Vec<_>>());
        for (step, fate) in steps.into_iter().zip(fates) {
            prop_assert_eq!(step.fate, fate, "{:?}", step);
            let is_current = restored.branch_points.is_current(step.position, step.generation);
            prop_assert_eq!(is_current, fate == StateFate::Current, "{:?}", step);
            prop_assert!(step.fate != StateFate::NotSelected || end.is_some_and(|(_, cause)| EndCause::ALL[cause] != EndCause::Guard));
        }
    }
}

#[test]
fn a_run_can_be_paused_before_the_first_worker_joins() {
    let mut journal = Journal::in_memory(&file()).unwrap();
    let position = Position::default();
    journal.write(&[Record::Paused { position, reason: "operator".into() }]).unwrap();
    assert_eq!(journal.restore().unwrap().pause_reason.as_deref(), Some("operator"));
    journal.write(&[Record::Resumed { position, reason: "operator".into() }]).unwrap();
    let restored = journal.restore().unwrap();
    assert_eq!(restored, RestoredRun { run_id: restored.run_id.clone(), ..RestoredRun::default() });
}

#[test]
fn restored_scores_equal_the_recorded_scores_exactly() {
    let mut journal = Journal::in_memory(&file()).unwrap();
    // A parser without exact rounding would parse many of these thousand numbers wrongly.
    let score = |step: u64| [("cider".to_owned(), (step as f64).sqrt() / 7.0)].into();
    let scores: Scores = (1..=1_000).map(|step| (Position { stage: 0, step }, score(step))).collect();
    let evaluated = |(position, metrics): (&Position, &BTreeMap<String, f64>)| Record::Evaluated {
        position: *position,
        generation: 1,
        evaluation: position.step,
        metrics: metrics.clone(),
    };
    let mut records = vec![formed(1, 0, StateSource::Seed)];
    records.extend(scores.iter().map(evaluated));
    journal.write(&records).unwrap();
    let restored = journal.restore().unwrap().scores;
    let differing = scores.iter().filter(|(position, score)| restored.get(position) != Some(score)).count();
    assert_eq!(differing, 0);
}

#[test]
fn a_triggered_guard_rule_is_recorded_and_is_an_event_for_people() {
    let mut journal = Journal::in_memory(&file()).unwrap();
    let rule = Rule { metric: "kl".into(), above: Some(1.0), below: None, for_: 1, action: GuardAction::Warn };
    let position = Position { stage: 0, step: 3 };
    let rule = dico_engine::guard::Guard::new(0, &[rule]).check_step(position, |_| Some(2.5)).pop().unwrap();
    journal.write(&[Record::Guard { position, generation: 1, rule: rule.clone() }]).unwrap();
    let journal = journal.into_read_only();
    let firing = journal.guard_firings().unwrap().pop().unwrap();
    assert_eq!((firing.position, firing.generation, firing.rule), (position, 1, rule));
    let event = journal.events().unwrap().pop().unwrap();
    let expected = json!({ "stage": 0, "step": 3, "metric": "kl", "value": 2.5, "bound": 1.0, "action": "warn" });
    assert_eq!((event.kind.as_str(), event.detail), (GUARD_KIND, expected));
}

fn run_ended(outcome: Outcome) -> Record {
    let reason = match &outcome {
        Outcome::Failed(reason) => reason.clone(),
        _ => "a test".to_owned(),
    };
    Record::RunEnded { outcome, position: Position { stage: 0, step: 8 }, reason, result: None }
}

#[test]
fn the_outcome_follows_from_the_typed_records_and_not_from_the_event_log() {
    let outcome = |records: &[Record]| {
        let mut journal = Journal::in_memory(&file()).unwrap();
        journal.write(records).unwrap();
        journal.connection.execute("DELETE FROM events", []).unwrap();
        journal.into_read_only().outcome().unwrap()
    };
    let formed = |generation| formed(generation, 0, StateSource::Seed);
    let failed = || run_ended(Outcome::Failed("the data differ".into()));
    let position = Position { stage: 0, step: 8 };
    let paused = || Record::Paused { position, reason: "kl is 9".into() };
    let resumed = || Record::Resumed { position, reason: "kl is 9".into() };
    let stopped = || run_ended(Outcome::Stopped);
    let has_failed = RunOutcome::Failed("the data differ".into());
    let is_paused = RunOutcome::Paused("kl is 9".into());
    for (records, expected) in [
        (vec![], RunOutcome::Unfinished),
        (vec![formed(1), stopped()], RunOutcome::Unfinished),
        (vec![formed(1), failed()], has_failed.clone()),
        (vec![formed(1), failed(), stopped()], has_failed.clone()),
        (vec![formed(1), failed(), formed(2)], RunOutcome::Unfinished),
        (vec![formed(1), paused()], is_paused.clone()),
        (vec![paused(), formed(1), stopped(), formed(2)], is_paused.clone()),
        (vec![formed(1), paused(), failed()], has_failed),
        (vec![formed(1), failed(), paused()], is_paused),
        (vec![formed(1), paused(), resumed()], RunOutcome::Unfinished),
        (vec![formed(1), paused(), run_ended(Outcome::Finished)], RunOutcome::Finished),
    ] {
        assert_eq!(outcome(&records), expected, "{records:?}");
    }
}

#[test]
fn typed_records_are_read_as_they_were_written() {
    let mut journal = Journal::in_memory(&file()).unwrap();
    let (position, reason) = (Position { stage: 0, step: 15 }, "kl is 9".to_owned());
    let data_set = v1::DataSet { train_images: 2, models_fingerprint: "m".into(), ..v1::DataSet::default() };
    let attachment =
        Attachment { worker_id: WorkerId(3), host: "here".into(), data_set: data_set.clone(), held_position: None };
    let records = [
        Record::Attached(attachment),
        formed(1, 0, StateSource::Seed),
        step(1, 1),
        Record::Paused { position, reason: reason.clone() },
        Record::Resumed { position, reason: reason.clone() },
        stage_ended(10, 1, EndCause::EarlyStopping),
        evaluated(10, 1),
        run_ended(Outcome::Stopped),
        run_ended(Outcome::Failed("the data differ".into())),
    ];
    journal.write(&records).unwrap();
    let journal = journal.into_read_only();
    let worker = &journal.attached_workers().unwrap()[0];
    assert_eq!((worker.worker_id, worker.host.as_str(), &worker.data_set), (WorkerId(3), "here", &data_set));
    let pauses = journal.pauses().unwrap();
    assert!(pauses.iter().all(|pause| pause.position == position && pause.reason == reason), "{pauses:?}");
    assert_eq!(pauses.iter().map(|pause| pause.is_paused).collect::<Vec<_>>(), [true, false]);
    let end = &journal.stage_ends().unwrap()[0];
    let expected = (Position { stage: 0, step: 10 }, 1, EndCause::EarlyStopping, "a test");
    assert_eq!((end.position, end.generation, end.cause, end.reason.as_str()), expected);
    let outcomes: Vec<Outcome> = journal.run_ends().unwrap().into_iter().map(|end| end.outcome).collect();
    assert_eq!(outcomes, [Outcome::Stopped, Outcome::Failed("the data differ".into())]);
    let recorded = &journal.recorded_steps(Position::default(), 9).unwrap()[0];
    let kl = &recorded.summaries["kl"];
    assert_eq!((recorded.loss, kl.count, kl.mean, kl.min, kl.max), (None, 2, Some(1.0), Some(0.5), Some(1.5)));
    let generation = &journal.generations().unwrap()[0];
    assert_eq!((generation.members.as_slice(), generation.source.as_str()), (&[WorkerId(3)][..], "seed"));
    assert_eq!(journal.evaluations(None).unwrap()[0].scores, [("cider".to_owned(), 1.0)].into());
    let before_the_step = journal.created_at().unwrap();
    assert_eq!(journal.steps_recorded_after(before_the_step).unwrap().len(), 1);
    assert!(journal.steps_recorded_after(recorded.at).unwrap().is_empty());
}

#[test]
fn the_last_evaluation_of_a_position_counts() {
    let mut journal = Journal::in_memory(&file()).unwrap();
    let of_first_generation = [formed(1, 0, StateSource::Seed), evaluated(5, 1), evaluated(10, 1)];
    let resumed = formed(2, 5, StateSource::Member(WorkerId(3)));
    journal.write(&of_first_generation).unwrap();
    journal.write(&[resumed, evaluated(5, 2), evaluated(15, 2)]).unwrap();
    let journal = journal.into_read_only();
    let keys = |evaluations: Vec<Evaluation>| {
        evaluations.into_iter().map(|evaluation| evaluation.id.to_string()).collect::<Vec<_>>()
    };
    // The evaluation at step 10 was given up.
    assert_eq!(keys(journal.evaluations(None).unwrap()), ["0-5-2", "0-15-2"]);
    assert_eq!(keys(journal.evaluations(Some(Position { stage: 0, step: 5 })).unwrap()), ["0-15-2"]);
    assert_eq!(keys(journal.latest_evaluations(1).unwrap()), ["0-15-2"]);
    assert_eq!(keys(journal.latest_evaluations(9).unwrap()), ["0-5-2", "0-15-2"]);
}

#[test]
fn a_second_coordinator_cannot_open_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), &file()).unwrap();
    assert!(matches!(Journal::open(folder.path(), &file()), Err(Error::InUse)));
    drop(journal);
}
