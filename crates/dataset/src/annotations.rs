//! Code shared by the annotation formats: JSON files, captions, and image paths, which must stay in
//! their folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::Error;

/// The size of the read buffer, in bytes. Annotation files may have hundreds of megabytes: they are
/// parsed while they are read, and their text is never in memory as a whole.
const BUFFER_BYTES: usize = 1 << 20;
/// Maximal number of keys of a JSON file that an error names.
const MAX_NAMED_KEYS: usize = 8;

/// Reads a JSON file in UTF-8, with or without a byte-order mark.
///
/// # Errors
/// The file cannot be read, is UTF-16, or does not parse as `T`. A parse error has line and column.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let read_error = |source| Error::Read { location: path.display().to_string(), source };
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, File::open(path).map_err(read_error)?);
    let start = reader.fill_buf().map_err(read_error)?;
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        return Err(Error::invalid(path.display(), "the file is UTF-16; save it as UTF-8"));
    }
    skip_byte_order_mark(&mut reader).map_err(read_error)?;
    serde_json::from_reader(reader).map_err(|error| {
        if error.is_io() {
            read_error(error.into())
        } else {
            Error::invalid(path.display(), describe_parse_error(&error, path))
        }
    })
}

/// Describes a parse error. If the key `images` is missing, also names the keys that the file has.
fn describe_parse_error(error: &serde_json::Error, path: &Path) -> String {
    let text = error.to_string();
    if !text.starts_with("missing field `images`") {
        return text;
    }
    let keys = File::open(path).ok().and_then(|file| {
        let mut reader = BufReader::new(file);
        skip_byte_order_mark(&mut reader).ok()?;
        serde_json::from_reader(reader).ok()
    });
    let keys: BTreeMap<String, IgnoredAny> = keys.unwrap_or_default();
    let named: Vec<String> = keys.keys().take(MAX_NAMED_KEYS).map(|key| format!("`{key:.40}`")).collect();
    let more = if keys.len() > named.len() { ", ..." } else { "" };
    if named.is_empty() { text } else { format!("{text}: its keys are {}{more}", named.join(", ")) }
}

/// Skips UTF-8's byte-order mark at the start of a file.
fn skip_byte_order_mark(reader: &mut BufReader<File>) -> io::Result<()> {
    let start = reader.fill_buf()?;
    let mark_bytes = start.len() - without_byte_order_mark(start).len();
    reader.consume(mark_bytes);
    Ok(())
}

/// `bytes` without UTF-8's byte-order mark, which some editors put at the start of a file.
pub fn without_byte_order_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// A JSON value whose type differs between data sets, such as `true` or 1 for a flag.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum LenientValue {
    Flag(bool),
    Number(i64),
    Text(String),
    Other(IgnoredAny),
}

impl LenientValue {
    /// Whether the value is `true` or an integer other than 0 (in the range of an `i64`).
    pub fn is_set(&self) -> bool {
        matches!(self, Self::Flag(true)) || matches!(self, Self::Number(number) if *number != 0)
    }

    /// The value of a non-negative integer below 2^63, or of a string of digits below 2^64.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => u64::try_from(*number).ok(),
            Self::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            _ => None,
        }
    }

    /// The value of a string.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

/// Removes white space and byte-order marks around each caption, and captions that are then empty.
pub fn clean_captions(captions: impl IntoIterator<Item = String>) -> Vec<String> {
    let is_space = |c: char| c.is_whitespace() || c == '\u{feff}';
    let trimmed = captions.into_iter().map(|caption| match caption.trim_matches(is_space) {
        trimmed if trimmed.len() == caption.len() => caption,
        trimmed => trimmed.to_owned(),
    });
    trimmed.filter(|caption| !caption.is_empty()).collect()
}

/// The path of `file` below `folder`; none if `file` is absolute or contains `..`, because it may
/// lead out of the folder.
pub fn join_below(folder: &Path, file: &Path) -> Option<PathBuf> {
    let is_inside = file.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir));
    is_inside.then(|| folder.join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_trimmed_and_blank_ones_dropped() {
        let captions = [" A dog. \n", "", "  ", "a cat", "\u{feff}", "\u{feff}a bus\r\n"].map(str::to_owned);
        assert_eq!(clean_captions(captions), ["A dog.", "a cat", "a bus"]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let parse = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            read_json::<Vec<String>>(file.path()).map_err(|error| error.to_string())
        };
        assert_eq!(parse(b"[\"a\"]").unwrap(), ["a"]);
        assert_eq!(parse(b"\xef\xbb\xbf[\"a\"]").unwrap(), ["a"]);
        assert!(parse(b"\xef\xbb\xbf").unwrap_err().contains("EOF"));
        assert!(parse(b"").unwrap_err().contains("EOF"));
        for mark in [b"\xff\xfe[\0", b"\xfe\xff\0["] {
            assert!(parse(mark).unwrap_err().ends_with("the file is UTF-16; save it as UTF-8"));
        }
    }

    #[test]
    fn an_error_names_the_keys_of_a_file_without_images() {
        #[derive(Debug, Deserialize)]
        struct Annotations {
            #[expect(dead_code, reason = "only its name counts")]
            images: Vec<String>,
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let problem = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            read_json::<Annotations>(file.path()).unwrap_err().to_string()
        };
        assert!(problem(r#"{"photos": [], "about": {"images": 1}}"#).ends_with(": its keys are `about`, `photos`"));
        let many: Vec<String> = (0..99).map(|key| format!(r#""{key:0100}": 0"#)).collect();
        let many = problem(&format!("{{{}}}", many.join(",")));
        assert!(many.ends_with("0`, ...") && many.len() < 600, "{many}");
        assert!(problem("\u{feff}{\"photos\": []}").ends_with(": its keys are `photos`"));
        assert!(problem("{}").contains("missing field `images`"));
        assert!(!problem(r#"{"images": [1]}"#).contains("its keys"));
    }

    #[test]
    fn lenient_values_accept_any_type() {
        let values: Vec<LenientValue> =
            serde_json::from_str(r#"[true, 1, 0, "7", "x", null, {"a": [1]}, -3, 1.5, "99999999999999999999"]"#)
                .unwrap();
        let numbers: Vec<_> = values.iter().map(LenientValue::number).collect();
        assert_eq!(numbers, [None, Some(1), Some(0), Some(7), None, None, None, None, None, None]);
        assert_eq!(values.iter().filter(|value| value.is_set()).count(), 3);
        assert_eq!(values[4].text(), Some("x"));
    }

    #[test]
    fn a_path_that_leads_out_of_its_folder_is_refused() {
        let folder = Path::new("/images");
        assert_eq!(join_below(folder, Path::new("a/./b.jpg")), Some(PathBuf::from("/images/a/./b.jpg")));
        for outside in ["../a.jpg", "a/../../b.jpg", "/etc/passwd", "a/.."] {
            assert_eq!(join_below(folder, Path::new(outside)), None, "{outside}");
        }
    }
}
