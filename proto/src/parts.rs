//! Splits the captions of a range into messages that the coordinator accepts.

use prost::Message;

use crate::v1::EvaluationItem;

/// Most bytes of the items in one part. A single item without its references is smaller by far.
pub const MAX_PART_BYTES: usize = 4 << 20;
/// What an item or a reference takes in a message besides its own bytes: field number and length.
const FRAME_BYTES: usize = 8;

/// `items` in parts of at most [`MAX_PART_BYTES`], in order, at least one. The references of an item that does not fit go on
/// in the next part, in an item that says `continued` and has nothing else.
#[must_use]
pub fn parts(items: Vec<EvaluationItem>) -> Vec<Vec<EvaluationItem>> {
    let mut parts = vec![Vec::new()];
    let mut room = MAX_PART_BYTES;
    for mut item in items {
        let size = item.encoded_len() + FRAME_BYTES;
        if size > room && parts.last().is_some_and(|part| !part.is_empty()) {
            parts.push(Vec::new());
            room = MAX_PART_BYTES;
        }
        if size <= room {
            room -= size;
            parts.last_mut().expect("there is always a part").push(item);
            continue;
        }
        let references = std::mem::take(&mut item.references);
        room = room.saturating_sub(item.encoded_len() + FRAME_BYTES);
        for reference in references {
            let size = reference.len() + FRAME_BYTES;
            if size > room {
                let full = std::mem::replace(&mut item, EvaluationItem { continued: true, ..Default::default() });
                parts.last_mut().expect("there is always a part").push(full);
                parts.push(Vec::new());
                room = MAX_PART_BYTES - 2 * FRAME_BYTES;
            }
            room = room.saturating_sub(size);
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

    fn item(image: &str, references: usize, bytes: usize) -> EvaluationItem {
        let references = (0..references).map(|number| format!("{number:04}{}", "x".repeat(bytes - 4)));
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

    /// What the coordinator makes of parts.
    fn joined(parts: Vec<Vec<EvaluationItem>>) -> Vec<EvaluationItem> {
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
    fn parts_are_small_and_together_all() {
        let cases = [
            (vec![], 1),
            (vec![item("a", 5, 50); 50], 1),
            (vec![item("a", 33, 4097); 50], 3),
            (vec![item("a", 1, 50), item("b", 1_000, 65_536), item("c", 1, 50)], 17),
            (vec![item("a", 1_000, 65_536), item("b", 1_000, 65_536)], 32),
            (vec![item("a", 64, 65_536)], 2),
        ];
        for (items, count) in cases {
            let parts = parts(items.clone());
            assert_eq!(parts.len(), count, "{} items", items.len());
            for part in &parts {
                let message = crate::v1::EvaluationItems { items: part.clone(), ..Default::default() };
                assert!(message.encoded_len() <= MAX_PART_BYTES, "{}", message.encoded_len());
                assert!(count == 1 || !part.is_empty());
            }
            assert_eq!(joined(parts), items);
        }
    }
}
