use std::path::PathBuf;

use crate::token::{MAX_TOKEN_BYTES, MIN_TOKEN_BYTES};

/// An invalid connection setting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file is longer than any token, certificate or key may be.
    #[error("{}: it has more than {max_bytes} bytes, more than any token, certificate or key: name the right file", path.display())]
    TooLong {
        /// The path of the file.
        path: PathBuf,
        /// The maximal size, in bytes.
        max_bytes: u64,
    },
    /// A file is not text.
    #[error("{}: it is not text in UTF-8", path.display())]
    NotText {
        /// The path of the file.
        path: PathBuf,
    },
    /// A file does not have the expected content.
    #[error("{}: no {content} in PEM: {problem}", path.display())]
    Pem {
        /// The path of the file.
        path: PathBuf,
        /// The expected content.
        content: &'static str,
        /// The problem with it.
        problem: String,
    },
    /// Certificate and key are invalid, or do not belong together.
    #[error("{} and {}: {problem}", certificate.display(), key.display())]
    Identity {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The problem with them.
        problem: String,
    },
    /// A file's certificates are not those of a certificate authority.
    #[error("{}: not the certificate of an authority: {problem}", path.display())]
    Authority {
        /// The path of the file.
        path: PathBuf,
        /// The problem with it.
        problem: String,
    },
    /// A token is invalid.
    #[error(
        "{origin}: a token has {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} visible ASCII characters; `openssl rand -hex 32` prints a good one"
    )]
    Token {
        /// The source of the token.
        origin: String,
    },
    /// The URL of the coordinator is invalid.
    #[error("{0}: not a URL like http://host:port or https://host:port")]
    Url(String),
    /// Certificates are given for a connection without TLS.
    #[error("{0}: certificates are given, so the URL must begin with https://")]
    CertificatesWithoutTls(String),
    /// No certificates are given for a connection with TLS.
    #[error("{0}: an https:// URL needs --tls-ca, --tls-cert and --tls-key")]
    TlsWithoutCertificates(String),
}
