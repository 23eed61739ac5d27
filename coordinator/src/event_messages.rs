//! One-line descriptions of events, for `coordinator events` and the report. The web page has the
//! same descriptions (`service/http/page/events.js`).

use dico_engine::EventKind;
use journal::{CHECKPOINT_KIND, EVALUATION_KIND, GENERATION_KIND, GUARD_KIND};
use serde_json::Value;

use crate::formatting::{format_number, format_plural};

/// Describes an event in one line, without its time and kind.
#[must_use]
pub fn describe_event(kind: &str, detail: &Value) -> String {
    let text = |key: &str| value_text(&detail[key]);
    match kind {
        GUARD_KIND => format!(
            "{} is {}, bound {}, at stage {} step {}: {}",
            text("metric"),
            text("value"),
            text("bound"),
            text("stage"),
            text("step"),
            text("action")
        ),
        GENERATION_KIND => {
            let workers = format_plural(detail["members"].as_u64().unwrap_or_default(), "worker", "workers");
            let (number, stage, step, cause) = (text("generation"), text("stage"), text("step"), text("cause"));
            // `format_plural` writes a non-breaking space. The other lines have none.
            format!("{number} with {workers}, from stage {stage} step {step}: {cause}").replace('\u{a0}', " ")
        }
        CHECKPOINT_KIND => text("name"),
        EVALUATION_KIND => {
            let metrics = detail["metrics"].as_object().into_iter().flatten();
            let metrics: Vec<String> = metrics.map(|(name, value)| format!("{name} {}", value_text(value))).collect();
            format!("stage {} step {}: {}", text("stage"), text("step"), metrics.join(", "))
        }
        kind if kind == EventKind::StageEndedEarly.name() => {
            let mut line =
                format!("stage {} with the checkpoint of step {}: {}", text("stage"), text("step"), text("reason"));
            for later in detail["passed_over"].as_array().into_iter().flatten() {
                let score = later["score"]
                    .as_f64()
                    .map_or_else(String::new, |score| format!(" (score {})", format_number(score)));
                line += &format!(
                    "; step {}{score} was not selected: {}",
                    value_text(&later["step"]),
                    value_text(&later["reason"])
                );
            }
            line
        }
        kind if [EventKind::RolledBack, EventKind::Adopted].map(EventKind::name).contains(&kind) => {
            let position = |key: &str| {
                format!("stage {} step {}", value_text(&detail[key]["stage"]), value_text(&detail[key]["step"]))
            };
            format!("from {} to {}, with the parameters of {}", position("from"), position("to"), text("source"))
        }
        _ => describe_fields(detail),
    }
}

/// Describes an event by its worker, reason and position, then all other details.
fn describe_fields(detail: &Value) -> String {
    let Value::Object(fields) = detail else { return value_text(detail) };
    let field = |key: &str| fields.get(key).filter(|value| !value.is_null()).map(value_text);
    // `at` is a position as text, not a time.
    let position = field("at").or_else(|| Some(format!("stage {} step {}", field("stage")?, field("step")?)));
    let common = [("worker ", field("rank")), ("on ", field("host")), ("", field("reason")), ("at ", position)];
    let common: Vec<String> =
        common.into_iter().filter_map(|(label, value)| Some(format!("{label}{}", value?))).collect();
    let common_keys = ["rank", "host", "reason", "at", "stage", "step"];
    let others = fields.iter().filter(|(key, value)| !common_keys.contains(&key.as_str()) && !value.is_null());
    let others = others.map(|(key, value)| format!("{} {}", key.replace('_', " "), value_text(value)));
    let descriptions = [common.join(", ")].into_iter().chain(others).filter(|description| !description.is_empty());
    descriptions.collect::<Vec<_>>().join(" · ")
}

/// A JSON value as text for people: numbers are rounded, null is a dash.
fn value_text(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(value) if value.is_f64() => value.as_f64().map(format_number).unwrap_or_default(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use journal::event_kinds;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_event_has_a_description() {
        let cases = [
            (
                "lost",
                json!({ "rank": 1, "host": "node-3", "reason": "its stream closed" }),
                "worker 1, on node-3, its stream closed",
            ),
            ("paused", json!({ "stage": 2, "step": 9, "reason": "kl is 9" }), "kl is 9, at stage 2 step 9"),
            (
                "joined",
                json!({ "rank": 0, "host": "a", "train_images": 5, "device": null }),
                "worker 0, on a · train images 5",
            ),
            (
                "guard",
                json!({ "stage": 1, "step": 3, "metric": "kl", "value": 0.51234, "bound": 0.5, "action": "warn" }),
                "kl is 0.512, bound 0.5, at stage 1 step 3: warn",
            ),
            (
                "rollback",
                json!({ "from": { "stage": 1, "step": 9 }, "to": { "stage": 1, "step": 5 }, "generation": 2, "source": "seed" }),
                "from stage 1 step 9 to stage 1 step 5, with the parameters of seed",
            ),
            (
                "stage_ended",
                json!({ "stage": 1, "step": 20, "generation": 2, "cause": "best_state", "reason": "it is the best",
                    "passed_over": [{ "step": 60, "score": 0.05, "reason": "its score is not better" }] }),
                "stage 1 with the checkpoint of step 20: it is the best; step 60 (score 0.05) was not selected: its score is not better",
            ),
            (
                "generation",
                json!({ "generation": 3, "members": 1, "cause": "start", "stage": 0, "step": 0 }),
                "3 with 1 worker, from stage 0 step 0: start",
            ),
            (
                "evaluation",
                json!({ "stage": 0, "step": 4, "metrics": { "cider": 0.5, "rep_4": null } }),
                "stage 0 step 4: cider 0.5, rep_4 –",
            ),
        ];
        for (kind, detail, expected) in cases {
            assert_eq!(describe_event(kind, &detail), expected);
            assert!(event_kinds().any(|name| name == kind), "{kind}");
        }
    }
}
