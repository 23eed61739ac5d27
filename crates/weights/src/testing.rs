//! What the tests of this crate share.

use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::cell::Cell;
use std::io::{Cursor, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::tensor::{Dtype, Tensor};

thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    static MAX_TAKEN: Cell<usize> = const { Cell::new(0) };
}

/// Counts what each thread takes.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is passed on to the system's allocator; counting touches constant-initialised thread-locals only, which
// do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = TAKEN.get().wrapping_add(layout.size());
        TAKEN.set(taken);
        MAX_TAKEN.set(MAX_TAKEN.get().max(taken));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // What one thread took another may give back.
        TAKEN.set(TAKEN.get().saturating_sub(layout.size()));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Most bytes that `work` holds at any one time beyond what was held before.
pub fn most_taken<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = TAKEN.get();
    MAX_TAKEN.set(before);
    let result = work();
    (result, MAX_TAKEN.get().saturating_sub(before))
}

/// A ZIP archive of uncompressed files.
pub fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        writer.start_file(*name, options).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A tensor whose elements count up from `first`.
pub fn counting(shape: &[usize], first: usize) -> Tensor<'static> {
    let elements: usize = shape.iter().product();
    let bytes = (0..elements).flat_map(|i| ((first + i) as f32).to_le_bytes()).collect();
    Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes: Cow::Owned(bytes) }
}

/// Elements of a tensor of `f32`.
pub fn values(tensor: &Tensor<'_>) -> Vec<f32> {
    assert_eq!(tensor.dtype, Dtype::F32);
    tensor.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Writes tensors of these shapes, each with elements of its own, as safetensors.
pub fn write_shapes(path: &Path, shapes: &[(String, Vec<usize>)]) {
    let tensors: Vec<_> =
        shapes.iter().enumerate().map(|(i, (name, shape))| (name.clone(), counting(shape, i * 1000))).collect();
    crate::write_safetensors(path, &tensors).unwrap();
}
