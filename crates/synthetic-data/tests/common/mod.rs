//! What the tests share.

use proptest::prelude::*;
use proptest::sample::select;
use synthetic_data::{Colour, OBJECTS, Object, Scene, Shape, Size};

/// Any scene that a file could hold, also such as `compose` would never invent.
pub fn any_scene() -> impl Strategy<Value = Scene> {
    let kind = (select(Shape::ALL.to_vec()), select(Colour::ALL.to_vec()), select(Size::ALL.to_vec()));
    let object =
        (kind, 0u8..64, 0u8..64).prop_map(|((shape, colour, size), x, y)| Object { shape, colour, size, x, y });
    proptest::collection::vec(object, OBJECTS).prop_filter_map("twins", |objects| Scene::new(objects).ok())
}
