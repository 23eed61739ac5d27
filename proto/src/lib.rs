//! The protocol between coordinator and workers. The text of record is `dico/v1/dico.proto`; this crate holds what is
//! generated from it, conversions to types of other crates, and the numbers that both sides must agree on.

mod parts;
mod summary;

pub use parts::{MAX_PART_BYTES, parts};

/// Version 1 of the protocol.
#[allow(missing_docs)] // generated; documented in the .proto file
pub mod v1 {
    tonic::include_proto!("dico.v1");
}

/// Images that are captioned together in an evaluation. What comes out of a batch depends, in its last bits, on what is in it: with
/// ranges that do not depend on how many workers there are, neither do scores.
pub const EVALUATION_RANGE: u64 = 50;

/// Raised whenever a change makes older peers misunderstand newer ones. Exchanged at join; a mismatch is refused.
pub const PROTOCOL_VERSION: u32 = 9;

/// Maximal size in bytes of a message to the coordinator. The largest is a part of a range of captions, a quarter of this: see [`parts`].
pub const MAX_BYTES_TO_COORDINATOR: usize = 16 << 20;

/// Maximal size in bytes of a message from the coordinator: a run file, or how each of 100,000 members is.
pub const MAX_BYTES_FROM_COORDINATOR: usize = 64 << 20;
