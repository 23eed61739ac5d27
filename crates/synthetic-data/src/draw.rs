//! Draws scenes. Shapes and colours are as clear as 64×64 pixels allow; the noise around them is only there so that
//! images are not flat and a JPEG of them is a real one.

use image::{Rgb, RgbImage};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scene::{Colour, Object, SIDE, Scene, Shape};

/// Samples along each side of a pixel; their mean is the pixel's coverage.
const SAMPLES: u8 = 4;

/// Base levels of the two kinds of background, light and dark, of 255. All colours stand out from both.
const BACKGROUNDS: [f32; 2] = [222.0, 38.0];

/// How far a background's level, and each of its channels on top, strays from the base.
const BACKGROUND_SPREAD: f32 = 8.0;
const BACKGROUND_TINT: f32 = 4.0;

/// Amplitude of a background's soft blotches.
const BLOTCH: f32 = 6.0;

/// Blotches along each side of the image.
const BLOTCHES: usize = 7;

/// How far each channel of an object strays from its colour.
const PAINT_SPREAD: f32 = 8.0;

/// Amplitude of the grain over everything.
const GRAIN: f32 = 4.0;

/// A pixel's red, green and blue, of 255.
type Pixel = [f32; 3];

/// An image of `scene`, 64×64. The seed decides about its background and noise only.
#[must_use]
pub fn draw(scene: &Scene, seed: u64) -> RgbImage {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut canvas = background(&mut rng);
    for object in scene.objects() {
        paint(&mut canvas, object, &mut rng);
    }
    grain(&mut canvas, &mut rng);
    let side = u32::from(SIDE);
    RgbImage::from_fn(side, side, |x, y| {
        let pixel = canvas[(y * side + x) as usize];
        // `as` saturates, which is what is wanted here.
        Rgb(pixel.map(|channel| (channel + 0.5) as u8))
    })
}

/// A greyish level with blotches.
fn background(rng: &mut ChaCha8Rng) -> Vec<Pixel> {
    let level = BACKGROUNDS[rng.random_range(0..BACKGROUNDS.len())] + spread(BACKGROUND_SPREAD, rng);
    let base: Pixel = std::array::from_fn(|_| level + spread(BACKGROUND_TINT, rng));
    let corners: [[f32; BLOTCHES + 1]; BLOTCHES + 1] =
        std::array::from_fn(|_| std::array::from_fn(|_| spread(BLOTCH, rng)));
    let mut canvas = Vec::with_capacity(usize::from(SIDE) * usize::from(SIDE));
    for y in 0..SIDE {
        for x in 0..SIDE {
            let ((row, down), (column, along)) = (in_blotch(y), in_blotch(x));
            let mix = |row: &[f32]| row[column] + along * (row[column + 1] - row[column]);
            let (upper, lower) = (mix(&corners[row]), mix(&corners[row + 1]));
            canvas.push(base.map(|channel| channel + upper + down * (lower - upper)));
        }
    }
    canvas
}

/// Which row (or column) of blotches a pixel is in, and how far into it, from 0 to 1.
fn in_blotch(pixel: u8) -> (usize, f32) {
    let scaled = usize::from(pixel) * BLOTCHES;
    let side = usize::from(SIDE);
    (scaled / side, (scaled % side) as f32 / side as f32)
}

fn paint(canvas: &mut [Pixel], object: &Object, rng: &mut ChaCha8Rng) {
    let paint = rgb(object.colour).map(|channel| channel + spread(PAINT_SPREAD, rng));
    // A star's points reach a little beyond the radius.
    let reach = (object.size.radius() * 1.1).ceil() as u8;
    for y in object.y.saturating_sub(reach)..SIDE.min(object.y + reach) {
        for x in object.x.saturating_sub(reach)..SIDE.min(object.x + reach) {
            let coverage = coverage(object, x, y);
            let pixel = &mut canvas[usize::from(y) * usize::from(SIDE) + usize::from(x)];
            *pixel = std::array::from_fn(|channel| pixel[channel] + coverage * (paint[channel] - pixel[channel]));
        }
    }
}

/// How much of a pixel the object covers, from 0 to 1.
fn coverage(object: &Object, x: u8, y: u8) -> f32 {
    let at = |pixel: u8, sample: u8, centre: u8| {
        let offset = (f32::from(sample) + 0.5) / f32::from(SAMPLES);
        (f32::from(pixel) + offset - f32::from(centre)) / object.size.radius()
    };
    let rows = (0..SAMPLES).map(|sample| at(y, sample, object.y));
    let inside = rows
        .flat_map(|v| (0..SAMPLES).map(move |sample| (at(x, sample, object.x), v)))
        .filter(|&(u, v)| covers(object.shape, u, v))
        .count();
    inside as f32 / f32::from(SAMPLES * SAMPLES)
}

/// Whether the shape of radius 1 around (0, 0) covers (u, v); v points down. All but the star fit
/// into a square with corners (±1, ±1).
fn covers(shape: Shape, u: f32, v: f32) -> bool {
    let square_distance = u * u + v * v;
    match shape {
        Shape::Circle => square_distance <= 1.0,
        Shape::Square => u.abs().max(v.abs()) <= 1.0,
        Shape::Triangle => v <= 0.85 && u.abs() * 1.85 <= v + 1.0,
        Shape::Cross => u.abs().min(v.abs()) <= 0.3 && u.abs().max(v.abs()) <= 1.0,
        Shape::Star => in_star(u, v),
    }
}

/// A five-pointed star is what lies on the inner side of at least four of the five lines through its edges. Its points
/// are cut off, and so it can be fatter than it should be: otherwise a small one would be all points and hardly visible.
fn in_star(u: f32, v: f32) -> bool {
    /// Unit normals of the lines, outwards. One line is level, above the centre: the star stands on two points.
    const NORMALS: [(f32, f32); 5] = [
        (0.0, -1.0),
        (0.951_056_5, -0.309_017),
        (0.587_785_25, 0.809_017),
        (-0.587_785_25, 0.809_017),
        (-0.951_056_5, -0.309_017),
    ];
    /// Distance of the lines from the centre; 0.309 would put the points at 1.
    const APOTHEM: f32 = 0.39;
    /// Square of where the points are cut off.
    const CUT: f32 = 1.06 * 1.06;
    let beyond = NORMALS.iter().filter(|(nu, nv)| nu * u + nv * v > APOTHEM).count();
    beyond <= 1 && u * u + v * v <= CUT
}

/// A colour's paint.
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

/// Makes every pixel a little lighter or darker.
fn grain(canvas: &mut [Pixel], rng: &mut ChaCha8Rng) {
    let mut bytes = [0; SIDE as usize * SIDE as usize];
    rng.fill_bytes(&mut bytes);
    for (pixel, byte) in canvas.iter_mut().zip(bytes) {
        let light = GRAIN * (f32::from(byte) / 127.5 - 1.0);
        *pixel = pixel.map(|channel| channel + light);
    }
}

/// Uniformly within `amplitude` of zero.
fn spread(amplitude: f32, rng: &mut ChaCha8Rng) -> f32 {
    amplitude * (rng.random::<f32>() * 2.0 - 1.0)
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;

    use super::*;
    use crate::compose;

    /// The colour whose paint is nearest to a pixel.
    fn nearest(pixel: Rgb<u8>) -> Colour {
        let distance = |colour: &Colour| -> f32 {
            rgb(*colour).iter().zip(pixel.0).map(|(paint, seen)| (paint - f32::from(seen)).powi(2)).sum()
        };
        Colour::ALL.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap()
    }

    #[test]
    fn colours_survive_jpeg() {
        for seed in 0..300 {
            let scene = compose(seed);
            let mut jpeg = Vec::new();
            JpegEncoder::new_with_quality(&mut jpeg, 90).encode_image(&draw(&scene, seed)).unwrap();
            let image = image::load_from_memory(&jpeg).unwrap().to_rgb8();
            for object in scene.objects() {
                let seen = *image.get_pixel(object.x.into(), object.y.into());
                assert_eq!(nearest(seen), object.colour, "seed {seed}: {object:?} looks like {seen:?}");
            }
        }
    }

    #[test]
    fn shapes_fill_their_place_each_in_its_own_way() {
        let cells = || (0..64u8).flat_map(|x| (0..64u8).map(move |y| (x, y)));
        for size in crate::Size::ALL {
            let masks = Shape::ALL.map(|shape| {
                let object = Object { shape, colour: Colour::Red, size, x: 32, y: 32 };
                cells().map(|(x, y)| coverage(&object, x, y)).collect::<Vec<_>>()
            });
            let square = 4.0 * size.radius() * size.radius();
            for (index, mask) in masks.iter().enumerate() {
                let area = mask.iter().sum::<f32>() / square;
                assert!((0.3..=1.0).contains(&area), "{:?} fills {area}", Shape::ALL[index]);
                for (other, shape) in masks[..index].iter().zip(Shape::ALL) {
                    let differ = mask.iter().zip(other).map(|(a, b)| (a - b).abs()).sum::<f32>() / square;
                    assert!(differ > 0.2, "{:?} and {shape:?} differ in {differ} only", Shape::ALL[index]);
                }
            }
        }
    }

    #[test]
    fn objects_at_the_edge_are_cut_off() {
        let at = |colour, x, y| Object { shape: Shape::Star, colour, size: crate::Size::Large, x, y };
        let scene = Scene::new(vec![at(Colour::Red, 0, 63), at(Colour::Blue, 63, 0)]).unwrap();
        assert_eq!(draw(&scene, 0).dimensions(), (64, 64));
    }
}
