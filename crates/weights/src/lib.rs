//! Weights of published models, read without libtorch: the coordinator checks a run file with them,
//! the worker loads models.
//!
//! - [`archive`]: tensors by name, in files of any format: safetensors, PyTorch's ZIP format,
//!   TorchScript, and Hugging Face folders of these.
//! - [`clip`]: CLIP in the layouts of OpenAI, OpenCLIP and Hugging Face. Sizes are derived from the
//!   tensors' shapes, everything else from configurations or from the user's settings.
//! - [`captioner`]: the folder in which DiCO was published, for reading and writing.
//! - [`folder`]: a captioner with its vision encoder and vocabulary, as in checkpoints and imports.
//!
//! All files are untrusted: pickles are interpreted by a machine that can create only tensors, each
//! number is checked against the length of the file before memory is allocated for it, and messages
//! name what is refused.

pub mod archive;
pub mod captioner;
pub mod clip;
mod error;
mod file;
pub mod folder;
mod renaming;
mod settings;
mod shapes;
mod tensor;
#[cfg(test)]
mod testing;

pub use archive::{Archive, write_torch};
pub use captioner::{
    CaptionerArchitecture, MODELING_MODULE, ReleasedFolder, VISION_PREFIX, VisionArchitecture, config_json,
    safetensors_start, vision_to_released, write_safetensors,
};
pub use clip::{Activation, Architecture, Clip, Conventions, Lora, Normalization, Text, Vision};
pub use error::Error;
pub use shapes::Shapes;
pub use tensor::{Dtype, Tensor};
