//! Splits the evaluation items of a range of images into parts that fit into one message each.

use prost::Message;

use crate::v1::EvaluationItem;

/// Maximal size of the items in one part, in bytes. One item without its references is much
/// smaller.
pub const MAX_PART_BYTES: usize = 4 << 20;
/// Upper bound of the bytes that an item or a reference adds to a message besides its content: the
/// field number and the length of the protobuf encoding.
const MAX_FIELD_OVERHEAD_BYTES: usize = 8;

/// Splits `items` into parts of at most [`MAX_PART_BYTES`], in order; returns at least one part.
/// The references of an item that does not fit continue in the next part, in an item that has
/// `continued` set and contains nothing else.
#[must_use]
pub fn split_items(items: Vec<EvaluationItem>) -> Vec<Vec<EvaluationItem>> {
    let mut parts = vec![Vec::new()];
    let mut available_bytes = MAX_PART_BYTES;
    for mut item in items {
        let size = item.encoded_len() + MAX_FIELD_OVERHEAD_BYTES;
        if size > available_bytes && parts.last().is_some_and(|part| !part.is_empty()) {
            parts.push(Vec::new());
            available_bytes = MAX_PART_BYTES;
        }
        if size <= available_bytes {
            available_bytes -= size;
            parts.last_mut().expect("there is always a part").push(item);
            continue;
        }
        let references = std::mem::take(&mut item.references);
        available_bytes = available_bytes.saturating_sub(item.encoded_len() + MAX_FIELD_OVERHEAD_BYTES);
        for reference in references {
            let size = reference.len() + MAX_FIELD_OVERHEAD_BYTES;
            if size > available_bytes {
                let full = std::mem::replace(&mut item, EvaluationItem { continued: true, ..Default::default() });
                parts.last_mut().expect("there is always a part").push(full);
                parts.push(Vec::new());
                available_bytes = MAX_PART_BYTES - 2 * MAX_FIELD_OVERHEAD_BYTES;
            }
            available_bytes = available_bytes.saturating_sub(size);
            item.references.push(reference);
        }
        parts.last_mut().expect("there is always a part").push(item);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Embeddings;

    /// An item with this number of references, each of this many bytes.
    fn item(image: &str, reference_count: usize, reference_bytes: usize) -> EvaluationItem {
        let references = (0..reference_count).map(|number| format!("{number:04}{}", "x".repeat(reference_bytes - 4)));
        let embedding = vec![0.5; 1024];
        EvaluationItem {
            image: image.into(),
            caption: "c".repeat(65_536),
            references: references.collect(),
            scores: [("pac_s".to_owned(), 0.5)].into(),
            embeddings: vec![Embeddings { prefix: String::new(), image: embedding.clone(), text: embedding }],
            ..Default::default()
        }
    }

    /// Joins parts as the coordinator does.
    fn join(parts: Vec<Vec<EvaluationItem>>) -> Vec<EvaluationItem> {
        let mut items: Vec<EvaluationItem> = Vec::new();
        for item in parts.into_iter().flatten() {
            if item.continued {
                items.last_mut().unwrap().references.extend(item.references);
            } else {
                items.push(item);
            }
        }
        items
    }

    #[test]
    fn parts_are_within_the_limit_and_contain_all_items() {
        let cases = [
            (vec![], 1),
            (vec![item("a", 5, 50); 50], 1),
            (vec![item("a", 33, 4097); 50], 3),
            (vec![item("a", 1, 50), item("b", 1_000, 65_536), item("c", 1, 50)], 17),
            (vec![item("a", 1_000, 65_536), item("b", 1_000, 65_536)], 32),
            (vec![item("a", 64, 65_536)], 2),
        ];
        for (items, part_count) in cases {
            let parts = split_items(items.clone());
            assert_eq!(parts.len(), part_count, "{} items", items.len());
            for part in &parts {
                let message = crate::v1::EvaluationItems { items: part.clone(), ..Default::default() };
                assert!(message.encoded_len() <= MAX_PART_BYTES, "{}", message.encoded_len());
                assert!(part_count == 1 || !part.is_empty());
            }
            assert_eq!(join(parts), items);
        }
    }
}
