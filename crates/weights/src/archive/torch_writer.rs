//! Writes PyTorch's ZIP format, as `torch.save({"state_dict": ...})` does.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::pickle::opcode as op;
use super::pickle::pickler::{Pickler, StorageView};
use crate::error::Error;
use crate::file::write_atomically;
use crate::tensor::{Dtype, Tensor, byte_length};

/// The folder in the archive; readers accept any name.
const ARCHIVE_FOLDER: &str = "archive";
/// PyTorch's version of the format (`caffe2/serialize/versions.h`).
const FORMAT_VERSION: &[u8] = b"3\n";
/// Maximal size of a file without ZIP64, in bytes.
const MAX_ZIP32_BYTES: usize = u32::MAX as usize;

/// Writes 32-bit tensors as a state dict under the key `state_dict`, the format of PAC-S's own
/// files: `torch.load(path)["state_dict"]` reads it. The file is written atomically.
///
/// # Errors
/// The file cannot be written, or a tensor has another type, a wrong size, or a name that occurs
/// twice; the message names it.
pub fn write_torch(path: &Path, tensors: &[(String, Tensor<'_>)]) -> Result<(), Error> {
    for (index, (name, Tensor { dtype, shape, bytes })) in tensors.iter().enumerate() {
        if *dtype != Dtype::F32 {
            return Err(Error::tensor(path, name, format!("has elements of type {dtype:?}, not of F32")));
        }
        if byte_length(*dtype, shape) != Some(bytes.len()) {
            let problem = format!("has {} bytes, which do not match the shape {shape:?}", bytes.len());
            return Err(Error::tensor(path, name, problem));
        }
        if tensors.iter().take(index).any(|(other, _)| other == name) {
            return Err(Error::tensor(path, name, "occurs twice"));
        }
    }
    let pickle = pickle(tensors);
    write_atomically(path, |partial| {
        let mut archive = ZipWriter::new(BufWriter::new(File::create(partial)?));
        let mut add = |name: &str, content: &[u8]| {
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .large_file(content.len() > MAX_ZIP32_BYTES);
            archive.start_file(format!("{ARCHIVE_FOLDER}/{name}"), options)?;
            archive.write_all(content)
        };
        add("data.pkl", &pickle)?;
        add("byteorder", b"little")?;
        for (key, (_, tensor)) in tensors.iter().enumerate() {
            add(&format!("data/{key}"), &tensor.bytes)?;
        }
        add("version", FORMAT_VERSION)?;
        archive.finish()?.flush()
    })
}

/// The pickle: each tensor has its own storage, named by its index.
fn pickle(tensors: &[(String, Tensor<'_>)]) -> Vec<u8> {
    let integers = |sizes: &[usize]| sizes.iter().map(|&size| size as i64).collect::<Vec<_>>();
    let layouts: Vec<_> = tensors
        .iter()
        .enumerate()
        .map(|(key, (_, tensor))| (key.to_string(), integers(&tensor.shape), integers(&strides(&tensor.shape))))
        .collect();
    let views: Vec<_> = tensors
        .iter()
        .zip(&layouts)
        .map(|((name, tensor), (key, shape, strides))| {
            let elements = (tensor.bytes.len() / Dtype::F32.size()) as i64;
            (name.as_str(), StorageView { class: "FloatStorage", key, elements, offset: 0, shape, strides })
        })
        .collect();
    Pickler::new().op(op::EMPTY_DICT).text("state_dict").state_dict(&views).op(op::SETITEM).finish()
}

/// The row-major strides of a shape, in elements.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for (dimension, &length) in shape.iter().enumerate().skip(1).rev() {
        for stride in strides.iter_mut().take(dimension) {
            *stride *= length;
        }
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Archive;
    use crate::test_util::sequential_tensor;

    #[test]
    fn written_tensors_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluator.pth");
        let shapes: [&[usize]; 4] = [&[2, 3, 4], &[5], &[], &[0, 7]];
        let tensors: Vec<_> = shapes
            .iter()
            .zip(["a", "b.weight", "c", "d"])
            .map(|(shape, name)| (name.to_owned(), sequential_tensor(shape, 7)))
            .collect();
        write_torch(&path, &tensors).unwrap();
        assert_eq!(Archive::open(&path).unwrap().tensors(), tensors);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "another file remains");
        assert_eq!(strides(&[2, 3, 4]), [12, 4, 1]);
    }

    #[test]
    fn other_types_wrong_sizes_and_duplicate_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluator.pth");
        let one = || ("a".to_owned(), sequential_tensor(&[2], 0));
        let problem = |tensors: &[(String, Tensor<'_>)]| write_torch(&path, tensors).unwrap_err().to_string();
        assert!(problem(&[one(), one()]).contains("a: occurs twice"));
        let short = Tensor { shape: vec![3], ..one().1 };
        assert!(problem(&[("b".to_owned(), short)]).contains("b: has 8 bytes, which do not match the shape [3]"));
        let half_precision = Tensor { dtype: Dtype::F16, shape: vec![4], ..one().1 };
        assert!(problem(&[("c".to_owned(), half_precision)]).contains("c: has elements of type F16"));
        assert!(!path.exists());
    }
}
