use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, crypto::ring};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::{Error, files};

/// Maximal size of a file with certificates or a key, in bytes.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// What both ends of a connection over mutual TLS need.
#[derive(Clone, Debug, Args)]
#[group(multiple = true, requires_all = ["tls_ca", "tls_cert", "tls_key"])]
pub struct TlsFiles {
    /// Certificates (PEM) of the authority that must have signed the other side's.
    #[arg(long, value_name = "FILE", env = "DICO_TLS_CA", required = false)]
    pub tls_ca: PathBuf,
    /// Certificate (PEM) to show to the other side, with those between it and the authority, if any.
    #[arg(long, value_name = "FILE", env = "DICO_TLS_CERT", required = false)]
    pub tls_cert: PathBuf,
    /// Private key (PEM) of that certificate.
    #[arg(long, value_name = "FILE", env = "DICO_TLS_KEY", required = false)]
    pub tls_key: PathBuf,
}

/// The contents of the files.
struct Contents {
    authorities: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl TlsFiles {
    /// The server's TLS settings: a client needs a certificate that the authority has signed.
    ///
    /// # Errors
    /// A file is missing, or does not have the expected content.
    pub fn server(&self) -> Result<Arc<ServerConfig>, Error> {
        let Contents { authorities, chain, key } = self.read()?;
        let provider = Arc::new(ring::default_provider());
        let authority = |problem: String| Error::Authority { path: self.tls_ca.clone(), problem };
        let mut roots = RootCertStore::empty();
        for certificate in authorities {
            roots.add(certificate).map_err(|error| authority(error.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|error| authority(error.to_string()))?;
        let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = versions.expect("ring speaks TLS 1.2 and 1.3").with_client_cert_verifier(verifier);
        let mut config = builder.with_single_cert(chain, key).map_err(|error| self.identity(error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// The client's TLS settings: presents its certificate, and accepts only servers that the
    /// authority has signed.
    pub(crate) fn client(&self) -> Result<ClientTlsConfig, Error> {
        // tonic reads the files by itself, but does not report which of them is invalid.
        let Contents { chain, key, .. } = self.read()?;
        let signing = ring::default_provider().key_provider.load_private_key(key);
        let fits = signing.and_then(|key| rustls::sign::CertifiedKey::new(chain, key).keys_match());
        fits.map_err(|error| self.identity(error.to_string()))?;
        let identity = Identity::from_pem(bytes(&self.tls_cert)?, bytes(&self.tls_key)?);
        Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(bytes(&self.tls_ca)?)).identity(identity))
    }

    fn read(&self) -> Result<Contents, Error> {
        let key = PrivateKeyDer::from_pem_slice(&files::read_secret(&self.tls_key, MAX_PEM_BYTES)?);
        let problem = |error: rustls::pki_types::pem::Error| pem(&self.tls_key, "private key", error.to_string());
        Ok(Contents {
            authorities: certificates(&self.tls_ca)?,
            chain: certificates(&self.tls_cert)?,
            key: key.map_err(problem)?,
        })
    }

    fn identity(&self, problem: String) -> Error {
        Error::Identity { certificate: self.tls_cert.clone(), key: self.tls_key.clone(), problem }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes(path)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(pem(path, "certificate", "there is none".into())),
        Ok(found) => Ok(found),
        Err(error) => Err(pem(path, "certificate", error.to_string())),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    files::read(path, MAX_PEM_BYTES)
}

fn pem(path: &Path, what: &'static str, problem: String) -> Error {
    Error::Pem { path: path.to_owned(), what, problem }
}
