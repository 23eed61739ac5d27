//! Common code of the tests.

use proptest::prelude::*;
use proptest::sample::select;
use synthetic_data::{Colour, OBJECT_COUNT_RANGE, Object, Scene, Shape, Size};

/// Any valid scene, also scenes that `generate_scene` never returns.
pub fn arbitrary_scene() -> impl Strategy<Value = Scene> {
    let kind = (select(Shape::ALL.to_vec()), select(Colour::ALL.to_vec()), select(Size::ALL.to_vec()));
    let object =
        (kind, 0u8..64, 0u8..64).prop_map(|((shape, colour, size), x, y)| Object { shape, colour, size, x, y });
    proptest::collection::vec(object, OBJECT_COUNT_RANGE)
        .prop_filter_map("objects with equal attributes", |objects| Scene::new(objects).ok())
}
