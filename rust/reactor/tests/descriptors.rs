//! A process that has run out of descriptors: a test of its own, because it lowers its own limit.

use realtime_reactor::Engine;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const DESCRIPTORS: u64 = 200;
const UPGRADE: &[u8] = b"GET /raw HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn lower_limit() {
    let limit = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
    // SAFETY: a valid `rlimit`, only read.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

fn stat(engine: &Engine, name: &str) -> u64 {
    let stats: Value = serde_json::from_str(&engine.handle().stats_json()).unwrap();
    stats[name].as_u64().unwrap()
}

#[test]
fn without_descriptors_the_acceptor_waits_and_serves_when_there_are_some_again() {
    lower_limit();
    let options = json!({"endpoints": [{"path": "/raw", "mode": "raw", "auth": "none"}]});
    let engine = Engine::new(options.to_string().as_bytes()).unwrap();
    engine.start().unwrap();
    // Both ends are this process's: each connection costs two descriptors, the last one only the client's.
    let mut streams = Vec::new();
    while let Ok(stream) = TcpStream::connect(("127.0.0.1", engine.port())) {
        streams.push(stream);
    }
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(600));
    let errors = stat(&engine, "accept_errors");
    let most = start.elapsed().as_millis() as u64 / 100 + 3;
    assert!((1..=most).contains(&errors), "{errors} errors, at most {most} at one each 100 ms");
    let mut last = streams.pop().unwrap();
    streams.clear();
    last.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    last.write_all(UPGRADE).unwrap();
    let mut answer = [0; 12];
    last.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
}
