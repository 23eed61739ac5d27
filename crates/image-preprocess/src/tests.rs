use image::codecs::jpeg::JpegEncoder;
use image::{GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
use proptest::prelude::*;

use super::*;

fn noise(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 37 + y * 91) as u8, (x * y * 7) as u8, ((x * 5) ^ (y * 3)) as u8])
    })
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(image).unwrap();
    bytes
}

fn checked(bytes: &[u8]) -> Result<Oddities, Error> {
    check(Cursor::new(bytes))
}

#[test]
fn lossless_formats_give_back_every_pixel() {
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let bytes = encoded(noise(20, 20), format);
        checked(&bytes).unwrap();
        assert_eq!(square(&bytes, 20).unwrap(), noise(20, 20).into_raw(), "{format:?}");
    }
}

#[test]
fn a_jpeg_gives_back_its_colours() {
    let bytes = jpeg(&RgbImage::from_pixel(33, 17, Rgb([200, 40, 90])));
    checked(&bytes).unwrap();
    for pixel in square(&bytes, 24).unwrap().chunks(3) {
        assert!(pixel.iter().zip([200u8, 40, 90]).all(|(&found, value)| found.abs_diff(value) <= 3), "{pixel:?}");
    }
}

#[test]
fn grey_jpegs_become_colours() {
    let mut bytes = Vec::new();
    JpegEncoder::new(&mut bytes).encode_image(&GrayImage::from_pixel(16, 16, Luma([77]))).unwrap();
    assert!(square(&bytes, 8).unwrap().iter().all(|value| value.abs_diff(77) <= 1));
}

#[test]
fn inverted_inks_become_colours() {
    // No ink at all, all inks, cyan alone: as Adobe stores them, inverted.
    for (inks, colour) in [([255; 4], [255; 3]), ([0; 4], [0; 3]), ([0, 255, 255, 255], [0, 255, 255])] {
        let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_CMYK);
        encoder.set_size(16, 16);
        let mut started = encoder.start_compress(Vec::new()).unwrap();
        started.write_scanlines(&inks.repeat(16 * 16)).unwrap();
        let bytes = started.finish().unwrap();
        for pixel in square(&bytes, 8).unwrap().chunks(3) {
            assert!(pixel.iter().zip(colour).all(|(&found, value)| found.abs_diff(value) <= 2), "{inks:?}: {pixel:?}");
        }
    }
}

/// A JPEG with an EXIF segment that says this orientation, behind another segment of the same kind.
fn with_orientation(plain: &[u8], orientation: u8) -> Vec<u8> {
    let exif =
        [&b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat();
    let segment = |content: &[u8]| {
        let length = u16::try_from(content.len() + 2).unwrap().to_be_bytes();
        [&[0xFF, 0xE1], &length[..], content].concat()
    };
    [&plain[..2], &segment(b"http://ns.adobe.com/xap/1.0/\0"), &segment(&exif), &plain[2..]].concat()
}

/// Turned as its EXIF orientation says, 16 x 16 pixels.
fn upright(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    Preprocessing { exif: true, ..Preprocessing::default() }.square(bytes, 16)
}

#[test]
fn orientation_is_ignored_or_applied_as_asked_for() {
    let picture = noise(41, 24);
    let plain = jpeg(&picture);
    assert_eq!((checked(&plain), orientation(&plain)), (Ok(Oddities::default()), Orientation::NoTransforms));
    for number in 1..=8 {
        let turned = with_orientation(&plain, number);
        assert_eq!(square(&turned, 16).unwrap(), square(&plain, 16).unwrap());
        let orientation = Orientation::from_exif(number).unwrap();
        let is_turned = number > 1;
        assert_eq!((checked(&turned).unwrap().is_turned, super::orientation(&turned)), (is_turned, orientation));
        // What a lossless copy of the turned picture becomes.
        let decoded = jpeg::decode(&plain).unwrap();
        let mut upright_picture = DynamicImage::from(RgbImage::from_raw(41, 24, decoded.pixels).unwrap());
        upright_picture.apply_orientation(orientation);
        let expected = square(&encoded(upright_picture, ImageFormat::Png), 16).unwrap();
        assert_eq!(upright(&turned).unwrap(), expected, "{number}");
    }
    for strange in [0, 9, 255] {
        let strange = with_orientation(&plain, strange);
        assert!(!checked(&strange).unwrap().is_turned);
        assert_eq!(upright(&strange), square(&plain, 16));
    }
    assert_eq!(upright(b"text"), square(b"text", 16));
}

#[test]
fn greys_of_16_bits_are_noted() {
    let is_noted = |image: DynamicImage| checked(&encoded(image, ImageFormat::Png)).unwrap().is_grey_of_16_bits;
    assert!(is_noted(ImageBuffer::from_pixel(2, 2, Luma([200u16])).into()));
    assert!(!is_noted(ImageBuffer::from_pixel(2, 2, Luma([200u8])).into()));
    assert!(!is_noted(ImageBuffer::from_pixel(2, 2, Rgb([200u16; 3])).into()));
}

#[test]
fn what_is_no_image_is_said_to_be_what_it_is() {
    for (bytes, problem) in [
        (&b""[..], Error::Empty),
        (b"<!DOCTYPE html>\n<html>", Error::Markup),
        (b"\n  <?xml?>", Error::Markup),
        (b"text", Error::UnknownFormat),
    ] {
        assert_eq!((checked(bytes), square(bytes, 8)), (Err(problem.clone()), Err(problem)));
    }
}

#[test]
fn the_check_finds_images_that_are_cut_off_but_allows_data_behind_them() {
    let (jpeg, png) = (jpeg(&noise(90, 70)), encoded(noise(90, 70), ImageFormat::Png));
    for bytes in [&jpeg, &png, &encoded(noise(40, 40), ImageFormat::WebP)] {
        checked(bytes).unwrap();
        for kept in [bytes.len() * 2 / 3, bytes.len() - 40] {
            checked(&bytes[..kept]).unwrap_err();
            square(&bytes[..kept], 8).unwrap_err();
        }
        // As some cameras and phones have it.
        let longer = [&bytes[..], b"more of another kind"].concat();
        checked(&longer).unwrap();
        assert_eq!(square(&longer, 8), square(bytes, 8));
    }
    assert_eq!(checked(&jpeg[..jpeg.len() * 2 / 3]), Err(Error::Truncated));
    // Room was made for the file, but not all of it arrived. A WebP has neither sums nor an end that would tell.
    for bytes in [&jpeg, &png] {
        let (kept, lost) = bytes.split_at(bytes.len() / 2);
        checked(&[kept, &vec![0; lost.len()]].concat()).unwrap_err();
    }
}

#[test]
fn alpha_is_dropped_and_sixteen_bits_become_eight() {
    let convert = |image: DynamicImage| square(&encoded(image, ImageFormat::Png), 2).unwrap()[..3].to_vec();
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, Rgba([9u8, 8, 7, 0])).into()), [9, 8, 7]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, LumaA([9u8, 0])).into()), [9; 3]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, Rgb([0xFFu16, 0x1FF, 0xFFFF])).into()), [0, 1, 255]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, Rgba([0xFFu16, 0x1FF, 0xFFFF, 0])).into()), [0, 1, 255]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, LumaA([0x1FFu16, 0])).into()), [1; 3]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, Luma([200u16])).into()), [200; 3]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, Luma([256u16])).into()), [255; 3]);
}

#[test]
fn images_cut_short_anywhere_are_errors() {
    for bytes in [jpeg(&noise(19, 11)), encoded(noise(19, 11), ImageFormat::Png)] {
        square(&bytes, 8).unwrap();
        for length in 0..bytes.len() {
            // A PNG whose pixels are complete is taken without its last chunk.
            if let Ok(pixels) = square(&bytes[..length], 8) {
                assert!(bytes.len() - length <= 12 && pixels == square(&bytes, 8).unwrap(), "{length} bytes");
            }
            let _ = checked(&bytes[..length]);
        }
    }
    let bytes = encoded(noise(19, 11), ImageFormat::WebP);
    for length in 0..bytes.len() {
        let _ = (checked(&bytes[..length]), square(&bytes[..length], 8));
    }
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_allocated() {
    let mut png = encoded(noise(4, 4), ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 1, 0x86, 0xA0, 0, 1, 0x86, 0xA0]);
    let sum = crc(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    let mut jpeg = jpeg(&noise(4, 4));
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
    for bytes in [png, jpeg] {
        for problem in [square(&bytes, 8).unwrap_err(), checked(&bytes).unwrap_err()] {
            assert!(matches!(problem, Error::TooManyPixels { .. } | Error::TooLarge { .. }), "{problem}");
        }
    }
}

/// CRC-32 of PNG chunks, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg()))
    })
}

#[test]
fn nothing_is_no_image() {
    for bytes in [&b""[..], b"\xFF\xD8\xFF", b"GIF89a", b"text"] {
        assert!(square(bytes, 8).is_err() && checked(bytes).is_err());
    }
    assert!(square(&jpeg(&noise(4, 4)), 0).is_err());
}

/// As cameras and libjpeg-turbo write them, with colours of one sample for `across` x `down` pixels.
fn usual_jpeg(image: &RgbImage, quality: f32, (across, down): (u8, u8)) -> Vec<u8> {
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_fastest_defaults();
    encoder.set_size(image.width() as usize, image.height() as usize);
    encoder.set_quality(quality);
    encoder.set_chroma_sampling_pixel_sizes((across, down), (across, down));
    let mut started = encoder.start_compress(Vec::new()).unwrap();
    started.write_scanlines(image).unwrap();
    started.finish().unwrap()
}

/// What is decoded without libjpeg, for CLIP's own preprocessing.
fn columns(bytes: &[u8], size: usize) -> Option<(Plan, Columns)> {
    jpeg::columns(bytes, size, CropOffset::default())
}

fn by_libjpeg(bytes: &[u8], size: usize) -> Vec<u8> {
    let picture = jpeg::decode(bytes).unwrap();
    let plan = Plan::new(picture.width, picture.height, size, CropOffset::default()).unwrap();
    resize::square(&plan, &Columns::of(&picture, &plan))
}

#[test]
fn unusual_and_damaged_jpegs_are_left_to_libjpeg() {
    let usual = usual_jpeg(&noise(40, 30), 90.0, (2, 2));
    assert!(columns(&usual, 16).is_some());
    for length in 0..usual.len() {
        assert!(columns(&usual[..length], 16).is_none(), "{length} bytes");
    }
    let progressive = {
        let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
        encoder.set_size(40, 30);
        encoder.set_progressive_mode();
        let mut started = encoder.start_compress(Vec::new()).unwrap();
        started.write_scanlines(&noise(40, 30)).unwrap();
        started.finish().unwrap()
    };
    assert!(columns(&progressive, 16).is_none());
    assert_eq!(square(&progressive, 16).unwrap(), by_libjpeg(&progressive, 16));
    // A segment twice: quantisation steps, which are replaced; the frame and codes.
    for (marker, is_usual) in [(0xDB, true), (0xC0, false), (0xC4, false)] {
        let start = usual.windows(2).position(|pair| pair == [0xFF, marker]).unwrap();
        let end = start + 2 + usize::from(u16::from_be_bytes([usual[start + 2], usual[start + 3]]));
        let twice = [&usual[..end], &usual[start..]].concat();
        assert_eq!(columns(&twice, 16).is_some(), is_usual, "{marker:X}");
    }
    // Wider than libjpeg allows.
    let mut wide = usual_jpeg(&noise(65_500, 1), 90.0, (1, 1));
    assert!(columns(&wide, 16).is_some());
    let frame = wide.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    wide[frame + 7..frame + 9].copy_from_slice(&65_501_u16.to_be_bytes());
    assert!(columns(&wide, 16).is_none() && jpeg::decode(&wide).is_err());
    // Much brighter than white.
    let mut bright = usual_jpeg(&RgbImage::from_pixel(40, 30, Rgb([255; 3])), 25.0, (2, 2));
    assert!(columns(&bright, 16).is_some());
    let steps = bright.windows(2).position(|pair| pair == [0xFF, 0xDB]).unwrap() + 5;
    bright[steps..steps + 64].fill(255);
    assert!(columns(&bright, 16).is_none());
    // Another marker than the end behind the scan.
    let end = usual.len() - 1;
    assert!(columns(&[&usual[..end], &[0xD0]].concat(), 16).is_none());
    // Extra bits behind the last block.
    assert!(columns(&[&usual[..end - 1], &[0, 0xFF, 0xD9]].concat(), 16).is_none());
}

proptest! {
    #[test]
    fn usual_jpegs_become_what_libjpeg_makes_of_them(
        (width, height) in (1u32..150, 1u32..150),
        // Below, steps have 16 bits.
        quality in 25.0f32..=100.0,
        sampling in prop::sample::select(vec![(1, 1), (2, 1), (2, 2)]),
        size in 1usize..60,
        smooth in any::<bool>(),
    ) {
        let picture = if smooth {
            RgbImage::from_fn(width, height, |x, y| Rgb([(2 * x) as u8, (x + y) as u8, 255 - y as u8]))
        } else {
            noise(width, height)
        };
        let bytes = usual_jpeg(&picture, quality, sampling);
        prop_assert_eq!(columns(&bytes, size).is_some(), width > 4 || sampling == (1, 1));
        prop_assert_eq!(square(&bytes, size as u32).unwrap(), by_libjpeg(&bytes, size));
    }

    #[test]
    fn damaged_jpegs_become_what_libjpeg_makes_of_them_or_are_left_to_it(
        sampling in prop::sample::select(vec![(1, 1), (2, 1), (2, 2)]),
        quality in 25.0f32..=100.0,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0u32..8), 1..4),
    ) {
        let mut bytes = usual_jpeg(&noise(21, 19), quality, sampling);
        for (place, bit) in damage {
            let place = place.index(bytes.len());
            bytes[place] ^= 1u8 << bit;
        }
        if let Some((plan, columns)) = columns(&bytes, 8) {
            prop_assert_eq!(resize::square(&plan, &columns), by_libjpeg(&bytes, 8));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        magic in prop::sample::select(vec![&b""[..], b"\xFF\xD8\xFF", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8 ", b"RIFF\x40\0\0\0WEBPVP8L"]),
        tail in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [magic, &tail].concat();
        let _ = (checked(&bytes), square(&bytes, 8));
    }

    #[test]
    fn damaged_images_never_panic(
        kind in 0usize..3,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = match kind {
            0 => jpeg(&noise(19, 11)),
            1 => encoded(noise(19, 11), ImageFormat::Png),
            _ => encoded(noise(19, 11), ImageFormat::WebP),
        };
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        // Sizes are left alone where decoding them would only take long.
        if checked(&bytes).is_ok() && dimensions(&bytes) < 1 << 20 {
            let _ = square(&bytes, 8);
        }
    }
}

fn dimensions(bytes: &[u8]) -> u64 {
    let size = if jpeg::is_jpeg(bytes) {
        jpeg::dimensions(bytes)
    } else {
        sniff(Cursor::new(bytes)).unwrap().into_dimensions().map_err(Error::damaged)
    };
    size.map_or(0, |(width, height)| u64::from(width) * u64::from(height))
}

#[test]
fn each_preprocessing_has_a_description_of_its_own() {
    let offsets = [CropOffset::HalfToEven, CropOffset::Floor];
    let all = [false, true].into_iter().flat_map(|exif| offsets.map(|crop_offset| Preprocessing { exif, crop_offset }));
    let descriptions: Vec<String> = all.map(Preprocessing::description).collect();
    let distinct: std::collections::BTreeSet<_> = descriptions.iter().collect();
    assert_eq!(distinct.len(), 4, "{descriptions:?}");
    // Feature stores that exist say this.
    assert_eq!(descriptions[0], "RGB; bicubic, short side to image size; centre crop");
}
