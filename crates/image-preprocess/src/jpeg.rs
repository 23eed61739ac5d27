//! JPEG decoding as by libjpeg-turbo, which Pillow uses: other decoders interpolate chroma
//! differently, by several levels.
//!
//! Common images are decoded here, with the same result but faster; all others by MozJPEG's copy of
//! libjpeg-turbo, which builds with only a C compiler.
//!
//! ```text
//!   header  -->  baseline: huffman --> idct --> plane  -->  colours  -->  resize
//!      '---- whatever is unusual or damaged ----> libjpeg -----------------^
//! ```

mod baseline;
mod colours;
mod header;
mod huffman;
mod idct;
mod plane;

use std::io::{BufRead, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use mozjpeg::{ColorSpace, Decompress};

use crate::resize::{Columns, Plan};
use crate::{CropOffset, Error, MAX_DECODED_BYTES, Picture, within_pixels};

/// Whether these are the first bytes of a JPEG.
pub fn is_jpeg(start: &[u8]) -> bool {
    start.starts_with(&[0xFF, 0xD8, 0xFF])
}

/// Width and height.
pub fn dimensions(reader: impl BufRead) -> Result<(u32, u32), Error> {
    guarded(|| size(&open(reader)?))
}

/// The orientation in the EXIF segment of the header.
pub fn orientation(mut reader: impl Read + Seek) -> Orientation {
    exif(&mut reader).and_then(|exif| Orientation::from_exif_chunk(&exif)).unwrap_or(Orientation::NoTransforms)
}

/// The first EXIF segment of the header, without its identifier; none if there is none, or if the
/// header is damaged.
fn exif(reader: &mut (impl Read + Seek)) -> Option<Vec<u8>> {
    let mut start_of_image = [0; 2];
    reader.read_exact(&mut start_of_image).ok()?;
    loop {
        let mut segment = [0; 4];
        reader.read_exact(&mut segment).ok()?;
        let [0xFF, marker, high, low] = segment else { return None };
        let length = u16::from_be_bytes([high, low]).checked_sub(2)?;
        match marker {
            // The scan, or the end: no further segments.
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

/// Decodes what `size` x `size` pixels depend on, without libjpeg; none for images that need it.
#[inline(always)]
pub fn columns(encoded: &[u8], size: usize, crop_offset: CropOffset) -> Option<(Plan, Columns)> {
    let header = header::header(encoded)?;
    let is_small = 3 * header.width as u64 * header.height as u64 <= MAX_DECODED_BYTES;
    let plan = Plan::new(header.width, header.height, size, crop_offset).ok().filter(|_| is_small)?;
    let columns = baseline::decode(&header, &plan)?;
    Some((plan, columns))
}

/// Decodes the image with libjpeg.
pub fn decode(encoded: &[u8]) -> Result<Picture, Error> {
    guarded(|| {
        let decoder = open(encoded)?;
        let (width, height) = size(&decoder)?;
        within_pixels(width, height)?;
        let ink = is_ink(decoder.color_space());
        let channels = if ink { 4 } else { 3 };
        let bytes = u64::from(width) * u64::from(height) * channels;
        if bytes > MAX_DECODED_BYTES {
            return Err(Error::TooLarge { bytes });
        }
        let space = if ink { ColorSpace::JCS_CMYK } else { ColorSpace::JCS_RGB };
        let mut started = decoder.to_colorspace(space).map_err(Error::damaged)?;
        let samples = started.read_scanlines::<u8>().map_err(Error::damaged)?;
        started.finish().map_err(Error::damaged)?;
        let pixels = if ink { cmyk_to_rgb(&samples) } else { samples };
        Ok(Picture { width: width as usize, height: height as usize, pixels })
    })
}

fn open<R: BufRead>(reader: R) -> Result<Decompress<Complete<R>>, Error> {
    Decompress::new_reader(Complete { reader }).map_err(Error::damaged)
}

fn size<R>(decoder: &Decompress<R>) -> Result<(u32, u32), Error> {
    let side = |length: usize| u32::try_from(length).map_err(Error::damaged);
    Ok((side(decoder.width())?, side(decoder.height())?))
}

fn is_ink(space: ColorSpace) -> bool {
    matches!(space, ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK)
}

/// Converts inverted CMYK, as Adobe writes it and Pillow assumes, to RGB as Pillow's `cmyk2rgb`
/// does.
fn cmyk_to_rgb(inks: &[u8]) -> Vec<u8> {
    let (pixels, _) = inks.as_chunks::<4>();
    pixels
        .iter()
        .flat_map(|&[cyan, magenta, yellow, black]| [cyan, magenta, yellow].map(|ink| light(ink, black)))
        .collect()
}

fn light(inverted_ink: u8, inverted_black: u8) -> u8 {
    let product = u32::from(!inverted_ink) * u32::from(inverted_black) + 128;
    let absorbed = ((product >> 8) + product) >> 8;
    inverted_black.saturating_sub(u8::try_from(absorbed).unwrap_or(u8::MAX))
}

/// Catches libjpeg's errors, which unwind out of the call; without a message of the panic handler.
fn guarded<T>(run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let done = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|reason| {
        Err(Error::Damaged(reason.downcast::<String>().map_or_else(|_| "damaged JPEG".to_owned(), |reason| *reason)))
    });
    done.map_err(|error| match error {
        // libjpeg's message for the error of `Complete`.
        Error::Damaged(problem) if problem.ends_with("Input file read error") => Error::Truncated,
        error => error,
    })
}

/// A reader that fails at the end of the data; libjpeg would continue and fill the rest with grey.
struct Complete<R> {
    reader: R,
}

impl<R: BufRead> Read for Complete<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl<R: BufRead> BufRead for Complete<R> {
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
