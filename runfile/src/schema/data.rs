use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Images and captions: exactly one of `karpathy`, `coco` and `webdataset`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// One annotation file for all splits.
    #[serde(default)]
    pub karpathy: Option<Karpathy>,
    /// One annotation file a split.
    #[serde(default)]
    pub coco: Option<Coco>,
    /// Tars of images and captions.
    #[serde(default)]
    pub webdataset: Option<WebDataset>,
    /// Scene graphs of the built-in world; with them evaluations also report `grammatical`, `truthful` and `details`.
    #[serde(default)]
    pub scenes: Option<PathBuf>,
    /// Generated images and captions of training images, for contrastive stages that weigh them in.
    #[serde(default)]
    pub positives: Option<Positives>,
    /// Folder of feature stores, one a split, that `worker encode` wrote: images are then neither read nor encoded.
    #[serde(default)]
    pub features: Option<PathBuf>,
    /// Leave out (and count, and name in the logs) images that are missing or cannot be decoded,
    /// instead of refusing to start.
    #[serde(default)]
    pub skip_corrupt: bool,
    /// Turn photos as their EXIF orientation says. CLIP's own preprocessing ignores it, and so does
    /// this program by default.
    #[serde(default)]
    pub exif: bool,
}

/// Karpathy's splits of COCO, Flickr8k and Flickr30k.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Karpathy {
    /// Karpathy's `dataset_*.json`.
    pub annotations: PathBuf,
    /// Folder below which the annotations' `filepath`/`filename` lie.
    pub images: PathBuf,
}

/// COCO's own caption annotations, and those of VizWiz and nocaps, which have the same form.
/// Captions that VizWiz marks as rejected or precanned are left out. A split may be without
/// captions, or its file without `annotations`, where the run does not need them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coco {
    /// Trained on.
    pub train: CocoSplit,
    /// Evaluated on. `val` and `dev` are other names of this key.
    #[serde(alias = "val", alias = "dev")]
    pub validation: CocoSplit,
    /// Never used in training.
    #[serde(default)]
    pub test: Option<CocoSplit>,
}

/// A split of COCO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CocoSplit {
    /// `captions_*.json`.
    pub annotations: PathBuf,
    /// Folder of its images.
    pub images: PathBuf,
}

/// Tars with a `key.jpg` and a `key.txt` (one caption a line) or `key.json` (`captions`, `caption`
/// or `text`, or a list) for each image. The key ends at the first dot of the file name; members
/// with other extensions are counted, not read. `image_id`, `cocoid` or `id` in the JSON is the
/// image's id in result files; without it, a key as in COCO (`COCO_val2014_000000379613`) has one.
/// Each split is a path or an `s3://` URL with brace patterns, such as
/// `s3://data/coco-{000..113}.tar`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebDataset {
    /// Trained on.
    pub train: String,
    /// Evaluated on. `val` and `dev` are other names of this key.
    #[serde(alias = "val", alias = "dev")]
    pub validation: String,
    /// Never used in training.
    #[serde(default)]
    pub test: Option<String>,
}

/// Extra positive pairs of the training split, as PAC-S is trained with: each is of the same image as the real pair. Every training
/// image needs one: with `skip_corrupt`, a training image whose generated image is missing or
/// cannot be decoded is left out, but generated captions must be there. Of an image in a tar the
/// name is its key. Where several images have the same file name, the path below the folder of
/// images (or `TAR/KEY`) identifies each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Positives {
    /// Folder of generated images, under the paths or file names of the real ones.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// JSON object of generated captions: path or file name of the image to a list.
    #[serde(default)]
    pub captions: Option<PathBuf>,
}
