//! The scores of captions, and the formats in which they are printed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::Scores;

/// The name of a metric. Metrics of additional evaluators have the evaluator's name as prefix.
pub type MetricName = Cow<'static, str>;

/// The scores of captions, by metric.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The value of all items together.
    pub corpus: BTreeMap<MetricName, f64>,
    /// One value per item, in the order of the items, for metrics that have values per item.
    pub items: BTreeMap<MetricName, Vec<f64>>,
    /// The corpus values of each domain, if images have domains (nocaps).
    pub domains: BTreeMap<&'static str, BTreeMap<MetricName, f64>>,
    /// Notes for the user on the values, one line each.
    pub notes: Vec<String>,
}

/// The format of a printed report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportFormat {
    /// One line per metric, with one column per domain if there are domains.
    Table,
    /// One line per item, tab-separated, after a header.
    PerItem,
    /// One JSON object: `corpus` (metric -> value), `items` (metric -> id -> value) and, if there
    /// are any, `domains` (domain -> metric -> value) and `notes`.
    Json,
}

impl Report {
    /// Adds a metric.
    pub fn add(&mut self, name: impl Into<MetricName>, scores: Scores) {
        let name = name.into();
        self.corpus.insert(name.clone(), scores.corpus);
        self.items.insert(name, scores.items);
    }

    /// Prints the values; only JSON includes the notes. `ids` are the ids of the items.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn print(&self, ids: &[String], format: ReportFormat, out: &mut impl Write) -> io::Result<()> {
        match format {
            ReportFormat::Table => {
                let width = self.corpus.keys().map(|name| name.len()).max().unwrap_or(0);
                if !self.domains.is_empty() {
                    write!(out, "{:width$}  {:>12}", "", "overall")?;
                    self.domains.keys().try_for_each(|domain| write!(out, "  {domain:>12}"))?;
                    writeln!(out)?;
                }
                self.corpus.iter().try_for_each(|(name, value)| {
                    write!(out, "{name:width$}  {value:>12.6}")?;
                    self.domains.values().try_for_each(|scores| match scores.get(name) {
                        Some(value) => write!(out, "  {value:>12.6}"),
                        None => write!(out, "  {:>12}", "-"),
                    })?;
                    writeln!(out)
                })
            }
            ReportFormat::PerItem => {
                let names: Vec<&str> = self.items.keys().map(Cow::as_ref).collect();
                writeln!(out, "id\t{}", names.join("\t"))?;
                for (index, id) in ids.iter().enumerate() {
                    write!(out, "{}", id.replace(['\t', '\n', '\r'], " "))?;
                    self.items.values().try_for_each(|values| write!(out, "\t{:?}", values[index]))?;
                    writeln!(out)?;
                }
                Ok(())
            }
            ReportFormat::Json => {
                serde_json::to_writer(&mut *out, &JsonReport { report: self, ids })?;
                writeln!(out)
            }
        }
    }
}

/// A report with the ids of its items, as one JSON object.
struct JsonReport<'a> {
    report: &'a Report,
    ids: &'a [String],
}

impl Serialize for JsonReport<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Report { corpus, items, domains, notes } = self.report;
        let items: BTreeMap<_, _> =
            items.iter().map(|(name, values)| (name, ValuesById { ids: self.ids, values })).collect();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("corpus", corpus)?;
        map.serialize_entry("items", &items)?;
        if !domains.is_empty() {
            map.serialize_entry("domains", domains)?;
        }
        if !notes.is_empty() {
            map.serialize_entry("notes", notes)?;
        }
        map.end()
    }
}

/// The values of a metric as a JSON object from the id of an item to its value.
struct ValuesById<'a> {
    ids: &'a [String],
    values: &'a [f64],
}

impl Serialize for ValuesById<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.ids.iter().zip(self.values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(notes: &[&str], format: ReportFormat) -> String {
        let mut report = Report::default();
        report.add("cider", Scores { corpus: 1.25, items: vec![0.5, 2.0] });
        report.corpus.insert("vocabulary_size".into(), 7.0);
        report.notes = notes.iter().map(|&note| note.into()).collect();
        let mut out = Vec::new();
        report.print(&["b\t1".into(), "a".into()], format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn formats_are_as_documented() {
        assert_eq!(
            printed(&["x"], ReportFormat::Table),
            "cider                1.250000\nvocabulary_size      7.000000\n"
        );
        assert_eq!(printed(&["x"], ReportFormat::PerItem), "id\tcider\nb 1\t0.5\na\t2.0\n");
        let values = r#""corpus":{"cider":1.25,"vocabulary_size":7.0},"items":{"cider":{"b\t1":0.5,"a":2.0}}"#;
        assert_eq!(printed(&[], ReportFormat::Json), format!("{{{values}}}\n"));
        assert_eq!(printed(&["x"], ReportFormat::Json), format!("{{{values},\"notes\":[\"x\"]}}\n"));
    }

    #[test]
    fn domains_are_table_columns_and_a_json_field() {
        let mut report = Report::default();
        report.corpus.extend([("cider".into(), 1.25), ("retrieval_r1".into(), 0.5)]);
        report.domains.insert("in-domain", [("cider".into(), 2.0)].into());
        let printed = |format| {
            let mut out = Vec::new();
            report.print(&[], format, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let lines = [
            "                   overall     in-domain",
            "cider             1.250000      2.000000",
            "retrieval_r1      0.500000             -",
        ];
        assert_eq!(printed(ReportFormat::Table).lines().collect::<Vec<_>>(), lines);
        assert!(printed(ReportFormat::Json).contains(r#""domains":{"in-domain":{"cider":2.0}}"#));
    }
}
