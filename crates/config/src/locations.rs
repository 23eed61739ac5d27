//! Lines and columns of the keys of a YAML document, by paths such as
//! `stages[2].optimizer.learning_rate`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::NonFiniteFloatPolicy;
use serde_saphyr::{Location, Spanned};

use crate::renamed::{self, RENAMED};
use crate::schema::{EARLIER_KEYS, Problem, Stage, earlier_objective_warning};

/// A line and a column, both from 1.
pub type LineColumn = (u64, u64);

/// The structure of a YAML value, without the values of scalars.
enum Node {
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Scalar,
}

/// The locations of a document's keys and values.
pub struct Locations(Option<Spanned<Node>>);

impl Locations {
    /// The locations in `text`; none if it is not YAML.
    pub fn read(text: &str) -> Self {
        // The check of values refuses numbers that are not finite, with their location.
        let options = serde_saphyr::options! { non_finite_float_policy: NonFiniteFloatPolicy::PassThrough };
        Self(serde_saphyr::from_str_with_options(text, options).ok())
    }

    /// The location of the value at `path` if that is a scalar or an element of a list, else of its
    /// key. If there is no value at `path`, the location of the innermost key or element that
    /// should contain it, or else the beginning of the document.
    pub fn of(&self, path: &str) -> LineColumn {
        let Some(mut node) = self.0.as_ref() else { return (1, 1) };
        let mut found = (1, 1);
        for part in parts(path) {
            let (at, next) = match (&node.value, part) {
                (Node::Map(entries), Part::Key(name)) => match entries.iter().find(|(key, _)| key.value == name) {
                    Some((key, value)) if matches!(value.value, Node::Scalar) => {
                        (line_column(&value.referenced, key), value)
                    }
                    Some((key, value)) => (line_column(&key.defined, key), value),
                    None => break,
                },
                (Node::List(elements), Part::Index(index)) => match elements.get(index) {
                    Some(element) => (known(&element.referenced), element),
                    None => break,
                },
                _ => break,
            };
            (found, node) = (at.unwrap_or(found), next);
        }
        found
    }
}

impl Locations {
    /// Gives keys that have the names of an earlier version their present ones. Returns a warning
    /// for each.
    pub fn rename_keys(&mut self) -> Vec<Problem> {
        let mut warnings = Vec::new();
        for &(earlier, name) in RENAMED {
            let (parent, own) = earlier.rsplit_once('.').map_or((None, earlier), |(parent, own)| (Some(parent), own));
            let Some(Node::Map(entries)) = self.node_mut(parent) else { continue };
            if let Some((key, _)) = entries.iter_mut().find(|(key, _)| key.value == own) {
                name.clone_into(&mut key.value);
                let path = parent.map_or_else(|| name.to_owned(), |parent| format!("{parent}.{name}"));
                warnings.push((path, renamed::warning(earlier, name)));
            }
        }
        warnings
    }

    /// Moves the settings of each stage's objective from where earlier versions had them to
    /// `objective`, except for those that are refused. `run_stages` are the document's stages.
    /// Returns a warning for each.
    pub fn move_objective_settings(&mut self, run_stages: &[Stage]) -> Vec<Problem> {
        let Some(Node::List(stages)) = self.node_mut(Some("stages")) else { return Vec::new() };
        let mut warnings = Vec::new();
        for (i, (stage, run_stage)) in stages.iter_mut().zip(run_stages).enumerate() {
            let Node::Map(entries) = &mut stage.value else { continue };
            if run_stage.check_earlier_settings().is_err() {
                continue;
            }
            let name = run_stage.objective.name();
            let is_earlier = |(key, _): &(Spanned<String>, _)| key.value == name && EARLIER_KEYS.contains(&name);
            let Some(settings) = entries.iter().position(is_earlier).map(|earlier| entries.remove(earlier)) else {
                continue;
            };
            if let Some((_, objective)) = entries.iter_mut().find(|(key, _)| key.value == "objective") {
                objective.value = Node::Map(vec![settings]);
                warnings.push((format!("stages[{i}].objective.{name}"), earlier_objective_warning(name)));
            }
        }
        warnings
    }

    /// The value of a key of the document, or the document itself.
    fn node_mut(&mut self, key: Option<&str>) -> Option<&mut Node> {
        let document = &mut self.0.as_mut()?.value;
        match (key, document) {
            (None, document) => Some(document),
            (Some(key), Node::Map(entries)) => {
                entries.iter_mut().find(|(found, _)| found.value == key).map(|(_, value)| &mut value.value)
            }
            (Some(_), _) => None,
        }
    }
}

/// A component of a path.
enum Part<'a> {
    Key(&'a str),
    Index(usize),
}

/// The components of a path such as `stages[2].guard[0].for`.
fn parts(path: &str) -> impl Iterator<Item = Part<'_>> {
    path.split(['.', '[']).map(|part| match part.strip_suffix(']').map(str::parse) {
        Some(Ok(index)) => Part::Index(index),
        _ => Part::Key(part),
    })
}

/// The line and column of a location; those of the key where it has none, such as that of an empty
/// value.
fn line_column(location: &Location, key: &Spanned<String>) -> Option<LineColumn> {
    known(location).or_else(|| known(&key.defined)).or_else(|| known(&key.referenced))
}

/// The line and column of a location, if the parser knows them.
fn known(location: &Location) -> Option<LineColumn> {
    (location.line() > 0).then(|| (location.line(), location.column()))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = access.next_element()? {
            elements.push(element);
        }
        Ok(Node::List(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_where_it_stands_or_where_it_should() {
        let text = "name: a
data:
  karpathy: { annotations: b, images: c }
shared: &shared { above: 1 }
stages:
  - name: d
    guard: [{ metric: kl, above: 2 }, *shared]
  - { name: e,
      optimizer: { learning_rate: .inf } }
empty:
";
        let locations = Locations::read(text);
        for (path, expected) in [
            ("name", (1, 7)),
            ("data", (2, 1)),
            ("data.karpathy.images", (3, 39)),
            ("data.coco", (2, 1)),
            ("stages[0].guard[0].above", (7, 34)),
            ("stages[0].guard[1]", (7, 39)),
            ("stages[0].guard[2].above", (7, 5)),
            ("stages[1].optimizer.learning_rate", (9, 35)),
            ("stages[1].optimizer.epsilon", (9, 7)),
            ("stages[2]", (5, 1)),
            ("empty", (10, 6)),
            ("absent.key", (1, 1)),
        ] {
            assert_eq!(locations.of(path), expected, "{path}");
        }
        assert_eq!(Locations::read("a: [").of("a"), (1, 1));
    }
}
