//! Determines the kind of data set that the argument of `worker inspect` names.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use config::{Coco, CocoSplit, Data, Karpathy, RunFile, WebDataset};
use dataset::Split;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The default folder of images, beside annotations.
const IMAGE_FOLDER: &str = "images";

/// A data set to inspect.
#[derive(Debug)]
pub struct DataSource {
    /// The `data` section of a run file that describes the data set.
    pub settings: Data,
    /// The splits that it may have.
    pub splits: Vec<Split>,
    /// The run file, if the argument is one.
    pub run: Option<RunFile>,
}

/// The fields that distinguish Karpathy's annotations from COCO's.
#[derive(Deserialize)]
struct AnnotationFields {
    #[serde(default)]
    images: Vec<ImageFields>,
}

#[derive(Deserialize)]
struct ImageFields {
    #[serde(default)]
    split: Option<IgnoredAny>,
    #[serde(default)]
    filename: Option<IgnoredAny>,
    #[serde(default)]
    sentences: Option<IgnoredAny>,
}

impl DataSource {
    /// Determines the kind of `data`. `images` is the folder of the images of annotations.
    ///
    /// # Errors
    /// The file does not exist, is not a data set, or is an invalid run file.
    pub fn open(data: &str, images: Option<&Path>) -> Result<Self> {
        let path = Path::new(data);
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let is_tar = extension.as_deref() == Some("tar");
        if !is_tar && !path.exists() {
            bail!("{data}: there is no such file");
        }
        if path.is_dir() {
            bail!(
                "{data}: is a folder: name a run file, annotations or tars (`tar -cf NAME.tar -C {data} .` makes a tar of images \
                 with .txt or .json files beside them)"
            );
        }
        match extension.as_deref() {
            Some("yaml" | "yml") => Self::from_run_file(path),
            Some("json") => Ok(Self::from_annotations(path, images)),
            Some("tar") => Ok(Self::from_tars(data)),
            _ => bail!("{data}: neither a run file (.yaml), nor annotations (.json), nor tars (.tar)"),
        }
    }

    fn from_run_file(path: &Path) -> Result<Self> {
        let run = RunFile::load(path)?;
        let settings = run.data.clone();
        let has_test = settings.karpathy.is_some()
            || settings.coco.as_ref().is_some_and(|coco| coco.test.is_some())
            || settings.webdataset.as_ref().is_some_and(|tars| tars.test.is_some());
        let splits = Split::ALL.into_iter().filter(|split| has_test || *split != Split::Test).collect();
        Ok(Self { settings, splits, run: Some(run) })
    }

    fn from_annotations(path: &Path, images: Option<&Path>) -> Self {
        let images = images.map_or_else(|| default_image_folder(path), Path::to_owned);
        let annotations = path.to_owned();
        if is_karpathy(path) {
            let karpathy = Some(Karpathy { annotations, images });
            let settings = Data { karpathy, ..Data::default() };
            return Self { settings, splits: Split::ALL.to_vec(), run: None };
        }
        // A `data` section needs a validation split, but only `train` is loaded.
        let split = CocoSplit { annotations, images };
        let coco = Some(Coco { train: split.clone(), validation: split, test: None });
        Self { settings: Data { coco, ..Data::default() }, splits: vec![Split::Train], run: None }
    }

    fn from_tars(pattern: &str) -> Self {
        // As above: only `train` is loaded.
        let webdataset = Some(WebDataset { train: pattern.to_owned(), validation: pattern.to_owned(), test: None });
        Self { settings: Data { webdataset, ..Data::default() }, splits: vec![Split::Train], run: None }
    }
}

/// The default folder of the images of annotations.
fn default_image_folder(annotations: &Path) -> PathBuf {
    let folder = annotations.parent().unwrap_or(Path::new(""));
    let images = folder.join(IMAGE_FOLDER);
    if images.is_dir() { images } else { folder.to_owned() }
}

/// Whether annotations have Karpathy's format. Others are read as COCO's, which reports errors.
fn is_karpathy(path: &Path) -> bool {
    let read = |file| serde_json::from_reader::<_, AnnotationFields>(BufReader::new(file)).ok();
    let images = File::open(path).ok().and_then(read).map_or_else(Vec::new, |annotations| annotations.images);
    images.iter().any(|image| image.split.is_some() || image.filename.is_some() || image.sentences.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_of_annotations_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let source = |text: &str| {
            std::fs::write(&path, text).unwrap();
            DataSource::open(path.to_str().unwrap(), None).unwrap()
        };
        let karpathy = source(r#"{"images": [{"filename": "a.jpg", "split": "val", "sentences": []}]}"#);
        assert_eq!(karpathy.settings.karpathy.unwrap().images, folder.path());
        assert_eq!(karpathy.splits, Split::ALL);
        std::fs::create_dir(folder.path().join("images")).unwrap();
        let coco = source(r#"{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}"#);
        assert_eq!(coco.settings.coco.unwrap().train.images, folder.path().join("images"));
        assert_eq!(coco.splits, [Split::Train]);
        for invalid in ["[]", "{", "{}"] {
            assert!(source(invalid).settings.coco.is_some(), "{invalid}");
        }
    }

    #[test]
    fn the_error_for_an_invalid_argument_names_the_valid_kinds() {
        let folder = tempfile::tempdir().unwrap();
        let problem = |name: &str| {
            let data = folder.path().join(name);
            DataSource::open(data.to_str().unwrap(), None).unwrap_err().to_string()
        };
        assert!(problem("missing.json").ends_with("missing.json: there is no such file"));
        assert!(problem("").contains("is a folder: name a run file, annotations or tars (`tar -cf NAME.tar -C "));
        std::fs::write(folder.path().join("a.csv"), "").unwrap();
        assert!(problem("a.csv").ends_with("neither a run file (.yaml), nor annotations (.json), nor tars (.tar)"));
        std::fs::write(folder.path().join("a.yaml"), "name: [").unwrap();
        assert!(problem("a.yaml").contains("a.yaml:1:"));
        let tars = DataSource::open("s3://bucket/x-{0..3}.tar", None).unwrap();
        assert_eq!(tars.settings.webdataset.unwrap().train, "s3://bucket/x-{0..3}.tar");
    }
}
