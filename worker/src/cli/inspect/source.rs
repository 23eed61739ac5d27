//! Tells which kind of data set the argument of `worker inspect` names.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use config::{Coco, CocoSplit, Data, Karpathy, RunFile, WebDataset};
use dataset::Split;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The folder of images that is looked for beside annotations.
const IMAGES: &str = "images";

/// A data set to be inspected.
#[derive(Debug)]
pub struct Source {
    /// Where it is.
    pub settings: Data,
    /// The splits that it has, or may have.
    pub splits: Vec<Split>,
    /// The run that is to train on it, where it was named by a run file.
    pub run: Option<RunFile>,
}

/// As much of annotations as tells Karpathy's from COCO's.
#[derive(Deserialize)]
struct Annotations {
    #[serde(default)]
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    split: Option<IgnoredAny>,
    #[serde(default)]
    filename: Option<IgnoredAny>,
    #[serde(default)]
    sentences: Option<IgnoredAny>,
}

impl Source {
    /// Finds out what `data` is; `images` is the folder of the images of annotations.
    ///
    /// # Errors
    /// There is no such file, it is none of a data set, or a run file is wrong.
    pub fn open(data: &str, images: Option<&Path>) -> Result<Self, String> {
        let path = Path::new(data);
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let is_tar = extension.as_deref() == Some("tar");
        if !is_tar && !path.exists() {
            return Err(format!("{data}: there is no such file"));
        }
        if path.is_dir() {
            return Err(format!(
                "{data}: is a folder: name a run file, annotations or tars (`tar -cf NAME.tar -C {data} .` makes a tar of images \
                 with .txt or .json files beside them)"
            ));
        }
        match extension.as_deref() {
            Some("yaml" | "yml") => Self::of_run(path),
            Some("json") => Ok(Self::of_annotations(path, images)),
            Some("tar") => Ok(Self::of_tars(data)),
            _ => Err(format!("{data}: neither a run file (.yaml), nor annotations (.json), nor tars (.tar)")),
        }
    }

    fn of_run(path: &Path) -> Result<Self, String> {
        let run = RunFile::load(path).map_err(|error| error.to_string())?;
        let settings = run.data.clone();
        let has_test = settings.karpathy.is_some()
            || settings.coco.as_ref().is_some_and(|coco| coco.test.is_some())
            || settings.webdataset.as_ref().is_some_and(|tars| tars.test.is_some());
        let splits = Split::ALL.into_iter().filter(|split| has_test || *split != Split::Test).collect();
        Ok(Self { settings, splits, run: Some(run) })
    }

    fn of_annotations(path: &Path, images: Option<&Path>) -> Self {
        let images = images.map_or_else(|| images_beside(path), Path::to_owned);
        let annotations = path.to_owned();
        if is_karpathys(path) {
            let karpathy = Some(Karpathy { annotations, images });
            let settings = Data { karpathy, ..Data::default() };
            return Self { settings, splits: Split::ALL.to_vec(), run: None };
        }
        let split = CocoSplit { annotations, images };
        let coco = Some(Coco { train: split.clone(), validation: split, test: None });
        Self { settings: Data { coco, ..Data::default() }, splits: vec![Split::Train], run: None }
    }

    fn of_tars(pattern: &str) -> Self {
        let webdataset = Some(WebDataset { train: pattern.to_owned(), validation: pattern.to_owned(), test: None });
        Self { settings: Data { webdataset, ..Data::default() }, splits: vec![Split::Train], run: None }
    }
}

fn images_beside(annotations: &Path) -> PathBuf {
    let folder = annotations.parent().unwrap_or(Path::new(""));
    let images = folder.join(IMAGES);
    if images.is_dir() { images } else { folder.to_owned() }
}

/// Whether annotations are in Karpathy's form rather than in COCO's. What is wrong with others is
/// said when they are read.
fn is_karpathys(path: &Path) -> bool {
    let read = |file| serde_json::from_reader::<_, Annotations>(BufReader::new(file)).ok();
    let images = File::open(path).ok().and_then(read).map_or_else(Vec::new, |annotations| annotations.images);
    images.iter().any(|image| image.split.is_some() || image.filename.is_some() || image.sentences.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_known_by_their_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let source = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Source::open(path.to_str().unwrap(), None).unwrap()
        };
        let karpathys = source(r#"{"images": [{"filename": "a.jpg", "split": "val", "sentences": []}]}"#);
        assert_eq!(karpathys.settings.karpathy.unwrap().images, folder.path());
        assert_eq!(karpathys.splits, Split::ALL);
        std::fs::create_dir(folder.path().join("images")).unwrap();
        let cocos = source(r#"{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}"#);
        assert_eq!(cocos.settings.coco.unwrap().train.images, folder.path().join("images"));
        assert_eq!(cocos.splits, [Split::Train]);
        for odd in ["[]", "{", "{}"] {
            assert!(source(odd).settings.coco.is_some(), "{odd}");
        }
    }

    #[test]
    fn what_is_no_data_set_is_refused_with_what_would_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let problem = |name: &str| Source::open(folder.path().join(name).to_str().unwrap(), None).unwrap_err();
        assert!(problem("missing.json").ends_with("missing.json: there is no such file"));
        assert!(problem("").contains("is a folder: name a run file, annotations or tars (`tar -cf NAME.tar -C "));
        std::fs::write(folder.path().join("a.csv"), "").unwrap();
        assert!(problem("a.csv").ends_with("neither a run file (.yaml), nor annotations (.json), nor tars (.tar)"));
        std::fs::write(folder.path().join("a.yaml"), "name: [").unwrap();
        assert!(problem("a.yaml").contains("a.yaml:1:"));
        let tars = Source::open("s3://bucket/x-{0..3}.tar", None).unwrap();
        assert_eq!(tars.settings.webdataset.unwrap().train, "s3://bucket/x-{0..3}.tar");
    }
}
