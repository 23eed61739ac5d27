use std::path::PathBuf;

use object_store::path::Path as Key;
use url::Url;

use crate::LocationError;

/// A folder or a prefix of a bucket.
#[derive(Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder on a disk.
    Folder(PathBuf),
    /// An S3 bucket, or the part of it below a prefix.
    Bucket {
        /// The name of the bucket.
        name: String,
        /// The prefix of the keys of all objects at the location; may be empty.
        prefix: Key,
    },
}

impl Location {
    /// Parses a path, `file:///folder` or `s3://bucket/prefix`.
    ///
    /// # Errors
    /// The location has none of these forms, or its prefix is not a valid key.
    pub fn parse(location: &str) -> Result<Self, LocationError> {
        let error = |problem: String| LocationError { location: location.to_owned(), problem };
        let unknown_form =
            || error("is neither a path nor of the form file:///folder or s3://bucket/prefix".to_owned());
        match location.split_once("://") {
            None => Ok(Self::Folder(location.into())),
            Some(("file", _)) => {
                let folder = Url::parse(location).map_err(|problem| error(problem.to_string()))?.to_file_path();
                folder.map(Self::Folder).map_err(|()| unknown_form())
            }
            Some(("s3", rest)) => {
                let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if name.is_empty() {
                    return Err(unknown_form());
                }
                let prefix = Key::parse(prefix).map_err(|problem| error(problem.to_string()))?;
                Ok(Self::Bucket { name: name.to_owned(), prefix })
            }
            Some(_) => Err(unknown_form()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_are_parsed() {
        let folder = |path: &str| Location::Folder(path.into());
        let bucket = |prefix: &str| Location::Bucket { name: "bucket".into(), prefix: Key::parse(prefix).unwrap() };
        for (location, expected) in [
            ("runs/a", folder("runs/a")),
            ("/runs/a b", folder("/runs/a b")),
            ("file:///runs/a b%20c/", folder("/runs/a b c/")),
            ("s3://bucket", bucket("")),
            ("s3://bucket/", bucket("")),
            ("s3://bucket/runs/a/", bucket("runs/a")),
        ] {
            assert_eq!(Location::parse(location).unwrap(), expected, "{location}");
        }
    }

    #[test]
    fn other_urls_are_errors_with_the_url() {
        for location in ["s3://", "s3:///prefix", "s3://bucket/../a", "http://host/a", "file://host/a"] {
            let error = Location::parse(location).unwrap_err().to_string();
            assert!(error.starts_with(location), "{error}");
        }
    }
}
