//! The captions of an evaluation: collected range by range as workers report them, and checked
//! against limits on size and content. The state machine knows only which ranges are complete.

use std::collections::{BTreeMap, HashSet};

use caption_metrics::Embeddings;
use config::limits::{MAX_CAPTIONS, MAX_EMBEDDING_SIZE, MAX_EVALUATION_BYTES, MAX_TEXT_BYTES, evaluation_item_bytes};
use config::{NamedEvaluator, RunFile};
use dico_engine::{ProtocolViolation, image_ranges::ImageRange};
use journal::EvaluatedCaption;
use proto::v1;

/// The names of scores and embeddings that workers may report. Scores become labels of Prometheus
/// metrics, so workers must not be able to invent names.
#[derive(Clone, Debug)]
pub struct ReportableScores {
    /// The names of the scores that workers compute themselves: with models, or from scene graphs.
    scores: Vec<String>,
    /// The prefix of the names of each evaluator's retrieval metrics.
    evaluator_prefixes: Vec<String>,
}

impl ReportableScores {
    /// The names for the evaluations of a run.
    #[must_use]
    pub fn of_run(run: &RunFile) -> Self {
        let evaluator_prefixes = run.named_evaluators().iter().map(NamedEvaluator::retrieval_prefix).collect();
        Self { scores: run.scores_by_workers(), evaluator_prefixes }
    }
}

/// The caption of one image, with references, scores and embeddings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvaluationItem {
    /// The name of the image, unique in the split: data sets ensure that when they are loaded.
    pub image: String,
    /// The image's id in its data set, if it has one. COCO's result format needs it.
    pub image_id: Option<u64>,
    /// The captioner's output.
    pub caption: String,
    /// The reference captions.
    pub references: Vec<String>,
    /// Scores by name.
    pub scores: BTreeMap<String, f64>,
    /// The embeddings of image and caption for retrieval metrics, by the prefix of the names of the
    /// evaluator's retrieval metrics.
    pub embeddings: BTreeMap<String, Embeddings>,
}

impl EvaluationItem {
    /// The part that the journal stores.
    #[must_use]
    pub fn into_evaluated(self) -> EvaluatedCaption {
        let Self { image, caption, references, scores, .. } = self;
        EvaluatedCaption { image, caption, references, scores }
    }

    /// Reads an item of a report. Fails if the item exceeds a limit, or has a score or embeddings
    /// with a name that is not `reportable`. Correct workers check their data against the same
    /// [limits](config::limits).
    fn from_report(item: v1::EvaluationItem, reportable: &ReportableScores) -> Result<Self, ProtocolViolation> {
        let v1::EvaluationItem { image, caption, references, scores, image_id, embeddings, continued: _ } = item;
        if [&image, &caption].into_iter().any(|text| text.len() > MAX_TEXT_BYTES) {
            return Err(ProtocolViolation::new(format!("a text of more than {MAX_TEXT_BYTES} bytes in an evaluation")));
        }
        let is_invalid = |(name, score): &(&String, &f64)| !reportable.scores.contains(name) || !score.is_finite();
        if let Some((name, score)) = scores.iter().find(is_invalid) {
            return Err(ProtocolViolation::new(format!(
                "score `{}` = {score}: unknown or not finite",
                name.escape_debug()
            )));
        }
        let mut by_evaluator = BTreeMap::new();
        for v1::Embeddings { prefix, image, text } in embeddings {
            if !reportable.evaluator_prefixes.contains(&prefix) {
                return Err(ProtocolViolation::new(format!(
                    "embeddings of the unknown evaluator `{}`",
                    prefix.escape_debug()
                )));
            }
            let (image_size, text_size) = (image.len(), text.len());
            if image_size != text_size || image_size == 0 {
                return Err(ProtocolViolation::new(format!(
                    "embeddings of {image_size} and {text_size} numbers: they must be equally long"
                )));
            }
            if image.iter().chain(&text).any(|x| !x.is_finite()) {
                return Err(ProtocolViolation::new("an embedding that is not finite"));
            }
            if by_evaluator.insert(prefix, Embeddings { image, text }).is_some() {
                return Err(ProtocolViolation::new("two embeddings of one evaluator"));
            }
        }
        let total_size: usize = by_evaluator.values().map(|embeddings| embeddings.image.len()).sum();
        if total_size > MAX_EMBEDDING_SIZE {
            return Err(ProtocolViolation::new(format!(
                "embeddings of {total_size} numbers, {MAX_EMBEDDING_SIZE} at most"
            )));
        }
        let scores = scores.into_iter().collect();
        let mut item = Self { image, image_id, caption, references: Vec::new(), scores, embeddings: by_evaluator };
        item.add_references(references)?;
        Ok(item)
    }

    /// Adds further references of the image, from an item of a later message.
    fn add_references(&mut self, references: Vec<String>) -> Result<(), ProtocolViolation> {
        if references.iter().any(|text| text.len() > MAX_TEXT_BYTES) {
            return Err(ProtocolViolation::new(format!("a reference of more than {MAX_TEXT_BYTES} bytes")));
        }
        if self.references.len() + references.len() > MAX_CAPTIONS {
            return Err(ProtocolViolation::new(format!("more than {MAX_CAPTIONS} references of an image")));
        }
        self.references.extend(references);
        Ok(())
    }

    /// Its size in memory, in bytes.
    fn size_bytes(&self) -> usize {
        // `CollectedCaptions::image_names` has a second copy of the image name.
        let texts = [&self.image, &self.image, &self.caption].into_iter().chain(&self.references);
        let number_count =
            self.embeddings.values().map(|embeddings| embeddings.image.len() + embeddings.text.len()).sum();
        evaluation_item_bytes(texts.map(String::len), number_count)
    }
}

/// The captions of a split that have been reported so far.
#[derive(Debug)]
pub struct CollectedCaptions {
    /// The number of the evaluation; none before the first.
    evaluation: Option<u64>,
    /// The items of complete ranges.
    complete_ranges: BTreeMap<ImageRange, Vec<EvaluationItem>>,
    /// The items of ranges that are not completely reported yet.
    partial_ranges: BTreeMap<ImageRange, Vec<EvaluationItem>>,
    /// The names of the images in `complete_ranges`.
    image_names: HashSet<String>,
    /// The size in memory of all items, in bytes.
    size_bytes: usize,
    /// The length of each evaluator's embeddings, by prefix. The first embedding that is reported
    /// sets it; all others must have the same length.
    embedding_sizes: BTreeMap<String, usize>,
    /// The names that scores and embeddings of items may have.
    reportable: ReportableScores,
}

impl CollectedCaptions {
    /// No captions, before the first evaluation.
    #[must_use]
    pub fn new(reportable: ReportableScores) -> Self {
        Self {
            evaluation: None,
            complete_ranges: BTreeMap::new(),
            partial_ranges: BTreeMap::new(),
            image_names: HashSet::new(),
            size_bytes: 0,
            embedding_sizes: BTreeMap::new(),
            reportable,
        }
    }

    /// Begins an evaluation, or continues the present one: workers report the ranges that are not
    /// complete from their first image.
    pub fn begin(&mut self, evaluation: u64) {
        if self.evaluation == Some(evaluation) {
            self.discard_partial_ranges();
        } else {
            *self = Self { evaluation: Some(evaluation), ..Self::new(self.reportable.clone()) };
        }
    }

    fn discard_partial_ranges(&mut self) {
        let partial = std::mem::take(&mut self.partial_ranges);
        self.size_bytes -= partial.values().flatten().map(EvaluationItem::size_bytes).sum::<usize>();
    }

    /// Adds items of a missing range. The range is then complete, unless `has_more`: further items
    /// follow.
    ///
    /// # Errors
    /// An item is invalid, or the items exceed a limit. Then all items of the range are discarded.
    pub fn add(
        &mut self,
        range: ImageRange,
        items: Vec<v1::EvaluationItem>,
        has_more: bool,
    ) -> Result<(), ProtocolViolation> {
        let mut all_items = self.partial_ranges.remove(&range).unwrap_or_default();
        self.size_bytes -= all_items.iter().map(EvaluationItem::size_bytes).sum::<usize>();
        for item in items {
            if item.continued {
                let previous_item =
                    all_items.last_mut().ok_or_else(|| ProtocolViolation::new("references without an item"))?;
                previous_item.add_references(item.references)?;
            } else {
                all_items.push(EvaluationItem::from_report(item, &self.reportable)?);
            }
        }
        if all_items.len() as u64 > range.end - range.begin {
            return Err(ProtocolViolation::new(format!(
                "{} items for the images {}..{}",
                all_items.len(),
                range.begin,
                range.end
            )));
        }
        let size_bytes = all_items.iter().map(EvaluationItem::size_bytes).sum::<usize>() + self.size_bytes;
        if size_bytes > MAX_EVALUATION_BYTES {
            return Err(ProtocolViolation::new(format!("an evaluation of more than {MAX_EVALUATION_BYTES} bytes")));
        }
        let mut embedding_sizes = self.embedding_sizes.clone();
        // Workers omit embeddings that are not finite, so an item may have no embedding.
        for (prefix, embeddings) in all_items.iter().flat_map(|item| &item.embeddings) {
            let size = embeddings.text.len();
            let expected = *embedding_sizes.entry(prefix.clone()).or_insert(size);
            if size != expected {
                return Err(ProtocolViolation::new(format!(
                    "an embedding of {size} numbers where others of the evaluation have {expected}"
                )));
            }
        }
        let mut new_names = HashSet::with_capacity(all_items.len());
        let mut is_duplicate =
            |item: &&EvaluationItem| self.image_names.contains(&item.image) || !new_names.insert(item.image.clone());
        if let Some(EvaluationItem { image, .. }) = all_items.iter().find(&mut is_duplicate) {
            return Err(ProtocolViolation::new(format!("the image `{}` twice in an evaluation", image.escape_debug())));
        }
        (self.size_bytes, self.embedding_sizes) = (size_bytes, embedding_sizes);
        if has_more {
            self.partial_ranges.insert(range, all_items);
        } else {
            self.image_names.extend(new_names);
            self.complete_ranges.insert(range, all_items);
        }
        Ok(())
    }

    /// Takes the items of all complete ranges, sorted by image name.
    #[must_use]
    pub fn take_items(&mut self) -> Vec<EvaluationItem> {
        let collected = std::mem::replace(self, Self::new(self.reportable.clone()));
        let mut items: Vec<EvaluationItem> = collected.complete_ranges.into_values().flatten().collect();
        items.sort_by(|a, b| a.image.cmp(&b.image));
        items
    }
}

#[cfg(test)]
mod tests {
    use proto::IMAGES_PER_EVALUATION_RANGE;

    use super::*;

    /// Values of `has_more` in [`CollectedCaptions::add`].
    const HAS_MORE: bool = true;
    const IS_LAST: bool = false;

    fn item(image: &str, pac_s: f64) -> v1::EvaluationItem {
        v1::EvaluationItem { image: image.into(), scores: [("pac_s".into(), pac_s)].into(), ..Default::default() }
    }

    /// An item with embeddings of this size.
    fn item_with_embedding_of(size: usize) -> v1::EvaluationItem {
        item_with_embedding("", vec![0.5; size], vec![0.5; size])
    }

    fn item_with_embedding(prefix: &str, image: Vec<f32>, text: Vec<f32>) -> v1::EvaluationItem {
        let embeddings = vec![v1::Embeddings { prefix: prefix.into(), image, text }];
        v1::EvaluationItem { embeddings, ..item("a", 1.0) }
    }

    const FIRST: ImageRange = ImageRange { begin: 0, end: IMAGES_PER_EVALUATION_RANGE };
    const SECOND: ImageRange = ImageRange { begin: IMAGES_PER_EVALUATION_RANGE, end: 2 * IMAGES_PER_EVALUATION_RANGE };

    /// The captions of a new evaluation.
    fn collected() -> CollectedCaptions {
        let reportable = ReportableScores {
            scores: vec!["pac_s".into()],
            evaluator_prefixes: vec![String::new(), "clip_s_".into()],
        };
        let mut captions = CollectedCaptions::new(reportable);
        captions.begin(1);
        captions
    }

    #[test]
    fn items_are_sorted_and_contain_every_image_once() {
        let mut captions = collected();
        // Ranges may be reported in any order.
        captions.add(SECOND, vec![item("b", 9.0)], IS_LAST).unwrap();
        for twice in [vec![item("b", 1.0)], vec![item("c", 1.0), item("c", 2.0)]] {
            assert!(captions.add(FIRST, twice, IS_LAST).unwrap_err().to_string().ends_with("twice in an evaluation"));
        }
        captions.add(FIRST, vec![item("c", 1.0), item("a", 0.5)], IS_LAST).unwrap();
        let items = captions.take_items();
        let scores: Vec<_> = items.iter().map(|item| (item.image.as_str(), item.scores["pac_s"])).collect();
        assert_eq!(scores, [("a", 0.5), ("b", 9.0), ("c", 1.0)]);
        assert_eq!(captions.take_items(), []);
    }

    #[test]
    fn an_evaluation_that_continues_keeps_complete_ranges_and_another_one_begins_empty() {
        let mut captions = collected();
        captions.add(FIRST, vec![item("a", 1.0)], IS_LAST).unwrap();
        captions.add(SECOND, vec![item("b", 1.0)], HAS_MORE).unwrap();
        captions.begin(1);
        captions.add(SECOND, vec![item("b", 2.0)], IS_LAST).unwrap();
        assert_eq!(captions.take_items().len(), 2);
        captions.begin(1);
        captions.add(FIRST, vec![item("a", 1.0)], IS_LAST).unwrap();
        captions.begin(2);
        assert_eq!((captions.size_bytes, captions.take_items()), (0, vec![]));
    }

    #[test]
    fn items_beyond_the_limits_are_refused() {
        let long_caption = v1::EvaluationItem { caption: "x".repeat(MAX_TEXT_BYTES + 1), ..Default::default() };
        let many_references =
            v1::EvaluationItem { references: vec![String::new(); MAX_CAPTIONS + 1], ..Default::default() };
        let long_reference =
            v1::EvaluationItem { references: vec!["x".repeat(MAX_TEXT_BYTES + 1)], ..Default::default() };
        let without_predecessor = v1::EvaluationItem { continued: true, ..Default::default() };
        let unknown_score = v1::EvaluationItem { scores: [("mean_length".into(), 1.0)].into(), ..Default::default() };
        let large_embedding = item_with_embedding_of(MAX_EMBEDDING_SIZE + 1);
        let unequal_sizes = item_with_embedding("", vec![0.5; 2], vec![1.0]);
        let empty_embedding = item_with_embedding("", vec![], vec![]);
        let infinite_embedding = item_with_embedding("", vec![f32::INFINITY], vec![0.5]);
        let unknown_evaluator = item_with_embedding("judge_", vec![0.5], vec![0.5]);
        let [mut duplicate_embedding, mut large_sum] = [1, MAX_EMBEDDING_SIZE].map(item_with_embedding_of);
        duplicate_embedding.embeddings.extend(item_with_embedding_of(1).embeddings);
        large_sum.embeddings.extend(item_with_embedding("clip_s_", vec![0.5], vec![0.5]).embeddings);
        let invalid = [
            long_caption,
            many_references,
            long_reference,
            without_predecessor,
            unknown_score,
            item("a", f64::NAN),
            large_embedding,
            unequal_sizes,
            empty_embedding,
            infinite_embedding,
            unknown_evaluator,
            duplicate_embedding,
            large_sum,
        ];
        for item in invalid {
            collected().add(FIRST, vec![item], IS_LAST).unwrap_err();
        }
        let mut captions = collected();
        let full_range = (0..IMAGES_PER_EVALUATION_RANGE).map(|number| item(&number.to_string(), 1.0));
        captions.add(FIRST, full_range.collect(), HAS_MORE).unwrap();
        captions.add(FIRST, vec![item("a", 1.0)], IS_LAST).unwrap_err();
        let more =
            v1::EvaluationItem { references: vec![String::new(); MAX_CAPTIONS], continued: true, ..Default::default() };
        captions.add(FIRST, vec![item("a", 1.0), more.clone()], HAS_MORE).unwrap();
        captions.add(FIRST, vec![more], HAS_MORE).unwrap_err();
        let second_item = |size| v1::EvaluationItem { image: "b".into(), ..item_with_embedding_of(size) };
        captions.add(FIRST, vec![item_with_embedding_of(4), second_item(3)], IS_LAST).unwrap_err();
        captions.add(FIRST, vec![item_with_embedding_of(4)], IS_LAST).unwrap();
        captions.add(SECOND, vec![second_item(3)], IS_LAST).unwrap_err();
        captions.size_bytes = MAX_EVALUATION_BYTES - 100;
        captions.add(SECOND, vec![second_item(4)], HAS_MORE).unwrap_err();
        // A refused report completes no range.
        assert_eq!(captions.take_items().len(), 1);
    }

    #[test]
    fn a_range_sent_in_parts_is_complete_after_the_last_part() {
        let text = |number: usize| format!("{number:04}{}", "x".repeat(MAX_TEXT_BYTES - 4));
        let item_with_references = |references: usize| v1::EvaluationItem {
            image: text(0),
            caption: text(1),
            references: (0..references).map(text).collect(),
            ..item("", 1.0)
        };
        for items in
            [vec![item_with_references(33)], vec![item("a", 1.0), item_with_references(MAX_CAPTIONS), item("b", 1.0)]]
        {
            let mut captions = collected();
            let mut parts = proto::split_items(items.clone());
            let last = parts.pop().unwrap();
            for part in &parts {
                captions.add(FIRST, part.clone(), HAS_MORE).unwrap();
            }
            // The worker that sent the parts has failed. Another worker reports the range again
            // from its first image.
            captions.begin(1);
            assert_eq!(captions.size_bytes, 0);
            for part in parts {
                captions.add(FIRST, part, HAS_MORE).unwrap();
            }
            captions.add(FIRST, last, IS_LAST).unwrap();
            let added = captions.take_items();
            let max_references = |items: Vec<EvaluationItem>| items.into_iter().map(|item| item.references.len()).max();
            assert_eq!(max_references(added), items.iter().map(|item| item.references.len()).max());
        }
    }

    #[test]
    fn items_may_lack_scores_and_embeddings() {
        let mut captions = collected();
        let without_scores = v1::EvaluationItem { image: "b".into(), ..Default::default() };
        let last = v1::EvaluationItem { image: "c".into(), ..item_with_embedding_of(4) };
        captions.add(FIRST, vec![item_with_embedding_of(4), without_scores, last], IS_LAST).unwrap();
        assert_eq!(captions.take_items().len(), 3);
    }
}
