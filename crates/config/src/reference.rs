//! The reference of run files, generated from the types, the table of keys and the catalogue of
//! metrics: a JSON Schema for editors, and a document for people, `docs/run-file.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use metric_catalogue::Direction;
use serde_json::Value;

use crate::keys::{KEYS, Key, Mutability, OBJECTIVE, is_of_objective, key_at};
use crate::schema::RunFile;
use metric_catalogue::{METRICS, Metric, Source};

/// Width of the document, in characters.
const WIDTH: usize = 100;

const INTRODUCTION: &str = "\
# Run file reference

A run file is one YAML document. [configs/demo.yaml](../configs/demo.yaml) is a complete one. This
page has every key and every metric. It is generated: a test compares it with the program, and
`coordinator schema --markdown` prints it.

## Editors

```sh
coordinator schema > run-file.schema.json
```

writes a JSON Schema. An editor with a YAML language server then completes and checks run files that
have `# yaml-language-server: $schema=run-file.schema.json` in their first line.

## Changes while a run is under way

A stopped run continues when it is served again. If the run file was changed meanwhile, each key
decides what happens:

- *May change freely*: the coordinator takes the new value and records it.
- *May change from the next step on*: `coordinator serve` refuses and lists the changes, with old
  and new values. With `--accept-changes` it takes the new values from the next step on, and records
  them as an event `settings_changed`. New rules of a guard also apply to the evaluations of the
  current stage that are recorded.
- *Another value makes another run*: `coordinator serve` refuses and prints the lines that start a
  new run from the last checkpoint.

Data may lie elsewhere after a change; what workers find there is compared with what the run knows.
If the validation split has changed, the run records an event `data_changed` and continues. If the
training images or captions have changed, the coordinator refuses workers that load them, unless it
is started with `--accept-changes`. Then the run continues with the new data from a new epoch on,
and records the sizes of both in `data_changed`.
Models keep their vocabulary: a `corpus` vocabulary has no tokens for words that only the new
captions have. All workers of a run need the same data. Before its first generation a run may change
in every respect.

`coordinator stop` before a change loses nothing: workers save the state and leave. Workers that
outlived a coordinator take the new settings when they join the next one. If `data`,
`compute_dtype`, `output` or `checkpoints.url` has changed, they load data and models again, and the
run continues from its last checkpoint.

## Keys

`[]` stands for each element of a list. A key with \"required\" has to be given where what contains it
is given; others may be left out.
";

const METRICS_INTRODUCTION: &str = "
## Metrics

`stages[].metric` takes a score of evaluations for which higher is better. Rules of `stages[].guard`
take any of these names. The typical values are rough guides: they depend on data, evaluator and
vocabulary.
";

/// The JSON Schema of run files (draft 2020-12).
#[must_use]
pub fn schema_json() -> Value {
    let mut schema = schemars::schema_for!(RunFile).to_value();
    tidy(&mut schema);
    schema["title"] = "Run file".into();
    schema
}

/// Joins the lines of descriptions, and removes formats of numbers such as `uint32`, which are no
/// part of JSON Schema.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("format").is_some_and(Value::is_string) {
                object.remove("format");
            }
            if let Some(Value::String(description)) = object.get_mut("description") {
                *description = description.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(array) => array.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// The schema of a key.
#[derive(Clone, Copy)]
pub(crate) struct Property<'a> {
    /// The key's entry in the properties of the type that contains it: description and default.
    own: &'a Value,
    /// The schema of the type of its values.
    of_type: &'a Value,
    required: bool,
}

/// Visits all keys that have a value of their own, by their paths.
pub(crate) fn walk<'a>(schema: &'a Value, visit: &mut dyn FnMut(&str, Property<'a>)) {
    walk_below(schema, schema, "", visit);
}

fn walk_below<'a>(root: &'a Value, object: &'a Value, path: &str, visit: &mut dyn FnMut(&str, Property<'a>)) {
    let required = |name: &str| object["required"].as_array().is_some_and(|all| all.iter().any(|key| key == name));
    for (name, own) in object["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let of_type = resolve(root, own);
        if key_at(&path).is_some() || (is_of_objective(&path) && of_type["oneOf"].is_array()) {
            visit(&path, Property { own, of_type, required: required(name) });
            // A value of this key is a word, or a map whose keys are visited, too.
            alternatives(of_type).for_each(|one| walk_below(root, one, &path, visit));
        } else if resolve(root, &of_type["items"])["properties"].is_object() {
            walk_below(root, resolve(root, &of_type["items"]), &format!("{path}[]"), visit);
        } else if of_type["properties"].is_object() && !of_type["additionalProperties"].is_object() {
            walk_below(root, of_type, &path, visit);
        } else if of_type["additionalProperties"] != false {
            visit(&path, Property { own, of_type, required: required(name) });
        }
    }
}

/// The schemas of the values of a type whose values are listed; none for other types.
fn alternatives(of_type: &Value) -> impl Iterator<Item = &Value> {
    of_type["oneOf"].as_array().into_iter().flatten()
}

/// The schema of the key `name` in `object`, or in one of its alternatives.
fn property<'a>(object: &'a Value, name: &str) -> &'a Value {
    let has_it = |one: &&Value| one["properties"].get(name).is_some();
    &std::iter::once(object).chain(alternatives(object)).find(has_it).unwrap_or(&Value::Null)["properties"][name]
}

/// The schema that a reference leads to; of alternatives, the one that is not null.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
        return resolve(root, &root["$defs"][name]);
    }
    match schema["anyOf"].as_array().and_then(|all| all.iter().find(|one| one["type"] != "null")) {
        Some(one) => resolve(root, one),
        None => schema,
    }
}

/// The document `docs/run-file.md`.
#[must_use]
pub fn reference() -> String {
    let schema = schema_json();
    let mut properties = Vec::new();
    walk(&schema, &mut |path, property| properties.push((path.to_owned(), property)));
    let by_path: BTreeMap<&str, Property<'_>> =
        properties.iter().map(|(path, property)| (&**path, *property)).collect();
    let mut text = INTRODUCTION.to_owned();
    let mut groups = BTreeSet::new();
    for (path, key) in rows(&properties) {
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
        let containers = parent.match_indices('.').map(|(end, _)| &parent[..end]);
        for group in containers.chain([parent]) {
            if !by_path.contains_key(group) && groups.insert(group.to_owned()) {
                text.truncate(text.trim_end().len());
                text.push('\n');
                text.push_str(&heading(&schema, group));
            }
        }
        text.push_str(&entry(key, name, by_path[path]));
    }
    text.push_str(METRICS_INTRODUCTION);
    for (title, is_included) in [
        ("Statistics of training steps", &(|source: Source| source.is_step()) as &dyn Fn(Source) -> bool),
        ("Scores of evaluations", &|source: Source| !source.is_step()),
    ] {
        _ = write!(text, "\n### {title}\n\n");
        for metric in METRICS.iter().filter(|metric| is_included(metric.source)) {
            text.push_str(&metric_entry(metric));
        }
    }
    text
}

/// All keys in the order of the document, with the row of the table that has their mutability. The
/// settings of objectives follow the other keys of a stage, in the order of the schema.
fn rows<'a>(properties: &'a [(String, Property<'_>)]) -> Vec<(&'a str, &'static Key)> {
    let mut rows = Vec::new();
    for key in KEYS {
        if key.path == "stages[].guard[].metric" {
            let objective = key_at(OBJECTIVE).expect("the table has this key");
            let settings = properties.iter().filter(|(path, _)| is_of_objective(path) && path != OBJECTIVE);
            rows.extend(settings.map(|(path, _)| (&**path, objective)));
        }
        rows.push((key.path, key));
    }
    rows
}

/// The heading of a group of keys, and what its type says of it.
fn heading(schema: &Value, path: &str) -> String {
    if path.is_empty() {
        return "\n### Top level\n\n".to_owned();
    }
    let mut object = schema;
    for part in path.split('.') {
        let name = part.trim_end_matches("[]");
        object = resolve(schema, property(object, name));
        if part.ends_with("[]") {
            object = resolve(schema, &object["items"]);
        }
    }
    format!("\n### `{path}`\n\n{}\n", wrap(description(object), "", ""))
}

fn description(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

/// The entry of a key in the document.
fn entry(key: &Key, name: &str, property: Property<'_>) -> String {
    let Property { own, of_type, required } = property;
    let necessity = match &own["default"] {
        _ if required => "required".to_owned(),
        Value::Null => "default: absent".to_owned(),
        default => format!("default: `{}`", as_yaml(default)),
    };
    let kinds: Vec<&str> = type_name(of_type).into_iter().chain([key.unit]).filter(|kind| !kind.is_empty()).collect();
    // "path", for example, says more than "text, path".
    let kinds = if kinds.first() == Some(&"text") && kinds.len() > 1 { &kinds[1..] } else { &kinds };
    let mutability = match key.mutability {
        Mutability::Free => "may change freely",
        Mutability::NextStep => "may change from the next step on",
        Mutability::Fixed => "another value makes another run",
    };
    let attributes = [kinds.join(", "), necessity, mutability.to_owned()].join("; ");
    let mut text = wrap(&format!("- **`{name}`**: {attributes}.\\"), "", "  ");
    text.push_str(&wrap(description(own), "  ", "  "));
    for value in alternatives(of_type).chain(alternatives(&of_type["items"])) {
        let line = format!("- `{}`: {}", written(value), description(value));
        text.push_str(&wrap(&line, "  ", "    "));
    }
    for (name, value) in of_type["properties"].as_object().into_iter().flatten() {
        text.push_str(&wrap(&format!("- `{name}`: {}", description(value)), "  ", "    "));
    }
    let others = description(&of_type["additionalProperties"]);
    if !others.is_empty() {
        text.push_str(&wrap(&format!("- another name: {others}"), "  ", "    "));
    }
    text
}

/// A listed value as it is written: a word, or an object with one key.
fn written(value: &Value) -> String {
    match value["const"].as_str() {
        Some(word) => word.to_owned(),
        None if value["enum"].is_array() => "NAME".to_owned(),
        None => {
            let key = value["properties"].as_object().and_then(|keys| keys.keys().next());
            format!("{{ {}: ... }}", key.map_or("", String::as_str))
        }
    }
}

/// The name of a type, for people; none for a type that the document has no name for.
fn type_name(schema: &Value) -> Option<&'static str> {
    let is_type =
        |name: &str| schema["type"] == name || schema["type"].as_array().is_some_and(|all| all.contains(&name.into()));
    if schema["oneOf"].is_array() {
        return Some("one of the values below");
    }
    let names = [
        ("string", "text"),
        ("boolean", "`true` or `false`"),
        ("integer", "integer"),
        ("number", "number"),
        (
            "array",
            match schema["minItems"].as_u64() {
                Some(3) => "list of three numbers",
                Some(_) => "list of two numbers",
                None => "list of the values below",
            },
        ),
        ("object", if schema["additionalProperties"]["type"] == "number" { "map to numbers" } else { "map" }),
    ];
    names.into_iter().find(|(name, _)| is_type(name)).map(|(_, name)| name)
}

/// A default value as it is written in YAML.
fn as_yaml(value: &Value) -> String {
    match value {
        Value::Object(object) if object.is_empty() => "{}".to_owned(),
        Value::Object(object) => {
            let entries: Vec<String> =
                object.iter().map(|(name, value)| format!("{name}: {}", as_yaml(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        Value::Array(array) => format!("[{}]", array.iter().map(as_yaml).collect::<Vec<_>>().join(", ")),
        Value::String(text) if text.is_empty() || text.ends_with(' ') => format!("\"{text}\""),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// The entry of a metric in the document.
fn metric_entry(metric: &Metric) -> String {
    let Metric { name, definition, unit, typical, range, .. } = metric;
    let range = match *range {
        [Some(low), Some(high)] => format!("; {low} to {}", short(high)),
        [Some(low), None] => format!("; {low} or above"),
        _ => String::new(),
    };
    let direction = match metric.direction {
        Direction::HigherIsBetter => "; higher is better",
        Direction::LowerIsBetter => "; lower is better",
        Direction::Neutral => "",
    };
    wrap(&format!("- **`{name}`**: {unit}{range}{direction}.\\"), "", "  ")
        + &wrap(&format!("{definition} Typical: {typical}."), "  ", "  ")
}

/// A number with two decimals at most.
fn short(number: f64) -> String {
    format!("{number:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Breaks a paragraph into lines, each with a line break at its end. The first line begins with
/// `first`, the others with `next`.
fn wrap(text: &str, first: &str, next: &str) -> String {
    let (mut lines, mut line) = (String::new(), first.to_owned());
    let mut empty = true;
    for word in words(text) {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push_str(&line);
            lines.push('\n');
            next.clone_into(&mut line);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(&word);
        empty = false;
    }
    lines + &line + "\n"
}

/// The words of a text. Code stays in one piece, and a sign that Markdown takes for the beginning
/// of a list stays with the word before it.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let is_open = |last: &String| last == "-" || last.matches('`').count() % 2 == 1;
        match words.last_mut() {
            Some(last) if is_open(last) || ["-", "+", "*"].contains(&word) => *last = format!("{last} {word}"),
            _ => words.push(word.to_owned()),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Objective;

    #[test]
    fn the_document_is_what_the_schema_generates() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/run-file.md");
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = found.lines().zip(reference().lines().map(str::to_owned)).position(|(found, new)| found != new);
        let line = differs.unwrap_or_else(|| found.lines().count().min(reference().lines().count())) + 1;
        assert!(
            found == reference(),
            "docs/run-file.md differs from what the schema generates, from line {line} on: run\n    \
             cargo run --bin coordinator -- schema --markdown > docs/run-file.md"
        );
    }

    #[test]
    fn every_key_has_a_description_a_type_and_a_default() {
        let schema = schema_json();
        walk(&schema, &mut |path, property| {
            assert!(!description(property.own).is_empty(), "{path} has no description");
            assert!(type_name(property.of_type).is_some(), "{path} has no type: {}", property.of_type);
            let has_default = property.own.get("default").is_some();
            assert!(property.required || has_default, "{path} is neither required nor has a default: {}", property.own);
        });
    }

    #[test]
    fn every_key_is_under_its_heading() {
        let parents = KEYS.iter().map(|key| key.path.rsplit_once('.').map_or("", |(parent, _)| parent));
        let mut groups: Vec<&str> = parents.collect();
        groups.dedup();
        let different: BTreeSet<_> = groups.iter().collect();
        assert_eq!(groups.len(), different.len(), "{groups:?}");
    }

    #[test]
    fn lines_are_short_and_complete() {
        let document = reference();
        let inside = document.lines().filter(|line| !line.contains("yaml-language-server"));
        assert_eq!(inside.filter(|line| line.chars().count() > WIDTH).collect::<Vec<_>>(), Vec::<&str>::new());
        for word in ["stages[].optimizer", "`rep_4`", "not a share", "nats per token", "`clip_norm`", "[0.9, 0.999]"] {
            assert!(document.contains(word), "{word}");
        }
    }

    #[test]
    fn the_schema_takes_run_files_and_names_values() {
        let schema = schema_json();
        assert_eq!(schema["additionalProperties"], false);
        let objectives = schema["$defs"]["Objective"]["oneOf"].as_array().unwrap();
        let with_settings = |name: &str| objectives.iter().any(|one| one["properties"][name]["$ref"].is_string());
        assert!(Objective::NAMES.iter().all(|name| with_settings(name)), "{objectives:?}");
        assert_eq!(objectives.last().unwrap()["enum"], serde_json::json!(Objective::NAMES));
        let rewards = &schema["$defs"]["Dico"]["properties"]["reward"];
        assert_eq!(rewards["additionalProperties"]["type"], "number", "{rewards}");
        assert_eq!(rewards["properties"]["missing_end"]["type"], "number", "{rewards}");
    }
}
