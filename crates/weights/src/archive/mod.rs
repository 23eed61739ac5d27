//! Archives: tensors by name, in any of the file formats in which models are published.
//!
//! Files are memory-mapped and tensors borrow from them; only tensors that are not contiguous are
//! copied, on access.

mod folder;
mod pickle;
mod safetensors;
mod torch;
mod torch_file;
mod view;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::file::MappedFile;
use crate::shapes::Shapes;
use crate::tensor::{Dtype, Tensor, byte_length};
pub(crate) use safetensors::stored;
pub use torch_file::write_torch;
use view::Layout;

/// Maximal ratio of the bytes of all tensors to those of their files. Tensors can share memory, and
/// a malicious file could use that without limit.
const MAX_SHARING: usize = 8;

/// An opened file, or a folder of several files.
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
    tensors: BTreeMap<String, Entry>,
}

/// A tensor in a file.
struct Entry {
    /// The index of the file.
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    layout: Layout,
}

/// The tensors of one file, whose positions were checked against its length.
type Found = Vec<(String, Dtype, Vec<usize>, Layout)>;

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
    /// The file is damaged, refused or not supported; the message names it and the problem.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return folder::open(path);
        }
        let file = MappedFile::open(path)?;
        let found = find(path, file.bytes())?;
        let mut archive = Self { path: path.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        archive.add(file, found)?;
        archive.check_sharing()?;
        Ok(archive)
    }

    fn add(&mut self, file: MappedFile, found: Found) -> Result<(), Error> {
        let number = self.files.len();
        for (name, dtype, shape, layout) in found {
            if name.chars().any(char::is_control) {
                return Err(Error::tensor(file.path(), &name, "has control characters in its name"));
            }
            if self.tensors.contains_key(&name) {
                return Err(Error::tensor(file.path(), &name, "is there twice"));
            }
            self.tensors.insert(name, Entry { file: number, dtype, shape, layout });
        }
        self.files.push(file);
        Ok(())
    }

    fn check_sharing(&self) -> Result<(), Error> {
        let there = self.files.iter().fold(0_usize, |sum, file| sum.saturating_add(file.bytes().len()));
        let asked = self
            .tensors
            .values()
            .try_fold(0_usize, |sum, entry| sum.checked_add(byte_length(entry.dtype, &entry.shape)?));
        if asked.is_some_and(|asked| asked <= there.saturating_mul(MAX_SHARING)) {
            return Ok(());
        }
        Err(Error::format(&self.path, format!("its tensors would take more than {MAX_SHARING} times its bytes")))
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

    /// A tensor; none if there is none of this name. Borrows from the file, or is a copy if it is
    /// not contiguous.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let entry = self.tensors.get(name)?;
        let bytes = self.files.get(entry.file)?.bytes();
        let bytes = match &entry.layout {
            Layout::InOrder(range) => Cow::Borrowed(bytes.get(range.clone())?),
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

/// The tensors of a file; detects the format by the first bytes.
fn find(path: &Path, bytes: &[u8]) -> Result<Found, Error> {
    let again = "save it again with torch.save of PyTorch 1.6 or later";
    if bytes.starts_with(b"PK\x03\x04") {
        torch::find(path, bytes)
    } else if bytes.get(8) == Some(&b'{') {
        safetensors::find(path, bytes)
    } else if bytes.starts_with(b"\x80") || bytes.get(257..262) == Some(b"ustar") {
        Err(Error::format(path, format!("is in the format of PyTorch before 1.6: {again}")))
    } else if bytes.starts_with(b"version https://git-lfs") {
        Err(Error::format(path, "is a pointer of Git LFS, not the file itself: fetch it with git lfs pull"))
    } else {
        Err(Error::format(path, "is neither safetensors nor a file of PyTorch 1.6 or later"))
    }
}

#[cfg(test)]
mod tests;
