//! Two ends over a virtual link: a client and a server drive each other, and the link cuts the bytes as it likes.
//!
//! The client says hello over HTTP, sends its messages and a Close; the server answers as an echo server does, and
//! both compress what they send where they agreed on it. The
//! link moves any number of bytes at a time in any order of the two directions, and now and then nothing.

mod kit;

use std::collections::VecDeque;

use kit::{MESSAGE_BYTES_MAX, Owned, Receiver, Sent};
use proptest::prelude::*;
use realtime_protocol::connection::Role;
use realtime_protocol::deflate::{Deflater, Inflater};
use realtime_protocol::extensions::Deflate;
use realtime_protocol::frame::{Opcode, encode_deflated_frame, encode_frame};
use realtime_protocol::handshake::{Head, HttpError, Limits, accept_key, parse_head, switching_protocols};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const HELLO: &str = "GET /ws?token=abc HTTP/1.1\r\nHost: localhost:3002\r\nUpgrade: websocket\r\n\
    Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: realtime.v1, bearer.abc\r\n";
const EXTENSIONS: &str = "Sec-WebSocket-Extensions: ";

/// A server that echoes, as far as it can without a socket.
struct EchoServer {
    head: Vec<u8>,
    searched: usize,
    receiver: Option<Receiver>,
    answered: usize,
    deflate: Option<Deflate>,
    out: VecDeque<u8>,
}

impl EchoServer {
    fn new() -> Self {
        Self { head: Vec::new(), searched: 0, receiver: None, answered: 0, deflate: None, out: VecDeque::new() }
    }

    fn feed(&mut self, read: &[u8]) -> Result<(), HttpError> {
        if self.receiver.is_none() {
            self.head.extend_from_slice(read);
            return self.try_upgrade();
        }
        self.feed_frames(read);
        Ok(())
    }

    fn try_upgrade(&mut self) -> Result<(), HttpError> {
        match parse_head(&self.head, &mut self.searched, &Limits::default()) {
            Head::Partial => Ok(()),
            Head::Bad(error) => Err(error),
            Head::Request(request, head_len) => {
                let accept = request.upgrade()?.accept();
                self.deflate = Deflate::negotiate(request.extensions());
                let subprotocol = request.protocols().find(|name| *name == "realtime.v1");
                self.out.extend(switching_protocols(&accept, subprotocol, self.deflate.as_ref()));
                let mut receiver = Receiver::new(Role::Server, MESSAGE_BYTES_MAX);
                receiver.inflater = self.deflate.map(|_| Inflater::new());
                self.receiver = Some(receiver);
                // Frames that came with the head wait for nothing else: the 101 is in front of their answers.
                let early = self.head.split_off(head_len);
                self.feed_frames(&early);
                Ok(())
            }
        }
    }

    fn feed_frames(&mut self, read: &[u8]) {
        let Some(receiver) = &mut self.receiver else {
            return;
        };
        receiver.feed(read);
        for item in &receiver.items[self.answered..] {
            let opcode = match item {
                Owned::Ping(_) => Opcode::Pong,
                Owned::Pong(_) => continue,
                other => other.opcode(),
            };
            let payload = item.payload();
            let is_deflated = self.deflate.is_some_and(|deflate| deflate.may_deflate(payload.len()));
            self.out.extend(match is_deflated && !opcode.is_control() {
                true => {
                    let mut deflated = Vec::new();
                    Deflater::new(6).deflate(&payload, &mut deflated);
                    encode_deflated_frame(opcode, &deflated)
                }
                false => encode_frame(opcode, &payload),
            });
        }
        self.answered = receiver.items.len();
    }
}

/// What an echo server sends back.
fn echoes(items: &[Owned]) -> Vec<Owned> {
    let echo = |item: &Owned| match item {
        Owned::Ping(payload) => Some(Owned::Pong(payload.clone())),
        Owned::Pong(_) => None,
        other => Some(other.clone()),
    };
    items.iter().filter_map(echo).collect()
}

/// Carries bytes both ways until both are done, `steps` at a time (to the server, to the client), and returns what
/// the client got after the 101, the server's received items and what was agreed on.
fn converse(
    sequence: &[Sent],
    steps: &[(usize, usize)],
    offer: Option<&str>,
) -> (Receiver, Vec<Owned>, Option<Deflate>) {
    let offered = offer.map_or_else(String::new, |offer| format!("{EXTENSIONS}{offer}\r\n"));
    let mut to_server: VecDeque<u8> = [HELLO, &offered, "\r\n"].concat().into_bytes().into();
    let mut frames = Vec::new();
    for sent in sequence {
        match offer {
            Some(_) => sent.push_deflated(Role::Server, 6, &mut frames),
            None => sent.push(Role::Server, &mut frames),
        }
    }
    to_server.extend(frames);
    let mut server = EchoServer::new();
    let mut client = Receiver::new(Role::Client, MESSAGE_BYTES_MAX);
    client.inflater = offer.map(|_| Inflater::new());
    let mut answer = Vec::new();
    for &(up, down) in steps.iter().cycle() {
        let up = up.min(to_server.len());
        let read: Vec<u8> = to_server.drain(..up).collect();
        server.feed(&read).expect("a valid upgrade");
        let down = down.min(server.out.len());
        let mut read: Vec<u8> = server.out.drain(..down).collect();
        if !answer.ends_with(b"\r\n\r\n") {
            answer.append(&mut read);
            let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
            read = end.map_or_else(Vec::new, |end| answer.split_off(end + 4));
        }
        client.feed(&read);
        if to_server.is_empty() && server.out.is_empty() {
            break;
        }
    }
    let agreed = assert_answer(&answer, server.deflate);
    let received = server.receiver.expect("upgraded");
    assert_eq!(received.violation, None);
    (client, received.items, agreed)
}

/// The 101 is what the server says, and the client reads the same agreement out of it.
fn assert_answer(answer: &[u8], agreed: Option<Deflate>) -> Option<Deflate> {
    assert_eq!(answer, switching_protocols(&accept_key(KEY), Some("realtime.v1"), agreed.as_ref()));
    let head = String::from_utf8_lossy(answer);
    let extensions = head.lines().filter_map(|line| line.strip_prefix(EXTENSIONS));
    assert_eq!(Deflate::from_answer(extensions), Ok(agreed));
    agreed
}

fn assert_echoed(sequence: &[Sent], steps: &[(usize, usize)], offer: Option<&str>) {
    let sent: Vec<Owned> = sequence.iter().flat_map(Sent::expected).collect();
    let (client, received, agreed) = converse(sequence, steps, offer);
    assert_eq!(agreed.is_some(), offer.is_some());
    assert_eq!(received, sent, "{steps:?}");
    assert_eq!(client.outcome(), (echoes(&sent), None), "{steps:?}");
}

/// No offer, ours, and ours with windows that only short messages fit.
const OFFERS: [Option<&str>; 4] = [
    None,
    Some(Deflate::OFFER),
    Some("foo, permessage-deflate; server_max_window_bits=8"),
    Some("permessage-deflate; server_max_window_bits=12; server_no_context_takeover"),
];

fn closing() -> Sent {
    Sent { item: Owned::Close(Some(1000), "done".into()), fragments: vec![], between: vec![] }
}

#[test]
fn a_conversation_is_the_same_for_every_pair_of_step_sizes() {
    let sequence = [
        Sent {
            item: Owned::Text("héllo 😀".into()),
            fragments: vec![2, 0, 5],
            between: vec![Owned::Ping(b"p".to_vec()), Owned::Pong(vec![])],
        },
        closing(),
    ];
    for up in 1..=HELLO.len() + 160 {
        for down in [1, 2, 3, 5, 7, 64, 1000] {
            for offer in [None, Some(Deflate::OFFER)] {
                assert_echoed(&sequence, &[(up, down)], offer);
            }
        }
    }
}

proptest! {
    #[test]
    fn a_conversation_is_the_same_however_the_link_cuts_it(
        sequence in prop::collection::vec(kit::sent(), 0..5),
        offer in prop::sample::select(OFFERS.to_vec()),
        steps in prop::collection::vec((0usize..400, 0usize..400), 1..12),
    ) {
        prop_assume!(steps.iter().any(|step| step.0 > 0) && steps.iter().any(|step| step.1 > 0));
        let sequence = [sequence, vec![closing()]].concat();
        assert_echoed(&sequence, &steps, offer);
    }
}
