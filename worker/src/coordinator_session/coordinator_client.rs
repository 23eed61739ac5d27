//! The gRPC client of the coordinator's service, and its limits on the coordinator's messages.

use proto::v1::coordinator_client::CoordinatorClient;
use transport::Channel;

/// Maximal number of characters that a message quotes of the coordinator's reasons.
pub const MAX_REASON_CHARS: usize = 1_000;
/// Maximal size of a message from a coordinator, in bytes. The largest field of any message is the
/// run file as JSON, of which [`config::RunFile::from_json`] accepts half as many bytes.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The client over a channel to the coordinator.
pub fn client(channel: Channel) -> CoordinatorClient<Channel> {
    CoordinatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
