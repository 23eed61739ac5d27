//! Each refused peer is logged with its address and counted, and a healthy worker is not affected.

use std::{cell::RefCell, io, path::PathBuf, sync::Once, time::Duration};

use futures::stream;
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::AsyncRead;
use tonic::{
    Request,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};
use transport::{Connector, TlsFiles, Token};

use super::*;
use crate::service::Tokens;

const JOIN: &str = "/dico.v1.Coordinator/Join";
const SESSION: &str = "/dico.v1.Coordinator/Session";

// ------------------------------------------------------------------------------------ test cluster

thread_local! {
    /// The log of this test, whose coordinator runs on the test's own thread.
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Captures the logs of all threads. There is one global subscriber, because subscribers of a
/// thread miss call sites that another thread has registered.
fn capture_logs() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let logs = tracing_subscriber::fmt().with_ansi(false).with_writer(|| LogWriter);
        tracing::subscriber::set_global_default(logs.finish()).unwrap();
    });
}

fn log_lines() -> Vec<String> {
    LOG.with_borrow(|bytes| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect())
}

struct LogWriter;

impl io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A coordinator, and a healthy worker in its first generation.
struct Fixture {
    coordinator: TestCoordinator,
    messages: mpsc::Sender<v1::WorkerMessage>,
    directives: Streaming<v1::Directive>,
    /// The directive that the healthy worker has not answered yet.
    pending: v1::Directive,
    /// The last position that the healthy worker has reported.
    position: Option<v1::Position>,
}

impl Fixture {
    /// Starts a coordinator, and a healthy worker that connects through this connector.
    async fn new(security: Security, connector: impl FnOnce(std::net::SocketAddr) -> Connector) -> Self {
        capture_logs();
        let coordinator = serve(testing::stage("a", 12, 8, None, None), security).await;
        let channel = connector(coordinator.grpc).open_channel(Duration::from_secs(30)).await.unwrap();
        let mut client = CoordinatorClient::new(channel);
        let token = client.join(join(Some(7))).await.unwrap().into_inner().session_token;
        let (messages, receiver) = mpsc::channel(8);
        messages.send(v1::WorkerMessage { message: Some(attach(token)) }).await.unwrap();
        let mut directives = client.session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let pending = directives.message().await.unwrap().unwrap();
        Self { coordinator, messages, directives, pending, position: None }
    }

    /// A coordinator without TLS.
    async fn without_tls(tokens: Tokens) -> Self {
        let join = tokens.join.clone();
        Self::new(Security { tls: None, tokens }, |grpc| plain_connector(grpc, join.as_ref())).await
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.coordinator.grpc)).unwrap().connect().await.unwrap()
    }

    async fn channel_with(&self, token: Option<&Token>) -> transport::Channel {
        plain_connector(self.coordinator.grpc, token).open_channel(Duration::from_secs(30)).await.unwrap()
    }

    /// Asserts that peers were refused this many times, only for this reason, and that each refusal
    /// was logged with the peer's address. Then asserts that the healthy worker trains.
    async fn assert_refused(mut self, reason: &str, times: usize) {
        let metrics = http_get(self.coordinator.http, "/metrics").await;
        for line in metrics.lines().filter(|line| line.starts_with("dico_refusals_total{")) {
            let expected = if line.contains(&format!("\"{reason}\"")) { times } else { 0 };
            assert!(line.ends_with(&format!(" {expected}")), "{line}");
        }
        assert!(metrics.contains(&format!("dico_refusals_total{{reason=\"{reason}\"}}")), "{metrics}");
        let lines = log_lines();
        let is_refusal = |line: &&String| {
            let has_reason = line.contains(&format!("reason=\"{reason}\""));
            has_reason && line.contains("refused: ") && line.contains("peer=127.0.0.1:")
        };
        assert_eq!(lines.iter().filter(is_refusal).count(), times, "{lines:#?}");
        while !matches!(self.pending.directive, Some(Directive::Train(_))) {
            self.answer_directive().await;
        }
    }

    /// Answers the healthy worker's directive, and receives the next one.
    async fn answer_directive(&mut self) {
        let v1::Directive { generation, directive } = std::mem::take(&mut self.pending);
        let messages = match directive.unwrap() {
            // A worker has joined.
            Directive::Abandon(_) | Directive::Halt(_) => {
                vec![Message::Idle(v1::Idle { generation, position: self.position, ..Default::default() })]
            }
            other => worker_replies(self.coordinator.output.path(), generation, other),
        };
        for message in messages {
            if let Message::Ready(v1::Ready { position, .. }) | Message::StepDone(v1::StepDone { position, .. }) =
                &message
            {
                self.position = *position;
            }
            self.messages.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
        let next = self.directives.message().await.unwrap();
        self.pending = next.unwrap_or_else(|| panic!("the healthy worker was evicted: {:#?}", log_lines()));
    }
}

fn plain_connector(grpc: std::net::SocketAddr, token: Option<&Token>) -> Connector {
    Connector::new(format!("http://{grpc}"), None, token).unwrap()
}

fn token(text: &str) -> Option<Token> {
    Some(Token::parse(text, "a test").unwrap())
}

/// A codec that sends and receives raw bytes.
#[derive(Clone, Copy, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, bytes: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &bytes);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        let all = bytes::Buf::remaining(from);
        bytes::Buf::advance(from, all);
        Ok(Some(()))
    }
}

/// Sends these raw messages in a session. Returns the status with which the session ends.
async fn send_raw_in_session(channel: Channel, messages: Vec<Vec<u8>>) -> Status {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    // The client sends nothing more, but does not close the stream.
    let requests = futures::StreamExt::chain(stream::iter(messages), stream::pending());
    let session = grpc.streaming(Request::new(requests), PathAndQuery::from_static(SESSION), RawCodec).await;
    let mut directives = session.unwrap().into_inner();
    loop {
        if let Err(status) =
            directives.message().await.map(|directive| directive.expect("the session ends with an error"))
        {
            return status;
        }
    }
}

/// An encoded Attach, the first message of a second worker.
async fn encoded_attach(channel: Channel) -> Vec<u8> {
    let token = CoordinatorClient::new(channel).join(join(None)).await.unwrap().into_inner().session_token;
    v1::WorkerMessage { message: Some(attach(token)) }.encode_to_vec()
}

/// Reads all bytes until the peer closes the connection.
async fn read_to_the_end(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A peer that closes with unread data resets the connection, which is an error here.
    _ = stream.read_to_end(&mut bytes).await;
    bytes
}

// ---------------------------------------------------------------------------------------- messages

#[tokio::test]
async fn an_old_protocol_version_is_refused() {
    let fixture = Fixture::without_tls(Tokens::default()).await;
    let request = v1::JoinRequest { protocol_version: PROTOCOL_VERSION - 1, ..join(None) };
    let status = CoordinatorClient::new(fixture.channel().await).join(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    fixture.assert_refused("protocol_version", 1).await;
}

#[tokio::test]
async fn a_flood_of_refusals_is_counted_and_its_log_lines_are_limited() {
    let fixture = Fixture::without_tls(Tokens::default()).await;
    let mut client = CoordinatorClient::new(fixture.channel().await);
    for _ in 0..100 {
        client.join(v1::JoinRequest { protocol_version: 1, ..join(None) }).await.unwrap_err();
        client.join(join(Some(7))).await.unwrap_err();
    }
    assert_exposes(
        &http_get(fixture.coordinator.http, "/metrics").await,
        &["dico_refusals_total{reason=\"protocol_version\"} 100"],
    );
    let lines = log_lines();
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(
        (count("refused: the worker speaks protocol version 1"), count("the worker has to retry: worker id 7")),
        (20, 20)
    );
}

#[tokio::test]
async fn a_taken_worker_id_is_refused() {
    let fixture = Fixture::without_tls(Tokens::default()).await;
    let mut client = CoordinatorClient::new(fixture.channel().await);
    // The first join has to be retried. That does not count as a refusal.
    client.join(join(Some(7))).await.unwrap_err();
    client.join(v1::JoinRequest { waited_ms: 60_000, ..join(Some(7)) }).await.unwrap_err();
    fixture.assert_refused("rank_taken", 1).await;
}

#[tokio::test]
async fn an_unknown_session_token_is_refused() {
    let fixture = Fixture::without_tls(Tokens::default()).await;
    let mut client = CoordinatorClient::new(fixture.channel().await);
    assert_eq!(session_error(&mut client, attach("0".repeat(32))).await.code(), Code::Unauthenticated);
    fixture.assert_refused("session_token", 1).await;
}

#[tokio::test]
async fn a_session_without_attach_is_refused() {
    let fixture = Fixture::without_tls(Tokens::default()).await;
    let mut client = CoordinatorClient::new(fixture.channel().await);
    let first = Message::Heartbeat(v1::Heartbeat::default());
    assert_eq!(session_error(&mut client, first).await.code(), Code::InvalidArgument);
    fixture.assert_refused("violation", 1).await;
}

#[tokio::test]
async fn a_checkpoint_name_with_a_path_is_refused() {
    let mut fixture = Fixture::without_tls(Tokens::default()).await;
    let mut client = CoordinatorClient::new(fixture.channel().await);
    let token = client.join(join(None)).await.unwrap().into_inner().session_token;
    let (sender, mut directives) = open_session(&mut client, attach(token)).await;
    while fixture.pending.generation < 2 {
        fixture.answer_directive().await;
    }
    let generation = directives.message().await.unwrap().unwrap().generation;
    let outside = fixture.coordinator.output.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let damaged_checkpoint = "../outside".to_owned();
    let failed = Message::Failed(v1::Failed { generation, damaged_checkpoint, ..Default::default() });
    sender.send(v1::WorkerMessage { message: Some(failed) }).await.unwrap();
    assert_eq!(directives.message().await.unwrap_err().code(), Code::InvalidArgument);
    assert!(outside.is_dir());
    fixture.assert_refused("violation", 1).await;
}

#[tokio::test]
async fn malformed_messages_are_refused() {
    let fixture = Fixture::without_tls(Tokens::default()).await;
    let garbage = vec![0xff; 9];
    let attach_bytes = encoded_attach(fixture.channel().await).await;
    // In a session before and after Attach, on one connection; and as a unary call.
    let channel = fixture.channel().await;
    assert_eq!(send_raw_in_session(channel.clone(), vec![garbage.clone()]).await.code(), Code::Internal);
    assert_eq!(send_raw_in_session(channel.clone(), vec![attach_bytes, garbage.clone()]).await.code(), Code::Internal);
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let status = grpc.unary(Request::new(garbage), PathAndQuery::from_static(JOIN), RawCodec).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    fixture.assert_refused("malformed", 3).await;
}

#[tokio::test]
async fn oversized_messages_are_refused() {
    let fixture = Fixture::without_tls(Tokens::default()).await;
    let attach_bytes = encoded_attach(fixture.channel().await).await;
    let large = vec![0; proto::MAX_BYTES_TO_COORDINATOR + 1];
    let status = send_raw_in_session(fixture.channel().await, vec![attach_bytes, large.clone()]).await;
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(status.message().contains(&proto::MAX_BYTES_TO_COORDINATOR.to_string()), "{status}");
    let mut grpc = Grpc::new(fixture.channel().await);
    grpc.ready().await.unwrap();
    let status = grpc.unary(Request::new(large), PathAndQuery::from_static(JOIN), RawCodec).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    fixture.assert_refused("oversized", 2).await;
}

#[tokio::test]
async fn a_disconnect_is_not_counted_as_a_refusal() {
    let fixture = Fixture::without_tls(Tokens::default()).await;
    let channel = fixture.channel().await;
    let token = CoordinatorClient::new(channel.clone()).join(join(None)).await.unwrap().into_inner().session_token;
    let (sender, directives) = open_session(&mut CoordinatorClient::new(channel.clone()), attach(token)).await;
    drop((sender, directives, channel));
    fixture.assert_refused("malformed", 0).await;
}

// ------------------------------------------------------------------------------------------ tokens

#[tokio::test]
async fn wrong_join_tokens_are_refused() {
    let fixture = Fixture::without_tls(Tokens { join: token("the-token-of-the-workers"), admin: None }).await;
    for presented in [None, token("another-token-of-workers")] {
        let mut client = CoordinatorClient::new(fixture.channel_with(presented.as_ref()).await);
        let status = client.join(join(None)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("--join-token-file") && !status.message().contains("the-token"), "{status}");
        client.session(stream::pending()).await.unwrap_err();
    }
    assert!(!log_lines().concat().contains("the-token-of"));
    fixture.assert_refused("join_token", 4).await;
}

#[tokio::test]
async fn wrong_admin_tokens_are_refused() {
    let (join, admin) = (token("the-token-of-the-workers"), token("the-token-of-the-admins"));
    let fixture = Fixture::without_tls(Tokens { join: join.clone(), admin: admin.clone() }).await;
    for presented in [None, join.clone(), token("another-token-of-admins")] {
        let channel = fixture.channel_with(presented.as_ref()).await;
        let status = AdminClient::new(channel).control(control_request(v1::Command::Resume)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("--admin-token-file"), "{status}");
    }
    // Reading the status requires no token, and is possible with either one.
    for presented in [join, admin] {
        let channel = fixture.channel_with(presented.as_ref()).await;
        AdminClient::new(channel).status(v1::StatusRequest {}).await.unwrap();
    }
    fixture.assert_refused("admin_token", 3).await;
}

// ------------------------------------------------------------------------------------ certificates

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificates in a temporary folder.
struct Certificates(TempDir);

impl Certificates {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Issues a certificate for this machine. Its holder trusts the authority `trusts`.
    fn issue(&self, name: &str, expiry_year: i32, signed_by: &Authority, trusts: &Authority) -> TlsFiles {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(expiry_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, signed_by).unwrap();
        TlsFiles {
            tls_ca: self.write(&format!("{name}-ca.pem"), &trusts.pem()),
            tls_cert: self.write(&format!("{name}.pem"), &certificate.pem()),
            tls_key: self.write(&format!("{name}-key.pem"), &key.serialize_pem()),
        }
    }
}

/// A coordinator and a healthy worker with certificates of this authority.
async fn fixture_with_tls(certificates: &Certificates, authority: &Authority) -> Fixture {
    let server = certificates.issue("server", 4000, authority, authority).server_config().unwrap();
    let worker = certificates.issue("worker", 4000, authority, authority);
    let security = Security { tls: Some(server), tokens: Tokens::default() };
    Fixture::new(security, |grpc| Connector::new(format!("https://{grpc}"), Some(&worker), None).unwrap()).await
}

/// The error of a join with these certificates.
async fn join_error(fixture: &Fixture, files: &TlsFiles) -> Status {
    let connector = Connector::new(format!("https://{}", fixture.coordinator.grpc), Some(files), None).unwrap();
    connector.call(async |channel| CoordinatorClient::new(channel).join(join(None)).await).await.unwrap_err()
}

#[tokio::test]
async fn expired_certificates_and_those_of_another_authority_are_refused() {
    let (certificates, authority, other_authority) =
        (Certificates::new(), self::authority("ours"), self::authority("theirs"));
    let fixture = fixture_with_tls(&certificates, &authority).await;
    for files in [
        certificates.issue("expired", 2020, &authority, &authority),
        certificates.issue("of-other-authority", 4000, &other_authority, &authority),
    ] {
        let status = join_error(&fixture, &files).await;
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(status.message().contains("certificate"), "{status}");
    }
    fixture.assert_refused("certificate", 2).await;
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let (certificates, authority) = (Certificates::new(), self::authority("ours"));
    let fixture = fixture_with_tls(&certificates, &authority).await;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()));
    let endpoint =
        Endpoint::from_shared(format!("https://{}", fixture.coordinator.grpc)).unwrap().tls_config(tls).unwrap();
    if let Ok(channel) = endpoint.connect().await {
        CoordinatorClient::new(channel).join(join(None)).await.unwrap_err();
    }
    fixture.assert_refused("certificate", 1).await;
}

#[tokio::test]
async fn a_worker_refuses_a_coordinator_of_an_unknown_authority() {
    let (certificates, authority, other_authority) =
        (Certificates::new(), self::authority("ours"), self::authority("theirs"));
    let fixture = fixture_with_tls(&certificates, &authority).await;
    let status =
        join_error(&fixture, &certificates.issue("trusts-other-authority", 4000, &authority, &other_authority)).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("UnknownIssuer"), "{status}");
    fixture.assert_refused("handshake", 1).await;
}

#[tokio::test]
async fn plain_text_to_a_tls_port_is_refused() {
    let (certificates, authority) = (Certificates::new(), self::authority("ours"));
    let fixture = fixture_with_tls(&certificates, &authority).await;
    let mut stream = TcpStream::connect(fixture.coordinator.grpc).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    read_to_the_end(stream).await;
    fixture.assert_refused("handshake", 1).await;
}

#[tokio::test]
async fn http_1_to_the_grpc_port_is_refused() {
    let fixture = Fixture::without_tls(Tokens::default()).await;
    let mut stream = TcpStream::connect(fixture.coordinator.grpc).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
    assert_eq!(read_to_the_end(stream).await, b"");
    fixture.assert_refused("handshake", 1).await;
}

/// Takes as long as the handshake timeout.
#[tokio::test]
async fn a_silent_connection_is_refused_after_the_handshake_timeout() {
    let (certificates, authority) = (Certificates::new(), self::authority("ours"));
    let server = certificates.issue("server", 4000, &authority, &authority).server_config().unwrap();
    capture_logs();
    futures::future::join_all([None, Some(server)].map(async |tls| {
        let security = Security { tls, tokens: Tokens::default() };
        let coordinator = serve(testing::stage("a", 12, 8, None, None), security).await;
        let stream = TcpStream::connect(coordinator.grpc).await.unwrap();
        let peer = stream.local_addr().unwrap();
        read_to_the_end(stream).await;
        let lines = log_lines();
        let refused = lines.iter().find(|line| line.contains("handshake") && line.contains(&format!("peer={peer}")));
        assert!(refused.is_some(), "{lines:#?}");
        let metrics = http_get(coordinator.http, "/metrics").await;
        assert_exposes(&metrics, &["dico_refusals_total{reason=\"handshake\"} 1"]);
    }))
    .await;
}
