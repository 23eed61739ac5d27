//! Arguments for TLS and tokens of the coordinator.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::ensure;
use clap::Args;
use transport::{ADMIN_TOKEN_VARIABLE, JOIN_TOKEN_VARIABLE, TlsFiles, Token};

use crate::service::{Security, Tokens};

/// The certificates and tokens by which the coordinator authenticates clients.
#[derive(Debug, Args)]
pub struct SecurityArgs {
    #[command(flatten)]
    tls: Option<TlsFiles>,
    /// File with the join token, which workers have to present [default: the token in the
    /// environment variable DICO_JOIN_TOKEN, if any].
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// File with the admin token, which commands such as `coordinator resume` have to present
    /// [default: the token in the environment variable DICO_ADMIN_TOKEN, if any; without a token,
    /// commands are accepted from this machine only].
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Accept every client that can reach --listen, although it is not a loopback address.
    #[arg(long)]
    insecure: bool,
}

impl SecurityArgs {
    /// Reads certificates and tokens.
    ///
    /// # Errors
    /// A file is invalid, or `listen` is not a loopback address and nothing restricts its clients,
    /// without `--insecure`.
    pub fn prepare(&self, listen: SocketAddr) -> anyhow::Result<Security> {
        let join = Token::load(self.join_token_file.as_deref(), JOIN_TOKEN_VARIABLE)?;
        let admin = Token::load(self.admin_token_file.as_deref(), ADMIN_TOKEN_VARIABLE)?;
        ensure!(
            self.insecure || self.tls.is_some() || join.is_some() || listen.ip().is_loopback(),
            "--listen {listen} would accept every client that can reach it: give --tls-ca, --tls-cert and --tls-key, or \
             --join-token-file, or listen on 127.0.0.1, or confirm it with --insecure"
        );
        let tls = self.tls.as_ref().map(TlsFiles::server_config).transpose()?;
        if join.is_some() && tls.is_none() && !listen.ip().is_loopback() {
            tracing::warn!(%listen, "clients send tokens in plain text, and others on the network can read them: use TLS");
        }
        Ok(Security { tls, tokens: Tokens { join, admin } })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        security: SecurityArgs,
    }

    fn prepare(listen: &str, options: &[&str]) -> anyhow::Result<Security> {
        let arguments = [&["coordinator"], options].concat();
        Arguments::try_parse_from(arguments)?.security.prepare(listen.parse().expect("an address"))
    }

    #[test]
    fn only_a_loopback_address_accepts_every_client_without_insecure() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "the-token-of-the-workers").unwrap();
        let path = file.path().to_string_lossy().into_owned();
        for listen in ["0.0.0.0:7070", "[::]:7070", "10.0.0.1:0"] {
            let Err(error) = prepare(listen, &[]) else { panic!("{listen} accepts every client") };
            assert!(error.to_string().contains(&format!("--listen {listen}")), "{error}");
            let admin_only = prepare(listen, &["--admin-token-file", &path]);
            assert!(admin_only.is_err(), "an admin token does not restrict workers");
            assert!(prepare(listen, &["--insecure"]).is_ok());
            assert!(prepare(listen, &["--join-token-file", &path]).unwrap().tokens.join.is_some());
        }
        assert!(prepare("127.0.0.1:0", &[]).is_ok() && prepare("[::1]:0", &[]).is_ok());
    }

    #[test]
    fn a_certificate_requires_its_key_and_authority() {
        for options in [&["--tls-ca", "a"][..], &["--tls-cert", "a", "--tls-key", "b"]] {
            let Err(error) = prepare("127.0.0.1:0", options) else { panic!("{options:?} are accepted") };
            assert!(error.to_string().contains("required"), "{error}");
        }
        let all = ["--tls-ca", "/nowhere/ca.pem", "--tls-cert", "/nowhere/cert.pem", "--tls-key", "/nowhere/key.pem"];
        let Err(error) = prepare("0.0.0.0:0", &all) else { panic!("there are no such files") };
        assert!(error.to_string().starts_with("/nowhere/"), "{error}");
    }
}
