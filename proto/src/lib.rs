//! The protocol between coordinator and workers. The text of record is `dico/v1/dico.proto`; this crate holds only
//! what is generated from it and the one number that both sides must agree on.

/// Version 1 of the protocol.
#[allow(missing_docs)] // generated; documented in the .proto file
pub mod v1 {
    tonic::include_proto!("dico.v1");
}

/// Raised whenever a change makes older peers misunderstand newer ones. Exchanged at join; a mismatch is refused.
pub const PROTOCOL_VERSION: u32 = 2;
