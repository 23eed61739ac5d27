//! Identifies the server at an address where a coordinator is expected but does not answer.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::GRPC_PORT_HEADER;

/// The first bytes that an HTTP/2 client sends: the connection preface, and an empty SETTINGS
/// frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// Time limit of the server's response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximal number of bytes of a response that are read: the head of an HTTP/1 response.
const MAX_RESPONSE_BYTES: u64 = 4096;
/// Maximal number of bytes of an unknown protocol that an error shows.
const MAX_SHOWN_BYTES: usize = 40;
/// HTTP statuses of a proxy that mean that a later request may succeed: 429 (too many requests),
/// and those of a backend that is unavailable.
const RETRYABLE_STATUSES: [u16; 4] = [429, 502, 503, 504];

/// The protocol of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ServerProtocol {
    /// HTTP/2 without TLS, as coordinators without certificates.
    Http2,
    Tls,
    /// HTTP/1, with the status of the response.
    Http1 {
        status: u16,
    },
    /// A coordinator's HTTP port, with the number of its gRPC port.
    CoordinatorHttp {
        grpc_port: String,
    },
    /// Any other protocol: the beginning of the response, escaped.
    Unknown(String),
}

/// The reason why no coordinator can be at `host:port` for a client with or without TLS, and a
/// remedy. `None` if a coordinator might respond later: nothing listens or responds, or a proxy
/// reports that its backend is unavailable.
pub async fn find_mismatch(host: &str, port: u16, tls: bool) -> Option<String> {
    Some(match detect_protocol(host, port).await? {
        ServerProtocol::Http2 if !tls => return None,
        ServerProtocol::Tls if tls => return None,
        ServerProtocol::Http1 { status } if RETRYABLE_STATUSES.contains(&status) => return None,
        ServerProtocol::Http2 => {
            "this port speaks HTTP/2 without TLS: use http:// without --tls-ca, --tls-cert and --tls-key for a \
             coordinator without certificates"
                .to_owned()
        }
        ServerProtocol::Tls => {
            "this port speaks TLS: use https:// with --tls-ca, --tls-cert and --tls-key for a coordinator with \
             certificates"
                .to_owned()
        }
        ServerProtocol::CoordinatorHttp { grpc_port } => {
            format!("this is the coordinator's HTTP port, which serves page and metrics: its gRPC port is {grpc_port}")
        }
        ServerProtocol::Http1 { status } => format!(
            "this port speaks HTTP/1 (status {status}), not gRPC: `coordinator serve` prints its gRPC address as grpc=; the \
             default port is 7070"
        ),
        ServerProtocol::Unknown(start) => {
            format!(
                "this port does not speak HTTP/2, so it is not a coordinator's: its response begins with \"{start}\""
            )
        }
    })
}

async fn detect_protocol(host: &str, port: u16) -> Option<ServerProtocol> {
    let response = exchange(host, port, PREFACE).await?;
    if !response.is_empty() {
        return Some(identify_protocol(&response));
    }
    // The server closed the connection, as HTTP/1 servers and proxies without a backend may do.
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let response = exchange(host, port, request.as_bytes()).await?;
    (!response.is_empty()).then(|| identify_protocol(&response))
}

/// Sends bytes on a new connection. Returns the beginning of the response, which is empty if the
/// server closes the connection without one; none if it cannot be reached or does not answer in
/// time.
async fn exchange(host: &str, port: u16, request: &[u8]) -> Option<Vec<u8>> {
    let mut response = Vec::new();
    let request_response = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.write_all(request).await?;
        let mut reader = stream.take(MAX_RESPONSE_BYTES);
        // Reads the head of a frame, which has 9 bytes, or of an HTTP/1 response.
        while response.len() < 9 || (response.starts_with(b"HTTP/1.") && !has_complete_head(&response)) {
            if reader.read_buf(&mut response).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    match timeout(RESPONSE_TIMEOUT, request_response).await {
        // The connection is reset if the server closes it before it has read all bytes.
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::ConnectionReset => return None,
        Err(_) if response.is_empty() => return None,
        _ => {}
    }
    Some(response)
}

fn has_complete_head(response: &[u8]) -> bool {
    response.windows(4).any(|window| window == b"\r\n\r\n")
}

/// The protocol of a server with this response.
fn identify_protocol(response: &[u8]) -> ServerProtocol {
    match response {
        // A frame of at most 16,384 bytes on stream 0: SETTINGS, or GOAWAY.
        [0, 0..=0x40, _, 4 | 7, _, 0, 0, 0, 0, ..] => return ServerProtocol::Http2,
        // A TLS record: alert or handshake.
        [0x15 | 0x16, 3, ..] => return ServerProtocol::Tls,
        _ => {}
    }
    let text = String::from_utf8_lossy(response);
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    if let Some(rest) = first.strip_prefix("HTTP/1.") {
        let status = rest.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        let header = lines.filter_map(|line| line.split_once(':'));
        let mut grpc_port = header.filter(|(name, _)| name.eq_ignore_ascii_case(GRPC_PORT_HEADER));
        return match grpc_port.next() {
            Some((_, port)) => ServerProtocol::CoordinatorHttp { grpc_port: port.trim().escape_debug().to_string() },
            None => ServerProtocol::Http1 { status },
        };
    }
    let line = response.split(|byte| *byte == b'\n').next().unwrap_or_default();
    ServerProtocol::Unknown(line[..line.len().min(MAX_SHOWN_BYTES)].trim_ascii().escape_ascii().to_string())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn protocols_are_recognised_by_their_first_bytes() {
        let unknown = |text: &str| ServerProtocol::Unknown(text.to_owned());
        for (response, expected) in [
            (&b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03"[..], ServerProtocol::Http2),
            (b"\x00\x00\x08\x07\x00\x00\x00\x00\x00", ServerProtocol::Http2),
            (b"\x15\x03\x03\x00\x02\x02\x46", ServerProtocol::Tls),
            (b"\x16\x03\x03\x00\x7a", ServerProtocol::Tls),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", ServerProtocol::Http1 { status: 400 }),
            (b"HTTP/1.0 503\r\n", ServerProtocol::Http1 { status: 503 }),
            (b"HTTP/1.1", ServerProtocol::Http1 { status: 0 }),
            (
                b"HTTP/1.1 200 OK\r\nDico-GRPC-Port: 7070\r\n\r\nok\n",
                ServerProtocol::CoordinatorHttp { grpc_port: "7070".to_owned() },
            ),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", unknown("SSH-2.0-OpenSSH_9.2p1 Debian-2")),
            (b"-ERR unknown command 'PRI'\r\n", unknown("-ERR unknown command \\'PRI\\'")),
            (b"J\x00\x00\x00\x0a8.0.36\x00", unknown("J\\x00\\x00\\x00")),
            (&[b'a'; 1000], unknown(&"a".repeat(40))),
        ] {
            assert_eq!(identify_protocol(response), expected, "{}", response.escape_ascii());
        }
    }

    /// The message about a server that sends `response` on every connection after the first byte
    /// that it receives.
    async fn mismatch_message(response: &'static [u8], tls: bool) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_u8().await.unwrap();
                stream.write_all(response).await.unwrap();
            }
        };
        tokio::select! {
            message = find_mismatch("127.0.0.1", port, tls) => message,
            () = serve => unreachable!("the server never stops"),
        }
    }

    #[tokio::test]
    async fn a_temporary_failure_is_not_a_mismatch() {
        for response in [&b""[..], b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"HTTP/1.1 503 Service Unavailable\r\n\r\n"] {
            assert_eq!(mismatch_message(response, false).await, None, "{}", response.escape_ascii());
        }
        let closed_port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        assert_eq!(find_mismatch("127.0.0.1", closed_port, false).await, None);
        assert_eq!(find_mismatch("no-such-host.invalid", 7070, false).await, None);
    }

    #[tokio::test]
    async fn every_mismatch_has_a_remedy() {
        let settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00";
        assert_eq!(mismatch_message(settings, false).await, None);
        for (response, tls, expected) in [
            (&settings[..], true, "http://"),
            (b"\x15\x03\x03\x00\x02\x02\x46\x00\x00", false, "https://"),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", false, "HTTP/1 (status 404)"),
            (b"HTTP/1.1 200 OK\r\ndico-grpc-port: 7171\r\n\r\n", false, "its gRPC port is 7171"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", false, "SSH-2.0-OpenSSH_9.2"),
        ] {
            let message = mismatch_message(response, tls).await.unwrap_or_default();
            assert!(message.contains(expected), "{}: {message:?}", response.escape_ascii());
        }
    }
}
