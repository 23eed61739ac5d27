//! The acceptor of the gRPC port: accepts connections, performs the TLS handshake if configured,
//! and passes connections that begin with the HTTP/2 preface to the gRPC server.
//!
//! tonic's own acceptor would neither report refused peers nor limit the number of connections.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;
use tracing::warn;

use super::refusals::{RefusalReason, Refusals};

/// Maximal number of open connections: two for each of 20,000 workers, because a worker may
/// reconnect before the coordinator notices that its last connection is dead, and some for
/// operators.
const MAX_CONNECTIONS: usize = 50_000;
/// Capacity of the channel of accepted connections to the server.
const MAX_QUEUED_CONNECTIONS: usize = 64;
/// Time limit for the TLS handshake and the HTTP/2 preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an error of accept(2), e.g. because too many files are open.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The HTTP/2 connection preface (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The address of a connection's peer.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

impl Peer {
    /// Whether the peer is on this machine.
    pub fn is_loopback(self) -> bool {
        self.0.ip().to_canonical().is_loopback()
    }

    /// The address by which clients are counted for limits. For IPv6 that is the /64 prefix,
    /// because one client commonly controls all addresses in it (RFC 6177).
    pub fn client_address(self) -> IpAddr {
        match self.0.ip().to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
            address @ IpAddr::V4(_) => address,
        }
    }
}

/// The bytes of a connection: plain text or TLS.
type ByteStream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// An accepted connection. It counts toward [`MAX_CONNECTIONS`] until it is dropped.
pub struct Connection {
    peer: Peer,
    stream: ByteStream,
    /// The part of the preface that the acceptor has read, and the server has not.
    unread_preface: &'static [u8],
    _permit: OwnedSemaphorePermit,
}

/// Accepts the connections of a listener.
pub struct Acceptor {
    pub listener: TcpListener,
    /// The TLS settings; `None` for plain text.
    pub tls: Option<Arc<ServerConfig>>,
    pub refusals: Refusals,
}

impl Acceptor {
    /// Starts accepting. Returns the stream of accepted connections; accepting ends when it is
    /// dropped.
    pub fn start(self) -> ReceiverStream<io::Result<Connection>> {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_CONNECTIONS);
        tokio::spawn(self.accept_all(sender));
        ReceiverStream::new(receiver)
    }

    async fn accept_all(self, sender: mpsc::Sender<io::Result<Connection>>) {
        let Self { listener, tls, refusals } = self;
        let tls = tls.map(TlsAcceptor::from);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                // The peer has closed the connection before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    warn!(%error, "cannot accept gRPC connections: retrying");
                    time::sleep(ACCEPT_RETRY_INTERVAL).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                refusals.record(
                    peer,
                    RefusalReason::TooManyConnections,
                    format_args!("{MAX_CONNECTIONS} connections are open, which is the limit"),
                );
                continue;
            };
            let (tls, refusals, sender) = (tls.clone(), refusals.clone(), sender.clone());
            tokio::spawn(async move {
                let error = match time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, tls)).await {
                    Ok(Ok(stream)) => {
                        let connection =
                            Connection { peer: Peer(peer), stream, unread_preface: PREFACE, _permit: permit };
                        // Fails if the server has dropped the receiver: the coordinator is shutting
                        // down.
                        _ = sender.send(Ok(connection)).await;
                        return;
                    }
                    Ok(Err(error)) => error,
                    Err(_) => io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs()),
                    ),
                };
                if let Some(reason) = refusal_reason(&error) {
                    refusals.record(peer, reason, error);
                }
            });
        }
    }
}

/// Performs the TLS handshake, if required, and checks the HTTP/2 preface.
async fn handshake(stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<ByteStream> {
    stream.set_nodelay(true)?;
    let mut stream = match tls {
        Some(tls) => Either::Right(Box::new(tls.accept(stream).await?)),
        None => Either::Left(stream),
    };
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != *PREFACE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the peer does not speak HTTP/2, or speaks TLS to a coordinator without TLS",
        ));
    }
    Ok(stream)
}

/// The reason for which a connection was refused; `None` if the peer closed it during the
/// handshake.
fn refusal_reason(error: &io::Error) -> Option<RefusalReason> {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (tls, error.kind()) {
        (Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented), _) => {
            Some(RefusalReason::InvalidCertificate)
        }
        (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => None,
        _ => Some(RefusalReason::FailedHandshake),
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.unread_preface.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let (first, rest) = self.unread_preface.split_at(buffer.remaining().min(self.unread_preface.len()));
        buffer.put_slice(first);
        self.unread_preface = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_addresses_of_one_prefix_count_as_one_client() {
        let client = |peer: &str| Peer(peer.parse().unwrap()).client_address().to_string();
        assert_eq!(client("10.0.0.1:7"), "10.0.0.1");
        assert_eq!(client("[::ffff:10.0.0.1]:7"), "10.0.0.1");
        assert_eq!(client("[2001:db8:1:2:3:4:5:6]:7"), "2001:db8:1:2::");
    }
}
