//! A client that opens many reservations, sessions or streams does not lock out clients at other
//! addresses.

use std::net::Ipv4Addr;

use futures::stream;
use tonic::transport::Endpoint;

use super::*;

/// The address of a client that opens many connections. Other clients have the address 127.0.0.1.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

async fn attacker_channel(coordinator: &TestCoordinator) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", coordinator.grpc)).unwrap();
    endpoint.local_address(Some(ATTACKER.into())).connect().await.unwrap()
}

async fn channel(coordinator: &TestCoordinator) -> Channel {
    Endpoint::from_shared(format!("http://{}", coordinator.grpc)).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn many_joins_of_one_address_leave_reservations_for_others() {
    let mut file = testing::run_file(vec![testing::stage("a", 12, 64, None, None)]);
    file.workers.max = 64;
    let coordinator = serve_file(file, Security::default(), false).await;
    let mut attacker = CoordinatorClient::new(attacker_channel(&coordinator).await);
    let mut error_codes = Vec::new();
    for _ in 0..100 {
        error_codes.push(attacker.join(join(None)).await.map_err(|status| status.code()).err());
    }
    let mut client = CoordinatorClient::new(channel(&coordinator).await);
    let joined = client.join(join(None)).await.unwrap().into_inner();
    let (_sender, mut directives) = open_session(&mut client, attach(joined.session_token)).await;
    directives.message().await.unwrap().unwrap();
    // The first joins of the attacker succeed, and all later ones have to be retried.
    error_codes.dedup();
    assert_eq!(error_codes, [None, Some(Code::Aborted)]);
}

#[tokio::test]
async fn sessions_that_do_not_attach_do_not_lock_out_workers() {
    let coordinator = serve(testing::stage("a", 12, 8, None, None), Security::default()).await;
    let mut client = CoordinatorClient::new(channel(&coordinator).await);
    let joined = client.join(join(None)).await.unwrap().into_inner();
    // More sessions than may wait for Attach (1024), on as many connections as that takes: a
    // connection has at most 128 calls.
    let mut sessions = Vec::new();
    for _ in 0..9 {
        let mut attacker = CoordinatorClient::new(attacker_channel(&coordinator).await);
        for _ in 0..120 {
            if let Ok(session) = attacker.session(stream::pending()).await {
                sessions.push(session.into_inner());
            }
        }
    }
    let (_sender, mut directives) = open_session(&mut client, attach(joined.session_token)).await;
    directives.message().await.unwrap().unwrap();
    assert_eq!(sessions[0].message().await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn streams_of_one_address_do_not_lock_out_others() {
    let coordinator = serve(testing::stage("a", 12, 8, None, None), Security::default()).await;
    let request = v1::WatchRequest { interval_ms: 600_000 };
    let mut attacker = AdminClient::new(attacker_channel(&coordinator).await);
    let mut watches = Vec::new();
    for _ in 0..grpc::MAX_WATCH_STREAMS {
        watches.push(attacker.watch(request).await.unwrap().into_inner());
    }
    let mut admin = AdminClient::new(channel(&coordinator).await);
    let mut watch = admin.watch(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().state(), v1::RunState::Waiting);
    assert_eq!(attacker.watch(request).await.unwrap_err().code(), Code::ResourceExhausted);
    let status = watches[0].message().await.unwrap().unwrap();
    assert_eq!(status.state(), v1::RunState::Waiting);
    assert_eq!(watches[0].message().await.unwrap_err().code(), Code::ResourceExhausted);
}
