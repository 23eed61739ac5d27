//! Invents scenes.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scene::{Colour, OBJECTS, Object, Scene, Shape, Size};

/// Centres of the rows and columns of the layout, in pixels.
const GRID: [u8; 3] = [11, 32, 53];

/// How far a centre may stray from its cell's, in pixels. Neighbours' outlines stay apart (21 px between cells), large
/// ones stay in the image, and centres differ by 13 px or more on some axis, so that every pair has a clear relation.
fn jitter(size: Size) -> u8 {
    match size {
        Size::Large => 1,
        Size::Small => 4,
    }
}

/// A scene of two to four objects, each in its own cell of a 3×3 grid.
#[must_use]
pub fn compose(seed: u64) -> Scene {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = rng.random_range(OBJECTS);
    let mut cells: [(u8, u8); 9] = std::array::from_fn(|cell| (GRID[cell % 3], GRID[cell / 3]));
    cells.shuffle(&mut rng);

    let mut objects: Vec<Object> = Vec::with_capacity(count);
    for (x, y) in cells.into_iter().take(count) {
        // Kinds are many and objects few: a draw is rarely refused.
        let object = loop {
            let object = somewhere_near(x, y, &mut rng);
            if objects.iter().all(|other| other.kind() != object.kind()) {
                break object;
            }
        };
        objects.push(object);
    }
    Scene::new(objects).expect("cells lie in the image, and twins were refused")
}

fn somewhere_near(x: u8, y: u8, rng: &mut ChaCha8Rng) -> Object {
    let size = pick(&Size::ALL, rng);
    let jitter = jitter(size);
    Object {
        shape: pick(&Shape::ALL, rng),
        colour: pick(&Colour::ALL, rng),
        size,
        x: rng.random_range(x - jitter..=x + jitter),
        y: rng.random_range(y - jitter..=y + jitter),
    }
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
