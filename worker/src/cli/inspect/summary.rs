//! A split in figures, with samples.

use std::collections::HashSet;
use std::fmt::{Display, Formatter};

use caption_metrics::tokens::Tokeniser;
use dataset::Item;
use serde::Serialize;
use tokenizer::Vocabulary;

/// Images that are shown of a split.
const SAMPLES: usize = 5;

/// Figures and samples of a split.
#[derive(Debug, PartialEq, Serialize)]
pub struct Summary {
    images: usize,
    captions: usize,
    /// Of each image.
    captions_per_image: Range,
    /// In words as the metrics count them: without punctuation, in lower case.
    words: Lengths,
    /// In tokens of CLIP, begin and end included.
    tokens: Lengths,
    samples: Vec<Sample>,
}

/// The smallest and the largest of some numbers.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Range {
    min: usize,
    max: usize,
}

/// Lengths of captions; all 0 where there are none.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Lengths {
    min: usize,
    median: usize,
    mean: f64,
    max: usize,
    /// Different words or tokens in all captions together.
    vocabulary: usize,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Sample {
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    captions: Vec<String>,
}

impl Summary {
    /// Of the images of a split; `vocabulary` is CLIP's.
    pub fn new(items: &[Item], vocabulary: &Vocabulary) -> Self {
        let captions = || items.iter().flat_map(|item| &item.captions).map(String::as_str);
        let counts = || items.iter().map(|item| item.captions.len());
        Self {
            images: items.len(),
            captions: captions().count(),
            captions_per_image: Range { min: counts().min().unwrap_or(0), max: counts().max().unwrap_or(0) },
            words: words(captions()),
            tokens: tokens(captions(), vocabulary),
            samples: spread(items.len(), SAMPLES).map(|at| Sample::new(&items[at])).collect(),
        }
    }
}

impl Sample {
    fn new(item: &Item) -> Self {
        Self { image: item.name.clone(), id: item.id, captions: item.captions.clone() }
    }
}

impl Lengths {
    fn new(mut lengths: Vec<usize>, vocabulary: usize) -> Self {
        lengths.sort_unstable();
        let (Some(&min), Some(&max)) = (lengths.first(), lengths.last()) else { return Self::default() };
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        Self { min, median: lengths[(lengths.len() - 1) / 2], mean, max, vocabulary }
    }
}

fn words<'a>(captions: impl Iterator<Item = &'a str>) -> Lengths {
    let (mut tokeniser, mut known) = (Tokeniser::default(), HashSet::new());
    let length = |caption| {
        let mut length = 0;
        tokeniser.each(caption, |word| {
            length += 1;
            if !known.contains(word) {
                known.insert(word.to_owned());
            }
        });
        length
    };
    let lengths = captions.map(length).collect();
    Lengths::new(lengths, known.len())
}

fn tokens<'a>(captions: impl Iterator<Item = &'a str>, vocabulary: &Vocabulary) -> Lengths {
    let mut known = HashSet::new();
    let length = |caption| {
        let ids = vocabulary.encode(caption, usize::MAX);
        known.extend(ids.iter().copied().filter(|&id| id < vocabulary.begin()));
        ids.len()
    };
    let lengths = captions.map(length).collect();
    Lengths::new(lengths, known.len())
}

/// At most `most` of `0..count`, evenly spread.
pub fn spread(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let taken = count.min(most);
    (0..taken).map(move |at| (at as u128 * count as u128 / taken as u128) as usize)
}

impl Display for Summary {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { images, captions, captions_per_image: Range { min, max }, words, tokens, samples } = self;
        let each = if min == max { min.to_string() } else { format!("{min} to {max}") };
        write!(formatter, "{images} images, {captions} captions ({each} an image)")?;
        if *captions > 0 {
            write!(formatter, "\n    words: {words}\n    tokens, begin and end included: {tokens}")?;
        }
        samples.iter().try_for_each(|sample| write!(formatter, "\n    {sample}"))
    }
}

impl Display for Lengths {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { min, median, mean, max, vocabulary } = self;
        write!(formatter, "{min} to {max} a caption, median {median}, mean {mean:.1}; {vocabulary} different")
    }
}

impl Display for Sample {
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
        let images: Vec<String> = (0..).zip(captions).map(|(at, captions)| image(at, captions)).collect();
        let path = folder.path().join("dataset.json");
        std::fs::write(&path, format!(r#"{{"images": [{}]}}"#, images.join(","))).unwrap();
        let karpathy = Some(config::Karpathy { annotations: path, images: "/images".into() });
        let settings = config::Data { karpathy, ..Default::default() };
        dataset::DataSet::annotated(&settings, dataset::Split::Train).unwrap().split(dataset::Split::Train).to_vec()
    }

    fn image(at: usize, captions: &[&str]) -> String {
        let sentences: Vec<String> = captions.iter().map(|text| format!(r#"{{"raw": "{text}"}}"#)).collect();
        let sentences = sentences.join(",");
        format!(r#"{{"filename": "{at}.jpg", "imgid": {at}, "split": "train", "sentences": [{sentences}]}}"#)
    }

    #[test]
    fn captions_are_measured_in_words_and_tokens() {
        let items = items(&[&["A dog."], &["a dog runs, a dog!", "dogs"], &["A cat"]]);
        let summary = Summary::new(&items, &Vocabulary::full());
        assert_eq!((summary.images, summary.captions), (3, 4));
        assert_eq!(summary.captions_per_image, Range { min: 1, max: 2 });
        // a dog runs dogs cat.
        assert_eq!(summary.words, Lengths { min: 1, median: 2, mean: 2.5, max: 5, vocabulary: 5 });
        // Punctuation counts here: `.`, `,` and `!`.
        assert_eq!(summary.tokens, Lengths { min: 3, median: 4, mean: 5.25, max: 9, vocabulary: 8 });
        let text = summary.to_string();
        assert!(
            text.starts_with("3 images, 4 captions (1 to 2 an image)\n    words: 1 to 5 a caption, median 2"),
            "{text}"
        );
        assert!(text.ends_with("\n    1.jpg (id 1): a dog runs, a dog! | dogs\n    2.jpg (id 2): A cat"), "{text}");
    }

    #[test]
    fn images_without_captions_have_no_lengths() {
        let summary = Summary::new(&items(&[&[], &[]]), &Vocabulary::full());
        let lines = "2 images, 0 captions (0 an image)\n    0.jpg (id 0): no captions\n    1.jpg (id 1): no captions";
        assert_eq!(summary.to_string(), lines);
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!((&json["words"]["max"], &json["samples"][1]["image"]), (&0.into(), &"1.jpg".into()));
    }

    #[test]
    fn samples_are_spread_evenly() {
        let spread = |count, most| spread(count, most).collect::<Vec<_>>();
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(3, usize::MAX), [0, 1, 2]);
        assert!(spread(0, 5).is_empty());
        let many = vec![&["a"][..]; 100];
        assert_eq!(Summary::new(&items(&many), &Vocabulary::full()).samples.len(), SAMPLES);
    }
}
