//! A blocking WebSocket client, as small as can be, on the client side of `realtime-protocol`.

use realtime_protocol::close::encode_close_payload;
use realtime_protocol::connection::{Inbound, Item, Role};
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    Text(String),
    Binary(Vec<u8>),
    Close(u16),
    End,
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    inbound: Inbound,
    arrived: VecDeque<Arrived>,
}

impl Client {
    /// Upgrades on `path` and reads the answer.
    pub(crate) fn connect(port: u16, path: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(upgrade(path).as_bytes()).unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Self { stream, inbound: Inbound::new(Role::Client), arrived: VecDeque::new() }
    }

    /// Connects and subscribes to each channel.
    pub(crate) fn subscribed(port: u16, channels: &[String]) -> Self {
        let mut client = Self::connect(port, "/ws");
        client.expect("connection_established");
        for channel in channels {
            client.command("subscribe", &serde_json::json!({ "channel": channel }));
            client.expect("subscription_confirmed");
        }
        client
    }

    pub(crate) fn command(&mut self, kind: &str, data: &Value) {
        self.send_text(&serde_json::json!({ "type": kind, "data": data }).to_string());
    }

    pub(crate) fn send_text(&mut self, text: &str) {
        self.send(Opcode::Text, text.as_bytes());
    }

    pub(crate) fn send(&mut self, opcode: Opcode, payload: &[u8]) {
        let mut frame = Vec::new();
        encode_masked_frame(opcode, true, payload, [1, 2, 3, 4], &mut frame);
        self.stream.write_all(&frame).unwrap();
    }

    pub(crate) fn close(&mut self, code: realtime_protocol::close::CloseCode) {
        self.send(Opcode::Close, &encode_close_payload(code, ""));
    }

    /// The next message, close or end; panics after 20 s of silence.
    pub(crate) fn next(&mut self) -> Arrived {
        let mut buffer = vec![0; 64 << 10];
        while self.arrived.is_empty() {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Arrived::End,
                Ok(count) => self.take(&mut buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Arrived::End;
                }
                Err(error) => panic!("nothing arrived: {error}"),
            }
        }
        self.arrived.pop_front().unwrap()
    }

    /// The next message as JSON, which must be of this type.
    pub(crate) fn expect(&mut self, kind: &str) -> Value {
        match self.next() {
            Arrived::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(message["type"], kind, "{message}");
                message
            }
            other => panic!("{other:?} instead of {kind}"),
        }
    }

    /// Reads on until the close frame and returns its code.
    pub(crate) fn closed(&mut self) -> u16 {
        loop {
            match self.next() {
                Arrived::Close(code) => return code,
                Arrived::End => panic!("the stream ended without a close frame"),
                Arrived::Text(_) | Arrived::Binary(_) => {}
            }
        }
    }

    /// The payload of the next pong; nothing else may come before it.
    pub(crate) fn pong(&mut self) -> Vec<u8> {
        let mut header = [0; 2];
        self.stream.read_exact(&mut header).unwrap();
        assert_eq!(header[0], 0x8A, "a pong");
        let mut payload = vec![0; usize::from(header[1])];
        self.stream.read_exact(&mut payload).unwrap();
        payload
    }

    fn take(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let (used, item) = self.inbound.receive(bytes, 64 << 20, None).unwrap();
            match item {
                Some(Item::Text(text)) => {
                    let text = String::from_utf8(text.to_vec()).unwrap();
                    self.arrived.push_back(Arrived::Text(text));
                }
                Some(Item::Binary(payload)) => {
                    self.arrived.push_back(Arrived::Binary(payload.to_vec()));
                }
                Some(Item::Close(code, _)) => {
                    let code = code.map_or(1005, |code| code.0);
                    self.arrived.push_back(Arrived::Close(code));
                    return;
                }
                Some(Item::Ping(_) | Item::Pong(_)) | None => {}
            }
            bytes = &mut std::mem::take(&mut bytes)[used..];
        }
    }
}

/// The head of an upgrade.
pub(crate) fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}
