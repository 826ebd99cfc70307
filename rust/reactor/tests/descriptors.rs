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

fn connect(engine: &Engine) -> Option<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", engine.port())).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    Some(stream)
}

/// Whether the upgrade is answered 101.
fn is_served(stream: &mut TcpStream) -> bool {
    stream.write_all(UPGRADE).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).is_ok() && &answer == b"HTTP/1.1 101"
}

#[test]
fn without_descriptors_the_acceptor_waits_and_serves_when_there_are_some_again() {
    lower_limit();
    let options = json!({"limits": {"enabled": false}, "endpoints": [{"path": "/raw", "mode": "raw", "auth": "none"}]});
    let engine = Engine::new(options.to_string().as_bytes()).unwrap();
    engine.start().unwrap();
    // Both ends are this process's: each connection costs two descriptors. Silent ones make room for those that ask.
    let mut silent = Vec::new();
    while silent.len() < 50
        && let Some(stream) = connect(&engine)
    {
        silent.push(stream);
    }
    let mut streams = Vec::new();
    loop {
        match connect(&engine) {
            Some(mut stream) if streams.len() < 60 => {
                assert!(is_served(&mut stream), "connection {}", streams.len());
                streams.push(stream);
            }
            Some(_) => break,
            // The client's own ends are all used: the silent ones give theirs back.
            None => {
                silent.pop().expect("a silent connection");
            }
        }
    }
    drop(silent);
    // From here on all are open: the last ones have only the client's end.
    let mut spare = Vec::new();
    while let Some(mut stream) = connect(&engine) {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
        let _ = is_served(&mut stream);
        spare.push(stream);
    }
    let (before, start) = (stat(&engine, "accept_errors"), Instant::now());
    std::thread::sleep(Duration::from_millis(600));
    let errors = stat(&engine, "accept_errors") - before;
    let most = start.elapsed().as_millis() as u64 / 100 + 3;
    assert!((1..=most).contains(&errors), "{errors} errors, at most {most} at one each 100 ms");
    drop(spare);
    streams.clear();
    assert!(is_served(&mut connect(&engine).unwrap()));
}
