//! What a scene is, and how its objects lie to each other.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Width and height of an image, in pixels.
pub const SIDE: u8 = 64;

/// How many objects a scene has.
pub const OBJECTS: RangeInclusive<usize> = 2..=3;

/// The writer asserts a relation only from this difference of centres on, in pixels, and only along the dominant axis.
pub const ASSERTED_FROM: u8 = 12;

/// The judge accepts a relation from this difference of centres on, in pixels, on whichever axis: honest captions, also
/// of a model that sees only roughly where things are, pass with room to spare.
pub const ACCEPTED_FROM: u8 = 6;

/// The outline of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Cross,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 5] = [Self::Circle, Self::Square, Self::Triangle, Self::Star, Self::Cross];
}

/// The paint of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
}

impl Colour {
    /// Every colour.
    pub const ALL: [Self; 6] = [Self::Red, Self::Orange, Self::Yellow, Self::Green, Self::Blue, Self::Purple];
}

/// How big an object is; there is nothing between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// About 14 pixels across.
    Large,
    /// About 10 pixels across.
    Small,
}

impl Size {
    /// Every size.
    pub const ALL: [Self; 2] = [Self::Large, Self::Small];

    /// Half of the extent of an object of this size, in pixels.
    #[must_use]
    pub fn radius(self) -> f32 {
        match self {
            Self::Large => 7.0,
            Self::Small => 5.0,
        }
    }
}

/// One thing in a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Its outline.
    pub shape: Shape,
    /// Its paint.
    pub colour: Colour,
    /// How big it is.
    pub size: Size,
    /// Its centre, in pixels from the left edge.
    pub x: u8,
    /// Its centre, in pixels from the top edge.
    pub y: u8,
}

impl Object {
    /// What can be said of the object alone; unique within a scene.
    #[must_use]
    pub fn kind(&self) -> (Shape, Colour, Size) {
        (self.shape, self.colour, self.size)
    }
}

/// How one object lies to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Relation {
    LeftOf,
    RightOf,
    Above,
    Below,
}

impl Relation {
    /// Every relation.
    pub const ALL: [Self; 4] = [Self::LeftOf, Self::RightOf, Self::Above, Self::Below];

    /// The relation of `a` to `b` that nobody would dispute, if there is one: see [`ASSERTED_FROM`].
    #[must_use]
    pub fn between(a: &Object, b: &Object) -> Option<Self> {
        let horizontal = a.x.abs_diff(b.x);
        let vertical = a.y.abs_diff(b.y);
        if horizontal.max(vertical) < ASSERTED_FROM {
            None
        } else if horizontal >= vertical {
            Some(if a.x < b.x { Self::LeftOf } else { Self::RightOf })
        } else {
            Some(if a.y < b.y { Self::Above } else { Self::Below })
        }
    }

    /// Whether one may say that `a` lies so to `b`: see [`ACCEPTED_FROM`].
    #[must_use]
    pub fn holds(self, a: &Object, b: &Object) -> bool {
        let (from, to) = match self {
            Self::LeftOf => (a.x, b.x),
            Self::RightOf => (b.x, a.x),
            Self::Above => (a.y, b.y),
            Self::Below => (b.y, a.y),
        };
        to.saturating_sub(from) >= ACCEPTED_FROM
    }
}

/// Objects on a 64×64 image: [`OBJECTS`] many, each of its own kind, with centres inside the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedScene")]
pub struct Scene {
    objects: Vec<Object>,
}

/// Why some objects are no scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SceneError {
    /// Not [`OBJECTS`] many.
    #[error("a scene has 2 or 3 objects, not {0}")]
    Count(usize),
    /// Two that only their places tell apart.
    #[error("two objects of a scene have the same shape, colour and size")]
    Twins,
    /// A centre that is not in the image.
    #[error("an object's centre ({0}, {1}) is outside the 64x64 image")]
    Outside(u8, u8),
}

impl Scene {
    /// The scene of these objects.
    ///
    /// # Errors
    /// If they are too few or too many, two are of the same kind, or one is outside the image.
    pub fn new(objects: Vec<Object>) -> Result<Self, SceneError> {
        if !OBJECTS.contains(&objects.len()) {
            return Err(SceneError::Count(objects.len()));
        }
        for (index, object) in objects.iter().enumerate() {
            if object.x >= SIDE || object.y >= SIDE {
                return Err(SceneError::Outside(object.x, object.y));
            }
            if objects[..index].iter().any(|other| other.kind() == object.kind()) {
                return Err(SceneError::Twins);
            }
        }
        Ok(Self { objects })
    }

    /// What is in the scene.
    #[must_use]
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }
}

/// A scene as it comes from a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedScene {
    objects: Vec<Object>,
}

impl TryFrom<UncheckedScene> for Scene {
    type Error = SceneError;

    fn try_from(scene: UncheckedScene) -> Result<Self, SceneError> {
        Self::new(scene.objects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(x: u8, y: u8) -> Object {
        Object { shape: Shape::Star, colour: Colour::Red, size: Size::Small, x, y }
    }

    #[test]
    fn relations_are_asserted_from_twelve_pixels_on_the_dominant_axis() {
        let centre = at(32, 32);
        assert_eq!(Relation::between(&at(21, 32), &centre), None);
        assert_eq!(Relation::between(&at(20, 32), &centre), Some(Relation::LeftOf));
        assert_eq!(Relation::between(&at(44, 43), &centre), Some(Relation::RightOf));
        assert_eq!(Relation::between(&at(44, 45), &centre), Some(Relation::Below));
        assert_eq!(Relation::between(&at(30, 20), &centre), Some(Relation::Above));
        assert_eq!(Relation::between(&centre, &centre), None);
    }

    #[test]
    fn relations_are_accepted_from_six_pixels_on_either_axis() {
        let centre = at(32, 32);
        assert!(!Relation::LeftOf.holds(&at(27, 32), &centre));
        assert!(Relation::LeftOf.holds(&at(26, 60), &centre));
        assert!(!Relation::LeftOf.holds(&at(38, 32), &centre));
        assert!(Relation::RightOf.holds(&at(38, 32), &centre));
        assert!(Relation::Above.holds(&at(0, 26), &centre));
        assert!(!Relation::Above.holds(&at(0, 27), &centre));
        assert!(Relation::Below.holds(&at(63, 38), &centre));
    }

    #[test]
    fn what_is_asserted_is_accepted_and_its_opposite_is_not() {
        let centre = at(30, 31);
        for (x, y) in (0..SIDE).flat_map(|x| (0..SIDE).map(move |y| (x, y))) {
            let object = at(x, y);
            let Some(relation) = Relation::between(&object, &centre) else { continue };
            assert!(relation.holds(&object, &centre), "{object:?}");
            assert!(!relation.holds(&centre, &object), "{object:?}");
        }
    }

    #[test]
    fn impossible_scenes_are_refused() {
        assert_eq!(Scene::new(vec![at(1, 1)]), Err(SceneError::Count(1)));
        assert_eq!(Scene::new(vec![at(1, 1), at(40, 1)]), Err(SceneError::Twins));
        let outside = Object { colour: Colour::Blue, ..at(64, 1) };
        assert_eq!(Scene::new(vec![at(1, 1), outside]), Err(SceneError::Outside(64, 1)));
    }
}
