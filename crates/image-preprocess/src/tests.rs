use image::codecs::jpeg::JpegEncoder;
use image::{GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
use proptest::prelude::*;

use super::*;

fn noise(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 37 + y * 91) as u8, (x * y * 7) as u8, ((x * 5) ^ (y * 3)) as u8])
    })
}

fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn encode_jpeg(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(image).unwrap();
    bytes
}

fn run_check(bytes: &[u8]) -> Result<ImageWarnings, Error> {
    check(Cursor::new(bytes))
}

#[test]
fn lossless_formats_preserve_every_pixel() {
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let bytes = encode(noise(20, 20), format);
        run_check(&bytes).unwrap();
        assert_eq!(preprocess(&bytes, 20).unwrap(), noise(20, 20).into_raw(), "{format:?}");
    }
}

#[test]
fn a_jpeg_preserves_its_colours() {
    let bytes = encode_jpeg(&RgbImage::from_pixel(33, 17, Rgb([200, 40, 90])));
    run_check(&bytes).unwrap();
    for pixel in preprocess(&bytes, 24).unwrap().chunks(3) {
        assert!(pixel.iter().zip([200u8, 40, 90]).all(|(&level, expected)| level.abs_diff(expected) <= 3), "{pixel:?}");
    }
}

#[test]
fn grey_jpegs_become_rgb() {
    let mut bytes = Vec::new();
    JpegEncoder::new(&mut bytes).encode_image(&GrayImage::from_pixel(16, 16, Luma([77]))).unwrap();
    assert!(preprocess(&bytes, 8).unwrap().iter().all(|value| value.abs_diff(77) <= 1));
}

#[test]
fn inverted_cmyk_becomes_rgb() {
    // No ink, all inks, and cyan only, inverted as Adobe stores them.
    for (inks, colour) in [([255; 4], [255; 3]), ([0; 4], [0; 3]), ([0, 255, 255, 255], [0, 255, 255])] {
        let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_CMYK);
        encoder.set_size(16, 16);
        let mut compress = encoder.start_compress(Vec::new()).unwrap();
        compress.write_scanlines(&inks.repeat(16 * 16)).unwrap();
        let bytes = compress.finish().unwrap();
        for pixel in preprocess(&bytes, 8).unwrap().chunks(3) {
            assert!(
                pixel.iter().zip(colour).all(|(&level, expected)| level.abs_diff(expected) <= 2),
                "{inks:?}: {pixel:?}"
            );
        }
    }
}

/// A JPEG with an EXIF segment with this orientation, after another segment with the same marker.
fn with_orientation(plain: &[u8], orientation: u8) -> Vec<u8> {
    let exif =
        [&b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat();
    let segment = |content: &[u8]| {
        let length = u16::try_from(content.len() + 2).unwrap().to_be_bytes();
        [&[0xFF, 0xE1], &length[..], content].concat()
    };
    [&plain[..2], &segment(b"http://ns.adobe.com/xap/1.0/\0"), &segment(&exif), &plain[2..]].concat()
}

/// Preprocesses to 16 x 16 pixels with the EXIF orientation applied.
fn preprocess_oriented(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    Preprocessing { exif: true, ..Preprocessing::default() }.apply(bytes, 16)
}

#[test]
fn exif_orientation_is_applied_only_if_configured() {
    let original = noise(41, 24);
    let plain = encode_jpeg(&original);
    assert_eq!((run_check(&plain), orientation(&plain)), (Ok(ImageWarnings::default()), Orientation::NoTransforms));
    for number in 1..=8 {
        let rotated = with_orientation(&plain, number);
        assert_eq!(preprocess(&rotated, 16).unwrap(), preprocess(&plain, 16).unwrap());
        let orientation = Orientation::from_exif(number).unwrap();
        let has_exif_rotation = number > 1;
        assert_eq!(
            (run_check(&rotated).unwrap().has_exif_rotation, super::orientation(&rotated)),
            (has_exif_rotation, orientation)
        );
        // The expected pixels come from a lossless copy of the rotated image.
        let decoded = jpeg::decode(&plain).unwrap();
        let mut oriented_image = DynamicImage::from(RgbImage::from_raw(41, 24, decoded.pixels).unwrap());
        oriented_image.apply_orientation(orientation);
        let expected = preprocess(&encode(oriented_image, ImageFormat::Png), 16).unwrap();
        assert_eq!(preprocess_oriented(&rotated).unwrap(), expected, "{number}");
    }
    for invalid in [0, 9, 255] {
        let image = with_orientation(&plain, invalid);
        assert!(!run_check(&image).unwrap().has_exif_rotation);
        assert_eq!(preprocess_oriented(&image), preprocess(&plain, 16));
    }
    assert_eq!(preprocess_oriented(b"text"), preprocess(b"text", 16));
}

#[test]
fn sixteen_bit_greys_cause_a_warning() {
    let has_warning = |image: DynamicImage| run_check(&encode(image, ImageFormat::Png)).unwrap().is_16_bit_grayscale;
    assert!(has_warning(ImageBuffer::from_pixel(2, 2, Luma([200u16])).into()));
    assert!(!has_warning(ImageBuffer::from_pixel(2, 2, Luma([200u8])).into()));
    assert!(!has_warning(ImageBuffer::from_pixel(2, 2, Rgb([200u16; 3])).into()));
}

#[test]
fn files_of_other_types_are_refused_with_the_reason() {
    for (bytes, problem) in [
        (&b""[..], Error::Empty),
        (b"<!DOCTYPE html>\n<html>", Error::Markup),
        (b"\n  <?xml?>", Error::Markup),
        (b"text", Error::UnsupportedFormat),
        // The beginnings of a GIF, a BMP and a TIFF.
        (b"GIF89a\x01\0\x01\0\x80\0\0", Error::UnsupportedFormat),
        (b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0", Error::UnsupportedFormat),
        (b"II*\0\x08\0\0\0", Error::UnsupportedFormat),
    ] {
        assert_eq!((run_check(bytes), preprocess(bytes, 8)), (Err(problem.clone()), Err(problem)));
    }
}

#[test]
fn the_check_refuses_truncated_images_and_accepts_trailing_data() {
    let (jpeg, png) = (encode_jpeg(&noise(90, 70)), encode(noise(90, 70), ImageFormat::Png));
    for bytes in [&jpeg, &png, &encode(noise(40, 40), ImageFormat::WebP)] {
        run_check(bytes).unwrap();
        for length in [bytes.len() * 2 / 3, bytes.len() - 40] {
            run_check(&bytes[..length]).unwrap_err();
            preprocess(&bytes[..length], 8).unwrap_err();
        }
        // Some cameras and phones append data.
        let longer = [&bytes[..], b"more of another kind"].concat();
        run_check(&longer).unwrap();
        assert_eq!(preprocess(&longer, 8), preprocess(bytes, 8));
    }
    assert_eq!(run_check(&jpeg[..jpeg.len() * 2 / 3]), Err(Error::Truncated));
    // Files of full size, but with zeros instead of the second half. WebP has neither checksums nor
    // an end marker, so it is not tested.
    for bytes in [&jpeg, &png] {
        let (first_half, second_half) = bytes.split_at(bytes.len() / 2);
        run_check(&[first_half, &vec![0; second_half.len()]].concat()).unwrap_err();
    }
}

#[test]
fn alpha_is_dropped_and_sixteen_bits_become_eight() {
    let convert = |image: DynamicImage| preprocess(&encode(image, ImageFormat::Png), 2).unwrap()[..3].to_vec();
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, Rgba([9u8, 8, 7, 0])).into()), [9, 8, 7]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, LumaA([9u8, 0])).into()), [9; 3]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, Rgb([0xFFu16, 0x1FF, 0xFFFF])).into()), [0, 1, 255]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, Rgba([0xFFu16, 0x1FF, 0xFFFF, 0])).into()), [0, 1, 255]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, LumaA([0x1FFu16, 0])).into()), [1; 3]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, Luma([200u16])).into()), [200; 3]);
    assert_eq!(convert(ImageBuffer::from_pixel(2, 2, Luma([256u16])).into()), [255; 3]);
}

#[test]
fn images_truncated_anywhere_are_refused() {
    for bytes in [encode_jpeg(&noise(19, 11)), encode(noise(19, 11), ImageFormat::Png)] {
        preprocess(&bytes, 8).unwrap();
        for length in 0..bytes.len() {
            // A PNG with complete pixels is accepted without its last chunk.
            if let Ok(pixels) = preprocess(&bytes[..length], 8) {
                assert!(bytes.len() - length <= 12 && pixels == preprocess(&bytes, 8).unwrap(), "{length} bytes");
            }
            let _ = run_check(&bytes[..length]);
        }
    }
    let bytes = encode(noise(19, 11), ImageFormat::WebP);
    for length in 0..bytes.len() {
        let _ = (run_check(&bytes[..length]), preprocess(&bytes[..length], 8));
    }
}

#[test]
fn oversized_images_are_refused_before_allocation() {
    let mut png = encode(noise(4, 4), ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 1, 0x86, 0xA0, 0, 1, 0x86, 0xA0]);
    let sum = crc(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    let mut jpeg = encode_jpeg(&noise(4, 4));
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
    for bytes in [png, jpeg] {
        for problem in [preprocess(&bytes, 8).unwrap_err(), run_check(&bytes).unwrap_err()] {
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
fn signatures_without_data_are_refused() {
    for bytes in [&b""[..], b"\xFF\xD8\xFF", b"GIF89a", b"text"] {
        assert!(preprocess(bytes, 8).is_err() && run_check(bytes).is_err());
    }
    assert!(preprocess(&encode_jpeg(&noise(4, 4)), 0).is_err());
}

/// A JPEG as cameras and libjpeg-turbo write it, with one chroma sample for `horizontal` x
/// `vertical` pixels.
fn baseline_jpeg(image: &RgbImage, quality: f32, (horizontal, vertical): (u8, u8)) -> Vec<u8> {
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_fastest_defaults();
    encoder.set_size(image.width() as usize, image.height() as usize);
    encoder.set_quality(quality);
    encoder.set_chroma_sampling_pixel_sizes((horizontal, vertical), (horizontal, vertical));
    let mut compress = encoder.start_compress(Vec::new()).unwrap();
    compress.write_scanlines(image).unwrap();
    compress.finish().unwrap()
}

/// Decodes without libjpeg, for the default preprocessing.
fn decode_columns(bytes: &[u8], size: usize) -> Option<(ResizePlan, SourceColumns)> {
    jpeg::decode_columns(bytes, size, CropOffset::default())
}

fn preprocess_with_libjpeg(bytes: &[u8], size: usize) -> Vec<u8> {
    let image = jpeg::decode(bytes).unwrap();
    let plan = ResizePlan::new(image.width, image.height, size, CropOffset::default()).unwrap();
    resize::resize_and_crop(&plan, &SourceColumns::from_image(&image, &plan))
}

#[test]
fn unusual_and_damaged_jpegs_are_decoded_by_libjpeg() {
    let baseline = baseline_jpeg(&noise(40, 30), 90.0, (2, 2));
    assert!(decode_columns(&baseline, 16).is_some());
    for length in 0..baseline.len() {
        assert!(decode_columns(&baseline[..length], 16).is_none(), "{length} bytes");
    }
    let progressive = {
        let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
        encoder.set_size(40, 30);
        encoder.set_progressive_mode();
        let mut compress = encoder.start_compress(Vec::new()).unwrap();
        compress.write_scanlines(&noise(40, 30)).unwrap();
        compress.finish().unwrap()
    };
    assert!(decode_columns(&progressive, 16).is_none());
    assert_eq!(preprocess(&progressive, 16).unwrap(), preprocess_with_libjpeg(&progressive, 16));
    // Repeated segments: quantization tables are replaced; the frame and Huffman tables are
    // refused.
    for (marker, is_decoded) in [(0xDB, true), (0xC0, false), (0xC4, false)] {
        let start = baseline.windows(2).position(|pair| pair == [0xFF, marker]).unwrap();
        let end = start + 2 + usize::from(u16::from_be_bytes([baseline[start + 2], baseline[start + 3]]));
        let twice = [&baseline[..end], &baseline[start..]].concat();
        assert_eq!(decode_columns(&twice, 16).is_some(), is_decoded, "{marker:X}");
    }
    // Wider than libjpeg allows.
    let mut wide = baseline_jpeg(&noise(65_500, 1), 90.0, (1, 1));
    assert!(decode_columns(&wide, 16).is_some());
    let frame = wide.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    wide[frame + 7..frame + 9].copy_from_slice(&65_501_u16.to_be_bytes());
    assert!(decode_columns(&wide, 16).is_none() && jpeg::decode(&wide).is_err());
    // Samples much brighter than white.
    let mut bright = baseline_jpeg(&RgbImage::from_pixel(40, 30, Rgb([255; 3])), 25.0, (2, 2));
    assert!(decode_columns(&bright, 16).is_some());
    let steps = bright.windows(2).position(|pair| pair == [0xFF, 0xDB]).unwrap() + 5;
    bright[steps..steps + 64].fill(255);
    assert!(decode_columns(&bright, 16).is_none());
    // Another marker than end of image after the scan.
    let end = baseline.len() - 1;
    assert!(decode_columns(&[&baseline[..end], &[0xD0]].concat(), 16).is_none());
    // Extra bits after the last block.
    assert!(decode_columns(&[&baseline[..end - 1], &[0, 0xFF, 0xD9]].concat(), 16).is_none());
}

proptest! {
    #[test]
    fn baseline_jpegs_give_the_same_pixels_as_libjpeg(
        (width, height) in (1u32..150, 1u32..150),
        // With lower quality, quantization steps have 16 bits.
        quality in 25.0f32..=100.0,
        sampling in prop::sample::select(vec![(1, 1), (2, 1), (2, 2)]),
        size in 1usize..60,
        smooth in any::<bool>(),
    ) {
        let original = if smooth {
            RgbImage::from_fn(width, height, |x, y| Rgb([(2 * x) as u8, (x + y) as u8, 255 - y as u8]))
        } else {
            noise(width, height)
        };
        let bytes = baseline_jpeg(&original, quality, sampling);
        prop_assert_eq!(decode_columns(&bytes, size).is_some(), width > 4 || sampling == (1, 1));
        prop_assert_eq!(preprocess(&bytes, size as u32).unwrap(), preprocess_with_libjpeg(&bytes, size));
    }

    #[test]
    fn damaged_jpegs_give_the_same_pixels_as_libjpeg_or_are_left_to_it(
        sampling in prop::sample::select(vec![(1, 1), (2, 1), (2, 2)]),
        quality in 25.0f32..=100.0,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0u32..8), 1..4),
    ) {
        let mut bytes = baseline_jpeg(&noise(21, 19), quality, sampling);
        for (index, bit) in damage {
            let index = index.index(bytes.len());
            bytes[index] ^= 1u8 << bit;
        }
        if let Some((plan, columns)) = decode_columns(&bytes, 8) {
            prop_assert_eq!(resize::resize_and_crop(&plan, &columns), preprocess_with_libjpeg(&bytes, 8));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        magic in prop::sample::select(vec![&b""[..], b"\xFF\xD8\xFF", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8 ", b"RIFF\x40\0\0\0WEBPVP8L"]),
        tail in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [magic, &tail].concat();
        let _ = (run_check(&bytes), preprocess(&bytes, 8));
    }

    #[test]
    fn damaged_images_never_panic(
        kind in 0usize..3,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = match kind {
            0 => encode_jpeg(&noise(19, 11)),
            1 => encode(noise(19, 11), ImageFormat::Png),
            _ => encode(noise(19, 11), ImageFormat::WebP),
        };
        for (index, value) in damage {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        // Large images are skipped, because decoding them takes long.
        if run_check(&bytes).is_ok() && dimensions(&bytes) < 1 << 20 {
            let _ = preprocess(&bytes, 8);
        }
    }
}

fn dimensions(bytes: &[u8]) -> u64 {
    let size = if jpeg::is_jpeg(bytes) {
        jpeg::dimensions(bytes)
    } else {
        guess_format(Cursor::new(bytes)).unwrap().into_dimensions().map_err(Error::damaged)
    };
    size.map_or(0, |(width, height)| u64::from(width) * u64::from(height))
}

#[test]
fn each_preprocessing_has_a_different_description() {
    let offsets = [CropOffset::HalfToEven, CropOffset::Floor];
    let all = [false, true].into_iter().flat_map(|exif| offsets.map(|crop_offset| Preprocessing { exif, crop_offset }));
    let descriptions: Vec<String> = all.map(Preprocessing::description).collect();
    let distinct: std::collections::BTreeSet<_> = descriptions.iter().collect();
    assert_eq!(distinct.len(), 4, "{descriptions:?}");
    // Existing feature stores contain this description.
    assert_eq!(descriptions[0], "RGB; bicubic, short side to image size; centre crop");
}
