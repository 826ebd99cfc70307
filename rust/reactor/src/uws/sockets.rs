//! The sockets of uWebSockets that a shard's connections have, by the hub's slots.
//!
//! The hub writes HTTP answers and RFC 6455 frames for every driver; the library makes its own of both. So the first
//! bytes for a connection are taken for an answer, and what follows is taken apart by the heads of its frames. A stale
//! name never finds the socket that took its slot: names carry a generation, and are looked up before each call.

use crate::uws::callbacks::Heard;
use crate::uws::library::{Library, POLL_READABLE, Pointer};
use realtime_hub::{ConnId, Outcome, SendOp, Wire};
use realtime_protocol::frame::Opcode;
use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::Arc;

/// What the library may hold for one connection; the rest stays in our outbox, where its class says what becomes of it.
const BUFFERED_MAX: usize = 64 << 10;
const UPGRADE: &[u8] = b"HTTP/1.1 101";

/// One connection's socket.
pub(crate) struct Socket {
    conn: ConnId,
    stage: Stage,
    is_paused: bool,
}

enum Stage {
    Asked(Box<Request>),
    /// The address of the open socket.
    Open(usize),
    /// Our last word is said: the library ends what it has by itself.
    Ended,
}

/// What the library wants back for an answer.
pub(crate) struct Request {
    pub(crate) response: usize,
    /// 0 where it is no upgrade to the library.
    pub(crate) context: usize,
    pub(crate) key: Vec<u8>,
}

/// A shard's sockets.
pub(crate) struct UwsSockets {
    library: Library,
    /// The library's loop.
    us_loop: usize,
    heard: Arc<Heard>,
    slots: Vec<Option<Socket>>,
    count: usize,
    /// Connections whose answer has to wait for Python, by their responses.
    waiting: HashMap<usize, ConnId>,
}

impl Wire for UwsSockets {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        let Self { library, us_loop, heard, slots, waiting, .. } = self;
        for op in batch {
            let found = slots.get_mut(op.conn.slot()).and_then(Option::as_mut).filter(|socket| socket.conn == op.conn);
            let Some(socket) = found else { continue };
            op.outcome = Outcome::Sent(match &socket.stage {
                Stage::Asked(request) => {
                    waiting.remove(&request.response);
                    socket.answer(library, *us_loop, heard, op.bytes)
                }
                Stage::Open(_) => socket.send(library, *us_loop, op.bytes),
                Stage::Ended => op.bytes.len(),
            });
        }
    }

    /// A message goes to the library as one.
    fn takes_parts(&self) -> bool {
        false
    }
}

impl UwsSockets {
    pub(crate) fn new(library: Library, us_loop: usize, heard: Arc<Heard>) -> Self {
        Self { library, us_loop, heard, slots: Vec::new(), count: 0, waiting: HashMap::new() }
    }

    /// Sockets and requests that are there.
    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    /// Keeps a request. The hub may give a slot again before it has told that the last connection in it is to be
    /// closed: that is done here then.
    pub(crate) fn put(&mut self, conn: ConnId, request: Request) {
        let slot = conn.slot();
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        let socket = Socket { conn, stage: Stage::Asked(Box::new(request)), is_paused: false };
        self.count += 1;
        if let Some(before) = self.slots[slot].replace(socket) {
            self.count -= 1;
            self.end(before);
        }
    }

    /// The socket of exactly this connection.
    pub(crate) fn find(&mut self, conn: ConnId) -> Option<&mut Socket> {
        self.slots.get_mut(conn.slot())?.as_mut().filter(|socket| socket.conn == conn)
    }

    /// Forgets a socket that the library has ended; false where that was done before.
    pub(crate) fn forget(&mut self, conn: ConnId) -> bool {
        self.take(conn).is_some()
    }

    /// Whether a request has no answer yet; where its peer goes meanwhile, [`Self::of_aborted`] tells whose it was.
    pub(crate) fn waits(&mut self, conn: ConnId) -> bool {
        let Some(Stage::Asked(request)) = self.find(conn).map(|socket| &socket.stage) else { return false };
        let response = request.response;
        self.waiting.insert(response, conn);
        true
    }

    /// The connection of a request whose peer went before its answer.
    pub(crate) fn of_aborted(&mut self, response: usize) -> Option<ConnId> {
        self.waiting.remove(&response)
    }

    /// Closes the socket of exactly this connection at once.
    pub(crate) fn close(&mut self, conn: ConnId) {
        if let Some(socket) = self.take(conn) {
            self.end(socket);
        }
    }

    fn end(&mut self, socket: Socket) {
        match socket.stage {
            Stage::Asked(request) => {
                self.waiting.remove(&request.response);
                // SAFETY: neither answered nor aborted: both take a request from here.
                unsafe { (self.library.close_response)(0, request.response as Pointer) };
            }
            // SAFETY: the socket is open: its end takes it from here before the library frees it.
            Stage::Open(address) => unsafe { (self.library.close)(0, address as Pointer) },
            Stage::Ended => {}
        }
    }

    /// Closes every socket.
    pub(crate) fn close_all(&mut self) {
        let all: Vec<ConnId> = self.slots.iter().flatten().map(|socket| socket.conn).collect();
        for conn in all {
            self.close(conn);
        }
    }

    /// Has the library read no more of the connection.
    pub(crate) fn pause(&mut self, conn: ConnId) {
        let (library, us_loop) = (self.library, self.us_loop);
        if let Some(socket) = self.find(conn)
            && !std::mem::replace(&mut socket.is_paused, true)
        {
            socket.set_reading(&library, us_loop, false);
        }
    }

    /// Has the library read the connection again.
    pub(crate) fn resume(&mut self, conn: ConnId) {
        let (library, us_loop) = (self.library, self.us_loop);
        if let Some(socket) = self.find(conn)
            && std::mem::replace(&mut socket.is_paused, false)
        {
            socket.set_reading(&library, us_loop, true);
        }
    }

    fn take(&mut self, conn: ConnId) -> Option<Socket> {
        self.find(conn)?;
        self.count -= 1;
        self.slots[conn.slot()].take()
    }
}

impl Socket {
    /// The library has no call for it on a WebSocket: what it polls for is changed under it.
    fn set_reading(&self, library: &Library, us_loop: usize, on: bool) {
        let Stage::Open(address) = self.stage else { return };
        // SAFETY: the socket is open, and begins with what is polled.
        let events = unsafe { (library.poll_events)(address as Pointer) };
        let wanted = if on { events | POLL_READABLE } else { events & !POLL_READABLE };
        if wanted != events {
            // SAFETY: as above.
            unsafe { (library.poll_change)(address as Pointer, us_loop as Pointer, wanted) };
        }
    }

    /// Answers by the HTTP response that `bytes` begin with, and sends the frames behind a 101; returns what was taken.
    fn answer(&mut self, library: &Library, us_loop: usize, heard: &Heard, bytes: &[u8]) -> usize {
        let Stage::Asked(request) = std::mem::replace(&mut self.stage, Stage::Ended) else { return 0 };
        let response = request.response as Pointer;
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
        let text = std::str::from_utf8(&bytes[..head]).unwrap_or_default();
        let mut lines = text.lines();
        let status = lines.next().and_then(|line| line.split_once(' ')).map_or("", |(_, status)| status);
        let headers = lines.filter_map(|line| line.split_once(": "));
        if !bytes.starts_with(UPGRADE) || request.context == 0 {
            let own = |name: &str| ["content-length", "connection"].iter().any(|own| name.eq_ignore_ascii_case(own));
            let headers = headers.filter(|(name, _)| !own(name));
            // SAFETY: neither answered nor aborted: both take a request from here.
            unsafe { library.answer(response, status, headers, &bytes[head..]) };
            heard.note_end(self.conn);
            return bytes.len();
        }
        let is_protocol = |name: &str| name.eq_ignore_ascii_case("sec-websocket-protocol");
        let protocol = headers.into_iter().find(|(name, _)| is_protocol(name)).map_or("", |(_, value)| value);
        let (user_data, context) = (self.conn.as_u64() as Pointer, request.context as Pointer);
        // SAFETY: as above; the texts live through the call.
        unsafe {
            let (key, protocol) = (request.key.as_slice(), protocol.as_bytes());
            (library.upgrade)(
                0,
                response,
                user_data,
                key.as_ptr().cast(),
                key.len(),
                protocol.as_ptr().cast(),
                protocol.len(),
                c"".as_ptr(),
                0,
                context,
            );
        }
        // It has told of the open socket before it returned.
        if let Some(address) = heard.take_opened() {
            self.stage = Stage::Open(address);
        }
        head + self.send(library, us_loop, &bytes[head..])
    }

    /// Sends whole frames while there is room in the library; returns the bytes of those that it took.
    fn send(&mut self, library: &Library, us_loop: usize, bytes: &[u8]) -> usize {
        let Stage::Open(address) = self.stage else { return bytes.len() };
        let socket = address as Pointer;
        let mut taken = 0;
        while taken < bytes.len() {
            // SAFETY: the socket is open: its end takes it from here before the library frees it.
            let held = usize::try_from(unsafe { (library.buffered)(0, socket) }).unwrap_or(0);
            let portion = Portion::of(&bytes[taken..], BUFFERED_MAX.saturating_sub(held));
            // SAFETY: as above.
            unsafe { portion.send(library, socket) };
            taken += portion.bytes.len();
            if let Some(close) = portion.close {
                self.end(library, socket, close);
                return bytes.len();
            }
            if portion.bytes.is_empty() {
                break;
            }
        }
        if self.is_paused {
            // A write that was not taken whole makes the library read again.
            self.set_reading(library, us_loop, false);
        }
        taken
    }

    /// Says the last word.
    fn end(&mut self, library: &Library, socket: Pointer, payload: &[u8]) {
        self.stage = Stage::Ended;
        let (code, reason) = match payload {
            [high, low, reason @ ..] => (c_int::from(u16::from_be_bytes([*high, *low])), reason),
            _ => (0, &[][..]),
        };
        // SAFETY: the socket is open, and not used after this.
        unsafe { (library.end)(0, socket, code, reason.as_ptr().cast(), reason.len()) };
    }
}

/// Neighbouring frames of which the library has room for all but the last, and the payload of a Close behind them.
struct Portion<'a> {
    bytes: &'a [u8],
    frames: usize,
    close: Option<&'a [u8]>,
}

impl<'a> Portion<'a> {
    fn of(bytes: &'a [u8], room: usize) -> Self {
        let (mut end, mut frames, mut close) = (0, 0, None);
        while end < room
            && let Some((opcode, header, length)) = head_of(&bytes[end..])
        {
            if opcode == Opcode::Close as u8 {
                close = Some(&bytes[end + header..end + header + length]);
                break;
            }
            (end, frames) = (end + header + length, frames + 1);
        }
        Self { bytes: &bytes[..end], frames, close }
    }

    /// # Safety
    /// The socket is open.
    unsafe fn send(&self, library: &Library, socket: Pointer) {
        let mut each = || {
            let mut at = 0;
            while let Some((opcode, header, length)) = head_of(&self.bytes[at..]) {
                let payload = self.bytes[at + header..].as_ptr();
                // SAFETY: the caller's word; the payload lives through the call, which copies what it does not send.
                unsafe { (library.send)(0, socket, payload.cast(), length, c_int::from(opcode), false, true) };
                at += header + length;
            }
        };
        match self.frames {
            0 | 1 => each(),
            // SAFETY: the caller's word.
            _ => unsafe { library.with_corked(socket, &mut each) },
        }
    }
}

/// Opcode, bytes of the header and of the payload of a server's frame that is there whole.
fn head_of(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (header, length) = match second & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        short => (2, usize::from(short)),
    };
    (bytes.len() - header >= length).then_some((first & 0x0f, header, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_tells_where_its_payload_is() {
        assert_eq!(head_of(&[0x81, 2, b'h', b'i']), Some((1, 2, 2)));
        assert_eq!(head_of(&[0x81, 2, b'h']), None);
        let mut long = vec![0x82, 126, 1, 0];
        long.extend_from_slice(&[0; 256]);
        assert_eq!(head_of(&long), Some((2, 4, 256)));
    }

    #[test]
    fn a_portion_is_whole_frames_up_to_the_room_or_a_close() {
        let frames = [0x81, 1, b'a', 0x82, 1, b'b', 0x88, 2, 3, 232, 0x81, 1, b'c'];
        for (room, bytes, count, close) in
            [(0, 0, 0, None), (1, 3, 1, None), (3, 3, 1, None), (4, 6, 2, None), (64, 6, 2, Some(&[3, 232][..]))]
        {
            let portion = Portion::of(&frames, room);
            assert_eq!((portion.bytes.len(), portion.frames, portion.close), (bytes, count, close), "room for {room}");
        }
    }
}
