//! The captions of the same images before and after a stage, with the images.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::anyhow;
use base64::{Engine, engine::general_purpose::STANDARD};
use config::{Data, RunFile};
use dataset::{DataSet, Item, Split};
use image::codecs::jpeg::JpegEncoder;
use journal::{Caption, Error, EvaluationId, ReadOnlyJournal};
use serde::Serialize;

/// Maximal number of images in the report.
const MAX_IMAGES: u32 = 12;
/// Width and height of a picture, in pixels.
const PICTURE_SIZE: u32 = 224;
/// The JPEG quality of a picture, from 1 to 100.
const JPEG_QUALITY: u8 = 82;

/// The captions of two evaluations for the same images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Captions {
    /// Stage and step of the earlier evaluation; `None` if there is none.
    pub before: Option<(u32, u64)>,
    /// Stage and step of the later evaluation.
    pub after: (u32, u64),
    /// The images, spread evenly over the split.
    pub images: Vec<CaptionedImage>,
    /// Why no picture can be shown; `None` if at least one can be shown or there are no images.
    pub no_pictures: Option<String>,
}

/// An image with its captions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaptionedImage {
    /// The name of the image.
    pub image: String,
    /// The caption of the earlier evaluation.
    pub before: Option<String>,
    /// The caption of the later evaluation.
    pub after: String,
    /// The reference captions.
    pub references: Vec<String>,
    /// The scores of the earlier caption.
    pub scores_before: BTreeMap<String, f64>,
    /// The scores of the later caption.
    pub scores_after: BTreeMap<String, f64>,
    /// The image, resized and cropped as for CLIP, as the `data:` URL of a JPEG; `None` if it
    /// cannot be read.
    pub picture: Option<String>,
}

impl Captions {
    /// Reads the captions of an evaluation, and those of an earlier evaluation for the same images.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn read(
        journal: &ReadOnlyJournal,
        settings: &RunFile,
        before: Option<EvaluationId>,
        after: EvaluationId,
    ) -> Result<Self, Error> {
        let mut images = Vec::new();
        for Caption { image, caption, references, scores } in journal.captions(after, MAX_IMAGES)? {
            let earlier = before.map(|before| journal.caption(before, &image)).transpose()?.flatten();
            let (before, scores_before) = earlier.map(|earlier| (earlier.caption, earlier.scores)).unzip();
            images.push(CaptionedImage {
                image,
                before,
                after: caption,
                references,
                scores_before: scores_before.unwrap_or_default(),
                scores_after: scores,
                picture: None,
            });
        }
        let position = |evaluation: EvaluationId| (evaluation.position.stage, evaluation.position.step);
        let no_pictures = add_pictures(&settings.data, &mut images).err().map(|error| error.to_string());
        Ok(Self { before: before.map(position), after: position(after), images, no_pictures })
    }
}

/// Adds pictures to images of the validation split. An image that cannot be read gets no picture.
///
/// # Errors
/// The data cannot be read, or no image can be read.
fn add_pictures(data: &Data, images: &mut [CaptionedImage]) -> anyhow::Result<()> {
    let data = DataSet::load_annotations(data, Split::Validation)?;
    let names: BTreeSet<&str> = images.iter().map(|captioned| captioned.image.as_str()).collect();
    let items = data.split(Split::Validation).iter().filter(|item| names.contains(item.name.as_str()));
    let items: BTreeMap<String, &Item> = items.map(|item| (item.name.clone(), item)).collect();
    let mut problem = None;
    for captioned in images.iter_mut() {
        match items.get(&captioned.image).map(|item| picture(&data, item)) {
            Some(Ok(picture)) => captioned.picture = Some(picture),
            Some(Err(error)) => problem = Some(error),
            None => problem = Some(anyhow!("{} is not in the data", captioned.image)),
        }
    }
    let has_picture = images.iter().any(|captioned| captioned.picture.is_some());
    problem.filter(|_| !has_picture).map_or(Ok(()), Err)
}

/// The image of an item as a `data:` URL.
fn picture(data: &DataSet, item: &Item) -> anyhow::Result<String> {
    let pixels = data.pixels(item, PICTURE_SIZE)?;
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY);
    image::ImageEncoder::write_image(encoder, &pixels, PICTURE_SIZE, PICTURE_SIZE, image::ExtendedColorType::Rgb8)?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
}
