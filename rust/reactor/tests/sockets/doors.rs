//! Peers that connect and say nothing, or half of it, keep nobody out.

use crate::client::{Client, upgrade};
use crate::server::{Server, eventually};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A connection from another address of this machine.
fn connect_from(host: u8, port: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, host], 0)).into()).unwrap();
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    socket.into()
}

/// Upgrades and returns how long that took.
fn served(mut stream: TcpStream) -> Duration {
    let start = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(upgrade("/raw").as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    start.elapsed()
}

#[cfg(target_os = "linux")]
#[test]
fn half_open_handshakes_of_one_address_or_of_fifty_keep_nobody_out() {
    for hosts in [1, 50] {
        let server = Server::start(2, &json!({"limits": {"enabled": false, "handshakes_pending_max": 100}}));
        let mut held = Vec::new();
        let mut slowest = Duration::ZERO;
        for n in 0..600_usize {
            let mut stream = connect_from(2 + (n % hosts) as u8, server.port());
            if n % 2 == 0 {
                stream.write_all(&upgrade("/raw").as_bytes()[..40]).unwrap();
            }
            held.push(stream);
            if n % 20 == 19 {
                slowest = slowest.max(served(connect_from(200, server.port())));
                // Those behind the same address come in, too.
                slowest = slowest.max(served(connect_from(2, server.port())));
            }
        }
        assert!(slowest < Duration::from_secs(5), "{slowest:?} with {hosts} addresses");
        eventually("the limit", || server.stat("handshakes_pending") <= 100);
        assert_eq!(server.stat("refused"), 0);
        assert!(server.stat("evicted_number") >= 500, "{}", server.stat("evicted_number"));
    }
}

#[test]
fn at_the_limit_of_sockets_a_silent_one_makes_room_and_only_open_ones_refuse() {
    let limits = json!({"enabled": false, "connections_max": 20, "handshakes_pending_max": 1_000});
    let server = Server::start(1, &json!({"limits": limits}));
    // Sockets are held for 64 more than may be open, to refuse them in words.
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(("127.0.0.1", server.port())).unwrap()).collect();
    let clients: Vec<Client> = (0..20).map(|_| Client::connect(server.port(), "/raw")).collect();
    assert_eq!((server.stat("connections"), server.stat("refused")), (20, 0));
    assert!(server.stat("evicted_sockets") >= 100);
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.write_all(upgrade("/raw").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop((silent, clients));
}
