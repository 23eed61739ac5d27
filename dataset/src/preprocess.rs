//! An encoded image to the pixels that CLIP sees, as its authors prepare them: Pillow's decoding and `convert("RGB")`,
//! torchvision's `Resize(size, BICUBIC)` of the short side and `CenterCrop(size)`. EXIF orientation is not applied: CLIP's
//! own preprocessing does not, either.

mod buffer;
mod jpeg;
mod resize;

use std::io::{BufRead, Cursor, Seek};

use image::{DynamicImage, ImageDecoder, ImageReader};

use resize::{Columns, Plan};

/// Twice Pillow's `MAX_IMAGE_PIXELS`, above which it refuses an image as a decompression bomb.
const MOST_PIXELS: u64 = 178_956_970;
/// A decoded image takes at most this many bytes.
const MOST_BYTES: u64 = 512 << 20;

/// What is done to an image, in words that change when it does.
pub const DESCRIPTION: &str = "RGB; bicubic, short side to image size; centre crop";

/// A decoded image: red, green and blue interleaved, row by row.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

/// An encoded image as `size` x `size` pixels: red, green and blue interleaved, row by row.
///
/// # Errors
/// It is no JPEG, PNG or WebP, damaged or truncated, or has more pixels or bytes than Pillow would decode; says which.
pub fn square(encoded: &[u8], size: u32) -> Result<Vec<u8>, String> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { square_with_wide_vectors(encoded, size) };
    }
    square_anywhere(encoded, size)
}

/// As below, compiled for processors since about 2015.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi2")]
fn square_with_wide_vectors(encoded: &[u8], size: u32) -> Result<Vec<u8>, String> {
    square_anywhere(encoded, size)
}

#[inline(always)]
fn square_anywhere(encoded: &[u8], size: u32) -> Result<Vec<u8>, String> {
    let size = size as usize;
    if let Some((plan, columns)) = jpeg::columns(encoded, size) {
        return Ok(resize::square(&plan, &columns));
    }
    let picture = decode(encoded)?;
    let plan = Plan::new(picture.width, picture.height, size)?;
    Ok(resize::square(&plan, &Columns::of(&picture, &plan)))
}

/// Reads the header only: there is an image, and it is not absurdly large.
///
/// # Errors
/// What is wrong with the header.
pub fn check(mut reader: impl BufRead + Seek) -> Result<(), String> {
    let start = reader.fill_buf().map_err(|error| error.to_string())?;
    let (width, height) = if jpeg::is_jpeg(start) {
        jpeg::dimensions(reader)?
    } else {
        let decoder = sniff(reader)?.into_decoder().map_err(|error| error.to_string())?;
        within_bytes(&decoder)?;
        decoder.dimensions()
    };
    within_pixels(width, height)
}

fn decode(encoded: &[u8]) -> Result<Picture, String> {
    if jpeg::is_jpeg(encoded) {
        return jpeg::decode(encoded);
    }
    let decoder = sniff(Cursor::new(encoded))?.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    within_pixels(width, height)?;
    within_bytes(&decoder)?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    Ok(Picture { width: width as usize, height: height as usize, pixels: as_pillow_converts(decoded) })
}

fn sniff<R: BufRead + Seek>(reader: R) -> Result<ImageReader<R>, String> {
    ImageReader::new(reader).with_guessed_format().map_err(|error| error.to_string())
}

fn within_pixels(width: u32, height: u32) -> Result<(), String> {
    match u64::from(width) * u64::from(height) {
        0 => Err("image without pixels".to_owned()),
        pixels if pixels > MOST_PIXELS => Err(format!("{width} x {height} pixels: more than {MOST_PIXELS}")),
        _ => Ok(()),
    }
}

fn within_bytes(decoder: &impl ImageDecoder) -> Result<(), String> {
    let bytes = decoder.total_bytes();
    if bytes > MOST_BYTES { Err(format!("{bytes} bytes when decoded: more than {MOST_BYTES}")) } else { Ok(()) }
}

/// `convert("RGB")`: alpha is dropped, 16-bit colours lose their low byte, but 16-bit greys are cut off at 255.
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
