//! Version 3, which commit e9add16 wrote, becomes version 6. Versions differ in these tables:
//!
//! - `run`: version 3 has no id of the run. It gets a random one. The run file gets the settings
//!   that did not exist, with the values by which version 3 trained.
//! - `generations`: version 3 has no terms. The term 0 stands for an unknown one. `source` is `rank
//!   N`, now `worker N`.
//! - `checkpoints`: their metadata have no id of the run. It is empty here, too.
//! - `events`: rows have no number. They keep the order and the content that they have.
//! - `chain`: version 3 has no hash chain. Each record gets an entry, in the order of time.
//!
//! Without a chain it cannot be proven that no record was changed before the migration. `integrity`
//! refuses journals that contradict themselves. The new chain proves the records since the
//! migration, and that the migrated ones have not changed since then.
//!
//! For typed records, version 6 expects details of events that version 3 has in another form:
//!
//! - `joined` has one fingerprint of data and models. The three of version 6 are unknown, which is
//!   an empty text.
//! - `rollback` and `adopted` have a source `rank N`.
//! - `stage_ended` has no cause. It follows from the reason and the evaluations.

mod integrity;

use config::{CutCandidates, RunFile, TextReading};
use dico_engine::model_selection::EndCause;
use rusqlite::{Transaction, params};
use serde_json::Value;

use super::{
    super::{
        Error,
        chain::{self, ChainEntry, ChainWriter},
        run_id::random_run_id,
        schema::{MIGRATED_VERSIONS, SCHEMA},
    },
    version_6::{self, Event},
};

/// The version of these tables.
pub(super) const VERSION: i64 = MIGRATED_VERSIONS[0];

/// Renames the tables whose columns differ.
const RENAME_TABLES: &str = "
DROP VIEW cuts;
DROP INDEX events_by_kind;
ALTER TABLE run RENAME TO earlier_run;
ALTER TABLE generations RENAME TO earlier_generations;
ALTER TABLE checkpoints RENAME TO earlier_checkpoints;
ALTER TABLE events RENAME TO earlier_events;
";

/// Copies the rows of the renamed tables, except for the run file.
const COPY_ROWS: &str = "
INSERT INTO generations SELECT number, members_json, cause, formed_at, ready_at, ended_at, ended_because,
    CASE WHEN source LIKE 'rank %' THEN 'worker ' || substr(source, 6) ELSE source END, stage, step, 0
    FROM earlier_generations;
INSERT INTO checkpoints SELECT stage, step, generation, '', name, parameters_sha256, at, deleted
    FROM earlier_checkpoints;
INSERT INTO events SELECT rowid, at, kind, detail_json FROM earlier_events;
DROP TABLE earlier_run;
DROP TABLE earlier_generations;
DROP TABLE earlier_checkpoints;
DROP TABLE earlier_events;
";

/// All records in the order of time: the time, then kind and key as in the table `chain`.
const RECORDS_BY_TIME: &str = "
SELECT created AS at, 'run' AS kind, NULL AS stage, NULL AS step, NULL AS generation, number FROM run
UNION ALL SELECT formed_at, 'formed', NULL, NULL, number, NULL FROM generations
UNION ALL SELECT ready_at, 'ready', NULL, NULL, number, NULL FROM generations WHERE ready_at IS NOT NULL
UNION ALL SELECT ended_at, 'ended', NULL, NULL, number, NULL FROM generations WHERE ended_at IS NOT NULL
UNION ALL SELECT at, 'step', stage, step, generation, NULL FROM steps
UNION ALL SELECT at, 'saved', stage, step, generation, NULL FROM checkpoints
UNION ALL SELECT deleted, 'deleted', stage, step, generation, NULL FROM checkpoints WHERE deleted IS NOT NULL
UNION ALL SELECT at, 'evaluated', stage, step, generation, NULL FROM evaluations
UNION ALL SELECT at, 'event', NULL, NULL, NULL, number FROM events
ORDER BY at";

/// Converts an intact journal to version 6. Returns its hash chain, and its events with the details
/// of that version.
pub(super) fn convert(transaction: &Transaction<'_>) -> Result<(ChainWriter, Vec<Event>), Error> {
    integrity::check_intact(transaction)?;
    transaction.execute_batch(RENAME_TABLES)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.execute_batch(chain::SCHEMA)?;
    let run_file = convert_run_file(transaction)?;
    transaction.execute_batch(COPY_ROWS)?;
    let mut chain = ChainWriter::open(transaction)?;
    let records: Vec<Option<ChainEntry>> =
        transaction.prepare(RECORDS_BY_TIME)?.query_map([], ChainEntry::read)?.collect::<Result<_, _>>()?;
    records.into_iter().flatten().try_for_each(|record| chain.append(transaction, record))?;
    refuse_changed_reward(transaction, &run_file)?;
    let mut events = version_6::read_events(transaction)?;
    events.iter_mut().try_for_each(|event| convert_detail(transaction, &run_file, event))?;
    Ok((chain, events))
}

/// Copies the run file, with an id of the run, and with the settings that version 3 did not have.
fn convert_run_file(transaction: &Transaction<'_>) -> Result<RunFile, Error> {
    let query = "SELECT name, seed, run_file_json, created FROM earlier_run";
    let (name, seed, json, created): (String, i64, String, f64) =
        transaction.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let mut file: RunFile = serde_json::from_str(&json).map_err(|error| Error::RunFile(error.to_string()))?;
    if (&file.name, file.seed.cast_signed()) != (&name, seed) {
        return Err(Error::Damaged("name or seed of the run differ from those in its run file".to_owned()));
    }
    // `decoding.max_length` limited targets, too.
    file.captioner.max_target_length = file.decoding.max_length;
    if let Some(evaluator) = &mut file.evaluator {
        evaluator.cut_candidates = CutCandidates::Closed;
        evaluator.text = TextReading::AsIs;
    }
    let json = serde_json::to_string(&file).expect("a run file is plain data");
    let id = random_run_id()?;
    let row = params![name, seed, json, created, id];
    transaction.execute("INSERT INTO run (name, seed, run_file_json, created, id) VALUES (?, ?, ?, ?, ?)", row)?;
    Ok(file)
}

/// Refuses a run that was stopped within a stage that rewards CIDEr-D. The reward counts the end
/// token as a word since then: the rest of the stage would be trained with another objective.
fn refuse_changed_reward(transaction: &Transaction<'_>, file: &RunFile) -> Result<(), Error> {
    let query = "SELECT stage, max(step), EXISTS (SELECT 1 FROM events
            WHERE kind = 'finished' OR (kind = 'stage_ended' AND detail_json ->> 'stage' = steps.stage))
        FROM steps GROUP BY stage ORDER BY stage DESC LIMIT 1";
    let mut last_stage = transaction.prepare(query)?;
    let last_stage = last_stage.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.next().transpose()?;
    let Some((stage, step, has_ended)): Option<(usize, i64, bool)> = last_stage else { return Ok(()) };
    let Some(stage) = file.stages.get(stage) else { return Ok(()) };
    if has_ended || step.cast_unsigned() >= stage.steps || !stage.objective.has_cider_reward() {
        return Ok(());
    }
    Err(Error::RunFile(format!(
        "stage {} rewards CIDEr-D, which counts the end token now, and {step} of its {} steps are trained without",
        stage.name, stage.steps
    )))
}

/// Converts the detail of an event to that of version 6, if it differs.
fn convert_detail(transaction: &Transaction<'_>, file: &RunFile, event: &mut Event) -> Result<(), Error> {
    let Some(detail) = event.detail.as_object_mut() else { return Ok(()) };
    match event.kind.as_str() {
        "joined" => {
            for fingerprint in ["training_fingerprint", "validation_fingerprint", "models_fingerprint"] {
                detail.insert(fingerprint.to_owned(), Value::from(""));
            }
        }
        "rollback" | "adopted" => {
            let rank = detail.get("source").and_then(Value::as_str).and_then(|source| source.strip_prefix("rank "));
            if let Some(source) = rank.map(|rank| format!("worker {rank}")) {
                detail.insert("source".to_owned(), Value::from(source));
            }
        }
        "stage_ended" => {
            if let Some(cause) = end_cause(transaction, file, &event.detail)? {
                event.detail["cause"] = Value::from(cause.name());
            }
        }
        _ => {}
    }
    Ok(())
}

/// Why a stage ended with an earlier state than its last one. None if the detail of the event lacks
/// a part.
fn end_cause(transaction: &Transaction<'_>, file: &RunFile, detail: &Value) -> Result<Option<EndCause>, Error> {
    let number = |key: &str| detail[key].as_i64();
    let (Some(reason), Some(number_of_stage), Some(generation)) =
        (detail["reason"].as_str(), number("stage"), number("generation"))
    else {
        return Ok(None);
    };
    if reason.starts_with("the guard: ") {
        return Ok(Some(EndCause::Guard));
    }
    let stage = usize::try_from(number_of_stage).ok().and_then(|number| file.stages.get(number));
    let Some(stage) = stage else { return Ok(None) };
    // Whether the stage's last step was evaluated, and not given up before the stage ended.
    let query = "SELECT EXISTS (SELECT 1 FROM evaluations AS own
        WHERE own.stage = ?1 AND own.step >= ?2 AND own.generation <= ?3 AND NOT EXISTS (
            SELECT 1 FROM generations AS later WHERE later.number > own.generation AND later.number <= ?3
            AND (later.stage, later.step) < (own.stage, own.step)))";
    let parameters = params![number_of_stage, stage.steps.cast_signed(), generation];
    let is_complete: bool = transaction.query_row(query, parameters, |row| row.get(0))?;
    Ok(Some(if is_complete { EndCause::BestState } else { EndCause::EarlyStopping }))
}
