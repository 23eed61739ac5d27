//! Connections of programs to the coordinator, with TLS and tokens.
//!
//! ```text
//!   command line --> Address --> Link ====TLS, token====> coordinator
//!                       |                                     ^
//!                       '--- TlsFiles, Token -----------------'
//! ```

mod address;
mod error;
mod files;
mod link;
mod probe;
mod tls;
mod token;

/// Response header of `GET /healthz` at a coordinator's HTTP port: the port of its gRPC services.
pub const GRPC_PORT_HEADER: &str = "dico-grpc-port";

pub use address::Address;
pub use error::Error;
pub use link::{Channel, Link};
pub use tls::TlsFiles;
pub use token::{ADMIN_TOKEN, JOIN_TOKEN, Token, bearer};
