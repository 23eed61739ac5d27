//! A client that holds many reservations or sessions, and a worker at another address.

use std::net::Ipv4Addr;

use futures::stream;
use tonic::transport::Endpoint;

use super::*;

/// The address of the attacker; the worker has 127.0.0.1.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

async fn attacker_channel(served: &Served) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", served.grpc)).unwrap();
    endpoint.local_address(Some(ATTACKER.into())).connect().await.unwrap()
}

async fn channel(served: &Served) -> Channel {
    Endpoint::from_shared(format!("http://{}", served.grpc)).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn many_joins_of_one_address_leave_places_for_others() {
    let mut file = testing::run_file(vec![testing::stage("a", 12, 64, None, None)]);
    file.workers.max = 64;
    let served = serve_file(file, Security::default(), false).await;
    let mut attacker = CoordinatorClient::new(attacker_channel(&served).await);
    let mut told = Vec::new();
    for _ in 0..100 {
        told.push(attacker.join(join(None)).await.map_err(|status| status.code()).err());
    }
    let mut client = CoordinatorClient::new(channel(&served).await);
    let place = client.join(join(None)).await.unwrap().into_inner();
    let (_say, mut directives) = session(&mut client, attach(place.session_token)).await;
    directives.message().await.unwrap().unwrap();
    told.dedup();
    assert_eq!(told, [None, Some(Code::Aborted)]);
}

#[tokio::test]
async fn sessions_that_do_not_attach_do_not_lock_out_workers() {
    let served = serve(testing::stage("a", 12, 8, None, None), Security::default()).await;
    let mut client = CoordinatorClient::new(channel(&served).await);
    let place = client.join(join(None)).await.unwrap().into_inner();
    let mut sessions = Vec::new();
    for _ in 0..9 {
        let mut attacker = CoordinatorClient::new(attacker_channel(&served).await);
        for _ in 0..120 {
            if let Ok(session) = attacker.session(stream::pending()).await {
                sessions.push(session.into_inner());
            }
        }
    }
    let (_say, mut directives) = session(&mut client, attach(place.session_token)).await;
    directives.message().await.unwrap().unwrap();
    assert_eq!(sessions[0].message().await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn streams_of_one_address_do_not_lock_out_others() {
    let served = serve(testing::stage("a", 12, 8, None, None), Security::default()).await;
    let request = v1::WatchRequest { interval_ms: 600_000 };
    let mut attacker = AdminClient::new(attacker_channel(&served).await);
    let mut watches = Vec::new();
    for _ in 0..grpc::MAX_WATCHES {
        watches.push(attacker.watch(request).await.unwrap().into_inner());
    }
    let mut admin = AdminClient::new(channel(&served).await);
    let mut watch = admin.watch(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().state, "waiting");
    assert_eq!(attacker.watch(request).await.unwrap_err().code(), Code::ResourceExhausted);
    let status = watches[0].message().await.unwrap().unwrap();
    assert_eq!(status.state, "waiting");
    assert_eq!(watches[0].message().await.unwrap_err().code(), Code::ResourceExhausted);
}
