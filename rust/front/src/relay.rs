//! An answer on its way to the client: read as fast as the server behind writes it, so that its place is free for
//! others, and written as fast as the client takes it.

use crate::body::Framing;
use crate::connection::{Said, due_by, emptied};
use crate::counters::Purpose;
use crate::exchange::{Fault, push_chunk};
use crate::response::{self, Client};
use crate::slots::Place;
use crate::state::State;
use crate::table::{Id, Stage};
use std::cell::Cell;
use std::io;
use std::time::Instant;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// What is held of one answer: somewhat more than the longest of the API. Longer ones are read at the client's pace.
const HELD_MAX: usize = (1 << 20) + (128 << 10);
/// Sent bytes that are dropped from the front of what is held.
const SENT_MAX: usize = 64 << 10;

/// What the answer and the look at the client know of each other.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    half_closed: Cell<bool>,
    event_stream: Cell<bool>,
}

impl Watched {
    pub(crate) fn half_close(&self) {
        self.half_closed.set(true);
    }

    pub(crate) fn is_event_stream(&self) -> bool {
        self.event_stream.get()
    }
}

/// One answer.
pub(crate) struct Relay<'a> {
    state: &'a State,
    stream: &'a TcpStream,
    id: Id,
    said: &'a Cell<Said>,
    client: Client,
    watched: &'a Watched,
    place: Option<Place>,
    out: Vec<u8>,
    sent: usize,
    /// Since when the client has had something to take, and how much it has taken since.
    pending: Option<(Instant, u64)>,
    /// Whether another request may follow on the connection to the server behind.
    pub(crate) is_reusable: bool,
    /// Whether the server behind knew the caller.
    pub(crate) is_known: bool,
    /// Whether a part of an answer was read that will not become whole.
    pub(crate) is_cut: bool,
}

impl<'a> Relay<'a> {
    pub(crate) fn new(
        state: &'a State,
        stream: &'a TcpStream,
        id: Id,
        said: &'a Cell<Said>,
        client: Client,
        watched: &'a Watched,
        place: Place,
    ) -> Self {
        Self {
            state,
            stream,
            id,
            said,
            client,
            watched,
            place: Some(place),
            out: Vec::new(),
            sent: 0,
            pending: None,
            is_reusable: false,
            is_known: false,
            is_cut: false,
        }
    }

    /// Passes the answer on; whether another request may follow on the client's connection.
    pub(crate) async fn run(&mut self, behind: &UnixStream) -> Result<bool, Fault> {
        let mut read = Vec::new();
        let answer = loop {
            if self.read(behind, &mut read).await? == 0 {
                return Err(Fault::Behind);
            }
            if let Some(answer) = self.head_of(&mut read)? {
                break answer;
            }
        };
        self.is_known = answer.is_known;
        self.watched.event_stream.set(answer.is_event_stream);
        if answer.is_event_stream && self.watched.half_closed.get() {
            return Err(Fault::Gone);
        }
        self.out = answer.head;
        let (mut body, is_chunked) = (answer.body, answer.is_chunked);
        let mut is_done = self.body_of(&mut read, &mut body, is_chunked)?;
        self.is_reusable = answer.is_reusable;
        loop {
            self.write_some(is_done)?;
            if is_done {
                self.free_place();
                if self.out.is_empty() {
                    return Ok(answer.is_kept);
                }
            }
            let (has_room, is_pending) = (self.out.len() - self.sent < HELD_MAX, !self.out.is_empty());
            tokio::select! {
                count = read_some(self.state, behind, &mut read), if !is_done && has_room => {
                    let is_end = count.map_err(|_| self.cut())? == 0;
                    is_done = self.body_of(&mut read, &mut body, is_chunked)?;
                    if is_end && !is_done {
                        if body != Framing::Close {
                            return Err(self.cut());
                        }
                        self.last_chunk(is_chunked);
                        is_done = true;
                    }
                }
                ready = self.stream.writable(), if is_pending => ready.map_err(|_| Fault::Gone)?,
            }
        }
    }

    fn cut(&mut self) -> Fault {
        self.is_cut = true;
        Fault::Behind
    }

    async fn read(&self, behind: &UnixStream, into: &mut Vec<u8>) -> Result<usize, Fault> {
        read_some(self.state, behind, into).await.map_err(|_| Fault::Behind)
    }

    /// The answer's head, once it is whole.
    fn head_of(&self, read: &mut Vec<u8>) -> Result<Option<response::Answer>, Fault> {
        while let Some((answer, len)) = response::parse(read, self.client).map_err(|_| Fault::Behind)? {
            read.drain(..len);
            if answer.is_some() {
                return Ok(answer);
            }
        }
        Ok(None)
    }

    /// Moves what was read of the body to what is to be sent; whether that was the last of it.
    fn body_of(&mut self, read: &mut Vec<u8>, body: &mut Framing, is_chunked: bool) -> Result<bool, Fault> {
        if is_chunked {
            let mut part = Vec::with_capacity(read.len());
            let used = body.take(read, &mut part).map_err(|_| self.cut())?;
            read.drain(..used);
            push_chunk(&mut self.out, &part);
        } else {
            let used = body.take(read, &mut self.out).map_err(|_| self.cut())?;
            read.drain(..used);
        }
        let is_whole = body.is_whole();
        if is_whole {
            self.last_chunk(is_chunked);
            // What follows belongs to nothing.
            self.is_reusable &= read.is_empty();
        }
        Ok(is_whole)
    }

    fn last_chunk(&mut self, is_chunked: bool) {
        if is_chunked {
            self.out.extend_from_slice(b"0\r\n\r\n");
        }
    }

    /// The server behind is done: others may ask it.
    fn free_place(&mut self) {
        if self.place.take().is_some() && !self.out.is_empty() {
            self.state.table.borrow_mut().enter(self.id, Stage::Answer, None, Instant::now());
            self.set_due();
        }
    }

    fn write_some(&mut self, is_done: bool) -> Result<(), Fault> {
        let before = self.sent;
        let mut written = 0;
        while self.sent < self.out.len() {
            match self.stream.try_write(&self.out[self.sent..]) {
                Ok(count) => {
                    self.said.set(Said::Begun);
                    self.sent += count;
                    written += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Fault::Gone),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > SENT_MAX {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        let had_pending = self.pending.is_some();
        self.pending = match self.pending {
            _ if self.out.is_empty() => None,
            None => Some((Instant::now(), 0)),
            Some((since, taken)) => Some((since, taken + written)),
        };
        let is_plain = is_done && self.out.is_empty() && before == 0 && !had_pending;
        if !is_plain {
            self.set_due();
        }
        Ok(())
    }

    /// Charges what is held, and says by when the client has to take it; one that has closed its side has a while for
    /// each part of an answer that still comes.
    fn set_due(&self) {
        let mut table = self.state.table.borrow_mut();
        let time = self.state.times.answer;
        let due = match self.pending {
            Some((since, taken)) => Some(due_by(since, time, taken)),
            None => self.watched.half_closed.get().then(|| Instant::now() + time),
        };
        table.set_due(self.id, due);
        table.hold(self.id, Purpose::Answers, self.out.len());
    }
}

/// Reads from the server behind what is there, or waits for it; 0 at the end.
async fn read_some(state: &State, behind: &UnixStream, into: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        {
            let mut scratch = state.scratch.borrow_mut();
            match behind.try_read(&mut scratch) {
                Ok(count) => {
                    into.extend_from_slice(&scratch[..count]);
                    if count > 0 && count < scratch.len() {
                        let _ = behind.try_io(Interest::READABLE, emptied);
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        behind.readable().await?;
    }
}
