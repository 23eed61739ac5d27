//! Getting a place in the run.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use proto::PROTOCOL_VERSION;
use proto::v1;
use tch::Device;
use tonic::Code;

use super::{Options, client};

/// First and longest pause between attempts to reach the coordinator.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// The address of this machine that the coordinator's host is reached from.
pub async fn route_to(url: &str) -> Result<IpAddr, String> {
    let invalid = || format!("{url}: not a URL like http://host:port");
    let uri: tonic::transport::Uri = url.parse().map_err(|_| invalid())?;
    let (host, port) = (uri.host().ok_or_else(invalid)?, uri.port_u16().ok_or_else(invalid)?);
    let unknown = |error: std::io::Error| format!("{url}: {error}");
    let host = host.trim_matches(['[', ']']);
    let peer: SocketAddr = tokio::net::lookup_host((host, port)).await.map_err(unknown)?.next().ok_or_else(invalid)?;
    let any: IpAddr = if peer.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    // Connecting a datagram socket sends nothing; it only looks the route up.
    let local = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(peer)?;
        socket.local_addr()
    });
    Ok(local.map_err(unknown)?.ip())
}

/// Asks for a place until the coordinator answers or patience ends.
pub async fn join(options: &Options, host: IpAddr) -> Result<v1::JoinResponse, String> {
    ask(options, host, options.rank, None).await
}

/// Asks for the place that this worker had. It counts as taken until the coordinator has noticed that its session is lost, which
/// takes no longer than `lost_after`. If it still is, somebody else was given it, and any other place is as good.
pub async fn rejoin(
    options: &Options,
    host: IpAddr,
    rank: u32,
    lost_after: Duration,
) -> Result<v1::JoinResponse, String> {
    ask(options, host, Some(rank), Some(2 * lost_after)).await
}

async fn ask(
    options: &Options,
    host: IpAddr,
    rank: Option<u32>,
    own_for: Option<Duration>,
) -> Result<v1::JoinResponse, String> {
    let url = options.coordinator.url();
    let mut request = v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        rank,
        host: host.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: match options.device {
            Device::Cuda(number) => format!("cuda:{number}"),
            _ => "cpu".to_owned(),
        },
    };
    let started = Instant::now();
    let mut pause = BACK_OFF[0];
    loop {
        let ask = options.coordinator.ask(async |channel| client(channel).join(request.clone()).await);
        let status = match ask.await {
            Ok(place) => {
                tracing::info!(rank = place.rank, coordinator = url, "joined");
                return Ok(place);
            }
            Err(status) => status,
        };
        let own_place = own_for.is_some() && status.code() == Code::AlreadyExists;
        if own_place && own_for.is_some_and(|own_for| started.elapsed() >= own_for) {
            request.rank = options.rank;
        }
        // Nobody answers, or not in time, or the connection broke.
        let silent =
            matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown);
        if !silent && !own_place {
            return Err(format!("{url} refused: {}", status.message()));
        }
        let waited = started.elapsed();
        if waited + pause > options.patience {
            let seconds = waited.as_secs_f64();
            return Err(format!("gave up on {url} after {seconds:.0} s: {}", status.message()));
        }
        tracing::warn!("cannot join {url} ({}); trying again in {:.1} s", status.message(), pause.as_secs_f64());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACK_OFF[1]);
    }
}
