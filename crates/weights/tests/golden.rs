//! Files that PyTorch 2.11 itself wrote, by this script:
//!
//! ```python
//! import torch
//! from torch import nn
//!
//! class Tower(nn.Module):
//!     def __init__(self):
//!         super().__init__()
//!         self.proj = nn.Parameter(torch.arange(6.0).view(3, 2))
//!         self.norm = nn.LayerNorm(2)
//!
//!     def forward(self, x):
//!         return self.norm(x @ self.proj)
//!
//! class Model(nn.Module):
//!     def __init__(self):
//!         super().__init__()
//!         self.visual = Tower()
//!         self.register_buffer("input_resolution", torch.tensor(224))
//!
//!     def forward(self, x):
//!         return self.visual(x)
//!
//! numbers = torch.arange(6.0).view(2, 3)
//! state = {
//!     "a": numbers,
//!     "t": torch.arange(6.0).view(2, 3).t(),
//!     "b": torch.tensor([1.5, -2.0]).bfloat16(),
//! }
//! torch.save({"state_dict": state, "epoch": 3}, "state_dict.pt")
//! torch.jit.trace(Model().half().eval(), torch.zeros(1, 3).half()).save("torchscript.pt")
//! ```

use std::path::Path;

use weights::{Archive, Dtype, Tensor};

fn open(name: &str) -> Archive {
    Archive::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

fn dtype_shape_and_words(tensor: &Tensor<'_>) -> (Dtype, Vec<usize>, Vec<u16>) {
    let words = tensor.bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
    (tensor.dtype, tensor.shape.clone(), words)
}

#[test]
fn a_state_dict_of_torch_save_is_read() {
    let archive = open("state_dict.pt");
    assert_eq!(archive.names().collect::<Vec<_>>(), ["a", "b", "t"]);
    // Upper halves of 0, 1, 2, 3, 4 and 5 as single-precision numbers.
    let [zero, one, two, three, four, five] = [0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0];
    let little_endian_words = |upper: [u16; 6]| upper.into_iter().flat_map(|upper| [0, upper]).collect();
    let a = little_endian_words([zero, one, two, three, four, five]);
    let t = little_endian_words([zero, three, one, four, two, five]);
    assert_eq!(dtype_shape_and_words(&archive.get("a").unwrap()), (Dtype::F32, vec![2, 3], a));
    assert_eq!(dtype_shape_and_words(&archive.get("t").unwrap()), (Dtype::F32, vec![3, 2], t));
    assert_eq!(dtype_shape_and_words(&archive.get("b").unwrap()), (Dtype::Bf16, vec![2], vec![0x3fc0, 0xc000]));
}

#[test]
fn a_traced_module_in_half_precision_is_read() {
    let archive = open("torchscript.pt");
    let names: Vec<&str> = archive.names().collect();
    assert_eq!(names, ["input_resolution", "visual.norm.bias", "visual.norm.weight", "visual.proj"]);
    assert_eq!(
        (archive.dtype("input_resolution"), archive.shape("input_resolution")),
        (Some(Dtype::I64), Some(&[][..]))
    );
    // 0, 1, 2, 3, 4 and 5 as half-precision numbers.
    let numbers = vec![0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500];
    assert_eq!(dtype_shape_and_words(&archive.get("visual.proj").unwrap()), (Dtype::F16, vec![3, 2], numbers));
    assert_eq!(
        dtype_shape_and_words(&archive.get("visual.norm.weight").unwrap()),
        (Dtype::F16, vec![2], vec![0x3c00; 2])
    );
}
