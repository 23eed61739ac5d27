//! Reachability of peers, checked before a rendezvous, which would time out if one is unreachable.

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use proto::v1::Peer;

/// Time limit for a peer to accept a connection.
const ANSWER: Duration = Duration::from_secs(5);

/// The ids of the `peers` to which no TCP connection can be opened.
pub fn unreachable(peers: &[Peer]) -> Vec<u32> {
    let reachable = |peer: &Peer| {
        let addresses = peer.store_address.to_socket_addrs();
        addresses.is_ok_and(|mut all| all.any(|address| TcpStream::connect_timeout(&address, ANSWER).is_ok()))
    };
    std::thread::scope(|scope| {
        let tries: Vec<_> = peers.iter().map(|peer| (peer.rank, scope.spawn(move || reachable(peer)))).collect();
        let failed = |(rank, reached): (u32, std::thread::ScopedJoinHandle<'_, bool>)| {
            (!reached.join().unwrap_or(false)).then_some(rank)
        };
        tries.into_iter().filter_map(failed).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_does_not_answer_is_named() {
        let there = TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let peer = |rank, store_address| Peer { rank, store_address };
        let peers = [peer(3, there.local_addr().unwrap().to_string()), peer(5, gone), peer(7, "nonsense".to_owned())];
        assert_eq!(unreachable(&peers), [5, 7]);
        assert_eq!(unreachable(&[]), [0; 0]);
    }
}
