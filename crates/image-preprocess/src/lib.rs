//! CLIP's preprocessing of encoded images as in OpenAI's code: Pillow's decoding and
//! `convert("RGB")`, torchvision's `Resize(size, BICUBIC)` of the short side and
//! `CenterCrop(size)`. [`Preprocessing`] has variants of it.
//!
//! - `jpeg`: decodes JPEGs as Pillow does.
//! - `resize`: resizes and crops as Pillow and torchvision do.
//! - `buffer`: large buffers that a thread reuses.

mod buffer;
mod error;
mod jpeg;
mod resize;

use std::io::{BufRead, Cursor, Read, Seek, SeekFrom};

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use serde::{Deserialize, Serialize};

pub use error::Error;
use resize::{ResizePlan, SourceColumns};

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
    /// A description of the preprocessing, different for each variant. Manifests of feature stores
    /// contain it.
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
    /// The image is not a JPEG, PNG or WebP, is damaged or truncated, has no pixels or more than
    /// Pillow would decode, or takes more than 512 MiB when decoded; or `size` is 0.
    pub fn apply(self, encoded: &[u8], size: u32) -> Result<Vec<u8>, Error> {
        let orientation = if self.exif { orientation(encoded) } else { Orientation::NoTransforms };
        if orientation == Orientation::NoTransforms {
            return preprocess_unoriented(encoded, size, self.crop_offset);
        }
        // As Pillow's `ImageOps.exif_transpose`, before the other transforms.
        let image = decode(encoded)?.oriented(orientation)?;
        let plan = ResizePlan::new(image.width, image.height, size as usize, self.crop_offset)?;
        Ok(resize::resize_and_crop(&plan, &SourceColumns::from_image(&image, &plan)))
    }
}

/// Reasons why the pixels of an image may differ from what its author expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageWarnings {
    /// The EXIF orientation is not 1.
    #[serde(rename = "is_turned", skip_serializing_if = "std::ops::Not::not")]
    pub has_exif_rotation: bool,
    /// The image is 16-bit greyscale: values above 255 become white, as in Pillow.
    #[serde(rename = "is_grey_of_16_bits", skip_serializing_if = "std::ops::Not::not")]
    pub is_16_bit_grayscale: bool,
}

impl ImageWarnings {
    /// Whether there are no warnings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A decoded image: red, green and blue interleaved, row by row.
struct DecodedImage {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl DecodedImage {
    fn oriented(self, orientation: Orientation) -> Result<Self, Error> {
        let to_u32 = |length: usize| u32::try_from(length).map_err(Error::damaged);
        let rgb = RgbImage::from_raw(to_u32(self.width)?, to_u32(self.height)?, self.pixels)
            .ok_or_else(|| Error::damaged("too few pixels"))?;
        let mut oriented = DynamicImage::from(rgb);
        oriented.apply_orientation(orientation);
        let oriented = oriented.into_rgb8();
        let (width, height) = oriented.dimensions();
        Ok(Self { width: width as usize, height: height as usize, pixels: oriented.into_raw() })
    }
}

/// As [`Preprocessing::apply`], with CLIP's own preprocessing.
///
/// # Errors
/// As for [`Preprocessing::apply`].
pub fn preprocess(encoded: &[u8], size: u32) -> Result<Vec<u8>, Error> {
    Preprocessing::default().apply(encoded, size)
}

/// Preprocesses an image without applying its EXIF orientation.
fn preprocess_unoriented(encoded: &[u8], size: u32, crop_offset: CropOffset) -> Result<Vec<u8>, Error> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor supports the instructions that the function is compiled for.
        return unsafe { preprocess_unoriented_avx2(encoded, size, crop_offset) };
    }
    preprocess_unoriented_generic(encoded, size, crop_offset)
}

/// [`preprocess_unoriented_generic`], compiled with the AVX2 and BMI2 instructions, which x86-64
/// processors have since about 2015.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi2")]
fn preprocess_unoriented_avx2(encoded: &[u8], size: u32, crop_offset: CropOffset) -> Result<Vec<u8>, Error> {
    preprocess_unoriented_generic(encoded, size, crop_offset)
}

/// Decodes, resizes and crops an image. Inlined, so that the caller decides for which processors it
/// is compiled.
#[inline(always)]
fn preprocess_unoriented_generic(encoded: &[u8], size: u32, crop_offset: CropOffset) -> Result<Vec<u8>, Error> {
    let size = size as usize;
    if let Some((plan, columns)) = jpeg::decode_columns(encoded, size, crop_offset) {
        return Ok(resize::resize_and_crop(&plan, &columns));
    }
    let image = decode(encoded)?;
    let plan = ResizePlan::new(image.width, image.height, size, crop_offset)?;
    Ok(resize::resize_and_crop(&plan, &SourceColumns::from_image(&image, &plan)))
}

/// Checks an image by its header and its last bytes: its format and size, and that it ends as its
/// format requires. An image that ends otherwise is truncated or has trailing data; only then is it
/// decoded.
///
/// # Errors
/// The file cannot be read, is not a JPEG, PNG or WebP, has no pixels or too many, takes more than
/// 512 MiB when decoded, or is damaged or truncated.
pub fn check(mut reader: impl BufRead + Seek) -> Result<ImageWarnings, Error> {
    let start = reader.fill_buf().map_err(Error::read)?;
    check_signature(start)?;
    let warnings = if jpeg::is_jpeg(start) {
        let (width, height) = jpeg::dimensions(&mut reader)?;
        check_pixel_count(width, height)?;
        reader.rewind().map_err(Error::read)?;
        let has_exif_rotation = jpeg::orientation(&mut reader) != Orientation::NoTransforms;
        ImageWarnings { has_exif_rotation, is_16_bit_grayscale: false }
    } else {
        let mut decoder = guess_format(&mut reader)?.into_decoder().map_err(Error::damaged)?;
        check_decoded_size(&decoder)?;
        let (width, height) = decoder.dimensions();
        check_pixel_count(width, height)?;
        let has_exif_rotation = decoder.orientation().is_ok_and(|orientation| orientation != Orientation::NoTransforms);
        ImageWarnings { has_exif_rotation, is_16_bit_grayscale: decoder.color_type() == ColorType::L16 }
    };
    if !has_complete_ending(&mut reader).map_err(Error::read)? {
        reader.rewind().map_err(Error::read)?;
        let mut encoded = Vec::new();
        reader.take(MAX_ENCODED_BYTES).read_to_end(&mut encoded).map_err(Error::read)?;
        decode(&encoded)?;
    }
    Ok(warnings)
}

/// The orientation in the EXIF data; the normal orientation if there are none.
#[must_use]
pub fn orientation(encoded: &[u8]) -> Orientation {
    if jpeg::is_jpeg(encoded) {
        return jpeg::orientation(Cursor::new(encoded));
    }
    let decoder = guess_format(Cursor::new(encoded)).and_then(|reader| reader.into_decoder().map_err(Error::damaged));
    let orientation = decoder.and_then(|mut decoder| decoder.orientation().map_err(Error::damaged));
    orientation.unwrap_or(Orientation::NoTransforms)
}

/// Checks the first bytes of a file for the signature of a supported format. The crate `image` also
/// recognises formats that it does not decode here, such as GIF.
///
/// # Errors
/// The file is empty, is HTML or XML, or has another format.
fn check_signature(start: &[u8]) -> Result<(), Error> {
    match start.trim_ascii_start() {
        _ if start.is_empty() => Err(Error::Empty),
        [b'<', ..] => Err(Error::Markup),
        _ => match image::guess_format(start) {
            Ok(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP) => Ok(()),
            _ => Err(Error::UnsupportedFormat),
        },
    }
}

/// Whether an image ends as its format requires, by its last bytes or, for WebP, by the length in
/// its header.
fn has_complete_ending(reader: &mut (impl BufRead + Seek)) -> std::io::Result<bool> {
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

fn decode(encoded: &[u8]) -> Result<DecodedImage, Error> {
    if jpeg::is_jpeg(encoded) {
        return jpeg::decode(encoded);
    }
    check_signature(encoded)?;
    if riff_length(encoded).is_some_and(|length| length > encoded.len() as u64) {
        return Err(Error::Truncated);
    }
    let decoder = guess_format(Cursor::new(encoded))?.into_decoder().map_err(Error::damaged)?;
    let (width, height) = decoder.dimensions();
    check_pixel_count(width, height)?;
    check_decoded_size(&decoder)?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(Error::damaged)?;
    Ok(DecodedImage { width: width as usize, height: height as usize, pixels: convert_to_rgb(decoded) })
}

fn guess_format<R: BufRead + Seek>(reader: R) -> Result<ImageReader<R>, Error> {
    ImageReader::new(reader).with_guessed_format().map_err(Error::read)
}

fn check_pixel_count(width: u32, height: u32) -> Result<(), Error> {
    match u64::from(width) * u64::from(height) {
        0 => Err(Error::NoPixels),
        pixels if pixels > MAX_PIXELS => Err(Error::TooManyPixels { width, height }),
        _ => Ok(()),
    }
}

fn check_decoded_size(decoder: &impl ImageDecoder) -> Result<(), Error> {
    let bytes = decoder.total_bytes();
    if bytes > MAX_DECODED_BYTES { Err(Error::TooLarge { bytes }) } else { Ok(()) }
}

/// Pillow's `convert("RGB")`: it drops alpha and the low byte of 16-bit colours, but clips 16-bit
/// greys at 255.
fn convert_to_rgb(decoded: DynamicImage) -> Vec<u8> {
    let high_byte = |value: u16| (value >> 8) as u8;
    match decoded {
        DynamicImage::ImageLuma16(grey) => grey.iter().flat_map(|&value| [value.min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(grey) => grey.pixels().flat_map(|pixel| [high_byte(pixel.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(colour) => colour.iter().map(|&value| high_byte(value)).collect(),
        DynamicImage::ImageRgba16(colour) => {
            colour.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]].map(high_byte)).collect()
        }
        eight_bits => eight_bits.into_rgb8().into_raw(),
    }
}

#[cfg(test)]
mod tests;
