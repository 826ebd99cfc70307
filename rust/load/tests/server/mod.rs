//! A server that breaks one promise on purpose, so that the generator can be seen to notice.
//!
//! Blocking, a thread per connection, one lock around everything: the right answers to the generator's commands, and [`Fault`] applied once,
//! to the fifth message. It checks no tokens and relies on the generator's fixed key. Ports are the system's choice.

use miniz_oxide::deflate::core::{CompressorOxide, TDEFLFlush, compress_to_output, create_comp_flags_from_zip_params};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The promise that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None.
    None,
    /// The first member does not get the message.
    Lose,
    /// The first member gets it twice.
    Double,
    /// The first member gets it after the next one.
    Swap,
    /// The first member gets it with another channel's name.
    Misroute,
    /// The sender gets an `error` beside it.
    Error,
    /// The sender's connection is closed with 4000.
    Close,
    /// Every connection is cut, and no answer comes any more.
    Die,
    /// A letter of the text of the first member's is another; where the load is compressed, since no other text is looked at.
    Garble,
    /// What the first member gets is no stream, where it agreed to compression.
    Unreadable,
    /// Stored, delivered, never acknowledged.
    NoAck,
    /// Acknowledged under another number than it was delivered under.
    WrongNumber,
    /// Stored and delivered under two numbers.
    StoreTwice,
    /// Of what a member missed while it was away, the first event is not replayed.
    Forget,
    /// What a member missed is replayed twice.
    Repeat,
    /// A position is not recovered.
    NotRecovered,
}

#[derive(Default)]
struct Shared {
    members: HashMap<String, Vec<TcpStream>>,
    numbers: HashMap<String, u64>,
    /// By channel, what was stored: number and frame.
    log: HashMap<String, Vec<(u64, Vec<u8>)>>,
    held: Option<Vec<u8>>,
    messages: u64,
    compresses: bool,
}

/// Start it; it lives as long as the test process.
pub(crate) fn start(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    let shared = Arc::new(Mutex::new(Shared::default()));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = Arc::clone(&shared);
            // A connection that ends, ends its thread; the tests look at what the generator says about it.
            std::thread::spawn(move || serve(stream, &shared, fault));
        }
    });
    address
}

fn serve(mut stream: TcpStream, shared: &Mutex<Shared>, fault: Fault) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let compresses = String::from_utf8_lossy(&head).contains("Sec-WebSocket-Extensions: permessage-deflate");
    shared.lock().expect("no thread panics with the lock").compresses |= compresses;
    let extension =
        if compresses { "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n" } else { "" };
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{extension}\r\n"
    );
    stream.write_all(answer.as_bytes()).ok()?;
    send(&mut stream, &json!({"type": "connection_established", "data": {}}));
    while let Some((opcode, payload)) = read_frame(&mut stream) {
        if opcode == 8 {
            stream.write_all(&[0x88, 2, payload[0], payload[1]]).ok()?;
            return Some(());
        }
        let command: Value = serde_json::from_slice(&payload).expect("the generator writes JSON");
        let mut shared = shared.lock().expect("no thread panics with the lock");
        command_in(&mut stream, &mut shared, &command, fault);
    }
    None
}

fn command_in(stream: &mut TcpStream, shared: &mut Shared, command: &Value, fault: Fault) {
    let data = &command["data"];
    match command["type"].as_str() {
        Some("subscribe") => {
            let channel = data["channel"].as_str().expect("a channel").to_owned();
            let clone = stream.try_clone().expect("a second handle");
            shared.members.entry(channel.clone()).or_default().push(clone);
            let last = shared.numbers.get(&channel).copied().unwrap_or(0);
            let mut confirmed = json!({"channel": channel, "position": {"offset": last, "epoch": "e"}});
            let since = data["position"]["offset"].as_u64().filter(|_| fault != Fault::NotRecovered);
            if let Some(recovered) = data.get("position").map(|_| since.is_some()) {
                confirmed["recovered"] = json!(recovered);
            }
            send(stream, &json!({"type": "subscription_confirmed", "data": confirmed, "id": 1}));
            let log = shared.log.entry(channel).or_default();
            let missed = log.iter().filter(|(number, _)| since.is_some_and(|since| *number > since));
            for (_, frame) in missed.skip(usize::from(fault == Fault::Forget)) {
                for _ in 0..if fault == Fault::Repeat { 2 } else { 1 } {
                    let _ = stream.write_all(frame);
                }
            }
        }
        Some("ping") => {
            shared.messages += 1;
            let pong = json!({"type": "pong", "data": {}, "id": command["id"]});
            let twice = u64::from(fault == Fault::Double && shared.messages == 5);
            for _ in 0..if fault == Fault::Lose && shared.messages == 5 { 0 } else { 1 + twice } {
                send(stream, &pong);
            }
        }
        Some("publish" | "say") => {
            let channel = data["channel"].as_str().expect("a channel");
            let event = json!({"type": data["event"], "data": data["data"], "channel": channel});
            deliver(stream, shared, channel, &event, fault);
        }
        Some("send_message") => {
            let channel = format!("conversation:{}", data["conversationId"].as_str().expect("an id"));
            for _ in 0..if shared.messages == 4 && fault == Fault::StoreTwice { 2 } else { 1 } {
                store(stream, shared, &channel, command, fault);
            }
        }
        other => panic!("unexpected command {other:?}"),
    }
}

fn store(stream: &mut TcpStream, shared: &mut Shared, channel: &str, command: &Value, fault: Fault) {
    let number = shared.numbers.entry(channel.to_owned()).or_default();
    *number += 1;
    let mut message = json!({"number": *number, "clientMessageId": command["data"]["clientMessageId"]});
    let event = json!({"type": "new_message", "data": message, "channel": channel});
    shared.log.entry(channel.to_owned()).or_default().push((*number, frame(&event)));
    let now = shared.messages == 4;
    deliver(stream, shared, channel, &event, fault);
    if now && fault == Fault::WrongNumber {
        message["number"] = json!(message["number"].as_u64().expect("a number") - 1);
    }
    if !(now && fault == Fault::NoAck) {
        send(stream, &json!({"type": "ack", "data": message, "id": command["id"]}));
    }
}

fn deliver(sender: &mut TcpStream, shared: &mut Shared, channel: &str, event: &Value, fault: Fault) {
    let now = shared.messages == 4;
    shared.messages += 1;
    let compresses = shared.compresses;
    let frame = |event: &Value| if compresses { compressed(event, false) } else { frame(event) };
    let whole = frame(event);
    let members = shared.members.get_mut(channel).expect("a channel with members");
    for (index, member) in members.iter_mut().enumerate() {
        let first = index == 0;
        let frames = match fault {
            Fault::Lose if now && first => Vec::new(),
            Fault::Double if now && first => [whole.clone(), whole.clone()].concat(),
            Fault::Swap if now && first => {
                shared.held = Some(whole.clone());
                Vec::new()
            }
            Fault::Misroute if now && first => {
                let mut other = event.clone();
                other["channel"] = json!("conversation:elsewhere");
                frame(&other)
            }
            Fault::Unreadable if now && first => compressed(event, true),
            Fault::Garble if now && first => {
                let mut other = event.clone();
                let text = other["data"]["p"].as_str().expect("a text").replacen('e', "x", 1);
                other["data"]["p"] = json!(text);
                frame(&other)
            }
            _ => {
                // One channel in these tests: what is held belongs to this member.
                let held = if first { shared.held.take() } else { None };
                [whole.clone(), held.unwrap_or_default()].concat()
            }
        };
        let _ = member.write_all(&frames);
    }
    match fault {
        Fault::Error if now => send(sender, &json!({"type": "error", "data": {"message": "on purpose"}})),
        Fault::Close if now => drop(sender.write_all(&[0x88, 2, 0x0f, 0xa0])),
        Fault::Die if now => {
            for member in shared.members.values().flatten() {
                let _ = member.shutdown(std::net::Shutdown::Both);
            }
        }
        _ => {}
    }
}

fn send(stream: &mut TcpStream, event: &Value) {
    let _ = stream.write_all(&frame(event));
}

fn frame(event: &Value) -> Vec<u8> {
    let payload = event.to_string();
    let len = u16::try_from(payload.len()).expect("a small event").to_be_bytes();
    [&[0x81, 0x7e], &len[..], payload.as_bytes()].concat()
}

/// The event with RSV1, or bytes that are no DEFLATE stream in its place.
fn compressed(event: &Value, unreadable: bool) -> Vec<u8> {
    let mut stream = CompressorOxide::new(create_comp_flags_from_zip_params(6, -15, 0));
    let mut payload = Vec::new();
    compress_to_output(&mut stream, event.to_string().as_bytes(), TDEFLFlush::Sync, |bytes| {
        payload.extend_from_slice(bytes);
        true
    });
    payload.truncate(payload.len() - 4);
    if unreadable {
        payload.fill(0xff);
    }
    let len = u16::try_from(payload.len()).expect("a small event").to_be_bytes();
    [&[0xc1, 0x7e], &len[..], &payload].concat()
}

/// Opcode and unmasked payload of a client's frame of at most 64 KiB.
fn read_frame(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut exactly = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    let head = exactly(2)?;
    assert!(head[1] & 0x80 != 0, "a client must mask");
    let len = match head[1] & 0x7f {
        126 => exactly(2)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
        len => usize::from(len),
    };
    let mask = exactly(4)?;
    let mut payload = exactly(len)?;
    for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    Some((head[0] & 0x0f, payload))
}
