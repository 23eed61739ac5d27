//! Invents scenes.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scene::{Colour, OBJECTS, Object, Scene, Shape, Size};

/// Centres of the rows and columns of the layout, in pixels. A cell is 16 pixels wide, as is a patch of the tiny vision
/// tower: each object lies in a patch of its own, which is what lets so small a model see clearly within minutes.
const GRID: [u8; 4] = [8, 24, 40, 56];

/// A scene of two or three objects, each in its own cell of a 4×4 grid.
#[must_use]
pub fn compose(seed: u64) -> Scene {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = rng.random_range(OBJECTS);
    let mut cells: [(u8, u8); 16] = std::array::from_fn(|cell| (GRID[cell % 4], GRID[cell / 4]));
    cells.shuffle(&mut rng);

    let mut objects: Vec<Object> = Vec::with_capacity(count);
    for (x, y) in cells.into_iter().take(count) {
        // Colours differ, so that a small model need not tell which of two like things has which attribute.
        let object = loop {
            let object = something_at(x, y, &mut rng);
            if objects.iter().all(|other| other.colour != object.colour) {
                break object;
            }
        };
        objects.push(object);
    }
    Scene::new(objects).expect("cells lie in the image, and no two objects are alike")
}

fn something_at(x: u8, y: u8, rng: &mut ChaCha8Rng) -> Object {
    Object { shape: pick(&Shape::ALL, rng), colour: pick(&Colour::ALL, rng), size: pick(&Size::ALL, rng), x, y }
}

fn pick<T: Copy, const N: usize>(all: &[T; N], rng: &mut ChaCha8Rng) -> T {
    *all.choose(rng).expect("there is something of everything")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Relation, SIDE};

    #[test]
    fn objects_are_in_the_image_apart_and_clearly_related() {
        for seed in 0..5_000 {
            let scene = compose(seed);
            for (index, a) in scene.objects().iter().enumerate() {
                let radius = a.size.radius();
                let inside = |centre: u8| f32::from(centre) >= radius && f32::from(centre) + radius <= f32::from(SIDE);
                assert!(inside(a.x) && inside(a.y), "{a:?}");
                for b in &scene.objects()[..index] {
                    let gap = f32::from(a.x.abs_diff(b.x).max(a.y.abs_diff(b.y))) - radius - b.size.radius();
                    assert!(gap >= 1.0, "{a:?} {b:?}");
                    assert!(Relation::between(a, b).is_some(), "{a:?} {b:?}");
                }
            }
        }
    }
}
