//! Weights of published models, read without libtorch: the coordinator checks a run file with it, the worker loads models.
//!
//! - [`archive`]: files of tensors by name, whatever wrote them: safetensors, PyTorch's ZIP format, TorchScript, and
//!   Hugging Face folders of these.
//! - [`clip`]: CLIP in OpenAI's layout, OpenCLIP's and Hugging Face's, its sizes found from the shapes of its tensors, and the
//!   rest from configurations beside them or from what the user says.
//! - [`captioner`]: the folder in which DiCO was published, read and written.
//! - [`folder`]: a captioner with its vision tower and vocabulary, as checkpoints and imports hold it.
//!
//! Every file is untrusted: a pickle is interpreted by a machine that can make tensors and nothing else, every number is
//! checked against the length of the file before anything is allocated for it, and what is refused is named.

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
    CaptionerArchitecture, MODELING_MODULE, Released, VISION_PREFIX, VisionArchitecture, config_json,
    safetensors_start, vision_to_released, write_safetensors,
};
pub use clip::{Activation, Architecture, Clip, Conventions, Lora, Normalization, Text, Vision};
pub use error::Error;
pub use shapes::Shapes;
pub use tensor::{Dtype, Tensor};
