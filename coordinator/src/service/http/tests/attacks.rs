//! Attacks over HTTP: requests that never end, responses that are never read, and DNS rebinding. In
//! tests with a paused clock, time passes only while all tasks wait.

use std::time::Duration;

use tokio::time::{self, Instant};

use super::*;

/// Longer than all time limits of a request together.
const LONG: Duration = Duration::from_secs(120);

impl Site {
    /// Sends these bytes; the connection stays open.
    async fn send(&self, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    }
}

/// Reads until the server closes the connection; returns the status, and the error if there is one.
async fn hear(mut stream: TcpStream) -> (u16, String) {
    let mut answer = Vec::new();
    // A server that closes with unread data resets the connection.
    _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (0, answer) };
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    (head[9..12].parse().unwrap(), json["error"].as_str().unwrap_or_default().to_owned())
}

fn drain(headers: &str) -> String {
    format!("POST /api/drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 12\r\n{headers}\r\n")
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_arrives_times_out() {
    let site = Site::new(Some(ADMIN)).await;
    let begun = Instant::now();
    let stream = site.send(&drain(&format!("authorization: Bearer {ADMIN}\r\n"))).await;
    let (code, error) = time::timeout(LONG, hear(stream)).await.expect("the connection ends");
    assert!(code == 408 && error.contains("body") && error.contains("10 s"), "{code}: {error}");
    assert!(begun.elapsed() >= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_arrives_byte_by_byte_times_out() {
    let site = Site::new(Some(ADMIN)).await;
    let mut stream = site.send(&drain(&format!("authorization: Bearer {ADMIN}\r\n"))).await;
    let trickle = async {
        for _ in 0..11 {
            time::sleep(Duration::from_secs(3)).await;
            if stream.write_all(b" ").await.is_err() {
                break;
            }
        }
        hear(stream).await
    };
    assert_eq!(time::timeout(LONG, trickle).await.expect("the connection ends").0, 408);
}

#[tokio::test(start_paused = true)]
async fn headers_that_never_end_time_out() {
    let site = Site::new(None).await;
    for begun in ["", "GET / HTTP/1.1\r\nhost: localhost\r\n"] {
        let stream = site.send(begun).await;
        let (code, _) = time::timeout(LONG, hear(stream)).await.expect("the connection ends");
        assert_eq!(code, 0, "{begun}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_token_is_checked_before_the_body_is_read() {
    let site = Site::new(Some(ADMIN)).await;
    let begun = Instant::now();
    for headers in ["", "authorization: Bearer another-token-of-nobody\r\n"] {
        let stream = site.send(&drain(headers)).await;
        let (code, error) = time::timeout(LONG, hear(stream)).await.expect("the connection ends");
        assert!(code == 401 && error.contains("--admin-token-file"), "{code}: {error}");
    }
    // The same holds for a body that is too large.
    let large = drain("").replace("content-length: 12", "content-length: 99999999");
    assert_eq!(time::timeout(LONG, hear(site.send(&large).await)).await.expect("the connection ends").0, 401);
    assert!(begun.elapsed() < Duration::from_secs(10), "the server waits for no body");
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_response_times_out() {
    // The test never takes inputs from the channel of the driver.
    let site = Site::new(Some(ADMIN)).await;
    let request = format!(
        "POST /api/pause HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {ADMIN}\r\n\r\n"
    );
    let (code, error) = time::timeout(LONG, hear(site.send(&request).await)).await.expect("the connection ends");
    assert!(code == 503 && error.contains("30 s") && error.contains("/readyz"), "{code}: {error}");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_the_client_does_not_read_times_out() {
    let mut site = Site::new(None).await;
    site.write_evaluations();
    // More bytes than the socket buffers of both sides hold.
    let image = std::fs::File::options().write(true).open(site.images().join("1.jpg")).unwrap();
    image.set_len(16 << 20).unwrap();
    let mut stream = site.send("GET /api/image?evaluation=0-10-1&index=1 HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start[9..], b"200");
    time::sleep(LONG).await;
    let mut rest = Vec::new();
    _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 16 << 20, "{} bytes arrived after {LONG:?}", rest.len());
}

#[tokio::test]
async fn hosts_of_other_sites_are_refused() {
    let site = Site::new(Some(ADMIN)).await;
    let get = async |path: &str, host: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        hear(site.send(&request).await).await
    };
    let foreign = [
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
    for host in foreign {
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
    assert_eq!(hear(site.send(absolute).await).await.0, 421);
    // Without a Host only HTTP/1.0 is served, which no browser speaks.
    assert_eq!(hear(site.send("GET /healthz HTTP/1.0\r\n\r\n").await).await.0, 200);
    assert_eq!(hear(site.send("GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n").await).await.0, 400);
    assert!(site.metrics.handle().render().contains("dico_refusals_total{reason=\"host\"} 67"));
}

#[tokio::test]
async fn repeated_headers_are_refused() {
    let site = Site::new(Some(ADMIN)).await;
    let bearer = format!("authorization: Bearer {ADMIN}\r\n");
    for twice in ["host: localhost\r\n", "authorization: Bearer another-token-of-nobody\r\n", "content-length: 7\r\n"] {
        let (code, _, _) = site.ask("POST", "/api/pause", &format!("{bearer}{twice}"), "").await;
        assert_eq!(code, 400, "{twice}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_authorization_scheme_is_case_insensitive() {
    let site = Site::new(Some(ADMIN)).await;
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let (code, _, _) = site.ask("POST", "/api/drain", &format!("authorization: {scheme} {ADMIN}\r\n"), "").await;
        assert_eq!(code, 400, "{scheme}: the token is accepted, and the rank is missing");
    }
    for other in ["Basic", "Bearerer"] {
        let (code, _, _) = site.ask("POST", "/api/drain", &format!("authorization: {other} {ADMIN}\r\n"), "").await;
        assert_eq!(code, 401, "{other}");
    }
}

#[tokio::test]
async fn all_errors_are_json() {
    let site = Site::new(Some(ADMIN)).await;
    let admin = format!("authorization: Bearer {ADMIN}\r\n");
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
        let (code, head, body) = site.ask(method, path, &admin, "").await;
        let error: Value = serde_json::from_str(&body).unwrap_or_default();
        let error = error["error"].as_str().unwrap_or_default();
        assert!(code == expected && !error.is_empty(), "{method} {path}: {code} {body}");
        assert!(head.contains("content-type: application/json") && head.contains("nosniff"), "{head}");
        assert_eq!(code == 405, head.contains("\r\nallow: "), "{method} {path}: {head}");
    }
    let (code, _, body) = site.ask("POST", "/api/drain", &admin, &" ".repeat(2000)).await;
    assert!(code == 413 && body.contains("{\"error\":") && body.contains("1024 bytes"), "{body}");
}

#[tokio::test]
async fn streams_of_one_address_do_not_lock_out_others() {
    let site = Site::new(None).await;
    let open = async |from: u8| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, from], 0).into()).unwrap();
        let mut stream = socket.connect(site.http).await.unwrap();
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
    // The oldest stream made room.
    let (code, mut oldest) = attacker.swap_remove(0);
    assert_eq!(code, "200");
    let mut rest = String::new();
    oldest.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "{rest}");
}
