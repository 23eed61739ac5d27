//! What an operator sees of a run.

use std::io::{Read, Write};
use std::net::TcpStream;

use dico_tests::{Coordinator, Place, run};

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn a_waiting_run_is_alive_but_not_ready_and_says_so() {
    let place = Place::new();
    let coordinator = Coordinator::start(&place, &place.run_file("run", 1, ""));
    assert!(get(&coordinator.http, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(get(&coordinator.http, "/readyz").starts_with("HTTP/1.1 503"));
    assert!(get(&coordinator.http, "/metrics").contains("dico_members 0"));
    let status = run("coordinator", &["status", "--coordinator", &coordinator.url, "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status["run"], &status["state"]), (&"test".into(), &"waiting".into()));
    let worker = coordinator.worker(&place, 0);
    assert!(worker.finish().0);
    assert!(coordinator.process.finish().0);
}

#[test]
fn another_protocol_version_is_refused_with_both_versions_named() {
    let place = Place::new();
    let coordinator = Coordinator::start(&place, &place.run_file("run", 1, ""));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refusal = runtime.block_on(async {
        let client = proto::v1::coordinator_client::CoordinatorClient::connect(coordinator.url.clone());
        let request = proto::v1::JoinRequest { protocol_version: 9999, ..Default::default() };
        client.await.unwrap().join(request).await.unwrap_err()
    });
    assert_eq!(refusal.code(), tonic::Code::FailedPrecondition);
    let own = proto::PROTOCOL_VERSION.to_string();
    assert!(refusal.message().contains("9999") && refusal.message().contains(&own), "{refusal}");
}
