//! What the command line says about who is let in.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::ensure;
use clap::Args;
use connection::{ADMIN_TOKEN, JOIN_TOKEN, TlsFiles, Token};

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
