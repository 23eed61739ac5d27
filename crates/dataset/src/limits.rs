//! Checks of a data set against the [limits](config::limits) of the coordinator.

use config::limits::{
    MAX_CAPTIONS, MAX_EMBEDDING_SIZE, MAX_EVALUATION_BYTES, MAX_TEXT_BYTES, MAX_VALIDATION_IMAGES,
    evaluation_item_bytes,
};

use crate::{DataSet, Error, Split};

impl DataSet {
    /// Checks names and captions. `annotation_source` returns the file of a split, for messages.
    pub(crate) fn check_texts(&self, annotation_source: impl Fn(Split) -> String) -> Result<(), Error> {
        for split in Split::ALL {
            for item in self.split(split) {
                let problem = if item.name.len() > MAX_TEXT_BYTES {
                    let start = &item.name[..item.name.floor_char_boundary(80)];
                    let bytes = item.name.len();
                    Some(format!("the image `{start}...` has a name of {bytes} bytes, {MAX_TEXT_BYTES} at most"))
                } else if item.captions.len() > MAX_CAPTIONS {
                    let captions = item.captions.len();
                    Some(format!("{} has {captions} captions, an image can have {MAX_CAPTIONS} at most", item.name))
                } else {
                    let long = item.captions.iter().map(String::len).find(|&bytes| bytes > MAX_TEXT_BYTES);
                    long.map(|bytes| {
                        format!(
                            "{} has a caption of {bytes} bytes, a caption can have {MAX_TEXT_BYTES} at most",
                            item.name
                        )
                    })
                };
                if let Some(problem) = problem {
                    return Err(Error::invalid(annotation_source(split), problem));
                }
            }
        }
        let images = self.split(Split::Validation).len() as u64;
        if images > MAX_VALIDATION_IMAGES {
            let problem = format!("{images} validation images, {MAX_VALIDATION_IMAGES} at most");
            return Err(Error::invalid(annotation_source(Split::Validation), problem));
        }
        Ok(())
    }

    /// Checks that an evaluation of the validation split fits into the coordinator's memory limit
    /// with candidates of at most `max_caption_bytes` bytes and embeddings of `embedding_size`
    /// values.
    ///
    /// # Errors
    /// The evaluation does not fit; the message names its size.
    pub fn check_evaluation(&self, embedding_size: usize, max_caption_bytes: usize) -> Result<(), Error> {
        if embedding_size > MAX_EMBEDDING_SIZE {
            let problem = format!("embeddings of {embedding_size} numbers, {MAX_EMBEDDING_SIZE} at most");
            return Err(Error::invalid("the evaluator", problem));
        }
        let items = self.split(Split::Validation);
        let bytes = |item: &crate::Item| {
            let texts = item.captions.iter().map(String::len).chain([item.name.len(), max_caption_bytes]);
            // An embedding of the image and one of the candidate.
            evaluation_item_bytes(texts, 2 * embedding_size)
        };
        let total: usize = items.iter().map(bytes).sum();
        if total <= MAX_EVALUATION_BYTES {
            return Ok(());
        }
        let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        let problem = format!(
            "an evaluation of its {} images, with captions, references and embeddings of {embedding_size} numbers, takes up to \
             {:.1} GiB of the coordinator's memory, and may take {:.0} GiB: evaluate on fewer images",
            items.len(),
            gib(total),
            gib(MAX_EVALUATION_BYTES),
        );
        Err(Error::invalid("the validation split", problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageRef, Item, Splits};

    fn data_set(validation: Vec<Item>) -> DataSet {
        let splits = Splits { train: vec![item("t.jpg", vec!["a dog".into()])], validation, ..Splits::default() };
        DataSet { splits, ..DataSet::default() }
    }

    fn item(name: &str, captions: Vec<String>) -> Item {
        Item::new(name, captions, ImageRef::File(name.into()))
    }

    fn problem(item: Item) -> String {
        let checked = data_set(vec![item]).check_texts(|split| format!("captions of {split}"));
        checked.err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn texts_above_a_limit_are_refused_with_image_and_file() {
        let text = |bytes: usize| "x".repeat(bytes);
        assert_eq!(problem(item("a.jpg", vec![text(MAX_TEXT_BYTES); MAX_CAPTIONS])), "");
        assert_eq!(problem(item(&text(MAX_TEXT_BYTES), vec![text(4097); 33])), "");
        assert_eq!(
            problem(item("a.jpg", vec![text(1); MAX_CAPTIONS + 1])),
            "captions of val: a.jpg has 1001 captions, an image can have 1000 at most"
        );
        assert_eq!(
            problem(item("a.jpg", vec![text(1), text(MAX_TEXT_BYTES + 1)])),
            "captions of val: a.jpg has a caption of 65537 bytes, a caption can have 65536 at most"
        );
        let long = problem(item(&"ü".repeat(MAX_TEXT_BYTES), vec![text(1)]));
        assert!(long.len() < 300 && long.contains("üü...` has a name of 131072 bytes"), "{long}");
    }

    #[test]
    fn a_range_of_maximal_texts_is_accepted_and_too_large_a_split_is_refused() {
        let largest = item("a.jpg", vec!["x".repeat(MAX_TEXT_BYTES); MAX_CAPTIONS]);
        // An evaluation range of the protocol (50 images) with texts of maximal length fits.
        let one = evaluation_item_bytes(largest.captions.iter().map(String::len), 2 * MAX_EMBEDDING_SIZE);
        assert!(50 * (one + 2 * MAX_TEXT_BYTES) <= MAX_EVALUATION_BYTES);
        data_set(vec![largest.clone()]).check_evaluation(MAX_EMBEDDING_SIZE, MAX_TEXT_BYTES).unwrap();
        let wide = data_set(vec![largest]).check_evaluation(MAX_EMBEDDING_SIZE + 1, 100).unwrap_err().to_string();
        assert!(wide.contains("the evaluator: embeddings of 65537 numbers, 65536 at most"), "{wide}");
        let many = data_set(vec![item("a.jpg", vec!["a dog".into()]); 9_000]);
        many.check_evaluation(1024, 8_000).unwrap();
        let error = many.check_evaluation(MAX_EMBEDDING_SIZE, 8_000).unwrap_err().to_string();
        assert!(error.contains("the validation split: ") && error.contains("9000 images"), "{error}");
        assert!(error.contains("up to 4.5 GiB") && error.contains("may take 4 GiB"), "{error}");
    }
}
