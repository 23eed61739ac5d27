//! Generates random scenes.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scene::{Colour, OBJECT_COUNT_RANGE, Object, Scene, Shape, Size};

/// Centres of the rows and columns of the layout, in pixels. A cell is 16 pixels wide, as is a
/// patch of the tiny vision encoder. Each object therefore lies in its own patch, so that a very
/// small model learns to recognise objects within minutes.
const CELL_CENTRES: [u8; 4] = [8, 24, 40, 56];

/// Generates a scene of two or three objects, each in its own cell of a 4×4 grid.
#[must_use]
pub fn generate_scene(seed: u64) -> Scene {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = rng.random_range(OBJECT_COUNT_RANGE);
    let mut cells: [(u8, u8); 16] = std::array::from_fn(|cell| (CELL_CENTRES[cell % 4], CELL_CENTRES[cell / 4]));
    cells.shuffle(&mut rng);

    let mut objects: Vec<Object> = Vec::with_capacity(count);
    for (x, y) in cells.into_iter().take(count) {
        // Colours differ, so that a small model need not learn which of two objects of the same
        // colour has which attribute.
        let object = loop {
            let object = random_object_at(x, y, &mut rng);
            if objects.iter().all(|other| other.colour != object.colour) {
                break object;
            }
        };
        objects.push(object);
    }
    Scene::new(objects).expect("cells lie in the image, and all objects differ")
}

fn random_object_at(x: u8, y: u8, rng: &mut ChaCha8Rng) -> Object {
    Object { shape: choose(&Shape::ALL, rng), colour: choose(&Colour::ALL, rng), size: choose(&Size::ALL, rng), x, y }
}

fn choose<T: Copy, const N: usize>(options: &[T; N], rng: &mut ChaCha8Rng) -> T {
    *options.choose(rng).expect("there is at least one option")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{IMAGE_SIDE, Relation};

    #[test]
    fn generated_objects_are_inside_the_image_separate_and_have_relations() {
        for seed in 0..5_000 {
            let scene = generate_scene(seed);
            for (index, a) in scene.objects().iter().enumerate() {
                let radius = a.size.radius();
                let is_inside =
                    |centre: u8| f32::from(centre) >= radius && f32::from(centre) + radius <= f32::from(IMAGE_SIDE);
                assert!(is_inside(a.x) && is_inside(a.y), "{a:?}");
                for b in &scene.objects()[..index] {
                    let gap = f32::from(a.x.abs_diff(b.x).max(a.y.abs_diff(b.y))) - radius - b.size.radius();
                    assert!(gap >= 1.0, "{a:?} {b:?}");
                    assert!(Relation::between(a, b).is_some(), "{a:?} {b:?}");
                }
            }
        }
    }
}
