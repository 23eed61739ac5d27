//! Writes captions.
//!
//! Terse captions follow from the scene alone; detailed ones are full of free choices, each uniformly random. So a model
//! of all of them together is sure of the terse ones and torn between many detailed ones, and a search for the most
//! likely caption finds terse ones: detail is what is left to be learnt from a judge.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scene::{Object, Relation, Scene};
use crate::words::{AND, INTROS, article};

/// The levels of an image's captions, in their order; shift the mixture here.
pub const LEVELS: [Level; 5] = [Level::Terse, Level::Tinted, Level::Coloured, Level::Sized, Level::Full];

/// No caption has more words.
pub const MAX_WORDS: usize = 34;

/// How detailed a caption is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// The most salient object, and the next unless the first stands out by its size, by shape: "a star".
    Terse,
    /// The two most salient objects by shape, and the colour of the first: "a red star and a cross".
    Tinted,
    /// All objects with colours, in any order: "there is a red star and a blue cross".
    Coloured,
    /// All objects with sizes and colours, in any order: "a big red star and a small blue cross".
    Sized,
    /// All objects with sizes and colours, in any order, and how some neighbours in that order lie.
    Full,
}

/// Captions of `scene`, one for each of [`LEVELS`].
#[must_use]
pub fn captions(scene: &Scene, seed: u64) -> [String; LEVELS.len()] {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    LEVELS.map(|level| write(scene, level, &mut rng))
}

fn write(scene: &Scene, level: Level, rng: &mut ChaCha8Rng) -> String {
    let mut text = Text::default();
    match level {
        Level::Terse => {
            let objects = salient(scene);
            // One that stands out is worth a caption of its own.
            let alone = objects[0].size != objects[1].size;
            text.shapes(if alone { &objects[..1] } else { &objects }, None);
        }
        Level::Tinted => {
            let objects = salient(scene);
            text.shapes(&objects, Some(objects[0].colour.word()));
        }
        Level::Coloured => {
            text.intro(rng);
            for (index, object) in shuffled(scene, rng).into_iter().enumerate() {
                text.and_if(index > 0);
                text.noun(None, Some(object.colour.word()), object);
            }
        }
        Level::Sized => {
            text.intro(rng);
            text.described(&shuffled(scene, rng), 0.0, rng);
        }
        Level::Full => {
            text.intro(rng);
            text.described(&shuffled(scene, rng), 0.75, rng);
        }
    }
    text.words.join(" ")
}

/// The two objects that one sees first: large before small, then from left to right.
fn salient(scene: &Scene) -> [&Object; 2] {
    let mut objects: Vec<_> = scene.objects().iter().collect();
    objects.sort_by_key(|object| (object.size, object.x, object.y));
    [objects[0], objects[1]]
}

fn shuffled<'a>(scene: &'a Scene, rng: &mut ChaCha8Rng) -> Vec<&'a Object> {
    let mut objects: Vec<_> = scene.objects().iter().collect();
    objects.shuffle(rng);
    objects
}

/// A caption in the making: words and short phrases.
#[derive(Default)]
struct Text {
    words: Vec<&'static str>,
}

impl Text {
    /// One of the openings, or none.
    fn intro(&mut self, rng: &mut ChaCha8Rng) {
        self.words.extend(INTROS.get(rng.random_range(0..=INTROS.len())));
    }

    fn and_if(&mut self, wanted: bool) {
        self.words.extend(wanted.then_some(AND));
    }

    /// `objects` by shape; the first also by `colour`.
    fn shapes(&mut self, objects: &[&Object], mut colour: Option<&'static str>) {
        for (index, object) in objects.iter().enumerate() {
            self.and_if(index > 0);
            self.noun(None, colour.take(), object);
        }
    }

    fn noun(&mut self, size: Option<&'static str>, colour: Option<&'static str>, object: &Object) {
        let words = [size, colour, Some(object.shape.word())];
        let mut words = words.into_iter().flatten().peekable();
        self.words.extend(words.peek().map(|first| article(first)));
        self.words.extend(words);
    }

    /// `objects` with sizes and colours; how each lies to the next is told with probability `told`.
    fn described(&mut self, objects: &[&Object], told: f64, rng: &mut ChaCha8Rng) {
        let mut before: Option<&Object> = None;
        for &object in objects {
            if let Some(before) = before {
                let relation = Relation::between(before, object).filter(|_| rng.random_bool(told));
                self.words.push(relation.map_or(AND, |relation| pick(&relation.phrases(), rng)));
            }
            self.noun(Some(pick(&object.size.words(), rng)), Some(object.colour.word()), object);
            before = Some(object);
        }
    }
}

fn pick<const N: usize>(words: &[&'static str; N], rng: &mut ChaCha8Rng) -> &'static str {
    words.choose(rng).expect("there is a word for everything")
}
