//! Reads and writes the weights of CLIP, PAC-S and DiCO's captioners without libtorch. The
//! coordinator checks the weights that a run file names, the worker loads models.
//!
//! - [`archive`]: reads tensors by name from files of any supported format: safetensors, PyTorch's
//!   ZIP format, TorchScript, and Hugging Face folders of these. [`write_torch`] writes PyTorch's
//!   ZIP format.
//! - [`clip`]: CLIP in the layouts of OpenAI, OpenCLIP and Hugging Face. Sizes are derived from the
//!   tensors' shapes. The other settings, [`Conventions`], such as the activation and the
//!   [`Normalization`] of pixels, are read from configuration files, or the user sets them.
//!   [`LoraConfig`] has the settings of LoRA training.
//! - [`captioner`]: the upstream layout, the folder in which DiCO's authors published their
//!   captioners. "Upstream names" are the names of tensors in it; those of the vision encoder begin
//!   with [`VISION_PREFIX`]. [`write_safetensors`] writes a file from tensors in memory, and
//!   [`safetensors_header`] builds the header for a file that is written tensor by tensor.
//! - [`model_folder`]: this project's folder of a captioner with its vision encoder and vocabulary,
//!   for checkpoints and imports.
//!
//! `shapes` checks weights against a config, `tensor` and `tensor_mapping` have the tensors of a
//! file and their conversion to the names of this project, and `file` and `config_section` read
//! files and JSON settings.
//!
//! All files are untrusted. The unpickler can create only tensors, plain containers and TorchScript
//! modules, and every size is checked against the length of the file before memory is allocated for
//! it.

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
    CaptionerConfig, MODELING_MODULE, UpstreamFolder, VISION_PREFIX, VisionConfig, safetensors_header,
    upstream_config_json, vision_to_upstream, write_safetensors,
};
pub use clip::{
    Activation, ClipConfig, ClipWeights, Conventions, LoraConfig, Normalization, TextConfig, VisionBackbone,
};
pub use error::Error;
pub use shapes::{Shapes, TooManyLayersError};
pub use tensor::{Dtype, Tensor};
