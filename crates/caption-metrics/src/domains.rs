use std::collections::BTreeMap;

use statistics::names::DOMAINS;

use crate::report::Name;
use crate::{Item, Metrics, Report, Scores};

impl Metrics {
    /// Adds the scores of each of nocaps' domains to the `report` of `items`; `domains` has the domain of each item.
    ///
    /// A domain is scored as if its images were all there are, as nocaps' own evaluation does: CIDEr's document frequencies are those of the
    /// domain. Of scores that other images take no part in, or that come from elsewhere, the mean over the domain counts.
    /// Retrieval is among the images of all domains.
    pub fn add_domains(&self, items: &[Item], domains: &[Option<&'static str>], report: &mut Report) {
        for domain in DOMAINS {
            let members =
                || (0..).zip(domains).filter(|(_, of)| **of == Some(domain)).map(|(index, _): (usize, _)| index);
            let own: Vec<Item> = members().filter_map(|index| items.get(index)).cloned().collect();
            if own.is_empty() {
                continue;
            }
            let mean = |values: &Vec<f64>| Scores::mean(members().map(|index| values[index]).collect()).corpus;
            let means: BTreeMap<Name, f64> =
                report.items.iter().map(|(name, values)| (name.clone(), mean(values))).collect();
            let mut scores = self.score_without_spice(&own).corpus;
            for (name, mean) in means {
                scores.entry(name).or_insert(mean);
            }
            report.domains.insert(domain, scores);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Files, item};

    #[test]
    fn a_domain_is_scored_as_if_it_were_alone() {
        let metrics = Metrics::open(&Files::default()).unwrap();
        let items = [
            item("a red kite in the sky", &["a red kite", "a kite in the sky"]),
            item("a dog", &["a dog on a mat"]),
            item("two cats sleep", &["two cats sleep on a sofa"]),
            item("a bus", &["a tram"]),
        ];
        let domains = [Some("out-domain"), Some("in-domain"), Some("in-domain"), None];
        let mut report = metrics.score(&items);
        report.add("pac_s", Scores::mean(vec![0.1, 0.2, 0.4, 0.8]));
        metrics.add_domains(&items, &domains, &mut report);
        assert_eq!(report.domains.keys().copied().collect::<Vec<_>>(), ["in-domain", "out-domain"]);
        let within = metrics.score(&items[1..3]);
        let found = &report.domains["in-domain"];
        assert!(within.corpus.iter().all(|(name, value)| found[name] == *value), "{found:?}");
        assert!((found["pac_s"] - 0.3).abs() < 1e-12);
        assert_eq!(found.len(), within.corpus.len() + 1);

        let mut report = metrics.score(&items);
        metrics.add_domains(&items, &[None; 4], &mut report);
        assert!(report.domains.is_empty());
    }
}
