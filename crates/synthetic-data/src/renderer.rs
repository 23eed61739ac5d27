//! Renders scenes. Shapes and colours are as clear as 64×64 pixels allow. The background noise only
//! makes sure that images are not flat and that JPEG compression of them is realistic.

use image::{Rgb, RgbImage};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scene::{Colour, IMAGE_SIDE, Object, Scene, Shape};

/// Anti-aliasing samples along each side of a pixel; their mean is the pixel's coverage.
const SAMPLES_PER_SIDE: u8 = 4;

/// Base levels of the light and the dark background, of 255. All colours stand out from both.
const BACKGROUND_LEVELS: [f32; 2] = [222.0, 38.0];

/// Maximal offset of a background from its base level.
const BACKGROUND_SPREAD: f32 = 8.0;
/// Maximal further offset of each channel of a background.
const BACKGROUND_CHANNEL_SPREAD: f32 = 4.0;

/// Amplitude of a background's smooth noise.
const NOISE_AMPLITUDE: f32 = 6.0;

/// Cells of the smooth noise along each side of the image; values are interpolated between corners.
const NOISE_CELLS: usize = 7;

/// Maximal offset of each channel of an object from its colour.
const COLOUR_SPREAD: f32 = 8.0;

/// Amplitude of the noise that is added to each pixel.
const GRAIN_AMPLITUDE: f32 = 4.0;

/// A pixel's red, green and blue, of 255.
type Pixel = [f32; 3];

/// Renders `scene` as an image of 64×64 pixels. The seed determines the background, the
/// noise, and small deviations of the objects' colours.
#[must_use]
pub fn render(scene: &Scene, seed: u64) -> RgbImage {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut canvas = background(&mut rng);
    for object in scene.objects() {
        draw_object(&mut canvas, object, &mut rng);
    }
    add_grain(&mut canvas, &mut rng);
    let side = u32::from(IMAGE_SIDE);
    RgbImage::from_fn(side, side, |x, y| {
        let pixel = canvas[(y * side + x) as usize];
        // `as` saturates, as intended.
        Rgb(pixel.map(|channel| (channel + 0.5) as u8))
    })
}

/// A canvas with a nearly grey background: a random level with smooth noise.
fn background(rng: &mut ChaCha8Rng) -> Vec<Pixel> {
    let level =
        BACKGROUND_LEVELS[rng.random_range(0..BACKGROUND_LEVELS.len())] + uniform_within(BACKGROUND_SPREAD, rng);
    let base: Pixel = std::array::from_fn(|_| level + uniform_within(BACKGROUND_CHANNEL_SPREAD, rng));
    let corners: [[f32; NOISE_CELLS + 1]; NOISE_CELLS + 1] =
        std::array::from_fn(|_| std::array::from_fn(|_| uniform_within(NOISE_AMPLITUDE, rng)));
    let mut canvas = Vec::with_capacity(usize::from(IMAGE_SIDE) * usize::from(IMAGE_SIDE));
    for y in 0..IMAGE_SIDE {
        for x in 0..IMAGE_SIDE {
            let ((row, down), (column, along)) = (noise_cell(y), noise_cell(x));
            let interpolate = |row: &[f32]| row[column] + along * (row[column + 1] - row[column]);
            let (upper, lower) = (interpolate(&corners[row]), interpolate(&corners[row + 1]));
            canvas.push(base.map(|channel| channel + upper + down * (lower - upper)));
        }
    }
    canvas
}

/// The row (or column) of noise cells that a pixel is in, and its offset in the cell, from 0 to 1.
fn noise_cell(pixel: u8) -> (usize, f32) {
    let scaled = usize::from(pixel) * NOISE_CELLS;
    let side = usize::from(IMAGE_SIDE);
    (scaled / side, (scaled % side) as f32 / side as f32)
}

fn draw_object(canvas: &mut [Pixel], object: &Object, rng: &mut ChaCha8Rng) {
    let colour = rgb(object.colour).map(|channel| channel + uniform_within(COLOUR_SPREAD, rng));
    // A star's points extend a little beyond the radius.
    let extent = (object.size.radius() * 1.1).ceil() as u8;
    for y in object.y.saturating_sub(extent)..IMAGE_SIDE.min(object.y + extent) {
        for x in object.x.saturating_sub(extent)..IMAGE_SIDE.min(object.x + extent) {
            let coverage = coverage(object, x, y);
            let pixel = &mut canvas[usize::from(y) * usize::from(IMAGE_SIDE) + usize::from(x)];
            *pixel = std::array::from_fn(|channel| pixel[channel] + coverage * (colour[channel] - pixel[channel]));
        }
    }
}

/// The fraction of a pixel that the object covers, from 0 to 1.
fn coverage(object: &Object, x: u8, y: u8) -> f32 {
    let normalized = |pixel: u8, sample: u8, centre: u8| {
        let offset = (f32::from(sample) + 0.5) / f32::from(SAMPLES_PER_SIDE);
        (f32::from(pixel) + offset - f32::from(centre)) / object.size.radius()
    };
    let rows = (0..SAMPLES_PER_SIDE).map(|sample| normalized(y, sample, object.y));
    let covered = rows
        .flat_map(|v| (0..SAMPLES_PER_SIDE).map(move |sample| (normalized(x, sample, object.x), v)))
        .filter(|&(u, v)| contains(object.shape, u, v))
        .count();
    covered as f32 / f32::from(SAMPLES_PER_SIDE * SAMPLES_PER_SIDE)
}

/// Whether the shape of radius 1 around (0, 0) contains (u, v); v points down. All shapes but the
/// star fit into a square with corners (±1, ±1).
fn contains(shape: Shape, u: f32, v: f32) -> bool {
    let squared_distance = u * u + v * v;
    match shape {
        Shape::Circle => squared_distance <= 1.0,
        Shape::Square => u.abs().max(v.abs()) <= 1.0,
        Shape::Triangle => v <= 0.85 && u.abs() * 1.85 <= v + 1.0,
        Shape::Cross => u.abs().min(v.abs()) <= 0.3 && u.abs().max(v.abs()) <= 1.0,
        Shape::Star => in_star(u, v),
    }
}

/// Whether a five-pointed star contains (u, v): that is, whether the point is on the inner side of
/// at least four of the five lines through the star's edges. The points are cut off and the star is
/// fatter than a regular one; otherwise a small star would hardly be visible.
fn in_star(u: f32, v: f32) -> bool {
    /// Unit normals of the lines, outwards. One line is level, above the centre: the star stands on
    /// two points.
    const NORMALS: [(f32, f32); 5] = [
        (0.0, -1.0),
        (0.951_056_5, -0.309_017),
        (0.587_785_25, 0.809_017),
        (-0.587_785_25, 0.809_017),
        (-0.951_056_5, -0.309_017),
    ];
    /// Distance of the lines from the centre; with 0.309 the points would be at distance 1.
    const INRADIUS: f32 = 0.39;
    /// The square of the distance at which the points are cut off.
    const MAX_SQUARED_DISTANCE: f32 = 1.06 * 1.06;
    let outside = NORMALS.iter().filter(|(nu, nv)| nu * u + nv * v > INRADIUS).count();
    outside <= 1 && u * u + v * v <= MAX_SQUARED_DISTANCE
}

/// The red, green and blue of a colour.
fn rgb(colour: Colour) -> Pixel {
    match colour {
        Colour::Red => [218.0, 28.0, 36.0],
        Colour::Orange => [250.0, 132.0, 12.0],
        Colour::Yellow => [238.0, 216.0, 16.0],
        Colour::Green => [28.0, 160.0, 60.0],
        Colour::Blue => [36.0, 92.0, 226.0],
        Colour::Purple => [150.0, 52.0, 190.0],
    }
}

/// Makes each pixel a little lighter or darker.
fn add_grain(canvas: &mut [Pixel], rng: &mut ChaCha8Rng) {
    let mut bytes = [0; IMAGE_SIDE as usize * IMAGE_SIDE as usize];
    rng.fill_bytes(&mut bytes);
    for (pixel, byte) in canvas.iter_mut().zip(bytes) {
        let offset = GRAIN_AMPLITUDE * (f32::from(byte) / 127.5 - 1.0);
        *pixel = pixel.map(|channel| channel + offset);
    }
}

/// A random number from -`amplitude` to `amplitude`, uniformly distributed.
fn uniform_within(amplitude: f32, rng: &mut ChaCha8Rng) -> f32 {
    amplitude * (rng.random::<f32>() * 2.0 - 1.0)
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;

    use super::*;
    use crate::generate_scene;

    /// The colour that is nearest to a pixel.
    fn nearest_colour(pixel: Rgb<u8>) -> Colour {
        let distance = |colour: &Colour| -> f32 {
            rgb(*colour)
                .iter()
                .zip(pixel.0)
                .map(|(expected, pixel_colour)| (expected - f32::from(pixel_colour)).powi(2))
                .sum()
        };
        Colour::ALL.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap()
    }

    #[test]
    fn colours_are_recognisable_after_jpeg_compression() {
        for seed in 0..300 {
            let scene = generate_scene(seed);
            let mut jpeg = Vec::new();
            JpegEncoder::new_with_quality(&mut jpeg, 90).encode_image(&render(&scene, seed)).unwrap();
            let image = image::load_from_memory(&jpeg).unwrap().to_rgb8();
            for object in scene.objects() {
                let pixel_colour = *image.get_pixel(object.x.into(), object.y.into());
                assert_eq!(
                    nearest_colour(pixel_colour),
                    object.colour,
                    "seed {seed}: {object:?} looks like {pixel_colour:?}"
                );
            }
        }
    }

    #[test]
    fn each_shape_fills_a_different_part_of_its_cell() {
        let pixels = || (0..64u8).flat_map(|x| (0..64u8).map(move |y| (x, y)));
        for size in crate::Size::ALL {
            let masks = Shape::ALL.map(|shape| {
                let object = Object { shape, colour: Colour::Red, size, x: 32, y: 32 };
                pixels().map(|(x, y)| coverage(&object, x, y)).collect::<Vec<_>>()
            });
            let square = 4.0 * size.radius() * size.radius();
            for (index, mask) in masks.iter().enumerate() {
                let area = mask.iter().sum::<f32>() / square;
                assert!((0.3..=1.0).contains(&area), "{:?} fills {area}", Shape::ALL[index]);
                for (other, shape) in masks[..index].iter().zip(Shape::ALL) {
                    let difference = mask.iter().zip(other).map(|(a, b)| (a - b).abs()).sum::<f32>() / square;
                    assert!(difference > 0.2, "{:?} and {shape:?} differ in {difference} only", Shape::ALL[index]);
                }
            }
        }
    }

    #[test]
    fn objects_at_the_edge_are_clipped() {
        let star_at = |colour, x, y| Object { shape: Shape::Star, colour, size: crate::Size::Large, x, y };
        let scene = Scene::new(vec![star_at(Colour::Red, 0, 63), star_at(Colour::Blue, 63, 0)]).unwrap();
        assert_eq!(render(&scene, 0).dimensions(), (64, 64));
    }
}
