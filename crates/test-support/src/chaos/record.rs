use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, ToSql};
use serde_json::Value;

use crate::Workspace;

/// The journal of a run in progress.
pub struct Record(Connection);

impl Record {
    /// Opens the journal; none if it does not exist yet.
    pub fn try_open(workspace: &Workspace, name: &str) -> Option<Self> {
        workspace.try_journal(name).map(Self)
    }

    fn ask<T: rusqlite::types::FromSql>(&self, query: &str, of: &[&dyn ToSql]) -> Option<T> {
        // While a coordinator starts, its journal may be locked for a moment.
        self.0.query_row(query, of, |row| row.get(0)).optional().ok().flatten()
    }

    /// The number and members of the last generation.
    pub fn generation(&self) -> Option<(i64, Vec<u32>)> {
        let number: i64 = self.ask::<Option<i64>>("SELECT max(number) FROM generations", &[]).flatten()?;
        let members: String = self.ask("SELECT members_json FROM generations WHERE number = ?", &[&number])?;
        Some((number, ranks(&members)))
    }

    /// Whether a generation has applied a step.
    pub fn has_trained(&self, generation: i64) -> bool {
        self.ask::<i64>("SELECT 1 FROM steps WHERE generation = ? LIMIT 1", &[&generation]).is_some()
    }

    /// When a later generation than this one first applied a step.
    pub fn applied_after(&self, generation: i64) -> Option<f64> {
        self.ask::<Option<f64>>("SELECT min(at) FROM steps WHERE generation > ?", &[&generation]).flatten()
    }

    /// The number of reported steps.
    pub fn steps(&self) -> i64 {
        self.ask("SELECT count(*) FROM steps", &[]).unwrap_or(0)
    }

    /// When a step was first applied after a time.
    pub fn applied_since(&self, time: f64) -> Option<f64> {
        self.ask::<Option<f64>>("SELECT min(at) FROM steps WHERE at > ?", &[&time]).flatten()
    }

    /// When a generation ended.
    pub fn ended(&self, generation: i64) -> Option<f64> {
        self.ask::<Option<f64>>("SELECT ended_at FROM generations WHERE number = ?", &[&generation]).flatten()
    }

    /// Whether the run is complete.
    pub fn finished(&self) -> bool {
        self.ask::<i64>("SELECT 1 FROM events WHERE kind = 'finished' LIMIT 1", &[]).is_some()
    }

    /// The scores of the last evaluation.
    pub fn last_scores(&self) -> Value {
        let query = "SELECT metrics_json FROM evaluations ORDER BY stage DESC, step DESC, generation DESC LIMIT 1";
        let text: String = self.ask(query, &[]).expect("the run was evaluated");
        serde_json::from_str(&text).expect("scores are JSON")
    }

    /// For each join of a worker that took part in a step afterwards: the time until that step, in
    /// seconds.
    pub fn rejoins(&self) -> Vec<f64> {
        let rows = |query: &str, first: usize| -> Vec<(f64, String)> {
            let mut statement = self.0.prepare(query).expect("the journal has these tables");
            let rows = statement.query_map([], |row| Ok((row.get(first)?, row.get(1 - first)?)));
            rows.expect("they can be read").map(|row| row.expect("a row")).collect()
        };
        let joins = rows("SELECT at, detail_json ->> '$.rank' || '' FROM events WHERE kind = 'joined'", 0);
        let lost = rows("SELECT at, detail_json ->> '$.rank' || '' FROM events WHERE kind IN ('lost', 'left')", 0);
        let trained = "SELECT (SELECT min(at) FROM steps WHERE generation = number) AS first, members_json
            FROM generations WHERE first IS NOT NULL ORDER BY number";
        let trained: Vec<(f64, BTreeSet<u32>)> =
            rows(trained, 0).into_iter().map(|(at, members)| (at, ranks(&members).into_iter().collect())).collect();
        let part = |(at, rank): &(f64, String)| {
            let number: u32 = rank.parse().ok()?;
            let gone = lost.iter().filter(|(when, who)| when > at && who == rank).map(|(when, _)| *when);
            let gone = gone.fold(f64::INFINITY, f64::min);
            let first = trained.iter().find(|(first, members)| first > at && members.contains(&number))?.0;
            (first < gone).then_some(first - at)
        };
        joins.iter().filter_map(part).collect()
    }
}

fn ranks(members: &str) -> Vec<u32> {
    let members: Vec<Value> = serde_json::from_str(members).unwrap_or_default();
    let rank = |member: &Value| u32::try_from(member.get("rank")?.as_u64()?).ok();
    members.iter().filter_map(rank).collect()
}
