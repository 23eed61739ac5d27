//! A synthetic world in which captions can be judged exactly, so that a trainer can be shown and tested without any
//! download.
//!
//! | module | what it does |
//! |---|---|
//! | `scene` | what a scene is: two or three coloured shapes, and how they lie to each other |
//! | `compose` | invents a scene |
//! | `draw` | scene → 64×64 image |
//! | `words` | the words of the caption language, shared by the next two |
//! | `caption` | scene → five captions, from terse to detailed |
//! | `grammar` | caption → the claims it makes, if it is of the language |
//! | `judge` | claims × scene → grammatical? truthful? how detailed? |
//! | `dataset` | all of it, for thousands of scenes, as files |
//! | `scenes` | reads the scenes back |
//!
//! Everything random follows from a seed and is the same on every platform: only ChaCha and IEEE additions,
//! multiplications and comparisons are used, no libm.
//!
//! ```
//! let scene = synthetic_data::compose(7);
//! let image = synthetic_data::draw(&scene, 7);
//! assert_eq!(image.dimensions(), (64, 64));
//! for caption in synthetic_data::captions(&scene, 7) {
//!     let verdict = synthetic_data::judge(&caption, &scene);
//!     assert!(verdict.grammatical && verdict.truthful);
//! }
//! ```

mod caption;
mod compose;
mod dataset;
mod draw;
mod error;
mod grammar;
mod judge;
mod scene;
mod scenes;
mod words;

pub use caption::{LEVELS, Level, MAX_WORDS, captions};
pub use compose::compose;
pub use dataset::{Split, Summary, synthesize, synthesize_positives};
pub use draw::draw;
pub use error::Error;
pub use grammar::{Claims, Link, Phrase, parse};
pub use judge::{Judgement, judge};
pub use scene::{
    ACCEPTED_FROM, ASSERTED_FROM, Colour, OBJECTS, Object, Relation, SIDE, Scene, SceneError, Shape, Size,
};
pub use scenes::Scenes;
pub use words::vocabulary;
