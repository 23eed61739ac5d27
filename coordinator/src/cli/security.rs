//! Command line options for access control: TLS and tokens.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::ensure;
use clap::Args;
use transport::{ADMIN_TOKEN, JOIN_TOKEN, TlsFiles, Token};

use crate::service::{Security, Tokens};

/// Who is let in.
#[derive(Debug, Args)]
pub struct Admission {
    #[command(flatten)]
    tls: Option<TlsFiles>,
    /// File with the token that workers have to know [default: the token in the environment variable DICO_JOIN_TOKEN, if any].
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// File with the token that `coordinator resume` and the like have to know [default: the token in the environment variable
    /// DICO_ADMIN_TOKEN, if any; without one they are answered on this machine only].
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Let everybody in who can reach --listen, although it is not on the loopback.
    #[arg(long)]
    insecure: bool,
}

impl Admission {
    /// Reads certificates and tokens.
    ///
    /// # Errors
    /// They are not what they should be, or `listen` would be open to everybody.
    pub fn prepare(&self, listen: SocketAddr) -> anyhow::Result<Security> {
        let join = Token::find(self.join_token_file.as_deref(), JOIN_TOKEN)?;
        let admin = Token::find(self.admin_token_file.as_deref(), ADMIN_TOKEN)?;
        ensure!(
            self.insecure || self.tls.is_some() || join.is_some() || listen.ip().is_loopback(),
            "--listen {listen} would let everybody in who can reach it: give --tls-ca, --tls-cert and --tls-key, or \
             --join-token-file, or listen on 127.0.0.1; --insecure does it nevertheless"
        );
        let tls = self.tls.as_ref().map(TlsFiles::server).transpose()?;
        if join.is_some() && tls.is_none() && !listen.ip().is_loopback() {
            tracing::warn!("tokens come in in plain text: whoever listens on the way can use them");
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
        admission: Admission,
    }

    fn prepare(listen: &str, options: &[&str]) -> anyhow::Result<Security> {
        let arguments = [&["coordinator"], options].concat();
        Arguments::try_parse_from(arguments)?.admission.prepare(listen.parse().expect("an address"))
    }

    #[test]
    fn only_the_loopback_is_open_to_everybody_unless_told_to() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "the-token-of-the-workers").unwrap();
        let path = file.path().to_string_lossy().into_owned();
        for listen in ["0.0.0.0:7070", "[::]:7070", "10.0.0.1:0"] {
            let Err(error) = prepare(listen, &[]) else { panic!("{listen} is open") };
            assert!(error.to_string().contains(&format!("--listen {listen}")), "{error}");
            let admin_only = prepare(listen, &["--admin-token-file", &path]);
            assert!(admin_only.is_err(), "an admin token keeps no worker out");
            assert!(prepare(listen, &["--insecure"]).is_ok());
            assert!(prepare(listen, &["--join-token-file", &path]).unwrap().tokens.join.is_some());
        }
        assert!(prepare("127.0.0.1:0", &[]).is_ok() && prepare("[::1]:0", &[]).is_ok());
    }

    #[test]
    fn certificates_come_with_key_and_authority() {
        for options in [&["--tls-ca", "a"][..], &["--tls-cert", "a", "--tls-key", "b"]] {
            let Err(error) = prepare("127.0.0.1:0", options) else { panic!("{options:?} are enough") };
            assert!(error.to_string().contains("required"), "{error}");
        }
        let all = ["--tls-ca", "/nowhere/ca.pem", "--tls-cert", "/nowhere/cert.pem", "--tls-key", "/nowhere/key.pem"];
        let Err(error) = prepare("0.0.0.0:0", &all) else { panic!("there are no such files") };
        assert!(error.to_string().starts_with("/nowhere/"), "{error}");
    }
}
