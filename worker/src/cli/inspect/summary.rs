//! The summary of a split: counts, lengths and samples.

use std::collections::HashSet;
use std::fmt::{Display, Formatter};

use caption_metrics::ptb_tokenizer::PtbTokenizer;
use dataset::Item;
use serde::Serialize;
use tokenizer::Vocabulary;

/// Maximal number of images that are shown of a split.
const SAMPLES: usize = 5;

/// The summary of a split.
#[derive(Debug, PartialEq, Serialize)]
pub struct SplitSummary {
    images: usize,
    captions: usize,
    captions_per_image: MinMax,
    /// Lengths in words as the metrics count them: in lower case, without punctuation.
    words: LengthStatistics,
    /// Lengths in CLIP's tokens, begin and end tokens included.
    tokens: LengthStatistics,
    samples: Vec<SampleImage>,
}

/// Minimum and maximum of some numbers.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct MinMax {
    min: usize,
    max: usize,
}

/// Statistics of the lengths of captions; all 0 without captions.
#[derive(Debug, Default, PartialEq, Serialize)]
struct LengthStatistics {
    min: usize,
    median: usize,
    mean: f64,
    max: usize,
    /// Number of distinct words or tokens in all captions, begin and end tokens excluded.
    vocabulary: usize,
}

/// An image with its captions.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct SampleImage {
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    captions: Vec<String>,
}

impl SplitSummary {
    /// The summary of a split's images; `vocabulary` is CLIP's.
    pub fn new(items: &[Item], vocabulary: &Vocabulary) -> Self {
        let captions = || items.iter().flat_map(|item| &item.captions).map(String::as_str);
        let caption_counts = || items.iter().map(|item| item.captions.len());
        Self {
            images: items.len(),
            captions: captions().count(),
            captions_per_image: MinMax {
                min: caption_counts().min().unwrap_or(0),
                max: caption_counts().max().unwrap_or(0),
            },
            words: lengths_in_words(captions()),
            tokens: lengths_in_tokens(captions(), vocabulary),
            samples: evenly_spaced(items.len(), SAMPLES).map(|index| SampleImage::new(&items[index])).collect(),
        }
    }
}

impl SampleImage {
    fn new(item: &Item) -> Self {
        Self { image: item.name.clone(), id: item.id, captions: item.captions.clone() }
    }
}

impl LengthStatistics {
    fn new(mut lengths: Vec<usize>, vocabulary: usize) -> Self {
        lengths.sort_unstable();
        let (Some(&min), Some(&max)) = (lengths.first(), lengths.last()) else { return Self::default() };
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        Self { min, median: lengths[(lengths.len() - 1) / 2], mean, max, vocabulary }
    }
}

fn lengths_in_words<'a>(captions: impl Iterator<Item = &'a str>) -> LengthStatistics {
    let (mut tokenizer, mut distinct) = (PtbTokenizer::default(), HashSet::new());
    let length = |caption| {
        let mut length = 0;
        tokenizer.for_each_token(caption, |word| {
            length += 1;
            if !distinct.contains(word) {
                distinct.insert(word.to_owned());
            }
        });
        length
    };
    let lengths = captions.map(length).collect();
    LengthStatistics::new(lengths, distinct.len())
}

fn lengths_in_tokens<'a>(captions: impl Iterator<Item = &'a str>, vocabulary: &Vocabulary) -> LengthStatistics {
    let mut distinct = HashSet::new();
    let length = |caption| {
        let ids = vocabulary.encode(caption, usize::MAX);
        distinct.extend(ids.iter().copied().filter(|&id| id < vocabulary.begin_token()));
        ids.len()
    };
    let lengths = captions.map(length).collect();
    LengthStatistics::new(lengths, distinct.len())
}

/// At most `max` of the indices `0..count`, evenly spaced.
pub fn evenly_spaced(count: usize, max: usize) -> impl Iterator<Item = usize> {
    let selected = count.min(max);
    (0..selected).map(move |index| (index as u128 * count as u128 / selected as u128) as usize)
}

impl Display for SplitSummary {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { images, captions, captions_per_image: MinMax { min, max }, words, tokens, samples } = self;
        let per_image = if min == max { min.to_string() } else { format!("{min} to {max}") };
        write!(formatter, "{images} images, {captions} captions ({per_image} an image)")?;
        if *captions > 0 {
            write!(formatter, "\n    words: {words}\n    tokens, begin and end included: {tokens}")?;
        }
        samples.iter().try_for_each(|sample| write!(formatter, "\n    {sample}"))
    }
}

impl Display for LengthStatistics {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { min, median, mean, max, vocabulary } = self;
        write!(formatter, "{min} to {max} a caption, median {median}, mean {mean:.1}; {vocabulary} different")
    }
}

impl Display for SampleImage {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.image)?;
        self.id.map_or(Ok(()), |id| write!(formatter, " (id {id})"))?;
        let captions = self.captions.join(" | ");
        write!(formatter, ": {}", if captions.is_empty() { "no captions" } else { &captions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(captions: &[&[&str]]) -> Vec<Item> {
        let folder = tempfile::tempdir().unwrap();
        let images: Vec<String> = (0..).zip(captions).map(|(index, captions)| image(index, captions)).collect();
        let path = folder.path().join("dataset.json");
        std::fs::write(&path, format!(r#"{{"images": [{}]}}"#, images.join(","))).unwrap();
        let karpathy = Some(config::Karpathy { annotations: path, images: "/images".into() });
        let settings = config::Data { karpathy, ..Default::default() };
        dataset::DataSet::load_annotations(&settings, dataset::Split::Train)
            .unwrap()
            .split(dataset::Split::Train)
            .to_vec()
    }

    fn image(index: usize, captions: &[&str]) -> String {
        let sentences: Vec<String> = captions.iter().map(|text| format!(r#"{{"raw": "{text}"}}"#)).collect();
        let sentences = sentences.join(",");
        format!(r#"{{"filename": "{index}.jpg", "imgid": {index}, "split": "train", "sentences": [{sentences}]}}"#)
    }

    #[test]
    fn captions_are_measured_in_words_and_tokens() {
        let items = items(&[&["A dog."], &["a dog runs, a dog!", "dogs"], &["A cat"]]);
        let summary = SplitSummary::new(&items, &Vocabulary::full());
        assert_eq!((summary.images, summary.captions), (3, 4));
        assert_eq!(summary.captions_per_image, MinMax { min: 1, max: 2 });
        // The distinct words: a, dog, runs, dogs, cat.
        assert_eq!(summary.words, LengthStatistics { min: 1, median: 2, mean: 2.5, max: 5, vocabulary: 5 });
        // Punctuation marks are tokens: `.`, `,` and `!`.
        assert_eq!(summary.tokens, LengthStatistics { min: 3, median: 4, mean: 5.25, max: 9, vocabulary: 8 });
        let text = summary.to_string();
        assert!(
            text.starts_with("3 images, 4 captions (1 to 2 an image)\n    words: 1 to 5 a caption, median 2"),
            "{text}"
        );
        assert!(text.ends_with("\n    1.jpg (id 1): a dog runs, a dog! | dogs\n    2.jpg (id 2): A cat"), "{text}");
    }

    #[test]
    fn images_without_captions_have_no_lengths() {
        let summary = SplitSummary::new(&items(&[&[], &[]]), &Vocabulary::full());
        let lines = "2 images, 0 captions (0 an image)\n    0.jpg (id 0): no captions\n    1.jpg (id 1): no captions";
        assert_eq!(summary.to_string(), lines);
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!((&json["words"]["max"], &json["samples"][1]["image"]), (&0.into(), &"1.jpg".into()));
    }

    #[test]
    fn samples_are_evenly_spaced() {
        let indices = |count, max| evenly_spaced(count, max).collect::<Vec<_>>();
        assert_eq!(indices(10, 4), [0, 2, 5, 7]);
        assert_eq!(indices(3, usize::MAX), [0, 1, 2]);
        assert!(indices(0, 5).is_empty());
        let many = vec![&["a"][..]; 100];
        assert_eq!(SplitSummary::new(&items(&many), &Vocabulary::full()).samples.len(), SAMPLES);
    }
}
