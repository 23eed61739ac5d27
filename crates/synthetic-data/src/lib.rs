//! A synthetic data set of coloured shapes, whose captions can be checked exactly. It is for
//! demonstrations and tests of a trainer without any download.
//!
//! | module | content |
//! |---|---|
//! | `scene` | a scene: two or three coloured shapes, and their spatial relations |
//! | `scene_generator` | seed → random scene |
//! | `renderer` | scene → 64×64 image |
//! | `words` | the words of the caption language, shared by the next two modules |
//! | `caption_writer` | scene → five captions, from terse to detailed |
//! | `grammar` | caption → its claims, or none if it is ungrammatical |
//! | `caption_check` | caption and scene → whether the caption is grammatical and truthful, and its number of claims |
//! | `dataset` | writes a data set of thousands of scenes to files |
//! | `scenes` | reads the scenes of a data set |
//! | `error` | errors of writing and reading data sets |
//!
//! Everything random follows from a seed and is the same on every platform: only ChaCha and IEEE
//! additions, multiplications and comparisons are used, no libm.
//!
//! ```
//! let scene = synthetic_data::generate_scene(7);
//! let image = synthetic_data::render(&scene, 7);
//! assert_eq!(image.dimensions(), (64, 64));
//! for caption in synthetic_data::write_captions(&scene, 7) {
//!     let check = synthetic_data::check_caption(&caption, &scene);
//!     assert!(check.grammatical && check.truthful);
//! }
//! ```

mod caption_check;
mod caption_writer;
mod dataset;
mod error;
mod grammar;
mod renderer;
mod scene;
mod scene_generator;
mod scenes;
mod words;

pub use caption_check::{CaptionCheck, check_caption};
pub use caption_writer::{DETAIL_LEVELS, DetailLevel, MAX_CAPTION_WORDS, write_captions};
pub use dataset::{Split, SplitSizes, write_dataset, write_generated_positives};
pub use error::Error;
pub use grammar::{Claims, NounPhrase, RelationClaim, parse_caption};
pub use renderer::render;
pub use scene::{
    Colour, IMAGE_SIDE, MIN_ACCEPTED_RELATION_OFFSET, MIN_ASSERTED_RELATION_OFFSET, OBJECT_COUNT_RANGE, Object,
    Relation, Scene, SceneError, Shape, Size,
};
pub use scene_generator::generate_scene;
pub use scenes::Scenes;
pub use words::vocabulary;
