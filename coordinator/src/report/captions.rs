//! The captions of the same images before and after a stage, with the images.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD};
use config::{Data, RunFile};
use dataset::{DataSet, Item, Split};
use image::codecs::jpeg::JpegEncoder;
use serde::Serialize;

use crate::journal::{
    Error,
    history::{Caption, Evaluation, History},
};

/// Maximal number of images.
const MAX_IMAGES: u32 = 12;
/// The side of an image, in pixels.
const SIDE: u32 = 224;
/// The JPEG quality, in percent.
const QUALITY: u8 = 82;

/// The captions of two evaluations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Captions {
    /// Stage and step of the earlier evaluation; none if there is none.
    pub before: Option<(u32, u64)>,
    /// Stage and step of the later evaluation.
    pub after: (u32, u64),
    /// The images, spread evenly over the split.
    pub images: Vec<Captioned>,
    /// Why there are no images; none if there are.
    pub no_pictures: Option<String>,
}

/// An image with its captions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Captioned {
    /// The name of the image.
    pub image: String,
    /// The caption of the earlier evaluation.
    pub before: Option<String>,
    /// The caption of the later one.
    pub after: String,
    /// The reference captions.
    pub references: Vec<String>,
    /// The scores of the earlier caption.
    pub scores_before: BTreeMap<String, f64>,
    /// The scores of the later caption.
    pub scores_after: BTreeMap<String, f64>,
    /// The image as CLIP gets it, a JPEG as a `data:` URL; none if it cannot be read.
    pub picture: Option<String>,
}

impl Captions {
    /// The captions of an evaluation's images, beside those of an earlier evaluation.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn read(
        history: &History,
        settings: &RunFile,
        before: Option<&Evaluation>,
        after: &Evaluation,
    ) -> Result<Self, Error> {
        let mut images = Vec::new();
        for Caption { image, caption, references, scores } in history.captions(after, MAX_IMAGES)? {
            let earlier = before.map(|before| history.caption(before, &image)).transpose()?.flatten();
            let (before, scores_before) = earlier.map(|earlier| (earlier.caption, earlier.scores)).unzip();
            images.push(Captioned {
                image,
                before,
                after: caption,
                references,
                scores_before: scores_before.unwrap_or_default(),
                scores_after: scores,
                picture: None,
            });
        }
        let place = |evaluation: &Evaluation| (evaluation.place.stage, evaluation.place.step);
        let no_pictures = look(&settings.data, &mut images).err();
        Ok(Self { before: before.map(place), after: place(after), images, no_pictures })
    }
}

/// Adds pictures to images of the evaluated split. An image that cannot be read has none.
fn look(data: &Data, images: &mut [Captioned]) -> Result<(), String> {
    let data = DataSet::annotated(data, Split::Validation).map_err(|error| error.to_string())?;
    let wanted: BTreeSet<&str> = images.iter().map(|captioned| captioned.image.as_str()).collect();
    let items = data.split(Split::Validation).iter().filter(|item| wanted.contains(item.name.as_str()));
    let items: BTreeMap<String, &Item> = items.map(|item| (item.name.clone(), item)).collect();
    let mut problem = None;
    for captioned in images.iter_mut() {
        match items.get(&captioned.image).map(|item| picture(&data, item)) {
            Some(Ok(picture)) => captioned.picture = Some(picture),
            Some(Err(reason)) => problem = Some(reason),
            None => problem = Some(format!("{} is not in the data", captioned.image)),
        }
    }
    let any = images.iter().any(|captioned| captioned.picture.is_some());
    problem.filter(|_| !any).map_or(Ok(()), Err)
}

fn picture(data: &DataSet, item: &Item) -> Result<String, String> {
    let pixels = data.pixels(item, SIDE).map_err(|error| error.to_string())?;
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, QUALITY);
    image::ImageEncoder::write_image(encoder, &pixels, SIDE, SIDE, image::ExtendedColorType::Rgb8)
        .map_err(|error| error.to_string())?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
}
