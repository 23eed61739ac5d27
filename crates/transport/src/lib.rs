//! Connections to the coordinator, with mutual TLS and bearer tokens.
//!
//! | module | content |
//! |---|---|
//! | `args` | the flags for a connection to the coordinator |
//! | `connector` | connects to a coordinator and makes calls, with TLS and the token |
//! | `tls` | the TLS settings of client and server, from certificate files |
//! | `token` | bearer tokens: the join token and the admin token |
//! | `files` | reads files with tokens, certificates and keys |
//! | `probe` | identifies another server at the address of a coordinator |
//!
//! Programs that connect parse [`ConnectionArgs`] and get a [`Connector`] from them. The
//! coordinator uses [`TlsFiles`] and [`Token`] to accept connections.

mod args;
mod connector;
mod error;
mod files;
mod probe;
mod tls;
mod token;

/// Name of the header of the response to `GET /healthz` at a coordinator's HTTP port. Its value is
/// the port of the coordinator's gRPC services.
pub const GRPC_PORT_HEADER: &str = "dico-grpc-port";

pub use args::ConnectionArgs;
pub use connector::{Channel, Connector};
pub use error::Error;
pub use tls::TlsFiles;
pub use token::{ADMIN_TOKEN_VARIABLE, JOIN_TOKEN_VARIABLE, Token, parse_bearer};
