use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Images and captions. Exactly one of `karpathy`, `coco` and `webdataset` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Karpathy's format: one annotation file for all splits.
    #[serde(default)]
    pub karpathy: Option<Karpathy>,
    /// COCO's format: one annotation file for each split.
    #[serde(default)]
    pub coco: Option<Coco>,
    /// WebDataset's format: tars of images and captions.
    #[serde(default)]
    pub webdataset: Option<WebDataset>,
    /// Scene graphs of the synthetic data set, which `worker synthesize` writes. With them
    /// evaluations also report `grammatical`, `truthful` and `details`.
    #[serde(default)]
    pub scenes: Option<PathBuf>,
    /// Generated images and captions of the training images, for contrastive stages that give them
    /// a weight.
    #[serde(default)]
    pub positives: Option<Positives>,
    /// Folder of feature stores, one for each split, that `worker encode` wrote. Images are then
    /// neither read nor encoded. The stores must come from the same vision encoders as the run's,
    /// and these must be frozen.
    #[serde(default)]
    pub features: Option<PathBuf>,
    /// Leave out images that are missing or cannot be decoded, count them and name them in the
    /// logs. If `false`, a run with such images refuses to start.
    #[serde(default)]
    pub skip_corrupt: bool,
    /// Turn photos as their EXIF orientation says. CLIP's own preprocessing ignores the
    /// orientation.
    #[serde(default)]
    pub exif: bool,
    /// How the offset of the centre crop is rounded where the margin is odd. The two differ by one
    /// pixel.
    #[serde(default)]
    pub crop_offset: CropOffset,
}

/// How the offset of the centre crop, half of the margin, becomes a whole number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CropOffset {
    /// To the nearest even number, as torchvision's `CenterCrop`, which OpenAI's CLIP and pacscore
    /// use.
    #[default]
    HalfToEven,
    /// Down, as the CLIP feature extractor of Hugging Face, which the DiCO release uses.
    Floor,
}

/// Karpathy's splits of COCO, Flickr8k and Flickr30k.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Karpathy {
    /// Karpathy's `dataset_*.json`.
    pub annotations: PathBuf,
    /// Folder that the annotations' `filepath` and `filename` are relative to.
    pub images: PathBuf,
}

/// COCO's own caption annotations, and those of VizWiz and nocaps, which have the same form.
/// Captions that VizWiz marks as rejected or precanned are left out. A split may be without
/// captions, or its file without `annotations`, where the run does not need them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Coco {
    /// The split that stages train on.
    pub train: CocoSplit,
    /// The split that evaluations during training use. `val` and `dev` are other names of this key.
    #[serde(alias = "val", alias = "dev")]
    pub validation: CocoSplit,
    /// The split that only `worker evaluate` uses.
    #[serde(default)]
    pub test: Option<CocoSplit>,
}

/// One split: its annotations and its images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CocoSplit {
    /// COCO's `captions_*.json`.
    pub annotations: PathBuf,
    /// Folder of the split's images.
    pub images: PathBuf,
}

/// Tars with a `key.jpg` and a `key.txt` (one caption a line) or `key.json` (`captions`, `caption`
/// or `text`, or a list) for each image. The key ends at the first dot of the file name; members
/// with other extensions are counted, not read. `image_id`, `cocoid` or `id` in the JSON is the
/// image's id in result files; without it, a key as in COCO (`COCO_val2014_000000379613`) has one.
/// Each split is a path or an `s3://` URL with brace patterns, such as
/// `s3://data/coco-{000..113}.tar`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebDataset {
    /// Tars of the split that stages train on.
    pub train: String,
    /// Tars of the split that evaluations during training use. `val` and `dev` are other names of
    /// this key.
    #[serde(alias = "val", alias = "dev")]
    pub validation: String,
    /// Tars of the split that only `worker evaluate` uses.
    #[serde(default)]
    pub test: Option<String>,
}

/// Extra positive pairs of the training split, which PAC-S is trained with. Every training image
/// needs a pair. With `skip_corrupt`, a training image is left out if its generated image is
/// missing or cannot be decoded; generated captions must always be there. The name of an image in a
/// tar is its key. If several images have the same file name, the path below the folder of images
/// (or `TAR/KEY`) identifies each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Positives {
    /// Folder of generated images, with the paths or file names of the real ones.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// JSON object of generated captions. A key is the path or file name of the real image, its
    /// value a list of captions.
    #[serde(default)]
    pub captions: Option<PathBuf>,
}
