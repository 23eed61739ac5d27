use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, ToSql};
use serde_json::Value;

use crate::Workspace;

/// Queries of the journal of a run in progress.
pub struct RunJournal(Connection);

impl RunJournal {
    /// Opens the journal; none if it does not exist yet.
    pub fn try_open(workspace: &Workspace, name: &str) -> Option<Self> {
        workspace.try_journal(name).map(Self)
    }

    /// The first column of the first row; none if there is no row, or if the journal is locked,
    /// which happens while a coordinator starts.
    fn query<T: rusqlite::types::FromSql>(&self, query: &str, parameters: &[&dyn ToSql]) -> Option<T> {
        self.0.query_row(query, parameters, |row| row.get(0)).optional().ok().flatten()
    }

    /// The number of the last generation, and the worker ids of its members.
    pub fn last_generation(&self) -> Option<(i64, Vec<u32>)> {
        let number: i64 = self.query::<Option<i64>>("SELECT max(number) FROM generations", &[]).flatten()?;
        let members: String = self.query("SELECT members_json FROM generations WHERE number = ?", &[&number])?;
        Some((number, worker_ids(&members)))
    }

    /// Whether a step of this generation is recorded.
    pub fn has_trained(&self, generation: i64) -> bool {
        self.query::<i64>("SELECT 1 FROM steps WHERE generation = ? LIMIT 1", &[&generation]).is_some()
    }

    /// When the first step of a later generation than this one was recorded, in Unix seconds.
    pub fn first_step_after_generation(&self, generation: i64) -> Option<f64> {
        self.query::<Option<f64>>("SELECT min(at) FROM steps WHERE generation > ?", &[&generation]).flatten()
    }

    /// The number of recorded steps.
    pub fn step_count(&self) -> i64 {
        self.query("SELECT count(*) FROM steps", &[]).unwrap_or(0)
    }

    /// When the first step after `time` was recorded; both in Unix seconds.
    pub fn first_step_after_time(&self, time: f64) -> Option<f64> {
        self.query::<Option<f64>>("SELECT min(at) FROM steps WHERE at > ?", &[&time]).flatten()
    }

    /// When a generation ended, in Unix seconds; none if it has not ended.
    pub fn end_of(&self, generation: i64) -> Option<f64> {
        self.query::<Option<f64>>("SELECT ended_at FROM generations WHERE number = ?", &[&generation]).flatten()
    }

    /// Whether the run is finished.
    pub fn is_finished(&self) -> bool {
        self.query::<i64>("SELECT 1 FROM events WHERE kind = 'finished' LIMIT 1", &[]).is_some()
    }

    /// The scores of the last evaluation.
    pub fn last_scores(&self) -> Value {
        let query = "SELECT metrics_json FROM evaluations ORDER BY stage DESC, step DESC, generation DESC LIMIT 1";
        let text: String = self.query(query, &[]).expect("the run was evaluated");
        serde_json::from_str(&text).expect("scores are JSON")
    }

    /// The seconds from each join of a worker to the first step of a generation with that worker.
    /// Leaves out joins of workers that left or failed before a step.
    pub fn seconds_from_join_to_step(&self) -> Vec<f64> {
        let rows = |query: &str| -> Vec<(f64, String)> {
            let mut statement = self.0.prepare(query).expect("the journal has these tables");
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            rows.expect("the rows can be read").map(|row| row.expect("a row")).collect()
        };
        let joins = rows("SELECT at, detail_json ->> '$.rank' || '' FROM events WHERE kind = 'joined'");
        let departures = rows("SELECT at, detail_json ->> '$.rank' || '' FROM events WHERE kind IN ('lost', 'left')");
        let trained = "SELECT (SELECT min(at) FROM steps WHERE generation = number) AS first, members_json
            FROM generations WHERE first IS NOT NULL ORDER BY number";
        let trained: Vec<(f64, BTreeSet<u32>)> =
            rows(trained).into_iter().map(|(at, members)| (at, worker_ids(&members).into_iter().collect())).collect();
        let seconds_to_step = |(joined_at, worker): &(f64, String)| {
            let worker_id: u32 = worker.parse().ok()?;
            let later = departures.iter().filter(|(at, departed)| at > joined_at && departed == worker);
            let departed_at = later.map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
            let has_worker = |(at, members): &&(f64, BTreeSet<u32>)| at > joined_at && members.contains(&worker_id);
            let first_step_at = trained.iter().find(has_worker)?.0;
            (first_step_at < departed_at).then_some(first_step_at - joined_at)
        };
        joins.iter().filter_map(seconds_to_step).collect()
    }
}

/// The worker ids in `members_json` of a generation.
fn worker_ids(members_json: &str) -> Vec<u32> {
    let members: Vec<Value> = serde_json::from_str(members_json).unwrap_or_default();
    let worker_id = |member: &Value| u32::try_from(member.get("rank")?.as_u64()?).ok();
    members.iter().filter_map(worker_id).collect()
}
