//! Checks, before a rendezvous, that the peers which the Rendezvous directive lists are reachable.
//! They are some of the generation's other members. With an unreachable peer the rendezvous would
//! time out.

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use proto::v1::Peer;

/// Time limit for a peer to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The worker ids of the `peers` to which no TCP connection can be opened.
pub fn unreachable_peers(peers: &[Peer]) -> Vec<u32> {
    let is_reachable = |peer: &Peer| {
        let addresses = peer.store_address.to_socket_addrs();
        addresses.is_ok_and(|mut all| all.any(|address| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok()))
    };
    std::thread::scope(|scope| {
        let checks: Vec<_> =
            peers.iter().map(|peer| (peer.worker_id, scope.spawn(move || is_reachable(peer)))).collect();
        let unreachable = |(worker_id, check): (u32, std::thread::ScopedJoinHandle<'_, bool>)| {
            (!check.join().unwrap_or(false)).then_some(worker_id)
        };
        checks.into_iter().filter_map(unreachable).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn peers_that_do_not_accept_connections_are_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let peer = |worker_id, store_address| Peer { worker_id, store_address };
        let peers =
            [peer(3, listener.local_addr().unwrap().to_string()), peer(5, closed), peer(7, "invalid".to_owned())];
        assert_eq!(unreachable_peers(&peers), [5, 7]);
        assert_eq!(unreachable_peers(&[]), [0; 0]);
    }
}
