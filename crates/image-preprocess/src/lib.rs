//! CLIP's preprocessing of encoded images, as by its authors: Pillow's decoding and
//! `convert("RGB")`, torchvision's `Resize(size, BICUBIC)` of the short side and
//! `CenterCrop(size)`. [`Preprocessing`] has variations.

mod buffer;
mod error;
mod jpeg;
mod resize;

use std::io::{BufRead, Cursor, Read, Seek, SeekFrom};

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, RgbImage};
use serde::{Deserialize, Serialize};

pub use error::Error;
use resize::{Columns, Plan};

/// Maximal number of pixels: twice Pillow's `MAX_IMAGE_PIXELS`, above which it raises
/// `DecompressionBombError`.
const MAX_PIXELS: u64 = 178_956_970;
/// Maximal size of a decoded image, in bytes.
const MAX_DECODED_BYTES: u64 = 512 << 20;
/// Maximal size of an encoded image, in bytes; photographs are far smaller.
pub const MAX_ENCODED_BYTES: u64 = 256 << 20;

/// The last bytes of every PNG: the chunk `IEND`.
const PNG_END: [u8; 12] = *b"\0\0\0\0IEND\xAE\x42\x60\x82";

/// The preprocessing of encoded images. The default is CLIP's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preprocessing {
    /// Whether to apply the EXIF orientation, which CLIP's own preprocessing ignores.
    pub exif: bool,
    /// How the offset of the centre crop is rounded.
    pub crop_offset: CropOffset,
}

/// How the offset of the centre crop is rounded where it is a fraction of a pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CropOffset {
    /// To the nearest, halves to the even one: torchvision's `CenterCrop`.
    #[default]
    HalfToEven,
    /// Down: the image processors of transformers.
    Floor,
}

impl Preprocessing {
    /// A description of the preprocessing, different for each variation. Feature stores contain it.
    #[must_use]
    pub fn description(self) -> String {
        let exif = if self.exif { "EXIF orientation applied; " } else { "" };
        let crop_offset = match self.crop_offset {
            CropOffset::HalfToEven => "",
            CropOffset::Floor => ", offset rounded down",
        };
        format!("{exif}RGB; bicubic, short side to image size; centre crop{crop_offset}")
    }

    /// Preprocesses an encoded image to `size` x `size` pixels: RGB interleaved, row by row.
    ///
    /// # Errors
    /// It is not a JPEG, PNG or WebP, is damaged or truncated, or has more pixels or bytes than
    /// Pillow would decode.
    pub fn square(self, encoded: &[u8], size: u32) -> Result<Vec<u8>, Error> {
        let orientation = if self.exif { orientation(encoded) } else { Orientation::NoTransforms };
        if orientation == Orientation::NoTransforms {
            return as_it_is(encoded, size, self.crop_offset);
        }
        // As Pillow's `ImageOps.exif_transpose`, before everything else.
        let picture = decode(encoded)?.turned(orientation)?;
        let plan = Plan::new(picture.width, picture.height, size as usize, self.crop_offset)?;
        Ok(resize::square(&plan, &Columns::of(&picture, &plan)))
    }
}

/// Properties of an image that may make its pixels unexpected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Oddities {
    /// Its EXIF orientation is other than 1.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_turned: bool,
    /// It is 16-bit greyscale: values above 255 become white, as in Pillow.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_grey_of_16_bits: bool,
}

impl Oddities {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A decoded image: red, green and blue interleaved, row by row.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    fn turned(self, orientation: Orientation) -> Result<Self, Error> {
        let side = |length: usize| u32::try_from(length).map_err(Error::damaged);
        let image = RgbImage::from_raw(side(self.width)?, side(self.height)?, self.pixels)
            .ok_or_else(|| Error::damaged("too few pixels"))?;
        let mut image = DynamicImage::from(image);
        image.apply_orientation(orientation);
        let image = image.into_rgb8();
        let (width, height) = image.dimensions();
        Ok(Self { width: width as usize, height: height as usize, pixels: image.into_raw() })
    }
}

/// As [`Preprocessing::square`], with CLIP's own preprocessing.
///
/// # Errors
/// As for [`Preprocessing::square`].
pub fn square(encoded: &[u8], size: u32) -> Result<Vec<u8>, Error> {
    Preprocessing::default().square(encoded, size)
}

/// Without EXIF orientation.
fn as_it_is(encoded: &[u8], size: u32, crop_offset: CropOffset) -> Result<Vec<u8>, Error> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { as_it_is_with_wide_vectors(encoded, size, crop_offset) };
    }
    as_it_is_anywhere(encoded, size, crop_offset)
}

/// As below, compiled for processors since about 2015.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi2")]
fn as_it_is_with_wide_vectors(encoded: &[u8], size: u32, crop_offset: CropOffset) -> Result<Vec<u8>, Error> {
    as_it_is_anywhere(encoded, size, crop_offset)
}

#[inline(always)]
fn as_it_is_anywhere(encoded: &[u8], size: u32, crop_offset: CropOffset) -> Result<Vec<u8>, Error> {
    let size = size as usize;
    if let Some((plan, columns)) = jpeg::columns(encoded, size, crop_offset) {
        return Ok(resize::square(&plan, &columns));
    }
    let picture = decode(encoded)?;
    let plan = Plan::new(picture.width, picture.height, size, crop_offset)?;
    Ok(resize::square(&plan, &Columns::of(&picture, &plan)))
}

/// Checks the header and the last bytes: the file is an image, is not too large, and ends as its
/// format does. An image that ends otherwise may be truncated, or have trailing data: only such an
/// image is decoded.
///
/// # Errors
/// The problem with the image.
pub fn check(mut reader: impl BufRead + Seek) -> Result<Oddities, Error> {
    let start = reader.fill_buf().map_err(Error::read)?;
    recognise(start)?;
    let oddities = if jpeg::is_jpeg(start) {
        let (width, height) = jpeg::dimensions(&mut reader)?;
        within_pixels(width, height)?;
        reader.rewind().map_err(Error::read)?;
        let is_turned = jpeg::orientation(&mut reader) != Orientation::NoTransforms;
        Oddities { is_turned, is_grey_of_16_bits: false }
    } else {
        let mut decoder = sniff(&mut reader)?.into_decoder().map_err(Error::damaged)?;
        within_bytes(&decoder)?;
        let (width, height) = decoder.dimensions();
        within_pixels(width, height)?;
        let is_turned = decoder.orientation().is_ok_and(|orientation| orientation != Orientation::NoTransforms);
        Oddities { is_turned, is_grey_of_16_bits: decoder.color_type() == ColorType::L16 }
    };
    if !ends_as_its_format_does(&mut reader).map_err(Error::read)? {
        reader.rewind().map_err(Error::read)?;
        let mut encoded = Vec::new();
        reader.take(MAX_ENCODED_BYTES).read_to_end(&mut encoded).map_err(Error::read)?;
        decode(&encoded)?;
    }
    Ok(oddities)
}

/// The orientation in the EXIF data; the normal one without such data.
#[must_use]
pub fn orientation(encoded: &[u8]) -> Orientation {
    if jpeg::is_jpeg(encoded) {
        return jpeg::orientation(Cursor::new(encoded));
    }
    let decoder = sniff(Cursor::new(encoded)).and_then(|found| found.into_decoder().map_err(Error::damaged));
    let orientation = decoder.and_then(|mut decoder| decoder.orientation().map_err(Error::damaged));
    orientation.unwrap_or(Orientation::NoTransforms)
}

/// Describes the type of a file that is not an image.
fn recognise(start: &[u8]) -> Result<(), Error> {
    match start.trim_ascii_start() {
        _ if start.is_empty() => Err(Error::Empty),
        [b'<', ..] => Err(Error::Markup),
        _ if image::guess_format(start).is_err() => Err(Error::UnknownFormat),
        _ => Ok(()),
    }
}

/// Whether an image is complete, judging by its last bytes.
fn ends_as_its_format_does(reader: &mut (impl BufRead + Seek)) -> std::io::Result<bool> {
    let length = reader.seek(SeekFrom::End(0))?;
    let (mut start, mut end) = ([0; 12], [0; 12]);
    if length < start.len() as u64 {
        return Ok(false);
    }
    reader.seek(SeekFrom::End(-(end.len() as i64)))?;
    reader.read_exact(&mut end)?;
    reader.rewind()?;
    reader.read_exact(&mut start)?;
    Ok(match start {
        [0xFF, 0xD8, ..] => end.ends_with(&[0xFF, 0xD9]),
        [b'R', b'I', b'F', b'F', ..] => riff_length(&start) == Some(length),
        _ => end == PNG_END,
    })
}

/// The size of a WebP file, from its header.
fn riff_length(encoded: &[u8]) -> Option<u64> {
    let size = encoded.strip_prefix(b"RIFF")?.first_chunk()?;
    Some(u64::from(u32::from_le_bytes(*size)) + 8)
}

fn decode(encoded: &[u8]) -> Result<Picture, Error> {
    if jpeg::is_jpeg(encoded) {
        return jpeg::decode(encoded);
    }
    recognise(encoded)?;
    if riff_length(encoded).is_some_and(|length| length > encoded.len() as u64) {
        return Err(Error::Truncated);
    }
    let decoder = sniff(Cursor::new(encoded))?.into_decoder().map_err(Error::damaged)?;
    let (width, height) = decoder.dimensions();
    within_pixels(width, height)?;
    within_bytes(&decoder)?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(Error::damaged)?;
    Ok(Picture { width: width as usize, height: height as usize, pixels: as_pillow_converts(decoded) })
}

fn sniff<R: BufRead + Seek>(reader: R) -> Result<ImageReader<R>, Error> {
    ImageReader::new(reader).with_guessed_format().map_err(Error::damaged)
}

fn within_pixels(width: u32, height: u32) -> Result<(), Error> {
    match u64::from(width) * u64::from(height) {
        0 => Err(Error::NoPixels),
        pixels if pixels > MAX_PIXELS => Err(Error::TooManyPixels { width, height }),
        _ => Ok(()),
    }
}

fn within_bytes(decoder: &impl ImageDecoder) -> Result<(), Error> {
    let bytes = decoder.total_bytes();
    if bytes > MAX_DECODED_BYTES { Err(Error::TooLarge { bytes }) } else { Ok(()) }
}

/// `convert("RGB")`: drops alpha, and the low byte of 16-bit colours; but 16-bit greys are clipped
/// at 255.
fn as_pillow_converts(decoded: DynamicImage) -> Vec<u8> {
    let high = |value: u16| (value >> 8) as u8;
    match decoded {
        DynamicImage::ImageLuma16(grey) => grey.iter().flat_map(|&value| [value.min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(grey) => grey.pixels().flat_map(|pixel| [high(pixel.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(colour) => colour.iter().map(|&value| high(value)).collect(),
        DynamicImage::ImageRgba16(colour) => {
            colour.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]].map(high)).collect()
        }
        eight_bits => eight_bits.into_rgb8().into_raw(),
    }
}

#[cfg(test)]
mod tests;
