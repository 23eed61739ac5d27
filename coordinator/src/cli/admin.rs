//! How subcommands ask a running coordinator.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use proto::v1::admin_client::AdminClient;
use transport::{ADMIN_TOKEN, Address, Channel, Link, Token};

/// A running coordinator.
#[derive(Debug, Args)]
pub struct Admin {
    #[command(flatten)]
    address: Address,
    /// File with the token that lets people and scripts in [default: the token in the environment variable DICO_ADMIN_TOKEN,
    /// if any].
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
}

impl Admin {
    /// Asks it something, and waits for the answer.
    pub fn ask<T>(
        &self,
        question: impl AsyncFnOnce(AdminClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> anyhow::Result<T> {
        let way = self.way()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(way.ask(question)).map_err(|reason| anyhow!(reason))
    }

    /// The connection settings for repeated requests.
    pub fn way(&self) -> anyhow::Result<Way> {
        Ok(Way(self.address.link_with(Token::find(self.admin_token_file.as_deref(), ADMIN_TOKEN)?)?))
    }
}

/// The way to a running coordinator.
pub struct Way(Link);

impl Way {
    /// Asks it something.
    ///
    /// # Errors
    /// Why there is no answer, in one line that names the coordinator.
    pub async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(AdminClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, String> {
        let Self(link) = self;
        let client = |channel| AdminClient::new(channel).max_decoding_message_size(proto::MAX_BYTES_FROM_COORDINATOR);
        let answer = link.ask(async |channel| question(client(channel)).await).await;
        answer.map_err(|status| format!("{}: {}", link.url(), status.message()))
    }
}
