//! Maps the tensors of a file or folder to the names and shapes that this project uses.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use crate::archive::Archive;
use crate::error::Error;
use crate::tensor::{Tensor, stacked_shape};

/// The tensor of this project that a tensor of a file becomes.
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

/// The tensors of the file from which a tensor is made.
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
    /// Adds the tensor `old` of the file or folder `path`.
    ///
    /// # Errors
    /// Another tensor of the file has the same target.
    pub fn add(&mut self, path: &Path, old: &str, target: TensorTarget) -> Result<(), Error> {
        let (new, source) = match target {
            TensorTarget::Renamed(new) => (new, TensorSource::Renamed(old.to_owned())),
            TensorTarget::Transposed(new) => (new, TensorSource::Transposed(old.to_owned())),
            TensorTarget::StackedPart(new, part) => return self.add_stacked_part(path, old, new, part),
            TensorTarget::Dropped => return Ok(()),
        };
        match self.0.entry(new) {
            Entry::Vacant(entry) => {
                entry.insert(source);
                Ok(())
            }
            Entry::Occupied(entry) => Err(duplicate_error(path, old, entry.key(), entry.get().first_name())),
        }
    }

    fn add_stacked_part(&mut self, path: &Path, old: &str, new: String, part: usize) -> Result<(), Error> {
        let other = match self.0.entry(new.clone()).or_insert_with(|| TensorSource::Stacked([const { None }; 3])) {
            TensorSource::Stacked(parts) => match &mut parts[part] {
                Some(other) => other.as_str(),
                name => {
                    *name = Some(old.to_owned());
                    return Ok(());
                }
            },
            source => source.first_name(),
        };
        Err(duplicate_error(path, old, &new, other))
    }

    /// The shapes of all tensors, by new name.
    ///
    /// # Errors
    /// A tensor cannot be made: parts of a stacked tensor are missing, are scalars or differ in
    /// shape, or a tensor to transpose is not a matrix.
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
    ///
    /// # Errors
    /// As for [`Self::shapes`]; also if parts of a stacked tensor differ in type.
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
    /// The name in the file of the tensor, or of the first part that has been added.
    fn first_name(&self) -> &str {
        match self {
            Self::Renamed(old) | Self::Transposed(old) => old,
            Self::Stacked(parts) => parts.iter().flatten().next().map_or("", String::as_str),
        }
    }

    fn mapping_error(&self, archive: &Archive, new: &str) -> Error {
        let problem = match self {
            Self::Renamed(old) => format!("cannot be read from {old}"),
            Self::Transposed(old) => format!("{old} is not a matrix"),
            Self::Stacked(parts) => match parts {
                [Some(query), Some(key), Some(value)] => {
                    format!("{query}, {key} and {value} are scalars, or differ in shape or type")
                }
                _ => "needs a query, a key and a value, and not all of them exist".to_owned(),
            },
        };
        Error::tensor(archive.path(), new, problem)
    }
}

/// The error that the tensors `old` and `other` of a file both become `new`.
fn duplicate_error(path: &Path, old: &str, new: &str, other: &str) -> Error {
    Error::tensor(path, new, format!("the file has it twice, as {other} and as {old}"))
}

fn reversed(shape: &[usize]) -> Vec<usize> {
    shape.iter().rev().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_both_tensors_that_become_the_same() {
        let renamed = || TensorTarget::Renamed("new".to_owned());
        let transposed = || TensorTarget::Transposed("new".to_owned());
        let part = |part| TensorTarget::StackedPart("new".to_owned(), part);
        let targets = [(renamed(), transposed()), (renamed(), part(1)), (part(2), renamed()), (part(0), part(0))];
        for (first, second) in targets {
            let mut mapping = TensorMapping::default();
            mapping.add(Path::new("a.pt"), "one", first).unwrap();
            let error = mapping.add(Path::new("a.pt"), "two", second).unwrap_err();
            assert_eq!(error.to_string(), "a.pt: new: the file has it twice, as one and as two");
        }
        let mut mapping = TensorMapping::default();
        for (name, part) in [("query", part(0)), ("key", part(1)), ("value", part(2))] {
            mapping.add(Path::new("a.pt"), name, part).unwrap();
        }
    }
}
