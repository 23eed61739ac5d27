use std::path::PathBuf;

use clap::Args;

use crate::{Error, JOIN_TOKEN, Link, TlsFiles, Token};

/// Where the coordinator is and how to get in, as the command line says it.
#[derive(Clone, Debug, Args)]
pub struct Address {
    /// The coordinator's gRPC address; https:// if it has certificates.
    #[arg(long, value_name = "URL", env = "DICO_COORDINATOR", default_value = "http://127.0.0.1:7070")]
    coordinator: String,
    #[command(flatten)]
    tls: Option<TlsFiles>,
    /// File with the token that lets workers in [default: the token in the environment variable DICO_JOIN_TOKEN, if any].
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
}

impl Address {
    /// The connection settings, with the join token if there is one.
    ///
    /// # Errors
    /// The address is invalid, or a file cannot be used.
    pub fn link(&self) -> Result<Link, Error> {
        self.link_with(None)
    }

    /// The same with another token, if one is given.
    ///
    /// # Errors
    /// The address is invalid, or a file cannot be used.
    pub fn link_with(&self, token: Option<Token>) -> Result<Link, Error> {
        let token = match token {
            None => Token::find(self.join_token_file.as_deref(), JOIN_TOKEN)?,
            token => token,
        };
        Link::new(self.coordinator.clone(), self.tls.as_ref(), token.as_ref())
    }
}
