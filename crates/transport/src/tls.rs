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

/// The files that each side of a connection with mutual TLS needs.
#[derive(Clone, Debug, Args)]
#[group(multiple = true, requires_all = ["tls_ca", "tls_cert", "tls_key"])]
pub struct TlsFiles {
    /// Certificates (PEM) of the authority that signed the other side's certificate.
    #[arg(long, value_name = "FILE", env = "DICO_TLS_CA", required = false)]
    pub tls_ca: PathBuf,
    /// Certificate (PEM) of this side, followed by intermediate certificates, if any.
    #[arg(long, value_name = "FILE", env = "DICO_TLS_CERT", required = false)]
    pub tls_cert: PathBuf,
    /// Private key (PEM) of this side's certificate.
    #[arg(long, value_name = "FILE", env = "DICO_TLS_KEY", required = false)]
    pub tls_key: PathBuf,
}

/// The content of the files of [`TlsFiles`].
struct TlsCredentials {
    /// The certificates of the authority that signs the other side's certificate.
    authorities: Vec<CertificateDer<'static>>,
    certificate_chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl TlsFiles {
    /// The server's TLS settings: only clients with a certificate that the authority in `tls_ca`
    /// has signed are accepted.
    ///
    /// # Errors
    /// A file cannot be read, is too large, or does not have the expected content; or certificate
    /// and key do not belong together.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        let TlsCredentials { authorities, certificate_chain, key } = self.read()?;
        let provider = Arc::new(ring::default_provider());
        let authority_error = |problem: String| Error::Authority { path: self.tls_ca.clone(), problem };
        let mut roots = RootCertStore::empty();
        for certificate in authorities {
            roots.add(certificate).map_err(|error| authority_error(error.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|error| authority_error(error.to_string()))?;
        let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = versions.expect("ring speaks TLS 1.2 and 1.3").with_client_cert_verifier(verifier);
        let mut config =
            builder.with_single_cert(certificate_chain, key).map_err(|error| self.identity_error(error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// The client's TLS settings: presents its certificate, and accepts only servers with a
    /// certificate that the authority in `tls_ca` has signed.
    ///
    /// # Errors
    /// As for [`Self::server_config`].
    pub(crate) fn client_config(&self) -> Result<ClientTlsConfig, Error> {
        // tonic reads the files by itself, but does not report which of them is invalid.
        let TlsCredentials { certificate_chain, key, .. } = self.read()?;
        let signing = ring::default_provider().key_provider.load_private_key(key);
        let keys_match = signing.and_then(|key| rustls::sign::CertifiedKey::new(certificate_chain, key).keys_match());
        keys_match.map_err(|error| self.identity_error(error.to_string()))?;
        let identity = Identity::from_pem(read_file(&self.tls_cert)?, read_file(&self.tls_key)?);
        Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read_file(&self.tls_ca)?)).identity(identity))
    }

    fn read(&self) -> Result<TlsCredentials, Error> {
        let key = PrivateKeyDer::from_pem_slice(&files::read_secret(&self.tls_key, MAX_PEM_BYTES)?);
        let problem = |error: rustls::pki_types::pem::Error| pem_error(&self.tls_key, "private key", error.to_string());
        Ok(TlsCredentials {
            authorities: read_certificates(&self.tls_ca)?,
            certificate_chain: read_certificates(&self.tls_cert)?,
            key: key.map_err(problem)?,
        })
    }

    fn identity_error(&self, problem: String) -> Error {
        Error::Identity { certificate: self.tls_cert.clone(), key: self.tls_key.clone(), problem }
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read_file(path)?).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(pem_error(path, "certificate", "there is none".into())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(pem_error(path, "certificate", error.to_string())),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    files::read(path, MAX_PEM_BYTES)
}

fn pem_error(path: &Path, content: &'static str, problem: String) -> Error {
    Error::Pem { path: path.to_owned(), content, problem }
}
