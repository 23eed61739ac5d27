//! Matches the images of references and candidates, which may have different kinds of names.

use std::collections::{HashMap, HashSet};

/// The names of one image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageNames {
    /// The image's number, or its key in a file.
    pub id: Option<String>,
    /// The name, by which result files of a run identify the image if it has no number.
    pub name: Option<String>,
    /// The path, which may be only a file name.
    pub path: Option<String>,
}

/// Unique names of all images, all of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NameKind {
    /// Describes this kind of name in messages.
    description: &'static str,
    /// The names, in the order of the images.
    names: Vec<String>,
}

/// The kinds of names that are unique among `images`; empty if there are none.
pub(super) fn name_kinds(images: &[ImageNames]) -> Vec<NameKind> {
    let unique_names = |description, name: fn(&ImageNames) -> Option<&str>| {
        let names: Vec<String> = images.iter().map(|image| name(image).map(str::to_owned)).collect::<Option<_>>()?;
        let distinct: HashSet<&str> = names.iter().map(String::as_str).collect();
        (distinct.len() == names.len()).then_some(NameKind { description, names })
    };
    let kinds = [
        unique_names("id", |names| names.id.as_deref()),
        unique_names("name", |names| names.name.as_deref()),
        unique_names("path", |names| names.path.as_deref()),
        unique_names("file name", |names| names.path.as_deref().map(file_name)),
        unique_names("file name without extension", |names| names.path.as_deref().map(file_stem)),
    ];
    kinds.into_iter().flatten().collect()
}

/// A way to shorten the names of candidates before they are looked up.
struct Shortening {
    /// Describes the shortened name in messages; none if names are not shortened.
    description: Option<&'static str>,
    apply: fn(&str) -> &str,
}

const SHORTENINGS: [Shortening; 3] = [
    Shortening { description: None, apply: |name| name },
    Shortening { description: Some("file name"), apply: file_name },
    Shortening { description: Some("file name without extension"), apply: file_stem },
];

/// References and candidates, with the names by which they were matched.
pub(super) struct MatchedCaptions {
    /// The names of the images with references, in their order.
    pub names: Vec<String>,
    /// The candidates by name.
    pub candidates: HashMap<String, String>,
    /// A note on how images were matched, if any were, and not by id.
    pub note: Option<String>,
    /// Example names of the images with references, one for each kind of name.
    pub examples: Vec<String>,
}

/// Chooses the kind of name and the shortening with which most candidates have references. If
/// several combinations match equally many, it chooses the first. `name_kinds` are those of the
/// references, at least one.
pub(super) fn match_images(mut name_kinds: Vec<NameKind>, candidates: HashMap<String, String>) -> MatchedCaptions {
    let (mut most_matches, mut best_kind, mut best_shortening) = (0, 0, &SHORTENINGS[0]);
    for shortening in &SHORTENINGS {
        let shortened: HashSet<&str> = candidates.keys().map(|name| (shortening.apply)(name)).collect();
        if shortened.len() < candidates.len() {
            continue;
        }
        for (index, name_kind) in name_kinds.iter().enumerate() {
            let matches = name_kind.names.iter().filter(|name| shortened.contains(name.as_str())).count();
            if matches > most_matches {
                (most_matches, best_kind, best_shortening) = (matches, index, shortening);
            }
        }
    }
    let mut examples: Vec<String> =
        name_kinds.iter().filter_map(|name_kind| name_kind.names.first().cloned()).collect();
    examples.dedup();
    let NameKind { description, names } = name_kinds.swap_remove(best_kind);
    let description = best_shortening.description.unwrap_or(description);
    let note = (most_matches > 0 && description != "id").then(|| format!("images are matched by {description}"));
    let shorten = |(name, caption): (String, String)| ((best_shortening.apply)(&name).to_owned(), caption);
    MatchedCaptions { names, candidates: candidates.into_iter().map(shorten).collect(), note, examples }
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

fn file_stem(path: &str) -> &str {
    let name = file_name(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| if stem.is_empty() { name } else { stem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image_names(id: &str, path: &str) -> ImageNames {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ImageNames { id: some(id), name: None, path: some(path) }
    }

    /// The matched candidates, in the order of the references, and the note.
    fn match_names(images: &[ImageNames], candidates: &[&str]) -> (Vec<String>, String) {
        let candidates = candidates.iter().map(|name| ((*name).to_owned(), format!("of {name}"))).collect();
        let MatchedCaptions { names, candidates, note, .. } = match_images(name_kinds(images), candidates);
        let matched = names.iter().filter_map(|name| candidates.get(name).cloned()).collect();
        (matched, note.unwrap_or_default())
    }

    #[test]
    fn images_are_matched_by_any_common_kind_of_name() {
        let images = [image_names("7", "val/a.jpg"), image_names("9", "val/b.jpg")];
        for (candidates, kind) in [
            (["7", "9"], ""),
            (["val/a.jpg", "val/b.jpg"], "path"),
            (["a.jpg", "b.jpg"], "file name"),
            (["a", "b"], "file name without extension"),
            (["/data/images/a.jpg", "/data/images/b.jpg"], "file name"),
            (["C:\\images\\a.jpg", "b.jpg"], "file name"),
            (["x/a.png", "x/b.webp"], "file name without extension"),
        ] {
            let note = if kind.is_empty() { String::new() } else { format!("images are matched by {kind}") };
            let expected = candidates.map(|name| format!("of {name}"));
            assert_eq!(match_names(&images, &candidates), (expected.to_vec(), note), "{candidates:?}");
        }
        let tars = [
            ImageNames { name: Some("a.tar/0".into()), ..image_names("", "0") },
            ImageNames { name: Some("b.tar/0".into()), ..image_names("", "0") },
        ];
        assert_eq!(match_names(&tars, &["b.tar/0"]), (vec!["of b.tar/0".into()], "images are matched by name".into()));
    }

    #[test]
    fn ambiguous_names_match_no_image() {
        let images = [image_names("", "x/a.jpg"), image_names("", "y/a.jpg")];
        assert_eq!(name_kinds(&images).len(), 1);
        assert_eq!(match_names(&images, &["a.jpg"]).0, [""; 0]);
        // Two candidates with the same file name are not merged.
        assert_eq!(match_names(&[image_names("", "a.jpg")], &["x/a.jpg", "y/a.jpg"]).0, [""; 0]);
        assert!(name_kinds(&[image_names("", ""), image_names("1", "")]).is_empty());
    }

    #[test]
    fn the_kind_of_name_with_most_matches_is_used() {
        let images = [image_names("1", "2.jpg"), image_names("2", "3.jpg"), image_names("4", "5.jpg")];
        assert_eq!(match_names(&images, &["2.jpg", "5.jpg", "1"]).0, ["of 2.jpg", "of 5.jpg"]);
        // The id wins over the file name if both match the same number of images.
        assert_eq!(match_names(&images, &["1", "2"]), (vec!["of 1".into(), "of 2".into()], String::new()));
    }

    #[test]
    fn file_stems_of_hidden_files_and_folders_are_not_empty() {
        assert_eq!(["a/b.c.jpg", ".hidden", "a/", ""].map(file_stem), ["b.c", ".hidden", "", ""]);
    }
}
