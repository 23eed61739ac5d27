//! Writes captions.
//!
//! Terse captions follow from the scene alone. Detailed captions contain many uniformly random
//! choices. A model of all captions therefore assigns a high probability to each terse caption and
//! divides the rest among many detailed ones, and a search for the most likely caption finds terse
//! ones. Detail has to be learnt from a reward.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scene::{Object, Relation, Scene};
use crate::words::{AND, INTRODUCTIONS, article};

/// The levels of detail of an image's captions, in the order of the captions. Change this list to
/// change the mixture of captions.
pub const DETAIL_LEVELS: [DetailLevel; 5] = [
    DetailLevel::Shapes,
    DetailLevel::FirstColour,
    DetailLevel::Colours,
    DetailLevel::SizesAndColours,
    DetailLevel::Relations,
];

/// The maximal number of words of a caption.
pub const MAX_CAPTION_WORDS: usize = 34;

/// The probability that a caption of level [`DetailLevel::Relations`] states the relation between
/// an object and the next one.
const RELATION_PROBABILITY: f64 = 0.75;

/// The level of detail of a caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DetailLevel {
    /// The shape of the most salient object, and of the second unless the first is the larger:
    /// "a star".
    Shapes,
    /// The shapes of the two most salient objects, and the colour of the first: "a red star and a
    /// cross".
    FirstColour,
    /// All objects with colours, in random order: "there is a red star and a blue cross".
    Colours,
    /// All objects with sizes and colours, in random order: "a big red star and a small blue
    /// cross".
    SizesAndColours,
    /// All objects with sizes and colours, in random order, and relations of some objects that
    /// follow each other in that order.
    Relations,
}

/// Writes captions of `scene`, one for each of [`DETAIL_LEVELS`].
#[must_use]
pub fn write_captions(scene: &Scene, seed: u64) -> [String; DETAIL_LEVELS.len()] {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    DETAIL_LEVELS.map(|level| write_caption(scene, level, &mut rng))
}

fn write_caption(scene: &Scene, level: DetailLevel, rng: &mut ChaCha8Rng) -> String {
    let mut caption = CaptionBuilder::default();
    match level {
        DetailLevel::Shapes => {
            let objects = most_salient(scene);
            let is_first_larger = objects[0].size != objects[1].size;
            caption.push_shapes(if is_first_larger { &objects[..1] } else { &objects }, None);
        }
        DetailLevel::FirstColour => {
            let objects = most_salient(scene);
            caption.push_shapes(&objects, Some(objects[0].colour.word()));
        }
        DetailLevel::Colours => {
            caption.push_introduction(rng);
            for (index, object) in shuffled_objects(scene, rng).into_iter().enumerate() {
                caption.push_and_if(index > 0);
                caption.push_noun_phrase(None, Some(object.colour.word()), object);
            }
        }
        DetailLevel::SizesAndColours => {
            caption.push_introduction(rng);
            let relation_probability = 0.0;
            caption.push_detailed(&shuffled_objects(scene, rng), relation_probability, rng);
        }
        DetailLevel::Relations => {
            caption.push_introduction(rng);
            caption.push_detailed(&shuffled_objects(scene, rng), RELATION_PROBABILITY, rng);
        }
    }
    caption.words.join(" ")
}

/// The two most salient objects: large before small, then from left to right.
fn most_salient(scene: &Scene) -> [&Object; 2] {
    let mut objects: Vec<_> = scene.objects().iter().collect();
    objects.sort_by_key(|object| (object.size, object.x, object.y));
    [objects[0], objects[1]]
}

fn shuffled_objects<'a>(scene: &'a Scene, rng: &mut ChaCha8Rng) -> Vec<&'a Object> {
    let mut objects: Vec<_> = scene.objects().iter().collect();
    objects.shuffle(rng);
    objects
}

/// An incomplete caption.
#[derive(Default)]
struct CaptionBuilder {
    /// Words and short phrases.
    words: Vec<&'static str>,
}

impl CaptionBuilder {
    /// Adds one of the introductions, or none.
    fn push_introduction(&mut self, rng: &mut ChaCha8Rng) {
        self.words.extend(INTRODUCTIONS.get(rng.random_range(0..=INTRODUCTIONS.len())));
    }

    fn push_and_if(&mut self, condition: bool) {
        self.words.extend(condition.then_some(AND));
    }

    /// Adds the shapes of `objects`; `first_colour` is the colour of the first.
    fn push_shapes(&mut self, objects: &[&Object], mut first_colour: Option<&'static str>) {
        for (index, object) in objects.iter().enumerate() {
            self.push_and_if(index > 0);
            self.push_noun_phrase(None, first_colour.take(), object);
        }
    }

    fn push_noun_phrase(&mut self, size: Option<&'static str>, colour: Option<&'static str>, object: &Object) {
        let words = [size, colour, Some(object.shape.word())];
        let mut words = words.into_iter().flatten().peekable();
        self.words.extend(words.peek().map(|first| article(first)));
        self.words.extend(words);
    }

    /// Adds `objects` with sizes and colours. The relation of each object to the next is stated
    /// with probability `relation_probability`.
    fn push_detailed(&mut self, objects: &[&Object], relation_probability: f64, rng: &mut ChaCha8Rng) {
        let mut previous: Option<&Object> = None;
        for &object in objects {
            if let Some(previous) = previous {
                let relation = Relation::between(previous, object).filter(|_| rng.random_bool(relation_probability));
                self.words.push(relation.map_or(AND, |relation| choose(&relation.phrases(), rng)));
            }
            self.push_noun_phrase(Some(choose(&object.size.words(), rng)), Some(object.colour.word()), object);
            previous = Some(object);
        }
    }
}

fn choose<const N: usize>(words: &[&'static str; N], rng: &mut ChaCha8Rng) -> &'static str {
    words.choose(rng).expect("there is at least one word")
}
