//! Reads and writes weights of published models without libtorch. The coordinator checks a run file
//! with them, the worker loads models.
//!
//! - [`archive`]: tensors by name, in files of any format: safetensors, PyTorch's ZIP format,
//!   TorchScript, and Hugging Face folders of these.
//! - [`clip`]: CLIP in the layouts of OpenAI, OpenCLIP and Hugging Face. Sizes are derived from the
//!   tensors' shapes, all other properties from configurations or from the user's settings.
//! - [`captioner`]: the folder layout in which DiCO's captioners were published.
//! - [`model_folder`]: a captioner with its vision encoder and vocabulary, as in checkpoints and
//!   imports.
//!
//! All files are untrusted. The unpickler can create only tensors and plain containers, and every
//! size is checked against the length of the file before memory is allocated for it.

pub mod archive;
pub mod captioner;
pub mod clip;
mod config_section;
mod error;
mod file;
pub mod model_folder;
mod shapes;
mod tensor;
mod tensor_mapping;
#[cfg(test)]
mod test_util;

pub use archive::{Archive, write_torch};
pub use captioner::{
    CaptionerConfig, MODELING_MODULE, ReleasedFolder, VISION_PREFIX, VisionConfig, config_json, safetensors_header,
    vision_to_released, write_safetensors,
};
pub use clip::{Activation, ClipConfig, ClipWeights, Conventions, Lora, Normalization, TextConfig, VisionBackbone};
pub use error::Error;
pub use shapes::{Shapes, TooManyLayersError};
pub use tensor::{Dtype, Tensor};
