//! Each refused peer is logged with its address and counted, and an honest worker is not affected.

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
use transport::{Link, TlsFiles, Token};

use super::*;
use crate::service::Tokens;

const JOIN: &str = "/dico.v1.Coordinator/Join";
const SESSION: &str = "/dico.v1.Coordinator/Session";

// ------------------------------------------------------------------------------------------------------------ the scene

thread_local! {
    /// The log of this test: its coordinator runs on the test's own thread.
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Captures the logs of all threads. One global subscriber, because per-thread subscribers miss
/// call sites that another thread has registered.
fn keep_logs() {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        let logs = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log);
        tracing::subscriber::set_global_default(logs.finish()).unwrap();
    });
}

fn logged() -> Vec<String> {
    LOGGED.with_borrow(|bytes| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect())
}

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGGED.with_borrow_mut(|logged| logged.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A coordinator, and an honest worker in its first generation.
struct Scene {
    served: Served,
    say: mpsc::Sender<v1::WorkerMessage>,
    directives: Streaming<v1::Directive>,
    /// The directive that the honest worker has not answered yet.
    told: v1::Directive,
    /// The state that it holds.
    holds: Option<v1::Position>,
}

impl Scene {
    /// A scene with an honest worker that connects through this link.
    async fn new(security: Security, way: impl FnOnce(std::net::SocketAddr) -> Link) -> Self {
        keep_logs();
        let served = serve(testing::stage("a", 12, 8, None, None), security).await;
        let channel = way(served.grpc).stay(Duration::from_secs(30)).await.unwrap();
        let mut client = CoordinatorClient::new(channel);
        let token = client.join(join(Some(7))).await.unwrap().into_inner().session_token;
        let (say, said) = mpsc::channel(8);
        say.send(v1::WorkerMessage { message: Some(attach(token)) }).await.unwrap();
        let mut directives = client.session(ReceiverStream::new(said)).await.unwrap().into_inner();
        let told = directives.message().await.unwrap().unwrap();
        Self { served, say, directives, told, holds: None }
    }

    /// Without TLS.
    async fn plain(tokens: Tokens) -> Self {
        let join = tokens.join.clone();
        Self::new(Security { tls: None, tokens }, |grpc| plain_link(grpc, join.as_ref())).await
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.served.grpc)).unwrap().connect().await.unwrap()
    }

    async fn channel_with(&self, token: Option<&Token>) -> transport::Channel {
        plain_link(self.served.grpc, token).stay(Duration::from_secs(30)).await.unwrap()
    }

    /// Asserts that peers were refused this many times, only for this reason, and logged with their
    /// addresses; and that the honest worker trains.
    async fn assert_refused(mut self, reason: &str, times: usize) {
        let metrics = get(self.served.http, "/metrics").await;
        for line in metrics.lines().filter(|line| line.starts_with("dico_refusals_total{")) {
            let expected = if line.contains(&format!("\"{reason}\"")) { times } else { 0 };
            assert!(line.ends_with(&format!(" {expected}")), "{line}");
        }
        assert!(metrics.contains(&format!("dico_refusals_total{{reason=\"{reason}\"}}")), "{metrics}");
        let lines = logged();
        let about = |line: &&String| {
            let named = line.contains(&format!("reason=\"{reason}\""));
            named && line.contains("refused: ") && line.contains("peer=127.0.0.1:")
        };
        assert_eq!(lines.iter().filter(about).count(), times, "{lines:#?}");
        while !matches!(self.told.directive, Some(Directive::Train(_))) {
            self.answer().await;
        }
    }

    /// Answers the honest worker's directive, and receives the next one.
    async fn answer(&mut self) {
        let v1::Directive { generation, directive } = std::mem::take(&mut self.told);
        let messages = match directive.unwrap() {
            // A worker has joined.
            Directive::Abandon(_) | Directive::Halt(_) => {
                vec![Message::Idle(v1::Idle { generation, position: self.holds, ..Default::default() })]
            }
            other => replies(self.served.output.path(), generation, other),
        };
        for message in messages {
            if let Message::Ready(v1::Ready { position, .. }) | Message::StepDone(v1::StepDone { position, .. }) =
                &message
            {
                self.holds = *position;
            }
            self.say.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
        let told = self.directives.message().await.unwrap();
        self.told = told.unwrap_or_else(|| panic!("it was sent away: {:#?}", logged()));
    }
}

fn plain_link(grpc: std::net::SocketAddr, token: Option<&Token>) -> Link {
    Link::new(format!("http://{grpc}"), None, token).unwrap()
}

fn token(text: &str) -> Option<Token> {
    Some(Token::parse(text, "a test").unwrap())
}

/// A codec that sends and receives raw bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
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

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, bytes: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        let all = bytes::Buf::remaining(from);
        bytes::Buf::advance(from, all);
        Ok(Some(()))
    }
}

/// Sends these raw messages in a session. Returns the status with which the session ends.
async fn say_in_a_session(channel: Channel, messages: Vec<Vec<u8>>) -> Status {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    // The worker sends nothing more, but does not close the stream.
    let said = futures::StreamExt::chain(stream::iter(messages), stream::pending());
    let session = grpc.streaming(Request::new(said), PathAndQuery::from_static(SESSION), Raw).await;
    let mut directives = session.unwrap().into_inner();
    loop {
        if let Err(status) = directives.message().await.map(|directive| directive.expect("an error ends it")) {
            return status;
        }
    }
}

/// The first message of a second worker.
async fn attachment(channel: Channel) -> Vec<u8> {
    let token = CoordinatorClient::new(channel).join(join(None)).await.unwrap().into_inner().session_token;
    v1::WorkerMessage { message: Some(attach(token)) }.encode_to_vec()
}

/// All bytes until the peer closes the connection.
async fn read_to_the_end(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A peer that closes with unread data resets the connection, which is an end, too.
    _ = stream.read_to_end(&mut bytes).await;
    bytes
}

// ------------------------------------------------------------------------------------------------------------- messages

#[tokio::test]
async fn an_old_protocol() {
    let scene = Scene::plain(Tokens::default()).await;
    let request = v1::JoinRequest { protocol_version: PROTOCOL_VERSION - 1, ..join(None) };
    let status = CoordinatorClient::new(scene.channel().await).join(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    scene.assert_refused("protocol_version", 1).await;
}

#[tokio::test]
async fn a_flood_of_refusals_is_counted_and_its_log_lines_are_limited() {
    let scene = Scene::plain(Tokens::default()).await;
    let mut client = CoordinatorClient::new(scene.channel().await);
    for _ in 0..100 {
        client.join(v1::JoinRequest { protocol_version: 1, ..join(None) }).await.unwrap_err();
        client.join(join(Some(7))).await.unwrap_err();
    }
    assert_exposes(
        &get(scene.served.http, "/metrics").await,
        &["dico_refusals_total{reason=\"protocol_version\"} 100"],
    );
    let lines = logged();
    let about = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!((about("refused: the worker speaks protocol version 1"), about("told to ask again: rank 7")), (20, 20));
}

#[tokio::test]
async fn a_rank_that_is_taken() {
    let scene = Scene::plain(Tokens::default()).await;
    let mut client = CoordinatorClient::new(scene.channel().await);
    // A worker that is told to wait is not refused yet.
    client.join(join(Some(7))).await.unwrap_err();
    client.join(v1::JoinRequest { waited_ms: 60_000, ..join(Some(7)) }).await.unwrap_err();
    scene.assert_refused("rank_taken", 1).await;
}

#[tokio::test]
async fn a_guessed_session_token() {
    let scene = Scene::plain(Tokens::default()).await;
    let mut client = CoordinatorClient::new(scene.channel().await);
    assert_eq!(refusal(&mut client, attach("0".repeat(32))).await.code(), Code::Unauthenticated);
    scene.assert_refused("session_token", 1).await;
}

#[tokio::test]
async fn a_session_that_begins_with_something_else() {
    let scene = Scene::plain(Tokens::default()).await;
    let mut client = CoordinatorClient::new(scene.channel().await);
    let first = Message::Heartbeat(v1::Heartbeat::default());
    assert_eq!(refusal(&mut client, first).await.code(), Code::InvalidArgument);
    scene.assert_refused("violation", 1).await;
}

#[tokio::test]
async fn a_path_where_a_name_should_be() {
    let mut scene = Scene::plain(Tokens::default()).await;
    let mut client = CoordinatorClient::new(scene.channel().await);
    let token = client.join(join(None)).await.unwrap().into_inner().session_token;
    let (say, mut directives) = session(&mut client, attach(token)).await;
    while scene.told.generation < 2 {
        scene.answer().await;
    }
    let generation = directives.message().await.unwrap().unwrap().generation;
    let kept = scene.served.output.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let damaged_checkpoint = "../kept".to_owned();
    let failed = Message::Failed(v1::Failed { generation, damaged_checkpoint, ..Default::default() });
    say.send(v1::WorkerMessage { message: Some(failed) }).await.unwrap();
    assert_eq!(directives.message().await.unwrap_err().code(), Code::InvalidArgument);
    assert!(kept.is_dir());
    scene.assert_refused("violation", 1).await;
}

#[tokio::test]
async fn malformed_messages() {
    let scene = Scene::plain(Tokens::default()).await;
    let garbage = vec![0xff; 9];
    let attached = attachment(scene.channel().await).await;
    // In a session before and after Attach, on one connection; and as a unary call.
    let channel = scene.channel().await;
    assert_eq!(say_in_a_session(channel.clone(), vec![garbage.clone()]).await.code(), Code::Internal);
    assert_eq!(say_in_a_session(channel.clone(), vec![attached, garbage.clone()]).await.code(), Code::Internal);
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let status = grpc.unary(Request::new(garbage), PathAndQuery::from_static(JOIN), Raw).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    scene.assert_refused("malformed", 3).await;
}

#[tokio::test]
async fn oversized_messages() {
    let scene = Scene::plain(Tokens::default()).await;
    let attached = attachment(scene.channel().await).await;
    let large = vec![0; proto::MAX_BYTES_TO_COORDINATOR + 1];
    let status = say_in_a_session(scene.channel().await, vec![attached, large.clone()]).await;
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(status.message().contains(&proto::MAX_BYTES_TO_COORDINATOR.to_string()), "{status}");
    let mut grpc = Grpc::new(scene.channel().await);
    grpc.ready().await.unwrap();
    let status = grpc.unary(Request::new(large), PathAndQuery::from_static(JOIN), Raw).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    scene.assert_refused("oversized", 2).await;
}

#[tokio::test]
async fn a_stream_that_breaks_is_no_refusal() {
    let scene = Scene::plain(Tokens::default()).await;
    let channel = scene.channel().await;
    let token = CoordinatorClient::new(channel.clone()).join(join(None)).await.unwrap().into_inner().session_token;
    let (say, directives) = session(&mut CoordinatorClient::new(channel.clone()), attach(token)).await;
    drop((say, directives, channel));
    scene.assert_refused("malformed", 0).await;
}

// --------------------------------------------------------------------------------------------------------------- tokens

#[tokio::test]
async fn bad_join_tokens() {
    let scene = Scene::plain(Tokens { join: token("the-token-of-the-workers"), admin: None }).await;
    for presented in [None, token("another-token-of-workers")] {
        let mut client = CoordinatorClient::new(scene.channel_with(presented.as_ref()).await);
        let status = client.join(join(None)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("--join-token-file") && !status.message().contains("the-token"), "{status}");
        client.session(stream::pending()).await.unwrap_err();
    }
    assert!(!logged().concat().contains("the-token-of"));
    scene.assert_refused("join_token", 4).await;
}

#[tokio::test]
async fn bad_admin_tokens() {
    let (join, admin) = (token("the-token-of-the-workers"), token("the-token-of-the-admins"));
    let scene = Scene::plain(Tokens { join: join.clone(), admin: admin.clone() }).await;
    for presented in [None, join.clone(), token("another-token-of-admins")] {
        let channel = scene.channel_with(presented.as_ref()).await;
        let status = AdminClient::new(channel).control(command(v1::Command::Resume)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("--admin-token-file"), "{status}");
    }
    // Each of them allows reading the status.
    for presented in [join, admin] {
        let channel = scene.channel_with(presented.as_ref()).await;
        AdminClient::new(channel).status(v1::StatusRequest {}).await.unwrap();
    }
    scene.assert_refused("admin_token", 3).await;
}

// --------------------------------------------------------------------------------------------------------- certificates

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

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A certificate for this machine, valid until that year, signed by one authority, with another
    /// as its trust root.
    fn of(&self, name: &str, until: i32, signed_by: &Authority, believes: &Authority) -> TlsFiles {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, signed_by).unwrap();
        TlsFiles {
            tls_ca: self.file(&format!("{name}-ca.pem"), &believes.pem()),
            tls_cert: self.file(&format!("{name}.pem"), &certificate.pem()),
            tls_key: self.file(&format!("{name}-key.pem"), &key.serialize_pem()),
        }
    }
}

/// A coordinator with certificates of an authority.
async fn certified(certificates: &Certificates, authority: &Authority) -> Scene {
    let server = certificates.of("server", 4000, authority, authority).server().unwrap();
    let worker = certificates.of("worker", 4000, authority, authority);
    let security = Security { tls: Some(server), tokens: Tokens::default() };
    Scene::new(security, |grpc| Link::new(format!("https://{grpc}"), Some(&worker), None).unwrap()).await
}

/// The error of a join with these certificates.
async fn turned_away(scene: &Scene, files: &TlsFiles) -> Status {
    let link = Link::new(format!("https://{}", scene.served.grpc), Some(files), None).unwrap();
    link.ask(async |channel| CoordinatorClient::new(channel).join(join(None)).await).await.unwrap_err()
}

#[tokio::test]
async fn certificates_that_have_run_out_or_are_of_strangers() {
    let (certificates, authority, strangers) =
        (Certificates::new(), self::authority("ours"), self::authority("strangers"));
    let scene = certified(&certificates, &authority).await;
    for files in [
        certificates.of("expired", 2020, &authority, &authority),
        certificates.of("foreign", 4000, &strangers, &authority),
    ] {
        let status = turned_away(&scene, &files).await;
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(status.message().contains("certificate"), "{status}");
    }
    scene.assert_refused("certificate", 2).await;
}

#[tokio::test]
async fn no_certificate() {
    let (certificates, authority) = (Certificates::new(), self::authority("ours"));
    let scene = certified(&certificates, &authority).await;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()));
    let endpoint = Endpoint::from_shared(format!("https://{}", scene.served.grpc)).unwrap().tls_config(tls).unwrap();
    if let Ok(channel) = endpoint.connect().await {
        CoordinatorClient::new(channel).join(join(None)).await.unwrap_err();
    }
    scene.assert_refused("certificate", 1).await;
}

#[tokio::test]
async fn a_worker_does_not_speak_to_a_coordinator_of_strangers() {
    let (certificates, authority, strangers) =
        (Certificates::new(), self::authority("ours"), self::authority("strangers"));
    let scene = certified(&certificates, &authority).await;
    let status = turned_away(&scene, &certificates.of("wary", 4000, &authority, &strangers)).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("UnknownIssuer"), "{status}");
    scene.assert_refused("handshake", 1).await;
}

#[tokio::test]
async fn plain_text_where_tls_is_spoken() {
    let (certificates, authority) = (Certificates::new(), self::authority("ours"));
    let scene = certified(&certificates, &authority).await;
    let mut stream = TcpStream::connect(scene.served.grpc).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    read_to_the_end(stream).await;
    scene.assert_refused("handshake", 1).await;
}

#[tokio::test]
async fn other_protocols_where_http_2_is_spoken() {
    let scene = Scene::plain(Tokens::default()).await;
    let mut stream = TcpStream::connect(scene.served.grpc).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
    assert_eq!(read_to_the_end(stream).await, b"");
    scene.assert_refused("handshake", 1).await;
}

/// Takes as long as the handshake timeout.
#[tokio::test]
async fn one_that_never_says_anything() {
    let (certificates, authority) = (Certificates::new(), self::authority("ours"));
    let server = certificates.of("server", 4000, &authority, &authority).server().unwrap();
    keep_logs();
    futures::future::join_all([None, Some(server)].map(async |tls| {
        let security = Security { tls, tokens: Tokens::default() };
        let served = serve(testing::stage("a", 12, 8, None, None), security).await;
        let stream = TcpStream::connect(served.grpc).await.unwrap();
        let peer = stream.local_addr().unwrap();
        read_to_the_end(stream).await;
        let lines = logged();
        let refused = lines.iter().find(|line| line.contains("handshake") && line.contains(&format!("peer={peer}")));
        assert!(refused.is_some(), "{lines:#?}");
        let metrics = get(served.http, "/metrics").await;
        assert_exposes(&metrics, &["dico_refusals_total{reason=\"handshake\"} 1"]);
    }))
    .await;
}
