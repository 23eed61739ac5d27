use std::path::PathBuf;

use crate::token::{LEAST, MOST};

/// Why there is no way to the coordinator, or into it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is longer than any token, certificate or key.
    #[error("{}: it has more than {max_bytes} bytes, so it is not what it should be: give the right file", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// How long it may be.
        max_bytes: u64,
    },
    /// A file is not text.
    #[error("{}: it is not text in UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// A file is not what it should be.
    #[error("{}: no {what} in PEM: {problem}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Certificate and key cannot be used, or not together.
    #[error("{} and {}: {problem}", certificate.display(), key.display())]
    Identity {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        problem: String,
    },
    /// Nothing can be checked against the certificates of a file.
    #[error("{}: not the certificate of an authority: {problem}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A token that is none.
    #[error(
        "{origin}: a token has {LEAST} to {MOST} visible ASCII characters; `openssl rand -hex 32` prints a good one"
    )]
    Token {
        /// Where it is from.
        origin: String,
    },
    /// An address that is none.
    #[error("{0}: not a URL like http://host:port or https://host:port")]
    Url(String),
    /// Certificates for a connection that does not use them.
    #[error("{0}: certificates are given, so the URL must begin with https://")]
    NotTls(String),
    /// No certificates for a connection that needs them.
    #[error("{0}: an https:// URL needs --tls-ca, --tls-cert and --tls-key")]
    NoCertificates(String),
}
