//! Maps the tensors of a file to the names and shapes that this project uses.

use std::collections::BTreeMap;
use std::path::Path;

use crate::archive::Archive;
use crate::error::Error;
use crate::tensor::{Tensor, stacked_shape};

/// The tensor of this project that a tensor in a file becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TensorTarget {
    /// The tensor of this name.
    Renamed(String),
    /// The tensor of this name, transposed.
    Transposed(String),
    /// The first, second or third part (0, 1, 2) of the tensor of this name: the query, key or
    /// value of stacked projections.
    StackedPart(String, usize),
    /// Nothing: the tensor is left out.
    Dropped,
}

/// The tensors in the file from which a tensor is made.
enum TensorSource {
    /// The tensor of this name in the file.
    Renamed(String),
    /// The transposed tensor of this name in the file.
    Transposed(String),
    /// The stacked tensors of these names: query, key and value. A name is none until that tensor
    /// has been added.
    Stacked([Option<String>; 3]),
}

/// The source of each mapped tensor, by its name in this project. Below, `old` is the name of a
/// tensor in the file, and `new` its name in this project.
#[derive(Default)]
pub(crate) struct TensorMapping(BTreeMap<String, TensorSource>);

impl TensorMapping {
    /// Adds the tensor `old` of the file `path`.
    pub fn add(&mut self, path: &Path, old: &str, target: TensorTarget) -> Result<(), Error> {
        let (new, source) = match target {
            TensorTarget::Renamed(new) => (new, TensorSource::Renamed(old.to_owned())),
            TensorTarget::Transposed(new) => (new, TensorSource::Transposed(old.to_owned())),
            TensorTarget::StackedPart(new, part) => return self.add_stacked_part(path, old, new, part),
            TensorTarget::Dropped => return Ok(()),
        };
        match self.0.insert(new, source) {
            None => Ok(()),
            Some(_) => Err(duplicate_error(path, old)),
        }
    }

    fn add_stacked_part(&mut self, path: &Path, old: &str, new: String, part: usize) -> Result<(), Error> {
        let source = self.0.entry(new).or_insert_with(|| TensorSource::Stacked([const { None }; 3]));
        let TensorSource::Stacked(parts) = source else { return Err(duplicate_error(path, old)) };
        match parts.get_mut(part) {
            Some(name @ None) => {
                *name = Some(old.to_owned());
                Ok(())
            }
            _ => Err(duplicate_error(path, old)),
        }
    }

    /// The shapes of all tensors, by new name.
    pub fn shapes(&self, archive: &Archive) -> Result<BTreeMap<String, Vec<usize>>, Error> {
        let shapes = self.0.iter().map(|(new, source)| {
            let shape = match source {
                TensorSource::Renamed(old) => archive.shape(old).map(<[usize]>::to_vec),
                TensorSource::Transposed(old) => archive.shape(old).filter(|shape| shape.len() == 2).map(reversed),
                TensorSource::Stacked([Some(first), Some(second), Some(third)]) => {
                    let parts = [first, second, third].map(|old| archive.shape(old).unwrap_or_default());
                    stacked_shape(parts)
                }
                TensorSource::Stacked(_) => None,
            };
            Ok((new.clone(), shape.ok_or_else(|| source.mapping_error(archive, new))?))
        });
        shapes.collect()
    }

    /// All tensors, under their new names.
    pub fn tensors<'a>(&self, archive: &'a Archive) -> Result<Vec<(String, Tensor<'a>)>, Error> {
        let tensors = self.0.iter().map(|(new, source)| {
            let tensor = match source {
                TensorSource::Renamed(old) => archive.get(old),
                TensorSource::Transposed(old) => archive.get(old).and_then(|tensor| tensor.transposed()),
                TensorSource::Stacked([Some(first), Some(second), Some(third)]) => {
                    let parts = (archive.get(first), archive.get(second), archive.get(third));
                    let (Some(first), Some(second), Some(third)) = parts else {
                        return Err(source.mapping_error(archive, new));
                    };
                    Tensor::stacked(&[first, second, third])
                }
                TensorSource::Stacked(_) => None,
            };
            Ok((new.clone(), tensor.ok_or_else(|| source.mapping_error(archive, new))?))
        });
        tensors.collect()
    }
}

impl TensorSource {
    fn mapping_error(&self, archive: &Archive, new: &str) -> Error {
        let problem = match self {
            Self::Renamed(old) => format!("cannot be read from {old}"),
            Self::Transposed(old) => format!("{old} is not a matrix"),
            Self::Stacked(parts) => match parts {
                [Some(query), Some(key), Some(value)] => format!("{query}, {key} and {value} differ in shape or type"),
                _ => "needs a query, a key and a value, and not all of them exist".to_owned(),
            },
        };
        Error::tensor(archive.path(), new, problem)
    }
}

fn duplicate_error(path: &Path, old: &str) -> Error {
    Error::tensor(path, old, "occurs twice, under two names")
}

fn reversed(shape: &[usize]) -> Vec<usize> {
    shape.iter().rev().copied().collect()
}
