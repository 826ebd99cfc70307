//! Connections that end in every way leave nothing behind.

use crate::client::{Arrived, Client, upgrade};
use crate::server::{Server, eventually};
use realtime_hub::Event;
use realtime_protocol::close::CloseCode;
use serde_json::json;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn closed(server: &Server) -> u16 {
    server.wait_for(|event| match event {
        Event::Close { code, .. } => Some(*code),
        _ => None,
    })
}

#[test]
fn a_close_is_echoed_and_told_with_its_code() {
    let server = Server::start(1, &json!({}));
    let mut client = Client::connect(server.port(), "/raw");
    client.close(CloseCode::NORMAL);
    assert_eq!(client.next(), Arrived::Close(1000));
    assert_eq!(client.next(), Arrived::End);
    assert_eq!(closed(&server), 1000);
}

#[test]
fn an_end_without_a_close_is_told_as_1006() {
    let server = Server::start(1, &json!({}));
    drop(Client::connect(server.port(), "/raw"));
    assert_eq!(closed(&server), 1006);
}

#[test]
fn everybody_is_told_why_the_server_goes() {
    let server = Server::start(2, &json!({}));
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(server.port(), "/raw")).collect();
    server.engine.stop_accepting();
    assert!(TcpStream::connect(("127.0.0.1", server.port())).is_err());
    server.engine.close_all(1012, "restart", 0);
    for client in &mut clients {
        assert_eq!(client.next(), Arrived::Close(1012));
        client.close(CloseCode(1012));
        assert_eq!(client.next(), Arrived::End);
    }
    let start = Instant::now();
    server.engine.stop(Duration::from_secs(10));
    assert!(start.elapsed() < Duration::from_secs(5), "nobody is left to wait for");
    server.engine.stop(Duration::from_secs(10));
}

#[test]
fn a_stop_waits_no_longer_than_it_was_told() {
    let server = Server::start(2, &json!({}));
    let mut client = Client::connect(server.port(), "/raw");
    let start = Instant::now();
    server.engine.stop(Duration::from_millis(100));
    assert!((100..2_000).contains(&start.elapsed().as_millis()));
    assert_eq!(client.next(), Arrived::End);
}

#[test]
fn a_peer_that_breaks_the_protocol_hears_why_although_it_goes_on_sending() {
    let server = Server::start(1, &json!({}));
    let mut client = Client::connect(server.port(), "/raw");
    // An unmasked frame, and much behind it that nobody will read.
    let mut bytes = vec![0x81, 0x01, b'x'];
    bytes.resize(200_000, 0);
    client.stream.write_all(&bytes).unwrap();
    assert_eq!(client.next(), Arrived::Close(1002));
    assert_eq!(client.next(), Arrived::End);
}

#[test]
fn a_refusal_over_http_arrives_whole() {
    let server = Server::start(1, &json!({}));
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.write_all(upgrade("/elsewhere").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nWebSocket endpoint not found"), "{answer}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_storm_of_resets_leaves_no_descriptor() {
    let server = Server::start(2, &json!({}));
    let own_sockets = || {
        let links =
            std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| entry.unwrap().path().read_link().ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    eventually("server", || server.stat("connections") == 0);
    // Other tests of this process hold sockets too: only what does not go away again counts.
    for round in 0..600 {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        let head = upgrade("/raw");
        match round % 3 {
            0 => {}
            1 => stream.write_all(&head.as_bytes()[..head.len() / 2]).unwrap(),
            _ => stream.write_all(head.as_bytes()).unwrap(),
        }
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    eventually("end of all handshakes", || server.stat("accepted") == 600 && server.stat("handshakes_pending") == 0);
    eventually("end of all connections", || server.stat("connections") == 0);
    eventually("end of all sockets", || own_sockets() < 300);
    let start = Instant::now();
    server.engine.stop(Duration::from_secs(10));
    assert!(start.elapsed() < Duration::from_secs(5), "every socket was counted out");
}
