//! Scenes, their objects, and the spatial relations of objects.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Width and height of an image, in pixels.
pub const IMAGE_SIDE: u8 = 64;

/// The range of the number of objects in a scene.
pub const OBJECT_COUNT_RANGE: RangeInclusive<usize> = 2..=3;

/// The minimal difference of two centres, in pixels, at which the caption writer asserts a
/// relation. It asserts relations only along the axis with the larger difference.
pub const MIN_ASSERTED_RELATION_OFFSET: u8 = 12;

/// The minimal difference of two centres, in pixels, at which the caption check accepts a relation,
/// on either axis. It is half of what the caption writer requires, so that true captions of a model
/// that localises objects only roughly are accepted.
pub const MIN_ACCEPTED_RELATION_OFFSET: u8 = 6;

/// The outline of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are self-explanatory")]
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

/// The colour of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are self-explanatory")]
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

/// The size of an object.
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

/// An object of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// The outline.
    pub shape: Shape,
    /// The colour.
    pub colour: Colour,
    /// The size.
    pub size: Size,
    /// The centre, in pixels from the left edge.
    pub x: u8,
    /// The centre, in pixels from the top edge.
    pub y: u8,
}

impl Object {
    /// The attributes other than the position; unique within a scene.
    #[must_use]
    pub fn attributes(&self) -> (Shape, Colour, Size) {
        (self.shape, self.colour, self.size)
    }
}

/// The spatial relation of one object to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are self-explanatory")]
pub enum Relation {
    LeftOf,
    RightOf,
    Above,
    Below,
}

impl Relation {
    /// Every relation.
    pub const ALL: [Self; 4] = [Self::LeftOf, Self::RightOf, Self::Above, Self::Below];

    /// The unambiguous relation of `a` to `b`, if there is one: see
    /// [`MIN_ASSERTED_RELATION_OFFSET`].
    #[must_use]
    pub fn between(a: &Object, b: &Object) -> Option<Self> {
        let horizontal = a.x.abs_diff(b.x);
        let vertical = a.y.abs_diff(b.y);
        if horizontal.max(vertical) < MIN_ASSERTED_RELATION_OFFSET {
            None
        } else if horizontal >= vertical {
            Some(if a.x < b.x { Self::LeftOf } else { Self::RightOf })
        } else {
            Some(if a.y < b.y { Self::Above } else { Self::Below })
        }
    }

    /// Whether `a` has this relation to `b`: see [`MIN_ACCEPTED_RELATION_OFFSET`].
    #[must_use]
    pub fn holds(self, a: &Object, b: &Object) -> bool {
        let (smaller, larger) = match self {
            Self::LeftOf => (a.x, b.x),
            Self::RightOf => (b.x, a.x),
            Self::Above => (a.y, b.y),
            Self::Below => (b.y, a.y),
        };
        larger.saturating_sub(smaller) >= MIN_ACCEPTED_RELATION_OFFSET
    }
}

/// The objects of a 64×64 image: 2 or 3 ([`OBJECT_COUNT_RANGE`]), all with different attributes,
/// and with centres inside the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedScene")]
pub struct Scene {
    objects: Vec<Object>,
}

/// The error of creating an invalid scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SceneError {
    /// The number of objects is not in [`OBJECT_COUNT_RANGE`].
    #[error("a scene has 2 or 3 objects, not {0}")]
    ObjectCount(usize),
    /// Two objects differ only in their positions.
    #[error("two objects of a scene have the same shape, colour and size")]
    DuplicateObjects,
    /// A centre is outside the image.
    #[error("an object's centre ({0}, {1}) is outside the 64x64 image")]
    OutsideImage(u8, u8),
}

impl Scene {
    /// Creates a scene of these objects.
    ///
    /// # Errors
    /// There are too few or too many objects, two have the same attributes, or one is outside the
    /// image.
    pub fn new(objects: Vec<Object>) -> Result<Self, SceneError> {
        if !OBJECT_COUNT_RANGE.contains(&objects.len()) {
            return Err(SceneError::ObjectCount(objects.len()));
        }
        for (index, object) in objects.iter().enumerate() {
            if object.x >= IMAGE_SIDE || object.y >= IMAGE_SIDE {
                return Err(SceneError::OutsideImage(object.x, object.y));
            }
            if objects[..index].iter().any(|other| other.attributes() == object.attributes()) {
                return Err(SceneError::DuplicateObjects);
            }
        }
        Ok(Self { objects })
    }

    /// The objects.
    #[must_use]
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }
}

/// A scene as read from a file, not yet validated.
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

    fn star_at(x: u8, y: u8) -> Object {
        Object { shape: Shape::Star, colour: Colour::Red, size: Size::Small, x, y }
    }

    #[test]
    fn relations_are_asserted_from_twelve_pixels_on_the_dominant_axis() {
        let centre = star_at(32, 32);
        assert_eq!(Relation::between(&star_at(21, 32), &centre), None);
        assert_eq!(Relation::between(&star_at(20, 32), &centre), Some(Relation::LeftOf));
        assert_eq!(Relation::between(&star_at(44, 43), &centre), Some(Relation::RightOf));
        assert_eq!(Relation::between(&star_at(44, 45), &centre), Some(Relation::Below));
        assert_eq!(Relation::between(&star_at(30, 20), &centre), Some(Relation::Above));
        assert_eq!(Relation::between(&centre, &centre), None);
    }

    #[test]
    fn relations_are_accepted_from_six_pixels_on_either_axis() {
        let centre = star_at(32, 32);
        assert!(!Relation::LeftOf.holds(&star_at(27, 32), &centre));
        assert!(Relation::LeftOf.holds(&star_at(26, 60), &centre));
        assert!(!Relation::LeftOf.holds(&star_at(38, 32), &centre));
        assert!(Relation::RightOf.holds(&star_at(38, 32), &centre));
        assert!(Relation::Above.holds(&star_at(0, 26), &centre));
        assert!(!Relation::Above.holds(&star_at(0, 27), &centre));
        assert!(Relation::Below.holds(&star_at(63, 38), &centre));
    }

    #[test]
    fn asserted_relations_are_accepted_and_their_opposites_are_not() {
        let centre = star_at(30, 31);
        for (x, y) in (0..IMAGE_SIDE).flat_map(|x| (0..IMAGE_SIDE).map(move |y| (x, y))) {
            let object = star_at(x, y);
            let Some(relation) = Relation::between(&object, &centre) else { continue };
            assert!(relation.holds(&object, &centre), "{object:?}");
            assert!(!relation.holds(&centre, &object), "{object:?}");
        }
    }

    #[test]
    fn invalid_scenes_are_refused() {
        assert_eq!(Scene::new(vec![star_at(1, 1)]), Err(SceneError::ObjectCount(1)));
        assert_eq!(Scene::new(vec![star_at(1, 1), star_at(40, 1)]), Err(SceneError::DuplicateObjects));
        let outside = Object { colour: Colour::Blue, ..star_at(64, 1) };
        assert_eq!(Scene::new(vec![star_at(1, 1), outside]), Err(SceneError::OutsideImage(64, 1)));
    }
}
