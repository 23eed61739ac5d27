//! Differences between two run files of a run, and the lines of a run file for a new run that
//! starts from a checkpoint, for changes that the old run refuses.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::keys::{Mutability, is_of_objective, key_at, strictest_below};
use crate::schema::{Captioner, RunFile};

/// A key whose values in two run files differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Path of the key, e.g. `stages[2].optimizer.learning_rate`, with list elements by index from
    /// 0. If several keys are added or removed together, the path of the key that contains them.
    pub key: String,
    /// Its value before; null if it was absent.
    pub old: Value,
    /// Its value now; null if it is absent.
    pub new: Value,
    /// Whether it may change in a run.
    pub mutability: Mutability,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, old, new, mutability } = self;
        write!(f, "{key}: {} -> {} ({})", plain(old), plain(new), mutability.describe())
    }
}

/// Every key whose value in `new` is not that in `old`: keys in alphabetical order, elements of a
/// list by index.
#[must_use]
pub fn changes(old: &RunFile, new: &RunFile) -> Vec<Change> {
    let value = |file: &RunFile| serde_json::to_value(file).expect("a run file is plain data");
    let mut found = Vec::new();
    compare(&value(old), &value(new), "", "", &mut found);
    found
}

/// Compares two values at a path; `key_path` is the path with `[]` for the elements of lists.
fn compare(old: &Value, new: &Value, path: &str, key_path: &str, found: &mut Vec<Change>) {
    if old == new {
        return;
    }
    let key = key_at(key_path);
    match (old, new) {
        // Another objective is one change; other settings of the same objective are one each.
        (Value::Object(old), Value::Object(new))
            if key.is_none() || (is_of_objective(key_path) && old.keys().eq(new.keys())) =>
        {
            for name in names(old, new) {
                let [old, new] = [old, new].map(|object| object.get(name).unwrap_or(&Value::Null));
                let below = |path: &str| if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(old, new, &below(path), &below(key_path), found);
            }
        }
        (Value::Array(old), Value::Array(new)) if key.is_none() => {
            for i in 0..old.len().max(new.len()) {
                let [old, new] = [old, new].map(|list| list.get(i).unwrap_or(&Value::Null));
                compare(old, new, &format!("{path}[{i}]"), &format!("{key_path}[]"), found);
            }
        }
        _ => {
            let mutability = key.map_or_else(|| strictest_below(key_path), |key| key.mutability);
            found.push(Change { key: path.to_owned(), old: old.clone(), new: new.clone(), mutability });
        }
    }
}

fn names<'a>(old: &'a Map<String, Value>, new: &'a Map<String, Value>) -> Vec<&'a String> {
    let mut names: Vec<_> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    names
}

/// A value for a message.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "absent".to_owned(),
        value => value.to_string(),
    }
}

/// The lines of a run file that start a new run from a checkpoint of `run` in the folder or at the
/// URL `checkpoint`.
#[must_use]
pub fn continuation(run: &RunFile, checkpoint: &str) -> String {
    let checkpoint = Value::from(checkpoint);
    // The primary evaluator is the one that contrastive stages train.
    let evaluator = run.primary_evaluator();
    // A checkpoint holds the evaluator only if the run made or trained it.
    let evaluator_weights = match &evaluator.settings.weights {
        Some(weights) if !run.trains_evaluator() => Value::from(weights.to_string_lossy()),
        _ => checkpoint.clone(),
    };
    let replaced = instead_of(&[("preset", evaluator.settings.preset.is_some())]);
    let evaluator_line = match evaluator.key().split_once('.') {
        Some((evaluators, name)) => format!(
            "{evaluators}: {{ {name}: {{ weights: {evaluator_weights} }} }} # {replaced}other keys, and other evaluators, \
             as before"
        ),
        None => format!("evaluator: {{ weights: {evaluator_weights} }} # {replaced}other keys as before"),
    };
    let Captioner { preset, vision_encoder, vision_clip, .. } = &run.captioner;
    let replaced = instead_of(&[
        ("preset", preset.is_some()),
        ("vision_encoder", vision_encoder.is_some()),
        ("vision_clip", !vision_clip.is_empty()),
    ]);
    let [name, output] =
        [Value::from(format!("{}-2", run.name)), Value::from(format!("{}-2", run.output.to_string_lossy()))];
    format!(
        "name: {name}\n\
         output: {output}\n\
         captioner: {{ weights: {checkpoint} }} # {replaced}other keys as before\n\
         {evaluator_line}\n\
         stages: # those that are still to be trained, each from its first step\n"
    )
}

/// The beginning of a comment that names the keys which `weights` replaces, each with whether the
/// run file has it; empty if it has none of them.
fn instead_of(keys: &[(&str, bool)]) -> String {
    let replaced = keys.iter().filter(|(_, is_given)| *is_given).map(|(key, _)| format!("`{key}`"));
    let replaced: Vec<String> = replaced.collect();
    if replaced.is_empty() { String::new() } else { format!("instead of {}; ", replaced.join(", ")) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::{KEYS, schema_json};

    const RUN: &str = "
name: test
output: /nowhere
workers: { min: 1, max: 2 }
data: { karpathy: { annotations: annotations.json, images: images } }
captioner: { preset: tiny }
evaluator: { preset: tiny }
checkpoints: { url: 's3://bucket/a' }
stages:
  - { name: clip, objective: contrastive, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - { name: xe, objective: cross_entropy, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - name: dico
    objective: dico
    steps: 9
    batch: 4
    evaluate_every: 3
    guard: [{ metric: kl, above: 0.5, action: warn }]
    optimizer: { learning_rate: 1.0e-3 }
";

    fn run(text: &str) -> RunFile {
        RunFile::parse(Path::new("run.yaml"), text).unwrap()
    }

    /// The changes from [`RUN`] to [`RUN`] with these replacements, as `key mutability`.
    fn found(replacements: &[(&str, &str)]) -> Vec<String> {
        let new = replacements.iter().fold(RUN.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        changes(&run(RUN), &run(&new)).iter().map(|change| format!("{} {:?}", change.key, change.mutability)).collect()
    }

    #[test]
    fn changed_keys_are_named_with_their_mutability() {
        assert_eq!(found(&[]), Vec::<String>::new());
        assert_eq!(
            found(&[("  - name: dico", "  - name: tune"), ("1.0e-3", "0.001"), ("max: 2", "max: 3")]),
            ["stages[2].name Fixed", "workers.max Free"]
        );
        assert_eq!(found(&[("above: 0.5", "above: 0.25")]), ["stages[2].guard[0].above NextStep"]);
        let rule = ", { metric: rep_4, above: 0.5, action: pause }]";
        assert_eq!(found(&[("action: warn }]", &format!("action: warn }}{rule}"))]), ["stages[2].guard[1] NextStep"]);
        let stage = "\n  - { name: more, objective: dico, steps: 9, batch: 4, optimizer: { learning_rate: 1 } }\n";
        let new = format!("{RUN}{stage}");
        assert_eq!(changes(&run(RUN), &run(&new))[0].key, "stages[3]");
        assert_eq!(changes(&run(RUN), &run(&new))[0].mutability, Mutability::Fixed);
        let betas = "optimizer: { betas: [0.9, 0.98], learning_rate";
        let betas = found(&[("optimizer: { learning_rate", betas)]);
        assert_eq!(betas, [0, 1, 2].map(|stage| format!("stages[{stage}].optimizer.betas NextStep")));
        let tau = [("objective: dico", "objective: { dico: { tau: 1 } }")];
        assert_eq!(found(&tau), ["stages[2].objective.dico.tau Fixed"]);
        assert_eq!(found(&[("objective: dico", "objective: scst")]), ["stages[2].objective Fixed"]);
        let other = "data: { webdataset: { train: a.tar, validation: b.tar } }";
        assert_eq!(
            found(&[("data: { karpathy: { annotations: annotations.json, images: images } }", other)]),
            ["data.karpathy Free", "data.webdataset Free"]
        );
    }

    #[test]
    fn a_change_says_what_was_and_what_is() {
        let faster = run(&RUN.replacen("learning_rate: 1.0e-3", "learning_rate: 0.01, clip_norm: 2", 1));
        let lines: Vec<String> = changes(&run(RUN), &faster).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "stages[0].optimizer.clip_norm: absent -> 2.0 (may change from the next step on, with --accept-changes)",
                "stages[0].optimizer.learning_rate: 0.001 -> 0.01 (may change from the next step on, with \
                 --accept-changes)"
            ]
        );
    }

    #[test]
    fn the_table_has_every_key_of_the_schema_and_no_other() {
        let schema = schema_json();
        let mut paths = Vec::new();
        crate::reference::walk(&schema, &mut |path, _| paths.push(path.to_owned()));
        let (settings, mut paths): (Vec<_>, Vec<_>) =
            paths.into_iter().partition(|path| is_of_objective(path) && path != "stages[].objective");
        assert!(settings.iter().any(|path| path == "stages[].objective.dico.beta"), "{settings:?}");
        let mut table: Vec<_> = KEYS.iter().map(|key| key.path.to_owned()).collect();
        paths.sort();
        table.sort();
        assert_eq!(table, paths);
    }

    #[test]
    fn a_new_run_takes_from_a_checkpoint_what_the_old_run_trained() {
        let recipe = continuation(&run(RUN), "/nowhere/checkpoints/1-xe-00000009");
        for line in [
            "name: \"test-2\"",
            "output: \"/nowhere-2\"",
            "captioner: { weights: \"/nowhere/checkpoints/1-xe-00000009\" } # instead of `preset`; other keys as before",
            "evaluator: { weights: \"/nowhere/checkpoints/1-xe-00000009\" } # instead of `preset`; other keys as before",
        ] {
            assert!(recipe.lines().any(|found| found == line), "{line}: {recipe}");
        }
        let frozen = RUN.replace("evaluator: { preset: tiny }", "evaluator: { weights: pac.pth }");
        let clip =
            "  - { name: clip, objective: contrastive, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }\n";
        let recipe = continuation(&run(&frozen.replace(clip, "")), "/nowhere/checkpoints/0-xe-00000009");
        assert!(recipe.contains("evaluator: { weights: \"pac.pth\" } # other keys as before\n"), "{recipe}");
        let own_vision = "captioner: { preset: tiny, vision_encoder: clip.pt, vision_clip: { activation: gelu } }";
        let recipe = continuation(&run(&RUN.replace("captioner: { preset: tiny }", own_vision)), "/a");
        assert!(
            recipe.contains("# instead of `preset`, `vision_encoder`, `vision_clip`; other keys as before\n"),
            "{recipe}"
        );
        let fine_tuned = RUN.replace("captioner: { preset: tiny }", "captioner: { weights: base }");
        assert!(
            continuation(&run(&fine_tuned), "/a").contains("captioner: { weights: \"/a\" } # other keys as before\n")
        );
        // With stages, it is a run file.
        let text = RUN
            .replace("name: test\noutput: /nowhere\n", "")
            .replace("captioner: { preset: tiny }\nevaluator: { preset: tiny }\n", "")
            .replace("stages:\n", &recipe);
        assert_eq!(run(&text).name, "test-2");
    }

    proptest! {
        #[test]
        fn changes_lead_from_the_old_run_file_to_the_new_one(
            seed in 0..3_u64, rate in 1..3_u32, keep in 1..3_u32, every in proptest::option::of(1..3_u64), bound in 1..3_u32,
        ) {
            let old = run(RUN);
            let mut new = old.clone();
            new.seed = seed;
            new.checkpoints.keep = keep;
            new.stages[1].optimizer.learning_rate = f64::from(rate) / 1000.0;
            new.stages[2].evaluate_every = every;
            new.stages[2].guard[0].above = Some(f64::from(bound) / 2.0);
            let found = changes(&old, &new);
            // Putting the new values in the old run file's JSON gives the new run file, and each of
            // them is needed.
            let mut value = serde_json::to_value(&old).unwrap();
            for change in &found {
                let pointer = format!("/{}", change.key.replace(['.', '['], "/").replace(']', ""));
                let place = value.pointer_mut(&pointer).unwrap();
                prop_assert_eq!(&*place, &change.old);
                prop_assert_ne!(&change.old, &change.new);
                *place = change.new.clone();
            }
            prop_assert_eq!(value, serde_json::to_value(&new).unwrap());
            prop_assert_eq!(changes(&new, &old).len(), found.len());
        }
    }
}
