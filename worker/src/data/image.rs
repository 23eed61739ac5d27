//! An image file to the pixels that CLIP sees: decoded, scaled until its short side fits, cropped to the centre.

use std::path::Path;

use ::image::{DynamicImage, ImageReader};
use fast_image_resize::images::Image;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::Error;

/// Red, green and blue of a square image, interleaved, row by row.
pub type Pixels = Vec<u8>;

fn broken(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::Image { path: path.to_owned(), problem: problem.to_string() }
}

fn open(path: &Path) -> Result<ImageReader<std::io::BufReader<std::fs::File>>, Error> {
    let reader = ImageReader::open(path).map_err(|error| broken(path, error))?;
    reader.with_guessed_format().map_err(|error| broken(path, error))
}

/// Reads the header only: the file is there and is an image.
pub fn check(path: &Path) -> Result<(), Error> {
    match open(path)?.into_dimensions() {
        Ok((0, _) | (_, 0)) => Err(broken(path, "image without pixels")),
        Ok(_) => Ok(()),
        Err(error) => Err(broken(path, error)),
    }
}

/// The image as `size` x `size` pixels.
///
/// # Errors
/// The file is missing, no image, damaged, or so large that decoding it would take more than 512 MiB.
pub fn decode(path: &Path, size: u32) -> Result<Pixels, Error> {
    let decoded = open(path)?.decode().map_err(|error| broken(path, error))?;
    fit(&decoded, size).map_err(|problem| broken(path, problem))
}

/// Bicubic (a = -0.5), as Pillow does it; the crop of the scaled image is taken in one go.
fn fit(decoded: &DynamicImage, size: u32) -> Result<Pixels, String> {
    let rgb = decoded.to_rgb8();
    let (width, height) = rgb.dimensions();
    if (width, height) == (size, size) {
        return Ok(rgb.into_raw());
    }
    let scale = f64::from(size) / f64::from(width.min(height));
    let scaled = |side: u32| ((f64::from(side) * scale) as u32).max(size);
    let (wide, high) = (scaled(width), scaled(height));
    let source =
        Image::from_vec_u8(width, height, rgb.into_raw(), PixelType::U8x3).map_err(|error| error.to_string())?;
    // What the centre crop of the scaled image covers in the original.
    let part = |side: u32, scaled: u32| {
        let unit = f64::from(side) / f64::from(scaled);
        (f64::from((scaled - size).div_ceil(2)) * unit, f64::from(size) * unit)
    };
    let ((left, crop_width), (top, crop_height)) = (part(width, wide), part(height, high));
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).crop(
        left,
        top,
        crop_width,
        crop_height,
    );
    let mut target = Image::new(size, size, PixelType::U8x3);
    Resizer::new().resize(&source, &mut target, &options).map_err(|error| error.to_string())?;
    Ok(target.into_vec())
}

#[cfg(test)]
mod tests {
    use ::image::{Rgb, RgbImage};

    use super::*;

    #[test]
    fn the_centre_is_kept() {
        // Left third red, middle third green, right third blue.
        let stripes = RgbImage::from_fn(96, 32, |x, _| Rgb([[255, 0, 0], [0, 255, 0], [0, 0, 255]][x as usize / 32]));
        let pixels = fit(&stripes.into(), 16).unwrap();
        assert_eq!(pixels.len(), 16 * 16 * 3);
        let middle = 3 * (8 * 16 + 8);
        assert_eq!(pixels[middle..middle + 3], [0, 255, 0]);
    }

    #[test]
    fn odd_shapes_are_fitted() {
        for (width, height) in [(1, 1), (1, 500), (3, 2), (640, 480), (63, 65)] {
            let image = RgbImage::from_pixel(width, height, Rgb([10, 200, 30]));
            let pixels = fit(&image.into(), 32).unwrap();
            assert!(pixels.chunks(3).all(|pixel| pixel == [10, 200, 30]), "{width} x {height}");
        }
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.jpg");
        assert!(check(&path).unwrap_err().to_string().contains("broken.jpg"));
        RgbImage::from_pixel(40, 40, Rgb([1, 2, 3])).save(&path).unwrap();
        assert!(check(&path).is_ok() && decode(&path, 8).is_ok());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..20]).unwrap();
        assert!(check(&path).is_err() && decode(&path, 8).is_err());
        std::fs::write(&path, b"not an image").unwrap();
        assert!(check(&path).unwrap_err().to_string().contains("broken.jpg"));
    }
}
