//! Helpers of this crate's tests.

use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::cell::Cell;
use std::io::{Cursor, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::tensor::{Dtype, Tensor};

thread_local! {
    static ALLOCATED_BYTES: Cell<usize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Counts the bytes that each thread allocates.
struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

// SAFETY: all calls are forwarded to the system allocator. Counting only touches
// constant-initialised thread-locals, which do not allocate.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let allocated = ALLOCATED_BYTES.get().wrapping_add(layout.size());
        ALLOCATED_BYTES.set(allocated);
        PEAK_BYTES.set(PEAK_BYTES.get().max(allocated));
        // SAFETY: the caller upholds the contract of the system allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // One thread may free the memory that another one allocated.
        ALLOCATED_BYTES.set(ALLOCATED_BYTES.get().saturating_sub(layout.size()));
        // SAFETY: the caller upholds the contract of the system allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Calls `work`. Returns its result and the peak of the memory that it allocates, in bytes.
pub fn peak_allocation<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED_BYTES.get();
    PEAK_BYTES.set(before);
    let result = work();
    (result, PEAK_BYTES.get().saturating_sub(before))
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

/// A tensor with the elements `first`, `first + 1` and so on.
pub fn sequential_tensor(shape: &[usize], first: usize) -> Tensor<'static> {
    let elements: usize = shape.iter().product();
    let bytes = (0..elements).flat_map(|i| ((first + i) as f32).to_le_bytes()).collect();
    Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes: Cow::Owned(bytes) }
}

/// The elements of a tensor of `f32`.
pub fn values(tensor: &Tensor<'_>) -> Vec<f32> {
    assert_eq!(tensor.dtype, Dtype::F32);
    tensor.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Writes a safetensors file with tensors of these shapes. The elements of tensor i begin with
/// 1000 i.
pub fn write_tensors_of_shapes(path: &Path, shapes: &[(String, Vec<usize>)]) {
    let tensors: Vec<_> = shapes
        .iter()
        .enumerate()
        .map(|(i, (name, shape))| (name.clone(), sequential_tensor(shape, i * 1000)))
        .collect();
    crate::write_safetensors(path, &tensors).unwrap();
}
