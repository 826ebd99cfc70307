//! Bytes that do not fit, readers that do not read, a Python that does not keep up.

use crate::client::{Arrived, Client};
use crate::server::{Server, eventually};
use realtime_hub::{Command, Event};
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::json;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn a_message_larger_than_every_buffer_comes_back_whole() {
    let server = Arc::new(Server::start(1, &json!({})));
    let _answering = server.answering();
    let mut client = Client::connect(server.port(), "/raw");
    let message: Vec<u8> = (0..8 << 20).map(|n: u32| (n % 251) as u8).collect();
    let mut sender = client.stream.try_clone().unwrap();
    let sent = message.clone();
    let sending = std::thread::spawn(move || {
        let mut frame = Vec::new();
        encode_masked_frame(Opcode::Binary, true, &sent, [9; 4], &mut frame);
        sender.write_all(&frame).unwrap();
    });
    assert_eq!(client.next(), Arrived::Binary(message));
    sending.join().unwrap();
}

#[test]
fn many_small_messages_in_one_packet_are_answered_in_order() {
    let server = Arc::new(Server::start(1, &json!({})));
    let _answering = server.answering();
    let mut client = Client::connect(server.port(), "/raw");
    let mut frames = Vec::new();
    for n in 0..5_000 {
        let text = n.to_string();
        encode_masked_frame(Opcode::Text, true, text.as_bytes(), [7; 4], &mut frames);
    }
    let mut sender = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || sender.write_all(&frames).unwrap());
    for n in 0..5_000 {
        assert_eq!(client.next(), Arrived::Text(n.to_string()));
    }
    sending.join().unwrap();
}

#[test]
fn a_reader_that_sleeps_costs_the_others_nothing() {
    let server = Arc::new(Server::start(2, &json!({})));
    let _answering = server.answering();
    let room = ["room:1".to_owned()];
    let sleeper = Client::subscribed(server.port(), &room);
    let mut reader = Client::subscribed(server.port(), &room);
    let mut publisher = Client::connect(server.port(), "/ws");
    let filler = "x".repeat(4_000);
    // 40 MB: more than the kernel and every outbox take for one that does not read.
    for n in 0..10_000 {
        let data = json!({"n": n, "filler": filler});
        publisher.command("publish", &json!({"channel": "room:1", "event": "tick", "data": data}));
        assert_eq!(reader.expect("tick")["data"]["n"], n);
    }
    assert!(server.stat("dropped_slow") + server.stat("closed_slow") > 0);
    assert!(server.stat("outbox_bytes") <= 2 << 20, "{}", server.stat("outbox_bytes"));
    drop(sleeper);
    eventually("end of the sleeper", || server.stat("outbox_bytes") == 0);
}

#[test]
fn a_python_that_sleeps_leaves_bytes_in_the_kernel_and_loses_nothing() {
    let limits = json!({"enabled": false, "events_waiting_max": 64});
    let server = Server::start(2, &json!({"limits": limits}));
    let clients: Vec<Client> = (0..8).map(|_| Client::connect(server.port(), "/raw")).collect();
    let conns: Vec<_> = clients.iter().map(|_| server.opened()).collect();
    let sending: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                (0..1_000).for_each(|n| client.send_text(&n.to_string()));
                client
            })
        })
        .collect();
    let clients: Vec<Client> = sending.into_iter().map(|thread| thread.join().unwrap()).collect();
    std::thread::sleep(Duration::from_millis(100));
    let most = 64 + 8 * 64;
    assert!(server.stat("messages_in") <= most, "{} messages read", server.stat("messages_in"));
    let mut seen = vec![0; conns.len()];
    for _ in 0..8_000 {
        let (conn, payload) = server.wait_for(|event| match event {
            Event::Raw { conn, payload, .. } => Some((*conn, payload.clone())),
            _ => None,
        });
        let index = conns.iter().position(|known| *known == conn).unwrap();
        assert_eq!(*payload, *seen[index].to_string().as_bytes());
        seen[index] += 1;
        server.submit(Command::Done { conn, count: 1 });
    }
    assert_eq!(seen, [1_000; 8]);
    drop(clients);
}

#[test]
fn whatever_the_marks_everything_goes_through() {
    for (shards, events_waiting_max, commands_waiting_max) in [(1, 1, 2), (2, 1, 64), (2, 3, 2), (1, 64, 3), (2, 7, 8)]
    {
        let limits = json!({
            "enabled": false, "events_waiting_max": events_waiting_max, "commands_waiting_max": commands_waiting_max,
        });
        let server = Arc::new(Server::start(shards, &json!({"limits": limits})));
        let _answering = server.answering();
        let clients: Vec<_> = (0..5).map(|_| Client::connect(server.port(), "/raw")).collect();
        let threads = clients.into_iter().map(|mut client| {
            std::thread::spawn(move || {
                for n in 0..300 {
                    client.send_text(&n.to_string());
                }
                for n in 0..300 {
                    assert_eq!(client.next(), Arrived::Text(n.to_string()));
                }
            })
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn a_flood_from_some_does_not_starve_the_others() {
    let server = Server::start(1, &json!({}));
    let mut quiet = Client::connect(server.port(), "/raw");
    let stop = Arc::new(AtomicBool::new(false));
    let flooding: Vec<_> = (0..6)
        .map(|_| {
            let (mut flooder, stop) = (Client::connect(server.port(), "/raw"), Arc::clone(&stop));
            // One message that never ends: only its bytes cost.
            let mut frame = Vec::new();
            encode_masked_frame(Opcode::Continuation, false, &[b'x'; 1_000], [5; 4], &mut frame);
            let frames = frame.repeat(100);
            std::thread::spawn(move || {
                let mut first = Vec::new();
                encode_masked_frame(Opcode::Binary, false, b"", [5; 4], &mut first);
                flooder.stream.write_all(&first).unwrap();
                // Ended by the test, or by the limit of a message.
                while !stop.load(Ordering::Relaxed) && flooder.stream.write_all(&frames).is_ok() {}
            })
        })
        .collect();
    for n in 0..50_u8 {
        let start = Instant::now();
        quiet.send(Opcode::Ping, &[n]);
        assert_eq!(quiet.pong(), [n]);
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    stop.store(true, Ordering::Relaxed);
    flooding.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn without_credits_a_connection_is_not_read_on() {
    let server = Server::start(1, &json!({}));
    let mut client = Client::connect(server.port(), "/raw");
    let conn = server.opened();
    (0..500).for_each(|n| client.send_text(&n.to_string()));
    let raw = |event: &Event| matches!(event, Event::Raw { .. }).then_some(());
    (0..64).for_each(|_| server.wait_for(raw));
    std::thread::sleep(Duration::from_millis(50));
    assert!(server.engine.handle().drain(usize::MAX).is_empty(), "64 are under way");
    for _ in 64..500 {
        server.submit(Command::Done { conn, count: 1 });
        if server.stat("messages_in") == 500 {
            break;
        }
    }
    server.submit(Command::Done { conn, count: 64 });
    eventually("rest", || {
        let count = server.engine.handle().drain(usize::MAX).len() as u16;
        server.submit(Command::Done { conn, count });
        server.stat("messages_in") == 500
    });
}
