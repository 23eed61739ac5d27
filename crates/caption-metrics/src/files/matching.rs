//! Finds the images that references and candidates have in common, though each side may name them
//! in its own way.

use std::collections::{HashMap, HashSet};

/// Names of one image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Its number, or its key in a file.
    pub id: Option<String>,
    /// What result files of a run call it where it has no number.
    pub name: Option<String>,
    /// Its path, which may be a file name alone.
    pub path: Option<String>,
}

/// A name of every image, all of one kind and no two the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Naming {
    /// Describes this kind of name in messages.
    kind: &'static str,
    /// In the order of the images.
    names: Vec<String>,
}

/// The namings of some images; empty if no kind of name tells all of them apart.
pub(super) fn namings(images: &[Names]) -> Vec<Naming> {
    let of = |kind, name: fn(&Names) -> Option<&str>| {
        let names: Vec<String> = images.iter().map(|image| name(image).map(str::to_owned)).collect::<Option<_>>()?;
        let distinct: HashSet<&str> = names.iter().map(String::as_str).collect();
        (distinct.len() == names.len()).then_some(Naming { kind, names })
    };
    let kinds = [
        of("id", |names| names.id.as_deref()),
        of("name", |names| names.name.as_deref()),
        of("path", |names| names.path.as_deref()),
        of("file name", |names| names.path.as_deref().map(file_name)),
        of("file name without extension", |names| names.path.as_deref().map(stem)),
    ];
    kinds.into_iter().flatten().collect()
}

/// How the name of a candidate is looked up.
struct NameForm {
    /// Describes the shortened name in messages; none where it is not shortened.
    kind: Option<&'static str>,
    shorten: fn(&str) -> &str,
}

const FORMS: [NameForm; 3] = [
    NameForm { kind: None, shorten: |name| name },
    NameForm { kind: Some("file name"), shorten: file_name },
    NameForm { kind: Some("file name without extension"), shorten: stem },
];

/// References and candidates under the same names.
pub(super) struct MatchedCaptions {
    /// Names of the images with references, in their order.
    pub names: Vec<String>,
    /// Candidates by name.
    pub candidates: HashMap<String, String>,
    /// How images were matched, where it was not by id.
    pub note: Option<String>,
    /// Examples of the names of the images with references, one for each kind of name.
    pub examples: Vec<String>,
}

/// Names both sides in the way in which most candidates have references; the first one of several.
/// `namings` are those of the references, at least one.
pub(super) fn matched(mut namings: Vec<Naming>, candidates: HashMap<String, String>) -> MatchedCaptions {
    let (mut most, mut chosen, mut shortest) = (0, 0, &FORMS[0]);
    for form in &FORMS {
        let shortened: HashSet<&str> = candidates.keys().map(|name| (form.shorten)(name)).collect();
        if shortened.len() < candidates.len() {
            continue;
        }
        for (at, naming) in namings.iter().enumerate() {
            let known = naming.names.iter().filter(|name| shortened.contains(name.as_str())).count();
            if known > most {
                (most, chosen, shortest) = (known, at, form);
            }
        }
    }
    let mut examples: Vec<String> = namings.iter().filter_map(|naming| naming.names.first().cloned()).collect();
    examples.dedup();
    let Naming { kind, names } = namings.swap_remove(chosen);
    let kind = shortest.kind.unwrap_or(kind);
    let note = (most > 0 && kind != "id").then(|| format!("images are matched by {kind}"));
    let shorten = |(name, caption): (String, String)| ((shortest.shorten)(&name).to_owned(), caption);
    MatchedCaptions { names, candidates: candidates.into_iter().map(shorten).collect(), note, examples }
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

fn stem(path: &str) -> &str {
    let name = file_name(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| if stem.is_empty() { name } else { stem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: &str, path: &str) -> Names {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Names { id: some(id), name: None, path: some(path) }
    }

    /// The names that were found of candidates, in the order of the references, and the note.
    fn found(images: &[Names], candidates: &[&str]) -> (Vec<String>, String) {
        let candidates = candidates.iter().map(|name| ((*name).to_owned(), format!("of {name}"))).collect();
        let MatchedCaptions { names, candidates, note, .. } = matched(namings(images), candidates);
        let found = names.iter().filter_map(|name| candidates.get(name).cloned()).collect();
        (found, note.unwrap_or_default())
    }

    #[test]
    fn images_are_matched_by_whatever_both_sides_have() {
        let images = [named("7", "val/a.jpg"), named("9", "val/b.jpg")];
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
            assert_eq!(found(&images, &candidates), (expected.to_vec(), note), "{candidates:?}");
        }
        let tars = [
            Names { name: Some("a.tar/0".into()), ..named("", "0") },
            Names { name: Some("b.tar/0".into()), ..named("", "0") },
        ];
        assert_eq!(found(&tars, &["b.tar/0"]), (vec!["of b.tar/0".into()], "images are matched by name".into()));
    }

    #[test]
    fn names_that_several_images_have_match_none() {
        let images = [named("", "x/a.jpg"), named("", "y/a.jpg")];
        assert_eq!(namings(&images).len(), 1);
        assert_eq!(found(&images, &["a.jpg"]).0, [""; 0]);
        // Candidates whose file names are the same are not one.
        assert_eq!(found(&[named("", "a.jpg")], &["x/a.jpg", "y/a.jpg"]).0, [""; 0]);
        assert!(namings(&[named("", ""), named("1", "")]).is_empty());
    }

    #[test]
    fn the_way_that_knows_most_is_taken() {
        let images = [named("1", "2.jpg"), named("2", "3.jpg"), named("4", "5.jpg")];
        assert_eq!(found(&images, &["2.jpg", "5.jpg", "1"]).0, ["of 2.jpg", "of 5.jpg"]);
        // By id rather than by what is left of the file name, where both know as many.
        assert_eq!(found(&images, &["1", "2"]), (vec!["of 1".into(), "of 2".into()], String::new()));
    }

    #[test]
    fn hidden_files_and_folders_have_names() {
        assert_eq!(["a/b.c.jpg", ".hidden", "a/", ""].map(stem), ["b.c", ".hidden", "", ""]);
    }
}
