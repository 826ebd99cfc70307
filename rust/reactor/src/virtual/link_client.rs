//! The client at the far end of a virtual link.
//!
//! It reads the answer to its upgrade, then frames; it answers pings and closes by itself, as browsers do, and keeps
//! what a test wants to see. Bytes that it sends wait in [`LinkClient::up`] until the engine reads them.

use realtime_protocol::close::{CloseCode, encode_close_payload};
use realtime_protocol::connection::{Inbound, Item, Role};
use realtime_protocol::frame::{Opcode, encode_masked_frame};

/// Sec-WebSocket-Key of every virtual client: the RFC's own example (RFC 6455 §1.2).
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// A mask hides nothing here, but an empty one would hide a server that forgets to unmask.
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
/// The code that a close without one is told as (RFC 6455 §7.1.5).
const NO_CODE: u16 = 1005;

/// What arrived at a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// The server's close frame: code (1005 without one) and reason.
    Close(u16, String),
    /// An HTTP answer other than 101: status and body.
    Http(u16, String),
    /// The end of the stream.
    End,
}

enum Stage {
    /// The answer to the upgrade is not whole yet.
    Answer(Vec<u8>),
    Open(Inbound),
    /// After a close frame or a fault: bytes are not looked at any more.
    Deaf,
    Ended,
}

/// A WebSocket client without a socket.
pub(crate) struct LinkClient {
    stage: Stage,
    /// Sent by the client, not read by the engine yet.
    pub(crate) up: Vec<u8>,
    received: Vec<Received>,
    has_sent_close: bool,
}

impl LinkClient {
    /// A client that sends an upgrade for `path` with `headers` in place of or beside its own.
    pub(crate) fn upgrading(path: &str, headers: &[(String, String)]) -> Self {
        let own = [
            ("Host", "localhost"),
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", KEY),
            ("Sec-WebSocket-Version", "13"),
        ];
        let mut head = format!("GET {path} HTTP/1.1\r\n");
        for (name, value) in own {
            if !headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name)) {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        Self { up: head.into_bytes(), ..Self::admitted() }
    }

    /// A client that waits for a 101 which it has not asked for.
    pub(crate) const fn admitted() -> Self {
        Self { stage: Stage::Answer(Vec::new()), up: Vec::new(), received: Vec::new(), has_sent_close: false }
    }

    pub(crate) fn send(&mut self, is_text: bool, payload: &[u8]) {
        let opcode = if is_text { Opcode::Text } else { Opcode::Binary };
        encode_masked_frame(opcode, true, payload, MASK, &mut self.up);
    }

    pub(crate) fn close(&mut self, code: u16, reason: &str) {
        let payload = if code == NO_CODE { Vec::new() } else { encode_close_payload(CloseCode(code), reason) };
        self.send_close(&payload);
    }

    pub(crate) fn bytes_in(&mut self, bytes: &[u8]) {
        if let Stage::Answer(head) = &mut self.stage {
            head.extend_from_slice(bytes);
            self.read_answer();
        } else {
            self.read_frames(&mut bytes.to_vec());
        }
    }

    /// The stream has ended; true the first time.
    pub(crate) fn end(&mut self) -> bool {
        if matches!(self.stage, Stage::Ended) {
            return false;
        }
        self.stage = Stage::Ended;
        self.received.push(Received::End);
        true
    }

    /// Whether it has seen the end of the stream.
    pub(crate) const fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended)
    }

    pub(crate) fn take_received(&mut self) -> Vec<Received> {
        std::mem::take(&mut self.received)
    }

    fn read_answer(&mut self) {
        let Stage::Answer(bytes) = &mut self.stage else {
            return;
        };
        let Some(head_len) = bytes.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4) else {
            return;
        };
        let head = String::from_utf8_lossy(&bytes[..head_len]).into_owned();
        let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut rest = bytes.split_off(head_len);
        if status == 101 {
            self.stage = Stage::Open(Inbound::new(Role::Client));
            self.read_frames(&mut rest);
            return;
        }
        if rest.len() < content_length(&head) {
            bytes.append(&mut rest);
            return;
        }
        self.received.push(Received::Http(status, String::from_utf8_lossy(&rest).into_owned()));
        self.stage = Stage::Deaf;
    }

    fn read_frames(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let Stage::Open(inbound) = &mut self.stage else {
                return;
            };
            let (used, item) = match inbound.receive(bytes, usize::MAX >> 1, None) {
                Ok(progress) => progress,
                Err(violation) => {
                    // The server's fault, which a test should see as what a browser makes of it.
                    self.received.push(Received::Close(violation.code.0, violation.reason.into()));
                    self.stage = Stage::Deaf;
                    return;
                }
            };
            match item {
                None | Some(Item::Pong(_)) => {}
                Some(Item::Text(text)) => {
                    self.received.push(Received::Text(String::from_utf8_lossy(text).into_owned()))
                }
                Some(Item::Binary(payload)) => self.received.push(Received::Binary(payload.to_vec())),
                Some(Item::Ping(payload)) => encode_masked_frame(Opcode::Pong, true, payload, MASK, &mut self.up),
                Some(Item::Close(code, reason)) => {
                    let (code, reason) = (code.map_or(NO_CODE, |code| code.0), reason.to_owned());
                    self.stage = Stage::Deaf;
                    self.close(code, "");
                    self.received.push(Received::Close(code, reason));
                    return;
                }
            }
            bytes = &mut std::mem::take(&mut bytes)[used..];
        }
    }

    fn send_close(&mut self, payload: &[u8]) {
        if !std::mem::replace(&mut self.has_sent_close, true) {
            encode_masked_frame(Opcode::Close, true, payload, MASK, &mut self.up);
        }
    }
}

fn content_length(head: &str) -> usize {
    let field = head.lines().filter_map(|line| line.split_once(':'));
    let length = field.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length.map(|(_, value)| value.trim().parse().unwrap_or(0)).next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use realtime_protocol::frame::encode_frame;

    fn open() -> LinkClient {
        let mut client = LinkClient::upgrading("/ws", &[]);
        client.bytes_in(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
        client.up.clear();
        client
    }

    #[test]
    fn a_given_header_takes_the_place_of_its_own() {
        let client = LinkClient::upgrading("/ws?a=b", &[("host".into(), "example.org".into())]);
        let head = String::from_utf8(client.up).unwrap();
        assert!(head.starts_with("GET /ws?a=b HTTP/1.1\r\n"));
        assert!(head.contains("host: example.org\r\n") && !head.contains("localhost"));
    }

    #[test]
    fn an_answer_cut_anywhere_is_read_whole() {
        let answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 12\r\n\r\nUnauthorized";
        for cut in 0..answer.len() {
            let mut client = LinkClient::upgrading("/ws", &[]);
            client.bytes_in(&answer[..cut]);
            assert_eq!(client.take_received(), []);
            client.bytes_in(&answer[cut..]);
            assert_eq!(client.take_received(), [Received::Http(401, "Unauthorized".into())]);
        }
    }

    #[test]
    fn pings_and_closes_are_answered() {
        let mut client = open();
        client.bytes_in(&encode_frame(Opcode::Ping, b"a"));
        assert_eq!(client.up[..2], [0x8A, 0x81]);
        client.up.clear();
        client.bytes_in(&encode_frame(Opcode::Close, &encode_close_payload(CloseCode::SLOW_READER, "slow")));
        assert_eq!(client.up[..2], [0x88, 0x82]);
        assert_eq!(client.take_received(), [Received::Close(4000, "slow".into())]);
        client.close(1000, "");
        assert_eq!(client.up.len(), 8, "one close is sent, not two");
        assert!(client.end() && !client.end());
        assert_eq!(client.take_received(), [Received::End]);
    }

    #[test]
    fn messages_are_kept_in_order() {
        let mut client = open();
        let mut bytes = encode_frame(Opcode::Text, "é".as_bytes());
        bytes.extend(encode_frame(Opcode::Binary, &[1, 2]));
        client.bytes_in(&bytes);
        assert_eq!(client.take_received(), [Received::Text("é".into()), Received::Binary(vec![1, 2])]);
    }
}
