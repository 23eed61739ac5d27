//! Decodes JPEGs with the same result as libjpeg-turbo, which Pillow uses. Other decoders
//! interpolate chroma differently, and their pixels differ by several levels.
//!
//! This module decodes common images itself, faster than libjpeg-turbo. MozJPEG's copy of
//! libjpeg-turbo, which builds with only a C compiler, decodes all others. `plane` has the samples
//! of one of Y, Cb and Cr.
//!
//! ```text
//!   file
//!    |  bytes
//!    v
//!   header --- common images ---> baseline (huffman, idct) --- planes ---> color_conversion
//!    |                                                                            |
//!    '--- unusual or damaged images ---> libjpeg --- RGB ---> resize <--- RGB ----'
//! ```

mod baseline;
mod color_conversion;
mod header;
mod huffman;
mod idct;
mod plane;

use std::io::{BufRead, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use mozjpeg::{ColorSpace, Decompress};

use crate::resize::{ResizePlan, SourceColumns};
use crate::{CropOffset, DecodedImage, Error, MAX_DECODED_BYTES, check_pixel_count};

/// Whether `start` begins with the signature of a JPEG.
pub fn is_jpeg(start: &[u8]) -> bool {
    start.starts_with(&[0xFF, 0xD8, 0xFF])
}

/// Width and height of a JPEG in pixels, from its header.
///
/// # Errors
/// The header is damaged or truncated, or cannot be read.
pub fn dimensions(reader: impl BufRead) -> Result<(u32, u32), Error> {
    catch_libjpeg_errors(|| image_size(&open_decoder(reader)?))
}

/// The orientation in the EXIF segment of the header.
pub fn orientation(mut reader: impl Read + Seek) -> Orientation {
    read_exif(&mut reader).and_then(|exif| Orientation::from_exif_chunk(&exif)).unwrap_or(Orientation::NoTransforms)
}

/// Reads the first EXIF segment of the header, without its identifier; none if there is none, or if
/// the header is damaged.
fn read_exif(reader: &mut (impl Read + Seek)) -> Option<Vec<u8>> {
    let mut start_of_image = [0; 2];
    reader.read_exact(&mut start_of_image).ok()?;
    loop {
        let mut segment = [0; 4];
        reader.read_exact(&mut segment).ok()?;
        let [0xFF, marker, high, low] = segment else { return None };
        let length = u16::from_be_bytes([high, low]).checked_sub(2)?;
        match marker {
            // Start of scan or end of image (or a misplaced start of image): no further segments.
            0xD8..=0xDA => return None,
            0xE1 => {
                let mut content = vec![0; usize::from(length)];
                reader.read_exact(&mut content).ok()?;
                if let Some(exif) = content.strip_prefix(b"Exif\0\0") {
                    return Some(exif.to_vec());
                }
            }
            _ => reader.seek_relative(i64::from(length)).ok()?,
        }
    }
}

/// Decodes the part of the image that the crop of `size` x `size` pixels depends on, without
/// libjpeg; none for images that need libjpeg.
#[inline(always)]
pub fn decode_columns(encoded: &[u8], size: usize, crop_offset: CropOffset) -> Option<(ResizePlan, SourceColumns)> {
    let header = header::parse_header(encoded)?;
    let fits_in_memory = 3 * header.width as u64 * header.height as u64 <= MAX_DECODED_BYTES;
    let plan = ResizePlan::new(header.width, header.height, size, crop_offset).ok().filter(|_| fits_in_memory)?;
    let columns = baseline::decode(&header, &plan)?;
    Some((plan, columns))
}

/// Decodes the image with libjpeg.
///
/// # Errors
/// The image is damaged or truncated, has no pixels or too many, or takes too much memory.
pub fn decode(encoded: &[u8]) -> Result<DecodedImage, Error> {
    catch_libjpeg_errors(|| {
        let decoder = open_decoder(encoded)?;
        let (width, height) = image_size(&decoder)?;
        check_pixel_count(width, height)?;
        let has_inks = is_cmyk(decoder.color_space());
        let channels = if has_inks { 4 } else { 3 };
        let bytes = u64::from(width) * u64::from(height) * channels;
        if bytes > MAX_DECODED_BYTES {
            return Err(Error::TooLarge { bytes });
        }
        let space = if has_inks { ColorSpace::JCS_CMYK } else { ColorSpace::JCS_RGB };
        let mut decompress = decoder.to_colorspace(space).map_err(Error::damaged)?;
        let samples = decompress.read_scanlines::<u8>().map_err(Error::damaged)?;
        decompress.finish().map_err(Error::damaged)?;
        let pixels = if has_inks { cmyk_to_rgb(&samples) } else { samples };
        Ok(DecodedImage { width: width as usize, height: height as usize, pixels })
    })
}

fn open_decoder<R: BufRead>(reader: R) -> Result<Decompress<FailAtEnd<R>>, Error> {
    Decompress::new_reader(FailAtEnd { reader }).map_err(Error::damaged)
}

fn image_size<R>(decoder: &Decompress<R>) -> Result<(u32, u32), Error> {
    let to_u32 = |length: usize| u32::try_from(length).map_err(Error::damaged);
    Ok((to_u32(decoder.width())?, to_u32(decoder.height())?))
}

fn is_cmyk(space: ColorSpace) -> bool {
    matches!(space, ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK)
}

/// Converts inverted CMYK, as Adobe writes it and Pillow assumes, to RGB as Pillow's `cmyk2rgb`
/// does.
fn cmyk_to_rgb(inks: &[u8]) -> Vec<u8> {
    let (pixels, _) = inks.as_chunks::<4>();
    pixels
        .iter()
        .flat_map(|&[cyan, magenta, yellow, black]| [cyan, magenta, yellow].map(|ink| ink_to_rgb(ink, black)))
        .collect()
}

/// One colour channel from one inverted ink and inverted black.
fn ink_to_rgb(inverted_ink: u8, inverted_black: u8) -> u8 {
    let product = u32::from(!inverted_ink) * u32::from(inverted_black) + 128;
    let absorbed = ((product >> 8) + product) >> 8;
    inverted_black.saturating_sub(u8::try_from(absorbed).unwrap_or(u8::MAX))
}

/// Runs `run` and converts libjpeg's errors, which unwind, to results. The panic handler prints no
/// message for them.
fn catch_libjpeg_errors<T>(run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|reason| {
        Err(Error::Damaged(reason.downcast::<String>().map_or_else(|_| "damaged JPEG".to_owned(), |reason| *reason)))
    });
    result.map_err(|error| match error {
        // libjpeg's message for a read error, which is how `FailAtEnd` reports the end of the data.
        Error::Damaged(problem) if problem.ends_with("Input file read error") => Error::Truncated,
        error => error,
    })
}

/// A reader that returns an error at the end of the data. With a plain reader libjpeg would
/// continue and fill the rest of the image with grey.
struct FailAtEnd<R> {
    reader: R,
}

impl<R: BufRead> Read for FailAtEnd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl<R: BufRead> BufRead for FailAtEnd<R> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        match self.reader.fill_buf()? {
            [] => Err(std::io::Error::other("truncated")),
            buffer => Ok(buffer),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.reader.consume(amount);
    }
}
