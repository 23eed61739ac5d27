//! Connections to the coordinator, with mutual TLS and bearer tokens.
//!
//! ```text
//!   command line --> ConnectionArgs --> Connector ====TLS, token====> coordinator
//!                          |                                              ^
//!                          '--- TlsFiles, Token --------------------------'
//! ```

mod args;
mod connector;
mod error;
mod files;
mod probe;
mod tls;
mod token;

/// Response header of `GET /healthz` at a coordinator's HTTP port: the port of its gRPC services.
pub const GRPC_PORT_HEADER: &str = "dico-grpc-port";

pub use args::ConnectionArgs;
pub use connector::{Channel, Connector};
pub use error::Error;
pub use tls::TlsFiles;
pub use token::{ADMIN_TOKEN_VARIABLE, JOIN_TOKEN_VARIABLE, Token, parse_bearer};
