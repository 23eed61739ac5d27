//! Reads tensors by name from weights in the formats of safetensors, PyTorch and TorchScript, in
//! one file or in a folder of shards.
//!
//! Files are memory-mapped and tensors borrow from them; only tensors that are not contiguous are
//! copied, on access.
//!
//! | module | content |
//! |---|---|
//! | `folder` | folders of Hugging Face and OpenCLIP, with shards |
//! | `layout` | where the elements of a tensor are in a file |
//! | `safetensors` | reads the header of a safetensors file |
//! | `torch_reader`, `torch_writer` | read and write PyTorch's ZIP format |
//! | `pickle` | reads the pickles of PyTorch files without running Python code |

mod folder;
mod layout;
mod pickle;
mod safetensors;
mod torch_reader;
mod torch_writer;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::file::MappedFile;
use crate::shapes::Shapes;
use crate::tensor::{Dtype, Tensor, byte_length};
use layout::Layout;
pub(crate) use safetensors::to_safetensors_dtype;
pub use torch_writer::write_torch;

/// Maximal ratio of the size of all tensors to the size of their files. Tensors can share memory,
/// and a malicious file could use that to request any amount of memory.
const MAX_SIZE_RATIO: usize = 8;

/// The tensors of an opened file of weights, or of a folder of such files, by name.
///
/// ```no_run
/// # fn main() -> Result<(), weights::Error> {
/// let archive = weights::Archive::open("ViT-B-32.pt".as_ref())?;
/// for name in archive.names() {
///     println!("{name}: {:?}", archive.shape(name));
/// }
/// # Ok(())
/// # }
/// ```
pub struct Archive {
    path: PathBuf,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, TensorEntry>,
}

/// A tensor in a file of the archive.
struct TensorEntry {
    /// The index of the file in `Archive::files`.
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    layout: Layout,
}

/// A tensor of one file, whose layout was checked against the length of the file.
struct LocatedTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    layout: Layout,
}

impl Archive {
    /// Opens a file, or a folder in the layout of Hugging Face: `model.safetensors`,
    /// `model.safetensors.index.json` with its shards, `pytorch_model.bin`, or
    /// `pytorch_model.bin.index.json` with its shards; or of OpenCLIP:
    /// `open_clip_model.safetensors`, or `open_clip_pytorch_model.bin`. The first of these that
    /// exists is used.
    ///
    /// A file is safetensors, PyTorch's ZIP format with a state dict (at the top, under
    /// `state_dict` or under `model`) or a TorchScript archive. The format is detected from the
    /// content, not from the name.
    ///
    /// # Errors
    /// A file cannot be read, is damaged, refused or not supported; the message names the file and
    /// the problem.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return folder::open(path);
        }
        let file = MappedFile::open(path)?;
        let tensors = locate_tensors(path, file.bytes())?;
        let mut archive = Self { path: path.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        archive.add_file(file, tensors)?;
        archive.check_total_size()?;
        Ok(archive)
    }

    fn add_file(&mut self, file: MappedFile, tensors: Vec<LocatedTensor>) -> Result<(), Error> {
        let index = self.files.len();
        for LocatedTensor { name, dtype, shape, layout } in tensors {
            if name.chars().any(char::is_control) {
                return Err(Error::tensor(file.path(), &name, "has control characters in its name"));
            }
            if self.tensors.contains_key(&name) {
                return Err(Error::tensor(file.path(), &name, "occurs twice"));
            }
            self.tensors.insert(name, TensorEntry { file: index, dtype, shape, layout });
        }
        self.files.push(file);
        Ok(())
    }

    fn check_total_size(&self) -> Result<(), Error> {
        let file_bytes = self.files.iter().fold(0_usize, |sum, file| sum.saturating_add(file.bytes().len()));
        let tensor_bytes = self
            .tensors
            .values()
            .try_fold(0_usize, |sum, entry| sum.checked_add(byte_length(entry.dtype, &entry.shape)?));
        if tensor_bytes.is_some_and(|bytes| bytes <= file_bytes.saturating_mul(MAX_SIZE_RATIO)) {
            return Ok(());
        }
        Err(Error::invalid(&self.path, format!("its tensors would take more than {MAX_SIZE_RATIO} times its size")))
    }

    /// The path of the file or folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The type of a tensor's elements; none if there is no tensor of this name.
    #[must_use]
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|entry| entry.dtype)
    }

    /// The shape of a tensor; none if there is no tensor of this name.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The tensor of this name; none if there is no such tensor. Borrows from the file, or is a
    /// copy if it is not contiguous.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let entry = self.tensors.get(name)?;
        let bytes = self.files.get(entry.file)?.bytes();
        let bytes = match &entry.layout {
            Layout::Contiguous(range) => Cow::Borrowed(bytes.get(range.clone())?),
            Layout::Strided(strided) => Cow::Owned(strided.gather(bytes, &entry.shape, entry.dtype.size())?),
        };
        Some(Tensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }

    /// The shapes of all tensors.
    pub(crate) fn shapes(&self) -> Shapes {
        self.names().filter_map(|name| Some((name.to_owned(), self.shape(name)?.to_vec()))).collect()
    }

    /// All tensors, sorted by name.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Tensor<'_>)> {
        self.names().filter_map(|name| Some((name.to_owned(), self.get(name)?))).collect()
    }

    /// The SHA-256 of the file, or of a folder's tensor files, concatenated in order of their
    /// names; in lower-case hex.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut files: Vec<&MappedFile> = self.files.iter().collect();
        files.sort_by_key(|file| file.path());
        let mut digest = Sha256::new();
        for file in files {
            digest.update(file.bytes());
        }
        digest.finalize().iter().fold(String::new(), |mut hex, byte| {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// The tensors of a file. Detects the format by the first bytes.
fn locate_tensors(path: &Path, bytes: &[u8]) -> Result<Vec<LocatedTensor>, Error> {
    let remedy = "save it again with torch.save of PyTorch 1.6 or later";
    if bytes.starts_with(b"PK\x03\x04") {
        torch_reader::locate_tensors(path, bytes)
    } else if bytes.get(8) == Some(&b'{') {
        safetensors::locate_tensors(path, bytes)
    } else if bytes.starts_with(b"\x80") || bytes.get(257..262) == Some(b"ustar") {
        Err(Error::invalid(path, format!("is in the format of PyTorch before 1.6: {remedy}")))
    } else if bytes.starts_with(b"version https://git-lfs") {
        Err(Error::invalid(path, "is a Git LFS pointer, not the file itself: fetch it with git lfs pull"))
    } else {
        Err(Error::invalid(path, "is neither safetensors nor a file of PyTorch 1.6 or later"))
    }
}

#[cfg(test)]
mod tests;
