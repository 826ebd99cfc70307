//! How a server frames what is said: its commands out, and the events that stand in its text frames.
//!
//! Workloads speak the protocol of this project. A server with a protocol of its own is spoken to in that, and what it says
//! is cut out of its frames without a copy, so that every delivery is counted as any other. Called by `connection` alone.

use crate::scan;
use std::io::Write as _;

/// Who is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// This project's protocol, as it is.
    #[default]
    Realtime,
    /// Socket.IO 5 over Engine.IO 4: a command is the event `command`, everything said is the event `event`.
    SocketIo,
    /// Centrifuge's JSON protocol, version 2: several messages a frame, a line each.
    Centrifuge,
}

/// A part of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// An event, or the answer to a command.
    Said(&'a [u8]),
    /// What has to be answered at once, and with what.
    Answer(&'static [u8]),
}

const SOCKET_IO_EVENT: &[u8] = b"42[\"event\",";
/// What a server of another protocol says in other words, in ours.
const GREETING: &[u8] = b"{\"type\":\"connection_established\"}";
const SUBSCRIBED: &[u8] = b"{\"type\":\"subscription_confirmed\"}";

impl Dialect {
    /// The name of `--dialect`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "realtime" => Some(Self::Realtime),
            "socketio" => Some(Self::SocketIo),
            "centrifuge" => Some(Self::Centrifuge),
            _ => None,
        }
    }

    /// What the client says first, where it does.
    #[must_use]
    pub const fn opening(self) -> Option<&'static [u8]> {
        match self {
            Self::Centrifuge => Some(b"{\"id\":1,\"connect\":{}}"),
            Self::Realtime | Self::SocketIo => None,
        }
    }

    /// A command in the server's words; None where they are ours.
    ///
    /// Of centrifuge's protocol it knows `subscribe` and `publish`, whose event the client composes.
    #[must_use]
    pub fn command(self, ours: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(ours.len() + 64);
        match self {
            Self::Realtime => return None,
            Self::SocketIo => {
                out.extend_from_slice(b"42[\"command\",");
                out.extend_from_slice(ours);
                out.push(b']');
            }
            Self::Centrifuge => {
                let channel = scan::member_text(ours, b"\"channel\":\"").unwrap_or_default();
                let channel = String::from_utf8_lossy(channel);
                // Writing to a Vec cannot fail.
                let _ = match scan::after(ours, b"\"event\":\"bench\",\"data\":") {
                    None => write!(out, "{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}"),
                    Some(at) => {
                        let data = String::from_utf8_lossy(&ours[at..ours.len() - b"}}".len()]);
                        write!(
                            out,
                            "{{\"id\":3,\"publish\":{{\"channel\":\"{channel}\",\"data\":\
                             {{\"type\":\"bench\",\"data\":{data},\"channel\":\"{channel}\"}}}}}}"
                        )
                    }
                };
            }
        }
        Some(out)
    }

    /// What a text frame of the server's holds, in its order.
    #[must_use]
    pub const fn parts(self, frame: &[u8]) -> Parts<'_> {
        Parts { dialect: self, rest: Some(frame) }
    }
}

/// The parts of a frame that are still to come.
pub struct Parts<'a> {
    dialect: Dialect,
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        while let Some(rest) = self.rest.take() {
            let part = match self.dialect {
                Dialect::Realtime => Some(Part::Said(rest)),
                Dialect::SocketIo => of_socket_io(rest),
                Dialect::Centrifuge => {
                    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                    self.rest = rest.get(end + 1..);
                    of_centrifuge(&rest[..end])
                }
            };
            if part.is_some() {
                return part;
            }
        }
        None
    }
}

fn of_socket_io(packet: &[u8]) -> Option<Part<'_>> {
    if let Some(event) = packet.strip_prefix(SOCKET_IO_EVENT) {
        return Some(Part::Said(event.strip_suffix(b"]").unwrap_or(event)));
    }
    match packet {
        [b'0', ..] => Some(Part::Answer(b"40")),
        [b'2', ..] => Some(Part::Answer(b"3")),
        // The namespace is open; the server's greeting comes as an event.
        [b'4', b'0', ..] => None,
        other => Some(Part::Said(other)),
    }
}

fn of_centrifuge(line: &[u8]) -> Option<Part<'_>> {
    match line {
        b"" => None,
        b"{}" => Some(Part::Answer(b"{}")),
        _ if line.starts_with(b"{\"push\":") => {
            let event = &line[scan::after(line, b"\"data\":").unwrap_or(0)..];
            Some(Part::Said(event.strip_suffix(b"}}}").unwrap_or(event)))
        }
        _ if scan::after(line, b"\"error\":").is_some() => Some(Part::Said(line)),
        _ if scan::after(line, b"\"connect\":").is_some() => Some(Part::Said(GREETING)),
        _ if scan::after(line, b"\"subscribe\":").is_some() => Some(Part::Said(SUBSCRIBED)),
        // The answer to a publish.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBSCRIBE: &[u8] = br#"{"type":"subscribe","data":{"channel":"bench:0"},"id":1}"#;
    const PUBLISH: &[u8] =
        br#"{"type":"publish","data":{"channel":"bench:0","event":"bench","data":{"s":1,"t":2,"p":"xx"}}}"#;

    fn said(dialect: Dialect, frame: &[u8]) -> Vec<String> {
        let text = |part| match part {
            Part::Said(text) => String::from_utf8_lossy(text).into_owned(),
            Part::Answer(text) => format!("answer {}", String::from_utf8_lossy(text)),
        };
        dialect.parts(frame).map(text).collect()
    }

    #[test]
    fn our_own_protocol_passes_as_it_is() {
        assert_eq!(Dialect::Realtime.command(SUBSCRIBE), None);
        assert_eq!(Dialect::Realtime.parts(SUBSCRIBE).collect::<Vec<_>>(), [Part::Said(SUBSCRIBE)]);
    }

    #[test]
    fn socket_io_wraps_both_ways_and_its_pings_are_answered() {
        let dialect = Dialect::SocketIo;
        let command = dialect.command(SUBSCRIBE).expect("wrapped");
        assert_eq!(command, [b"42[\"command\",", SUBSCRIBE, b"]"].concat());
        assert_eq!(said(dialect, br#"0{"sid":"a","pingInterval":25000}"#), ["answer 40"]);
        assert_eq!(said(dialect, br#"40{"sid":"b"}"#), [] as [&str; 0]);
        assert_eq!(said(dialect, b"2"), ["answer 3"]);
        assert_eq!(said(dialect, br#"42["event",{"type":"bench"}]"#), [r#"{"type":"bench"}"#]);
        assert_eq!(said(dialect, br#"44{"message":"no"}"#), [r#"44{"message":"no"}"#], "a refusal is no event");
    }

    #[test]
    fn centrifuge_says_several_things_in_one_frame() {
        let dialect = Dialect::Centrifuge;
        let command = dialect.command(SUBSCRIBE).expect("put otherwise");
        assert_eq!(command, br#"{"id":2,"subscribe":{"channel":"bench:0"}}"#);
        let command: serde_json::Value =
            serde_json::from_slice(&dialect.command(PUBLISH).expect("put otherwise")).expect("JSON");
        let event = serde_json::json!({"type": "bench", "data": {"s": 1, "t": 2, "p": "xx"}, "channel": "bench:0"});
        assert_eq!(command["publish"], serde_json::json!({"channel": "bench:0", "data": event}));
        let frame = b"{\"id\":1,\"connect\":{\"client\":\"c\"}}\n{\"id\":2,\"subscribe\":{}}\n{}\n{\"id\":3,\"publish\":{}}\n\
            {\"push\":{\"channel\":\"bench:0\",\"pub\":{\"data\":{\"type\":\"bench\",\"data\":{\"s\":1}}}}}\n{\"id\":2,\"error\":{\"code\":103}}\n";
        let wanted = [
            "{\"type\":\"connection_established\"}",
            "{\"type\":\"subscription_confirmed\"}",
            "answer {}",
            "{\"type\":\"bench\",\"data\":{\"s\":1}}",
            "{\"id\":2,\"error\":{\"code\":103}}",
        ];
        assert_eq!(said(dialect, frame), wanted);
    }
}
