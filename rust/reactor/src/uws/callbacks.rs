//! What uWebSockets calls, and where each call ends.
//!
//! Requests and messages go to the hub at once: they come only while the library's loop runs, when nobody else holds
//! the shard, so that the hub's limits hold and nothing piles up between. All other calls may come from within one of
//! ours (an end is told before the function that ends a socket returns), so they are noted, and handed in when the
//! loop has run. No call of the engine's is held up: what the hub answers to a message is sent by the turn.

use crate::panics;
use crate::uws::library::{Library, Pointer, Text, bytes};
use crate::uws::shard::UwsShard;
use crate::uws::sockets::Request;
use realtime_hub::ConnId;
use realtime_protocol::frame::Opcode;
use std::ffi::c_int;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was told and is not handed in yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// What the library held for it went out.
    Drained(ConnId),
    /// The socket ended, by a close frame with this payload or without one.
    Closed(ConnId, Option<Vec<u8>>),
    /// The peer went before this request was answered.
    Aborted(usize),
}

/// Where the library's calls leave what they tell.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    notes: Mutex<Vec<Note>>,
    /// Something came since it was asked last.
    any: AtomicBool,
    /// The socket of the upgrade that is under way.
    opened: AtomicUsize,
    /// What a panic said.
    fault: Mutex<Option<String>>,
}

impl Heard {
    fn note(&self, note: Note) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
        self.any.store(true, Ordering::Relaxed);
    }

    /// A connection ends that the library will tell nothing more of.
    pub(crate) fn note_end(&self, conn: ConnId) {
        self.note(Note::Closed(conn, None));
    }

    /// The socket that the last upgrade became.
    pub(crate) fn take_opened(&self) -> Option<usize> {
        Some(self.opened.swap(0, Ordering::Relaxed)).filter(|address| *address != 0)
    }

    pub(crate) fn take_notes(&self) -> Vec<Note> {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A panic, in a call of the library's, that is no one connection's.
    pub(crate) fn set_fault(&self, what: String) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    /// The message of such a panic.
    pub(crate) fn take_fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether anything came since this was asked last.
    pub(crate) fn take_any(&self) -> bool {
        self.any.swap(false, Ordering::Relaxed)
    }
}

/// What every call gets: it must live as long as the library may call.
pub(crate) struct Context {
    library: Library,
    heard: Arc<Heard>,
    shard: Arc<Mutex<UwsShard>>,
    sockets_max: usize,
}

impl Context {
    pub(crate) const fn new(
        library: Library,
        heard: Arc<Heard>,
        shard: Arc<Mutex<UwsShard>>,
        sockets_max: usize,
    ) -> Self {
        Self { library, heard, shard, sockets_max }
    }

    /// Has the shard do something; a panic must not reach the library, and the turn tells of it.
    fn with_shard<T>(&self, work: impl FnOnce(MutexGuard<'_, UwsShard>) -> T) -> Option<T> {
        self.heard.any.store(true, Ordering::Relaxed);
        match panics::caught(|| work(self.shard.lock().unwrap_or_else(PoisonError::into_inner))) {
            Ok(done) => Some(done),
            Err(what) => {
                self.heard.set_fault(what);
                None
            }
        }
    }

    /// # Safety
    /// `context` is the address of a `Context` that lives.
    unsafe fn at<'a>(context: Pointer) -> &'a Self {
        // SAFETY: the caller's word.
        unsafe { &*context.cast::<Self>() }
    }

    /// Whose socket it is: the name was given with the upgrade.
    ///
    /// # Safety
    /// The socket is one that the library calls for now.
    unsafe fn conn_of(&self, socket: Pointer) -> ConnId {
        // SAFETY: the caller's word.
        ConnId::from_u64(unsafe { (self.library.user_data)(0, socket) } as u64)
    }
}

/// The addresses of what the library has to call, each under its name in `uws_socket_behavior_t`; `request` is for
/// every other route too, and `context` is what all of them are to be given.
#[derive(Debug, Clone, Copy)]
pub struct Callbacks {
    /// `upgrade`.
    pub upgrade: usize,
    /// Requests that are no upgrades.
    pub request: usize,
    /// `open`.
    pub open: usize,
    /// `message`.
    pub message: usize,
    /// `drain`.
    pub drain: usize,
    /// `ping` and `pong`.
    pub ping_pong: usize,
    /// `close`.
    pub close: usize,
    /// `user_data` of all of them.
    pub context: usize,
}

impl Callbacks {
    /// The context is never freed: the library lives as long as the process.
    pub(crate) fn of(context: Context) -> Self {
        Self {
            upgrade: upgrade as *const () as usize,
            request: request as *const () as usize,
            open: open as *const () as usize,
            message: message as *const () as usize,
            drain: drain as *const () as usize,
            ping_pong: ping_pong as *const () as usize,
            close: close as *const () as usize,
            context: &raw const *Box::leak(Box::new(context)) as usize,
        }
    }
}

// SAFETY of all below: the library hands out what is valid for the time of the call, and the context that it was given.

unsafe extern "C" fn request(response: Pointer, request: Pointer, context: Pointer) {
    // SAFETY: as above.
    unsafe { upgrade(response, request, std::ptr::null_mut(), context) };
}

/// Takes a request over: it is gone when this returns, the response is not.
unsafe extern "C" fn upgrade(response: Pointer, request: Pointer, upgrade: Pointer, context: Pointer) {
    // SAFETY: as above.
    let own = unsafe { Context::at(context) };
    // SAFETY: as above.
    let (peer, (head, key)) = unsafe { (peer_of(&own.library, response), head_of(&own.library, request)) };
    let asked = Request { response: response as usize, context: upgrade as usize, key };
    let taken = own.with_shard(|mut shard| {
        let has_room = shard.len() < own.sockets_max;
        has_room.then(|| shard.request(peer, head, asked))
    });
    match taken {
        // SAFETY: as above; nobody has answered.
        Some(None) => unsafe { own.library.refuse(response) },
        Some(Some(false)) => {}
        // The library wants to be told within this call that the answer comes later.
        // SAFETY: as above.
        Some(Some(true)) | None => unsafe { (own.library.on_aborted)(0, response, aborted, context) },
    }
}

unsafe extern "C" fn aborted(response: Pointer, context: Pointer) {
    // SAFETY: as above.
    unsafe { Context::at(context) }.heard.note(Note::Aborted(response as usize));
}

unsafe extern "C" fn open(socket: Pointer, context: Pointer) {
    // SAFETY: as above.
    unsafe { Context::at(context) }.heard.opened.store(socket as usize, Ordering::Relaxed);
}

unsafe extern "C" fn message(socket: Pointer, payload: Text, length: usize, opcode: c_int, context: Pointer) {
    // SAFETY: as above.
    let (own, payload) = unsafe { (Context::at(context), bytes(payload, length)) };
    let opcode = if opcode == c_int::from(Opcode::Text as u8) { Opcode::Text } else { Opcode::Binary };
    // SAFETY: as above.
    let conn = unsafe { own.conn_of(socket) };
    own.with_shard(|mut shard| shard.message(conn, opcode, payload));
}

/// A ping is answered by the library; to the hub either one is a sign of life.
unsafe extern "C" fn ping_pong(socket: Pointer, _payload: Text, _length: usize, context: Pointer) {
    // SAFETY: as above.
    let own = unsafe { Context::at(context) };
    // SAFETY: as above.
    let conn = unsafe { own.conn_of(socket) };
    own.with_shard(|mut shard| shard.message(conn, Opcode::Pong, &[]));
}

unsafe extern "C" fn drain(socket: Pointer, context: Pointer) {
    // SAFETY: as above.
    let own = unsafe { Context::at(context) };
    // SAFETY: as above.
    own.heard.note(Note::Drained(unsafe { own.conn_of(socket) }));
}

unsafe extern "C" fn close(socket: Pointer, code: c_int, reason: Text, length: usize, context: Pointer) {
    // SAFETY: as above.
    let (own, reason) = unsafe { (Context::at(context), bytes(reason, length)) };
    // SAFETY: as above.
    own.heard.note(Note::Closed(unsafe { own.conn_of(socket) }, close_payload(code, reason)));
}

/// What the close frame carried that the library tells of by this code; None where there was none.
fn close_payload(code: c_int, reason: &[u8]) -> Option<Vec<u8>> {
    match u16::try_from(code).unwrap_or(0) {
        1006 => None,
        0 | 1005 => Some(Vec::new()),
        code => Some([&code.to_be_bytes(), reason].concat()),
    }
}

/// The head of a request as HTTP/1.1 has it, and its key.
///
/// # Safety
/// The library calls for this request now.
unsafe fn head_of(library: &Library, request: Pointer) -> (Vec<u8>, Vec<u8>) {
    struct Headers {
        head: Vec<u8>,
        key: Vec<u8>,
    }
    unsafe extern "C" fn header(name: Text, name_length: usize, value: Text, value_length: usize, headers: Pointer) {
        // SAFETY: the texts are valid for this call, and `headers` is what was handed over below.
        let (name, value, headers) =
            unsafe { (bytes(name, name_length), bytes(value, value_length), &mut *headers.cast::<Headers>()) };
        match name {
            // Not offered to the hub: the library would compress once for each receiver.
            b"sec-websocket-extensions" => return,
            b"sec-websocket-key" => headers.key = value.to_vec(),
            _ => {}
        }
        for part in [name, b": ", value, b"\r\n"] {
            headers.head.extend_from_slice(part);
        }
    }
    let mut headers = Headers { head: Vec::new(), key: Vec::new() };
    let mut text: Text = std::ptr::null();
    // SAFETY: the caller's word; each text is copied before the next is asked for.
    unsafe {
        let length = (library.method)(request, &raw mut text);
        headers.head.extend_from_slice(bytes(text, length));
        headers.head.push(b' ');
        let length = (library.url)(request, &raw mut text);
        headers.head.extend_from_slice(bytes(text, length));
        headers.head.extend_from_slice(b" HTTP/1.1\r\n");
        (library.for_each_header)(request, header, (&raw mut headers).cast());
    }
    headers.head.extend_from_slice(b"\r\n");
    (headers.head, headers.key)
}

/// Where a request comes from.
///
/// # Safety
/// The library calls for this response now.
unsafe fn peer_of(library: &Library, response: Pointer) -> IpAddr {
    let mut text: Text = std::ptr::null();
    // SAFETY: the caller's word.
    let address = unsafe {
        let length = (library.address)(0, response, &raw mut text);
        bytes(text, length)
    };
    let v4 = <[u8; 4]>::try_from(address).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    let v6 = || <[u8; 16]>::try_from(address).map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
    // None where the peer has gone already.
    v4.or_else(|_| v6()).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_is_told_with_what_its_frame_carried() {
        for (code, payload) in
            [(1006, None), (1005, Some(vec![])), (0, Some(vec![])), (1000, Some(vec![3, 232, b'b', b'y', b'e']))]
        {
            assert_eq!(close_payload(code, b"bye"), payload, "{code}");
        }
    }
}
