//! Captions of evaluations as files, in the format of COCO's results, for tools that read that.

use std::{fs::File, io::Write, path::Path};

use serde_json::{Value, json};

use crate::run::captions::Item;

/// Writes the captions to `path`: whole or not at all, over what an evaluation of the same place left.
///
/// # Errors
/// What the system says.
pub fn save(path: &Path, items: &[Item]) -> std::io::Result<()> {
    // An image without a number is known by its name.
    let id = |item: &Item| item.image_id.map_or_else(|| json!(item.image), |id| json!(id));
    let results: Value = items.iter().map(|item| json!({ "image_id": id(item), "caption": item.caption })).collect();
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let unfinished = path.with_extension("unfinished");
    let mut file = File::create(&unfinished)?;
    file.write_all(results.to_string().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_number_or_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions/0-a-00000012.json");
        let item = |image: &str, image_id| Item {
            image: image.into(),
            image_id,
            caption: "a \"red\" ball".into(),
            ..Item::default()
        };
        save(&path, &[]).unwrap();
        save(&path, &[item("42.jpg", Some(42)), item("ball.jpg", None)]).unwrap();
        let expected = json!([
            { "image_id": 42, "caption": "a \"red\" ball" },
            { "image_id": "ball.jpg", "caption": "a \"red\" ball" },
        ]);
        let written: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(written, expected);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
