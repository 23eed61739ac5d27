//! The protocol between coordinator and workers. `dico/v1/dico.proto` defines the messages. This
//! crate has the code generated from it, conversions to types of other crates, and the constants
//! that both sides share. Clients and servers of its services need the feature `grpc`.

mod evaluation_items;
mod journal_head;
mod run_state;
mod summary;

pub use evaluation_items::{MAX_PART_BYTES, split_items};

/// The messages and services of the protobuf package `dico.v1`. The `v1` is a part of the package's
/// name only: the version of the protocol is [`PROTOCOL_VERSION`].
#[allow(missing_docs)] // generated; documented in the .proto file
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/dico.v1.rs"));
}

/// Number of images in a range of an evaluation. A worker captions the images of a range as one
/// batch. The caption of an image depends, in its last bits, on the other images of the batch.
/// Fixed ranges therefore make the scores independent of the number of workers.
pub const IMAGES_PER_EVALUATION_RANGE: u64 = 50;

/// Version of the protocol. Raised with each change that an older peer would misinterpret.
/// Exchanged at join; a mismatch is refused.
pub const PROTOCOL_VERSION: u32 = 11;

/// Maximal size of a message to the coordinator, in bytes. The largest messages contain captions:
/// at most [`MAX_PART_BYTES`] of them, a quarter of this size (see [`split_items`]).
pub const MAX_BYTES_TO_COORDINATOR: usize = 16 << 20;

/// Maximal size of a message from the coordinator, in bytes. The largest messages are a run file,
/// and the status with 100,000 members.
pub const MAX_BYTES_FROM_COORDINATOR: usize = 64 << 20;
