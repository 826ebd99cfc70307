//! Starting and what can stand in its way.

use crate::client::{Arrived, Client};
use crate::server::{Server, options};
use realtime_reactor::{Engine, StartCode};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

fn fresh_dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("realtime-reactor-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

fn start_error(overrides: &serde_json::Value) -> (StartCode, String) {
    let engine = Engine::new(&options(1, overrides)).unwrap();
    let error = engine.start().unwrap_err();
    assert!(!error.message.contains('\n'), "{error}");
    (error.code, error.message)
}

#[test]
fn a_port_in_use_is_refused_with_its_number() {
    let server = Server::start(1, &json!({}));
    let (code, message) = start_error(&json!({"port": server.port()}));
    assert_eq!(code, StartCode::PortInUse);
    assert!(message.contains(&server.port().to_string()), "{message}");
}

#[test]
fn the_port_is_free_after_the_end() {
    let server = Server::start(1, &json!({}));
    let port = server.port();
    let client = Client::connect(port, "/raw");
    server.engine.stop(Duration::ZERO);
    let again = Server::start(1, &json!({"port": port}));
    Client::connect(again.port(), "/raw");
    drop(client);
}

#[test]
fn a_data_directory_serves_one_engine_at_a_time() {
    let dir = fresh_dir("one");
    let overrides = json!({"data_dir": dir});
    let server = Server::start(1, &overrides);
    assert_eq!(start_error(&overrides).0, StartCode::DataDirLocked);
    let epoch = server.engine.epoch().to_owned();
    server.engine.stop(Duration::ZERO);
    let again = Server::start(1, &overrides);
    assert_ne!(again.engine.epoch(), epoch, "every start begins a term");
    drop(again);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused() {
    let dir = fresh_dir("file");
    std::fs::write(&dir, "not a directory").unwrap();
    assert_eq!(start_error(&json!({"data_dir": dir})).0, StartCode::DataDirUnwritable);
    std::fs::remove_file(dir).unwrap();
}

#[test]
fn a_file_that_is_no_log_is_refused() {
    let dir = fresh_dir("garbage");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("realtime.sqlite3"), "garbage ".repeat(1_000)).unwrap();
    assert_eq!(start_error(&json!({"data_dir": dir})).0, StartCode::LogCorrupt);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn an_address_of_another_machine_is_refused() {
    assert_eq!(start_error(&json!({"host": "192.0.2.1"})).0, StartCode::Address);
}

#[test]
fn an_engine_starts_once() {
    let server = Server::start(1, &json!({}));
    assert_eq!(server.engine.start().unwrap_err().code, StartCode::Options);
    server.engine.stop(Duration::ZERO);
    assert_eq!(server.engine.start().unwrap_err().code, StartCode::Options);
}

#[test]
fn questions_before_the_start_are_answered_as_for_nobody() {
    let engine = Engine::new(&options(1, &json!({}))).unwrap();
    let handle = engine.handle();
    assert_eq!((engine.port(), engine.epoch(), handle.members("room:1")), (0, "", 0));
    assert!(!handle.is_started() && !handle.overloaded());
    assert!(engine.flush_log(Duration::MAX));
    assert!(handle.stats_json().starts_with('{'));
    engine.stop_accepting();
    engine.close_all(1001, "", 0);
    engine.stop(Duration::MAX);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let limits = json!({"connections_max": 2});
    let server = Server::start(2, &json!({"limits": limits}));
    let mut open = [(); 2].map(|()| Client::connect(server.port(), "/raw"));
    // Beside the two there is room to read 64 requests: the oldest that says nothing makes room for one more.
    let connect = || TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let mut first = connect();
    // A shard that is slow would begin it behind one of the other shard's, and that one would be the oldest.
    crate::server::eventually("the first is begun", || server.stat("accepted") == 3);
    let silent: Vec<_> = (0..64).map(|_| connect()).collect();
    let mut oldest = String::new();
    first.read_to_string(&mut oldest).unwrap();
    let mut speaking = &silent[63];
    write!(speaking, "GET /raw HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    speaking.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After"), "{answer}");
    drop(silent);
    open[0].close(realtime_protocol::close::CloseCode::NORMAL);
    assert_eq!(open[0].closed(), 1000);
    assert_eq!(open[0].next(), Arrived::End);
    crate::server::eventually("place", || server.stat("connections") == 1);
    Client::connect(server.port(), "/raw");
}

#[test]
fn small_frames_are_not_held_back() {
    let server = Server::start(1, &json!({}));
    let mut client = Client::connect(server.port(), "/ws");
    client.expect("connection_established");
    // With Nagle's algorithm and delayed acknowledgements each round would take 40 ms.
    let start = std::time::Instant::now();
    for _ in 0..50 {
        client.command("ping", &json!({}));
        client.expect("pong");
    }
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn peers_wait_in_the_kernel_until_the_engine_accepts() {
    let engine = Engine::new(&options(1, &json!({}))).unwrap();
    engine.start_without_accepting().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", engine.port())).unwrap();
    stream.write_all(b"GET /nowhere HTTP/1.1\r\nHost: edge\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(stream.read(&mut [0; 1]).is_err(), "nobody answers yet");
    engine.start_accepting().unwrap();
    engine.start_accepting().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    engine.stop(Duration::from_secs(5));
    engine.start_accepting().unwrap();
}
