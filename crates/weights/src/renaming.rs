//! Renaming of tensors: from a file's names to this project's.

use std::collections::BTreeMap;
use std::path::Path;

use crate::archive::Archive;
use crate::error::Error;
use crate::tensor::{Tensor, stacked_shape};

/// The renaming of a file's tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Renamed {
    /// It gets this name.
    Whole(String),
    /// It gets this name, and is transposed.
    Transposed(String),
    /// It becomes the first, second or third part (0, 1, 2) of the tensor of this name.
    Third(String, usize),
    /// It is dropped.
    Dropped,
}

/// The source of a renamed tensor.
enum Source {
    Whole(String),
    Transposed(String),
    Stacked([Option<String>; 3]),
}

/// The source of each tensor in an archive, by new name.
#[derive(Default)]
pub(crate) struct Renaming(BTreeMap<String, Source>);

impl Renaming {
    /// Adds the tensor `old` of the file `path`.
    pub fn add(&mut self, path: &Path, old: &str, renamed: Renamed) -> Result<(), Error> {
        let (new, source) = match renamed {
            Renamed::Whole(new) => (new, Source::Whole(old.to_owned())),
            Renamed::Transposed(new) => (new, Source::Transposed(old.to_owned())),
            Renamed::Third(new, part) => return self.add_third(path, old, new, part),
            Renamed::Dropped => return Ok(()),
        };
        match self.0.insert(new, source) {
            None => Ok(()),
            Some(_) => Err(twice(path, old)),
        }
    }

    fn add_third(&mut self, path: &Path, old: &str, new: String, part: usize) -> Result<(), Error> {
        let source = self.0.entry(new).or_insert_with(|| Source::Stacked([const { None }; 3]));
        let Source::Stacked(parts) = source else { return Err(twice(path, old)) };
        match parts.get_mut(part) {
            Some(place @ None) => {
                *place = Some(old.to_owned());
                Ok(())
            }
            _ => Err(twice(path, old)),
        }
    }

    /// The shapes of all tensors, by new name.
    pub fn shapes(&self, archive: &Archive) -> Result<BTreeMap<String, Vec<usize>>, Error> {
        let shapes = self.0.iter().map(|(new, source)| {
            let shape = match source {
                Source::Whole(old) => archive.shape(old).map(<[usize]>::to_vec),
                Source::Transposed(old) => archive.shape(old).filter(|shape| shape.len() == 2).map(reversed),
                Source::Stacked([Some(first), Some(second), Some(third)]) => {
                    let parts = [first, second, third].map(|old| archive.shape(old).unwrap_or_default());
                    stacked_shape(parts)
                }
                Source::Stacked(_) => None,
            };
            Ok((new.clone(), shape.ok_or_else(|| source.misfit(archive, new))?))
        });
        shapes.collect()
    }

    /// All tensors, under their new names.
    pub fn tensors<'a>(&self, archive: &'a Archive) -> Result<Vec<(String, Tensor<'a>)>, Error> {
        let tensors = self.0.iter().map(|(new, source)| {
            let tensor = match source {
                Source::Whole(old) => archive.get(old),
                Source::Transposed(old) => archive.get(old).and_then(|tensor| tensor.transposed()),
                Source::Stacked([Some(first), Some(second), Some(third)]) => {
                    let parts = (archive.get(first), archive.get(second), archive.get(third));
                    let (Some(first), Some(second), Some(third)) = parts else {
                        return Err(source.misfit(archive, new));
                    };
                    Tensor::stacked(&[first, second, third])
                }
                Source::Stacked(_) => None,
            };
            Ok((new.clone(), tensor.ok_or_else(|| source.misfit(archive, new))?))
        });
        tensors.collect()
    }
}

impl Source {
    fn misfit(&self, archive: &Archive, new: &str) -> Error {
        let problem = match self {
            Self::Whole(old) => format!("cannot be read from {old}"),
            Self::Transposed(old) => format!("{old} is no matrix"),
            Self::Stacked(parts) => match parts {
                [Some(query), Some(key), Some(value)] => format!("{query}, {key} and {value} do not fit"),
                _ => "needs a query, a key and a value, and not all of them are there".to_owned(),
            },
        };
        Error::tensor(archive.path(), new, problem)
    }
}

fn twice(path: &Path, old: &str) -> Error {
    Error::tensor(path, old, "is there twice, under two names")
}

fn reversed(shape: &[usize]) -> Vec<usize> {
    shape.iter().rev().copied().collect()
}
