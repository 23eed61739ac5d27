use std::path::PathBuf;

use clap::Args;

use crate::{Connector, Error, JOIN_TOKEN_VARIABLE, TlsFiles, Token};

/// The command line's flags for a connection to the coordinator: address, certificates, join token.
#[derive(Clone, Debug, Args)]
pub struct ConnectionArgs {
    /// The coordinator's gRPC address; https:// if it has certificates.
    #[arg(long, value_name = "URL", env = "DICO_COORDINATOR", default_value = "http://127.0.0.1:7070")]
    coordinator: String,
    #[command(flatten)]
    tls: Option<TlsFiles>,
    /// File with the token that permits workers to join [default: the token in the environment
    /// variable DICO_JOIN_TOKEN, if any].
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
}

impl ConnectionArgs {
    /// A connector with the join token, if there is one.
    ///
    /// # Errors
    /// The address or the token is invalid, or a file cannot be used.
    pub fn connector(&self) -> Result<Connector, Error> {
        self.connector_with_token(None)
    }

    /// A connector with this token, or with the join token if there is none.
    ///
    /// # Errors
    /// The address or the token is invalid, or a file cannot be used.
    pub fn connector_with_token(&self, token: Option<Token>) -> Result<Connector, Error> {
        let token = match token {
            None => Token::load(self.join_token_file.as_deref(), JOIN_TOKEN_VARIABLE)?,
            token => token,
        };
        Connector::new(self.coordinator.clone(), self.tls.as_ref(), token.as_ref())
    }
}
