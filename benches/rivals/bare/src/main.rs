//! What the kernel asks for, and next to nothing else: the least program that answers the generator.
//!
//! One thread reads what is there, puts frames behind each other in a buffer for each member, and hands all of them to
//! the kernel at once: by a loop of `send()` with `BARE_SENDS=loop`, else by one submission to io_uring. No token is
//! checked, nothing is limited, a peer that does not read is given up, and a frame is believed. So no server can be
//! quicker in this shape, and what one costs above it is its own. `WS_PORT` is the port.

use base64::Engine as _;
use io_uring::{IoUring, opcode, types};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use serde_json::value::RawValue;
use sha1::{Digest as _, Sha1};
use std::collections::HashMap;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;

const LISTENER: Token = Token(usize::MAX);
/// Sends of one submission.
const ENTRIES: u32 = 1_024;
const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// A time that is as long as any other.
const TIMESTAMP: &str = "2026-01-01T00:00:00.000Z";

struct Peer {
    stream: TcpStream,
    user: String,
    is_open: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    is_dirty: bool,
}

struct Server {
    peers: Vec<Option<Peer>>,
    channels: HashMap<String, Vec<usize>>,
    dirty: Vec<usize>,
    /// None sends one by one.
    ring: Option<IoUring>,
}

fn main() -> io::Result<()> {
    let port = std::env::var("WS_PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(3002);
    let ring = match std::env::var("BARE_SENDS").as_deref() {
        Ok("loop") => None,
        _ => Some(IoUring::builder().setup_single_issuer().setup_coop_taskrun().setup_submit_all().build(ENTRIES)?),
    };
    let mut server = Server { peers: Vec::new(), channels: HashMap::new(), dirty: Vec::new(), ring };
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    let mut listener = TcpListener::bind(std::net::SocketAddr::from(([127, 0, 0, 1], port)))?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() != LISTENER {
                server.read(event.token().0, &mut buffer);
                continue;
            }
            while let Ok((mut stream, _)) = listener.accept() {
                stream.set_nodelay(true)?;
                poll.registry().register(&mut stream, Token(server.peers.len()), Interest::READABLE)?;
                let (input, output, user) = (Vec::new(), Vec::new(), String::new());
                server.peers.push(Some(Peer { stream, user, is_open: false, input, output, is_dirty: false }));
            }
        }
        server.flush()?;
    }
}

impl Server {
    fn read(&mut self, number: usize, buffer: &mut [u8]) {
        loop {
            let Some(peer) = self.peers[number].as_mut() else { return };
            match peer.stream.read(buffer) {
                Ok(count) if count > 0 => {
                    peer.input.extend_from_slice(&buffer[..count]);
                    self.parse(number);
                    if count < buffer.len() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => return self.end(number),
            }
        }
    }

    fn end(&mut self, number: usize) {
        self.peers[number] = None;
        for members in self.channels.values_mut() {
            members.retain(|member| *member != number);
        }
    }

    fn parse(&mut self, number: usize) {
        let Some(peer) = self.peers[number].as_mut() else { return };
        let mut input = std::mem::take(&mut peer.input);
        let mut rest = &mut input[..];
        if !peer.is_open {
            let Some(end) = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                peer.input = input;
                return;
            };
            let head = String::from_utf8_lossy(&rest[..end]).into_owned();
            peer.is_open = true;
            peer.user = format!("u{number}");
            let greeting = format!(
                r#"{{"type":"connection_established","data":{{"sessionId":"{number}","timestamp":"{TIMESTAMP}","protocol":1,"userId":"{}"}},"timestamp":"{TIMESTAMP}"}}"#,
                peer.user
            );
            self.put(number, accepted(&head).as_bytes());
            self.put(number, &frame(greeting.as_bytes()));
            rest = &mut rest[end + 4..];
        }
        while let Some((header, len)) = measured(rest) {
            let (head, behind) = rest.split_at_mut(header + len);
            let opcode = head[0] & 0x0f;
            let (mask, payload) = head[header - 4..].split_at_mut(4);
            for (place, byte) in payload.iter_mut().enumerate() {
                *byte ^= mask[place & 3];
            }
            match opcode {
                1 => self.command(number, payload),
                8 => return self.end(number),
                _ => {}
            }
            rest = behind;
        }
        let kept = rest.to_vec();
        if let Some(peer) = self.peers[number].as_mut() {
            peer.input = kept;
        }
    }

    fn command(&mut self, number: usize, json: &[u8]) {
        let Ok(command) = serde_json::from_slice::<HashMap<&str, &RawValue>>(json) else { return };
        let text = |value: Option<&&RawValue>| value.map_or("", |value| value.get().trim_matches('"')).to_owned();
        let data = command.get("data").map_or("{}", |data| data.get());
        let Ok(data) = serde_json::from_str::<HashMap<&str, &RawValue>>(data) else { return };
        let channel = text(data.get("channel"));
        let id = command.get("id").map_or(String::new(), |id| format!(r#","id":{id}"#));
        match text(command.get("type")).as_str() {
            "subscribe" => {
                let answer = format!(
                    r#"{{"type":"subscription_confirmed","data":{{"channel":"{channel}"}},"timestamp":"{TIMESTAMP}","channel":"{channel}"{id}}}"#
                );
                self.channels.entry(channel).or_default().push(number);
                self.put(number, &frame(answer.as_bytes()));
            }
            "publish" => {
                let user = self.peers[number].as_ref().map_or("", |peer| &peer.user);
                let event = format!(
                    r#"{{"type":"{}","data":{},"timestamp":"{TIMESTAMP}","userId":"{user}","channel":"{channel}"}}"#,
                    text(data.get("event")),
                    data.get("data").map_or("null", |data| data.get()),
                );
                let bytes = frame(event.as_bytes());
                let members = self.channels.remove(&channel).unwrap_or_default();
                for member in &members {
                    self.put(*member, &bytes);
                }
                self.channels.insert(channel, members);
            }
            "ping" => {
                let answer =
                    format!(r#"{{"type":"pong","data":{{"timestamp":"{TIMESTAMP}"}},"timestamp":"{TIMESTAMP}"{id}}}"#);
                self.put(number, &frame(answer.as_bytes()));
            }
            _ => {}
        }
    }

    fn put(&mut self, number: usize, bytes: &[u8]) {
        let Some(peer) = self.peers[number].as_mut() else { return };
        peer.output.extend_from_slice(bytes);
        if !peer.is_dirty {
            peer.is_dirty = true;
            self.dirty.push(number);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let dirty = std::mem::take(&mut self.dirty);
        for part in dirty.chunks(ENTRIES as usize) {
            let sends: Vec<(usize, i32, &[u8])> = part
                .iter()
                .filter_map(|number| Some((*number, self.peers[*number].as_ref()?)))
                .map(|(number, peer)| (number, peer.stream.as_raw_fd(), &peer.output[..]))
                .collect();
            let lens: Vec<(usize, usize)> = sends.iter().map(|(number, _, bytes)| (*number, bytes.len())).collect();
            let mut taken = vec![0; sends.len()];
            match self.ring.as_mut() {
                Some(ring) => submit(ring, &sends, &mut taken)?,
                None => {
                    for ((_, fd, bytes), taken) in sends.iter().zip(&mut taken) {
                        // SAFETY: an open socket and a whole slice.
                        *taken = unsafe { libc::send(*fd, bytes.as_ptr().cast(), bytes.len(), FLAGS) } as i32;
                    }
                }
            }
            for ((number, len), taken) in lens.into_iter().zip(taken) {
                if usize::try_from(taken) != Ok(len) {
                    // The generator counts: a peer that is given up fails the run.
                    self.end(number);
                } else if let Some(peer) = self.peers[number].as_mut() {
                    peer.output.clear();
                    peer.is_dirty = false;
                }
            }
        }
        Ok(())
    }
}

fn submit(ring: &mut IoUring, sends: &[(usize, i32, &[u8])], taken: &mut [i32]) -> io::Result<()> {
    for (place, (_, fd, bytes)) in sends.iter().enumerate() {
        let entry = opcode::Send::new(types::Fd(*fd), bytes.as_ptr(), bytes.len() as u32).flags(FLAGS).build();
        // SAFETY: every send is answered before this returns, as none of them waits; the bytes live longer.
        unsafe { ring.submission().push(&entry.user_data(place as u64)) }.map_err(io::Error::other)?;
    }
    let mut answered = 0;
    while answered < sends.len() {
        ring.submit_and_wait(sends.len() - answered)?;
        for entry in ring.completion() {
            taken[entry.user_data() as usize] = entry.result();
            answered += 1;
        }
    }
    Ok(())
}

/// Header and payload of the masked frame at the front, where it is all there.
fn measured(bytes: &[u8]) -> Option<(usize, usize)> {
    let (header, len) = match bytes.get(1)? & 0x7f {
        126 => (8, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
        short => (6, usize::from(short)),
    };
    (bytes.len() >= header + len).then_some((header, len))
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x81];
    if payload.len() < 126 {
        bytes.push(payload.len() as u8);
    } else {
        bytes.push(126);
        bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// The answer to an upgrade (RFC 6455, 4.2.2).
fn accepted(head: &str) -> String {
    let named = |line: &&str| line.to_ascii_lowercase().starts_with("sec-websocket-key:");
    let key = head.lines().find(named).and_then(|line| line.split_once(':')).map_or("", |(_, key)| key.trim());
    let hash = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let accept = base64::engine::general_purpose::STANDARD.encode(hash);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}
