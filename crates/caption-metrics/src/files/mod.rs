//! Reads references and candidates from JSON files, in the formats of captioners and COCO.
//!
//! Both files may have any of these formats:
//!
//! - `{"ID": ["caption", ...], ...}` or `{"ID": "caption", ...}`;
//! - COCO's annotations, `{"annotations": [{"image_id": ID, "caption": "..."}, ...], ...}`;
//! - COCO's results, `[{"image_id": ID, "caption": "..."}, ...]`.
//!
//! References may also be Karpathy's `dataset_*.json`. Then the references of one of its splits are
//! used.
//!
//! Two data sets extend COCO's annotations. VizWiz marks captions as rejected or precanned: these
//! references are left out. nocaps gives images a `domain`: each domain then also has scores.
//!
//! An ID is a string or an integer; `7` and `"7"` are the same. Line breaks and other control
//! characters in captions become spaces, because pycocoevalcap would read the text after a line
//! break as the next caption.
//!
//! Files are UTF-8, with or without a byte-order mark. The path `-` is standard input.
//!
//! Each file may name an image by its id, its path or its file name. The kind of name that matches
//! most candidates is used.
//!
//! The images with a candidate are scored, as in COCO's own evaluation of results. References of
//! other images are left out, also of CIDEr's document frequencies.
//!
//! | module | content |
//! |---|---|
//! | `document` | parses the JSON formats |
//! | `references` | the formats that only references have |
//! | `name_matching` | matches the images of references and candidates |
//! | `judgements` | human judgements of captions |

mod document;
pub mod judgements;
mod name_matching;
mod references;

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

use self::document::{CaptionDocument, FormatError};
pub use self::name_matching::ImageNames;
use self::name_matching::{MatchedCaptions, match_images};
pub use self::references::ReferenceImage;
use self::references::References;
use crate::{Error, Item, Metrics, Report};

/// Candidates with their references, as read from files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionSet {
    /// The name of each image by which its candidate was found: the id, the path or the file name.
    /// The images are in the order in which the references first name them.
    pub ids: Vec<String>,
    /// All names that the references have for each image, in the same order.
    pub images: Vec<ImageNames>,
    /// The candidate and the references of each image, in the same order.
    pub items: Vec<Item>,
    /// The domain of each image, if it has one, in the same order.
    pub domains: Vec<Option<&'static str>>,
    /// The number of images that have references but no candidate.
    pub images_without_candidate: usize,
    /// Notes for the user on how candidates and references were matched, one line each.
    pub notes: Vec<String>,
}

impl CaptionSet {
    /// Reads both files; one of them may be [`STDIN`]. If the references are Karpathy's JSON,
    /// `split` is the split to read, under any name that
    /// [`metric_catalogue::names::canonical_split`] knows; by default `test`.
    ///
    /// # Errors
    /// A file cannot be read, is not JSON in one of the formats, or has no captions. An image in
    /// the file of candidates does not have exactly one, or has no references or a blank one.
    /// `split` is unknown or has no images, or is given for references in another format than
    /// Karpathy's. Both paths are standard input.
    pub fn read(references: &Path, candidates: &Path, split: Option<&str>) -> Result<Self, Error> {
        if is_stdin(references) && is_stdin(candidates) {
            return Err(Error::invalid(
                display_path(candidates),
                "can be read only once; name a file for the references or for the candidates",
            ));
        }
        let parsed = References::from_document(read_document(references)?, split);
        let parsed = parsed.map_err(|problem| Error::invalid(display_path(references), problem))?;
        Self::pair(display_path(references), parsed, read_candidates(candidates)?)
    }

    /// Reads a file of candidates, or [`STDIN`], for references that were read elsewhere; error
    /// messages name `source` as the origin of the references.
    ///
    /// # Errors
    /// As for [`read`](Self::read), or `images` is empty.
    pub fn with_references(source: &Path, images: Vec<ReferenceImage>, candidates: &Path) -> Result<Self, Error> {
        if images.is_empty() {
            return Err(Error::invalid(source, "the split has no images"));
        }
        Self::pair(source, References::from_images(images), read_candidates(candidates)?)
    }

    /// Pairs each candidate with the references of its image.
    fn pair(source: &Path, references: References, candidates: HashMap<String, String>) -> Result<Self, Error> {
        let References { images, name_kinds, captions, domains, excluded } = references;
        let MatchedCaptions { names, mut candidates, note, examples } = match_images(name_kinds, candidates);
        let mut set = Self {
            ids: vec![],
            images: vec![],
            items: vec![],
            domains: vec![],
            images_without_candidate: 0,
            notes: vec![],
        };
        set.notes.extend(note);
        let mut images_without_usable_references = 0;
        for (((id, references), domain), image) in names.into_iter().zip(captions).zip(domains).zip(images) {
            let Some(candidate) = candidates.remove(&id) else {
                set.images_without_candidate += 1;
                continue;
            };
            if references.is_empty() && excluded > 0 {
                images_without_usable_references += 1;
                continue;
            }
            if references.is_empty() {
                let problem = format!("image {id:?} has no references; add some or remove its candidate");
                return Err(Error::invalid(source, problem));
            }
            if let Some(blank) = references.iter().position(|caption| is_blank(caption)) {
                let problem = format!("reference {} of image {id:?} is blank; remove it or write it", blank + 1);
                return Err(Error::invalid(source, problem));
            }
            set.ids.push(id);
            set.images.push(image);
            set.domains.push(domain);
            set.items.push(Item { candidate, references });
        }
        if excluded > 0 {
            let images = match images_without_usable_references {
                0 => String::new(),
                count => format!("; {count} images have no others and are left out"),
            };
            set.notes
                .push(format!("{excluded} references that are marked as rejected or precanned are left out{images}"));
        }
        // The first by name, so that the message is the same in each call.
        if let Some(id) = candidates.keys().min() {
            let count = candidates.len();
            let remedy = if set.items.is_empty() {
                let examples = examples.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
                format!("its images are named {examples}, ...")
            } else {
                "add them".into()
            };
            let problem = format!("has no references for {count} of the candidates' images, such as {id:?}; {remedy}");
            return Err(Error::invalid(source, problem));
        }
        Ok(set)
    }

    /// Scores the candidates. The report notes blank candidates and images without candidates.
    #[must_use]
    pub fn score(&self, metrics: &Metrics) -> Report {
        let mut report = metrics.score(&self.items);
        let mut blank = self.ids.iter().zip(&self.items).filter(|(_, item)| is_blank(&item.candidate));
        if let Some((first, _)) = blank.next() {
            let (count, total) = (1 + blank.count(), self.items.len());
            report
                .notes
                .push(format!("{count} of {total} candidates are blank and score 0, such as that of image {first:?}"));
        }
        metrics.add_domains(&self.items, &self.domains, &mut report);
        report.notes.extend(self.notes.iter().cloned());
        if self.images_without_candidate > 0 {
            let (count, total) = (self.images_without_candidate, self.images_without_candidate + self.items.len());
            report.notes.push(format!("{count} of {total} images with references have no candidate and are left out"));
        }
        report
    }
}

/// The path that stands for standard input.
pub const STDIN: &str = "-";

fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// The name of a file in messages.
fn display_path(path: &Path) -> &Path {
    if is_stdin(path) { Path::new("standard input") } else { path }
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    if !is_stdin(path) {
        return std::fs::read(path);
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_document(path: &Path) -> Result<CaptionDocument, Error> {
    let bytes = read_bytes(path).map_err(|source| Error::file(display_path(path), source))?;
    CaptionDocument::parse(&bytes).map_err(|problem| Error::invalid(display_path(path), problem))
}

/// Reads the candidate of each image, by the image's name in the file.
fn read_candidates(path: &Path) -> Result<HashMap<String, String>, Error> {
    let captions = read_document(path)?.into_captions().and_then(|captions| match captions.is_empty() {
        true => Err(FormatError::NoCaptions),
        false => Ok(captions),
    });
    let single = |(id, captions): (String, Vec<String>)| {
        let count = captions.len();
        let [candidate] = <[String; 1]>::try_from(captions).map_err(|_| {
            Error::invalid(display_path(path), format!("image {id:?} has {count} candidates; give it exactly one"))
        })?;
        Ok((id, candidate))
    };
    captions.map_err(|problem| Error::invalid(display_path(path), problem))?.into_iter().map(single).collect()
}

/// Replaces line breaks, including Unicode's two separators, and other control characters with
/// spaces.
fn single_line(caption: &str) -> String {
    caption.replace(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'), " ")
}

/// Whether `caption` contains only white space and invisible characters.
fn is_blank(caption: &str) -> bool {
    let is_invisible = |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}');
    caption.chars().all(|c| c.is_whitespace() || is_invisible(c))
}

#[cfg(test)]
mod tests;
