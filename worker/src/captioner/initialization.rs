//! The initialization of a captioner that is trained from scratch.

use config::ProjectionInit;
use weights::CaptionerConfig;

/// How the parameters of a captioner that is trained from scratch are initialized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CaptionerInit {
    /// The standard deviation of the weights.
    pub weight_deviation: f64,
    /// The standard deviation of the encoder's position embeddings.
    pub position_deviation: f64,
    /// How the projection of the vision encoder's hidden states is initialized.
    pub projection: ProjectionInit,
}

impl CaptionerInit {
    /// The standard deviations: 0.02 from the width of the published captioner on, as in BERT and
    /// GPT-2 (`initializer_range` in transformers), and more for narrower captioners.
    pub fn of(config: &CaptionerConfig, projection: ProjectionInit) -> Self {
        if config.width >= 512 {
            return Self { weight_deviation: 0.02, position_deviation: 0.02, projection };
        }
        // The position embeddings are as large as the hidden states to which they are added, so
        // that positions remain visible: a vision encoder trained for minutes encodes positions
        // less well than published ones.
        Self { weight_deviation: 0.06, position_deviation: 0.5, projection }
    }
}
