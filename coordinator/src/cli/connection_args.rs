//! Arguments and calls of subcommands that use the gRPC service `Admin` of a running coordinator.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use proto::v1::admin_client::AdminClient;
use transport::{ADMIN_TOKEN_VARIABLE, Channel, ConnectionArgs, Connector, Token};

/// The address of a running coordinator and the admin token.
#[derive(Debug, Args)]
pub struct AdminArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// File with the admin token [default: the token in the environment variable DICO_ADMIN_TOKEN,
    /// if any].
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
}

impl AdminArgs {
    /// Makes one call and waits for the answer.
    ///
    /// # Errors
    /// The call fails. The error names the coordinator.
    pub fn call<T>(
        &self,
        request: impl AsyncFnOnce(AdminClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> anyhow::Result<T> {
        let connector = self.connector()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(connector.call(request))
    }

    /// Creates a connector for several calls.
    ///
    /// # Errors
    /// The address, the certificates or the token cannot be used.
    pub fn connector(&self) -> anyhow::Result<AdminConnector> {
        Ok(AdminConnector(
            self.connection
                .connector_with_token(Token::load(self.admin_token_file.as_deref(), ADMIN_TOKEN_VARIABLE)?)?,
        ))
    }
}

/// Calls the gRPC service `Admin` of a coordinator, with a new connection for each call.
pub struct AdminConnector(Connector);

impl AdminConnector {
    /// Makes a call.
    ///
    /// # Errors
    /// The call fails. The error is one line that names the coordinator.
    pub async fn call<T>(
        &self,
        request: impl AsyncFnOnce(AdminClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> anyhow::Result<T> {
        let Self(connector) = self;
        let admin_client =
            |channel| AdminClient::new(channel).max_decoding_message_size(proto::MAX_BYTES_FROM_COORDINATOR);
        let answer = connector.call(async |channel| request(admin_client(channel)).await).await;
        answer.map_err(|status| anyhow!("{}: {}", connector.url(), status.message()))
    }
}
