//! Attacks over HTTP: requests that never end, responses that are never read, and DNS rebinding. In
//! tests with a paused clock, time advances only while all tasks wait.

use std::time::Duration;

use tokio::time::{self, Instant};

use super::*;

/// Longer than the sum of all time limits of a request.
const TEST_TIMEOUT: Duration = Duration::from_secs(120);

impl TestServer {
    /// Sends these bytes; the connection stays open.
    async fn send(&self, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    }
}

/// Reads until the server closes the connection. Returns the status code, 0 without a response, and
/// the error.
async fn read_response(mut stream: TcpStream) -> (u16, String) {
    let mut answer = Vec::new();
    // A server that closes with unread data resets the connection.
    _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (0, answer) };
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    (head[9..12].parse().unwrap(), json["error"].as_str().unwrap_or_default().to_owned())
}

fn drain_request(headers: &str) -> String {
    format!("POST /api/drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 12\r\n{headers}\r\n")
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_arrives_times_out() {
    let server = TestServer::new(Some(ADMIN_TOKEN)).await;
    let start = Instant::now();
    let stream = server.send(&drain_request(&format!("authorization: Bearer {ADMIN_TOKEN}\r\n"))).await;
    let (code, error) =
        time::timeout(TEST_TIMEOUT, read_response(stream)).await.expect("the server closes the connection");
    assert!(code == 408 && error.contains("body") && error.contains("10 s"), "{code}: {error}");
    assert!(start.elapsed() >= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_arrives_byte_by_byte_times_out() {
    let server = TestServer::new(Some(ADMIN_TOKEN)).await;
    let mut stream = server.send(&drain_request(&format!("authorization: Bearer {ADMIN_TOKEN}\r\n"))).await;
    let trickle = async {
        for _ in 0..11 {
            time::sleep(Duration::from_secs(3)).await;
            if stream.write_all(b" ").await.is_err() {
                break;
            }
        }
        read_response(stream).await
    };
    assert_eq!(time::timeout(TEST_TIMEOUT, trickle).await.expect("the server closes the connection").0, 408);
}

#[tokio::test(start_paused = true)]
async fn headers_that_never_end_time_out() {
    let server = TestServer::new(None).await;
    for beginning in ["", "GET / HTTP/1.1\r\nhost: localhost\r\n"] {
        let stream = server.send(beginning).await;
        let (code, _) =
            time::timeout(TEST_TIMEOUT, read_response(stream)).await.expect("the server closes the connection");
        assert_eq!(code, 0, "{beginning}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_token_is_checked_before_the_body_is_read() {
    let server = TestServer::new(Some(ADMIN_TOKEN)).await;
    let start = Instant::now();
    for headers in ["", "authorization: Bearer another-token-of-the-test\r\n"] {
        let stream = server.send(&drain_request(headers)).await;
        let (code, error) =
            time::timeout(TEST_TIMEOUT, read_response(stream)).await.expect("the server closes the connection");
        assert!(code == 401 && error.contains("--admin-token-file"), "{code}: {error}");
    }
    // The same holds for a body that is too large.
    let large = drain_request("").replace("content-length: 12", "content-length: 99999999");
    assert_eq!(
        time::timeout(TEST_TIMEOUT, read_response(server.send(&large).await))
            .await
            .expect("the server closes the connection")
            .0,
        401
    );
    assert!(start.elapsed() < Duration::from_secs(10), "the server does not wait for the body");
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_response_times_out() {
    // There is no driver, so that the command is never answered.
    let server = TestServer::new(Some(ADMIN_TOKEN)).await;
    let request = format!(
        "POST /api/pause HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\r\n"
    );
    let (code, error) = time::timeout(TEST_TIMEOUT, read_response(server.send(&request).await))
        .await
        .expect("the server closes the connection");
    assert!(code == 503 && error.contains("30 s") && error.contains("/readyz"), "{code}: {error}");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_the_client_does_not_read_times_out() {
    let mut server = TestServer::new(None).await;
    server.write_evaluations();
    // More bytes than the socket buffers of both sides hold.
    let image = std::fs::File::options().write(true).open(server.images().join("1.jpg")).unwrap();
    image.set_len(16 << 20).unwrap();
    let mut stream = server.send("GET /api/image?evaluation=0-10-1&index=1 HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start[9..], b"200");
    time::sleep(TEST_TIMEOUT).await;
    let mut rest = Vec::new();
    _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 16 << 20, "{} bytes arrived after {TEST_TIMEOUT:?}", rest.len());
}

#[tokio::test]
async fn hosts_of_other_sites_are_refused() {
    let server = TestServer::new(Some(ADMIN_TOKEN)).await;
    let get = async |path: &str, host: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        read_response(server.send(&request).await).await
    };
    let refused_hosts = [
        "attacker.example",
        "attacker.example:7071",
        "127.0.0.1.attacker.example",
        "localhost.attacker.example",
        "10.0.0.1",
        "0.0.0.0",
        "[::]:7071",
        "[fd00::1]",
        "localhost@attacker.example",
        "attacker.example@localhost",
        "",
    ];
    for host in refused_hosts {
        for path in
            ["/", "/metrics", "/api/events", "/api/image?evaluation=0-10-1&index=1", "/nowhere", "/page/main.js"]
        {
            let (code, error) = get(path, host).await;
            assert!(code == 421 && error.contains("localhost") && error.contains("--http"), "{host}: {code}: {error}");
        }
    }
    for host in ["localhost", "LocalHost:7071", "localhost.", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:7071", "::1"]
    {
        assert_eq!(get("/metrics", host).await.0, 200, "{host}");
    }
    // The target of a request takes precedence over its Host.
    let absolute = "GET http://attacker.example/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(read_response(server.send(absolute).await).await.0, 421);
    // A request without Host is served only in HTTP/1.0, which browsers do not use.
    assert_eq!(read_response(server.send("GET /healthz HTTP/1.0\r\n\r\n").await).await.0, 200);
    assert_eq!(read_response(server.send("GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n").await).await.0, 400);
    // Six paths for each of the eleven hosts, and the absolute target.
    assert!(server.metrics.handle().render().contains("dico_refusals_total{reason=\"host\"} 67"));
}

#[tokio::test]
async fn repeated_headers_are_refused() {
    let server = TestServer::new(Some(ADMIN_TOKEN)).await;
    let bearer = format!("authorization: Bearer {ADMIN_TOKEN}\r\n");
    for repeated in
        ["host: localhost\r\n", "authorization: Bearer another-token-of-the-test\r\n", "content-length: 7\r\n"]
    {
        let (code, _, _) = server.request("POST", "/api/pause", &format!("{bearer}{repeated}"), "").await;
        assert_eq!(code, 400, "{repeated}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_authorization_scheme_is_case_insensitive() {
    let server = TestServer::new(Some(ADMIN_TOKEN)).await;
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let (code, _, _) =
            server.request("POST", "/api/drain", &format!("authorization: {scheme} {ADMIN_TOKEN}\r\n"), "").await;
        assert_eq!(code, 400, "{scheme}: the token is accepted, and the rank is missing");
    }
    for other in ["Basic", "Bearerer"] {
        let (code, _, _) =
            server.request("POST", "/api/drain", &format!("authorization: {other} {ADMIN_TOKEN}\r\n"), "").await;
        assert_eq!(code, 401, "{other}");
    }
}

#[tokio::test]
async fn all_errors_are_json() {
    let server = TestServer::new(Some(ADMIN_TOKEN)).await;
    let admin = format!("authorization: Bearer {ADMIN_TOKEN}\r\n");
    let cases = [
        ("GET", "/api/nowhere", 404),
        ("GET", "/api", 404),
        ("GET", "/api/", 404),
        ("GET", "/api/status/more", 404),
        ("POST", "/api/nowhere", 404),
        ("GET", "/api/pause", 405),
        ("POST", "/api/status", 405),
        ("DELETE", "/", 405),
        ("POST", "/metrics", 405),
        ("GET", "/api/history", 400),
        ("GET", "/api/history?stage=x", 400),
        ("GET", "/api/captions?before=x", 400),
        ("GET", "/api/image?evaluation=0-10-1&index=-1", 400),
    ];
    for (method, path, expected) in cases {
        let (code, head, body) = server.request(method, path, &admin, "").await;
        let error: Value = serde_json::from_str(&body).unwrap_or_default();
        let error = error["error"].as_str().unwrap_or_default();
        assert!(code == expected && !error.is_empty(), "{method} {path}: {code} {body}");
        assert!(head.contains("content-type: application/json") && head.contains("nosniff"), "{head}");
        assert_eq!(code == 405, head.contains("\r\nallow: "), "{method} {path}: {head}");
    }
    let (code, _, body) = server.request("POST", "/api/drain", &admin, &" ".repeat(2000)).await;
    assert!(code == 413 && body.contains("{\"error\":") && body.contains("1024 bytes"), "{body}");
}

#[tokio::test]
async fn streams_of_one_address_do_not_lock_out_others() {
    let server = TestServer::new(None).await;
    let open = async |from: u8| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, from], 0).into()).unwrap();
        let mut stream = socket.connect(server.http).await.unwrap();
        stream.write_all(b"GET /api/stream HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        (String::from_utf8_lossy(&start[9..]).into_owned(), stream)
    };
    let mut attacker = Vec::new();
    for _ in 0..64 {
        attacker.push(open(2).await);
    }
    let (code, _viewer) = open(1).await;
    assert_eq!(code, "200");
    assert_eq!(open(2).await.0, "503");
    // The oldest stream was evicted.
    let (code, mut oldest) = attacker.swap_remove(0);
    assert_eq!(code, "200");
    let mut rest = String::new();
    oldest.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "{rest}");
}
