//! Scores of each of nocaps' domains.

use std::collections::BTreeMap;

use metric_catalogue::names::NOCAPS_DOMAINS;

use crate::report::MetricName;
use crate::{Item, Metrics, Report, Scores};

impl Metrics {
    /// Adds the scores of each of nocaps' domains to the `report` of `items`; `domains` has the
    /// domain of each item.
    ///
    /// A domain is scored like a separate set of images, as in nocaps' own evaluation: CIDEr's
    /// document frequencies are those of the domain. SPICE, and metrics that are not computed from
    /// captions and references, get the mean over the domain. Retrieval ranks are among the images
    /// of all domains.
    pub fn add_domains(&self, items: &[Item], domains: &[Option<&'static str>], report: &mut Report) {
        for domain in NOCAPS_DOMAINS {
            let domain_indices = || {
                (0..)
                    .zip(domains)
                    .filter(|(_, item_domain)| **item_domain == Some(domain))
                    .map(|(index, _): (usize, _)| index)
            };
            let domain_items: Vec<Item> = domain_indices().filter_map(|index| items.get(index)).cloned().collect();
            if domain_items.is_empty() {
                continue;
            }
            let mean = |values: &Vec<f64>| Scores::mean(domain_indices().map(|index| values[index]).collect()).corpus;
            let means: BTreeMap<MetricName, f64> =
                report.items.iter().map(|(name, values)| (name.clone(), mean(values))).collect();
            let mut scores = self.score_without_spice(&domain_items).corpus;
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
    use crate::{MetricFiles, item};

    #[test]
    fn a_domain_is_scored_like_a_separate_set_of_images() {
        let metrics = Metrics::open(&MetricFiles::default()).unwrap();
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
        let separate_report = metrics.score(&items[1..3]);
        let domain_scores = &report.domains["in-domain"];
        assert!(separate_report.corpus.iter().all(|(name, value)| domain_scores[name] == *value), "{domain_scores:?}");
        assert!((domain_scores["pac_s"] - 0.3).abs() < 1e-12);
        assert_eq!(domain_scores.len(), separate_report.corpus.len() + 1);

        let mut report = metrics.score(&items);
        metrics.add_domains(&items, &[None; 4], &mut report);
        assert!(report.domains.is_empty());
    }
}
