//! One request with the server behind: it goes out, and its answer comes back, at the same time where the body is long.

use crate::accept::is_exhausted;
use crate::answers::Problem;
use crate::body::Framing;
use crate::connection::{Connection, Next, Said, due_by, read_into, take_off};
use crate::counters::Purpose;
use crate::options::NUMBER_HEADER;
use crate::rates::Account;
use crate::relay::{Relay, Watched};
use crate::request::Checked;
use crate::response::{Client, SHORT_BODY};
use crate::slots::Place;
use crate::state::State;
use crate::table::{Id, Stage};
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// A long body is passed on in parts of at least this, or of what has come when nothing more does for [`QUIET`]:
/// parts of a byte would cost Python a call each.
const PART: usize = 16 * 1024;
const QUIET: Duration = Duration::from_millis(5);

/// Why an exchange ended early.
pub(crate) enum Fault {
    /// The client is gone, or does not take its answer.
    Gone,
    /// The client's body is none.
    Malformed,
    /// The server behind has not answered.
    Behind,
}

impl Connection<'_> {
    /// Passes a request on and its answer back.
    pub(crate) async fn exchange(
        &mut self,
        request: Checked,
        content: Vec<u8>,
        place: Place,
        account: Account,
    ) -> io::Result<Next> {
        let client = Client {
            minor_version: request.minor_version,
            is_head: request.is_head,
            is_kept: request.is_kept,
            has_long_body: !request.body.is_whole() || content.len() > SHORT_BODY,
        };
        let behind = match self.behind().await {
            Ok(behind) => behind,
            Err(error) => {
                drop(place);
                let problem = if is_exhausted(&error) { crowded() } else { unanswered() };
                return self.refuse(&problem, client.is_head, false).await;
            }
        };
        let Checked { mut head, mut body, has_length, .. } = request;
        head.extend_from_slice(format!("{NUMBER_HEADER}: {}\r\n", place.number()).as_bytes());
        let first = first_part(head, &body, has_length, &content);
        drop(content);
        let was_whole = body.is_whole();
        self.enter(if was_whole { Stage::InFlight } else { Stage::Upload }, None);
        let number = place.number();
        if !was_whole {
            self.state.slots.comes(&place, self.id);
        }
        let watched = Watched::default();
        let mut relay = Relay::new(self.state, self.stream, self.id, self.said, client, &watched, place);
        let upload = Upload { state: self.state, stream: self.stream, id: self.id, buffer: &mut self.buffer };
        let outcome = {
            let mut sending = pin!(send(&behind, first, upload, &mut body));
            let mut receiving = pin!(relay.run(&behind));
            let mut watching = pin!(watch(self.state, self.stream, self.id, &watched));
            let mut is_sent = false;
            loop {
                tokio::select! {
                    sent = &mut sending, if !is_sent => match sent {
                        Err(Fault::Behind) | Ok(()) => {
                            is_sent = true;
                            let now = Instant::now();
                            if !was_whole {
                                self.state.slots.came(number);
                                self.state.table.borrow_mut().enter(self.id, Stage::InFlight, None, now);
                            }
                        }
                        Err(fault) => break Err(fault),
                    },
                    received = &mut receiving => break received,
                    () = &mut watching, if is_sent => break Err(Fault::Gone),
                }
            }
        };
        self.after(outcome, relay, behind, client, account, body.is_whole()).await
    }

    /// A connection to the server behind. Where no descriptor is left for one, connections that ask for nothing go, and
    /// one that is there already is waited for.
    async fn behind(&self) -> io::Result<UnixStream> {
        let until = Instant::now() + self.state.times.wait;
        loop {
            match self.state.upstream.take().await {
                Err(error) if is_exhausted(&error) && Instant::now() < until => {
                    self.state.make_room().await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn after(
        &mut self,
        outcome: Result<bool, Fault>,
        relay: Relay<'_>,
        behind: UnixStream,
        client: Client,
        account: Account,
        is_whole: bool,
    ) -> io::Result<Next> {
        let is_reusable = relay.is_reusable && is_whole;
        let is_cut = relay.is_cut;
        if relay.is_known {
            self.state.rates.give_back(account);
        }
        drop(relay);
        match outcome {
            Ok(is_kept) => {
                if is_reusable {
                    self.state.upstream.give_back(behind, Instant::now());
                }
                Ok(match (is_kept && is_whole, is_whole && self.buffer.is_empty()) {
                    (true, _) => Next::Again,
                    (false, true) => Next::Close,
                    (false, false) => Next::Linger,
                })
            }
            Err(Fault::Gone) => Ok(Next::Close),
            Err(_) if self.said.get() == Said::Begun || is_cut => Ok(Next::Close),
            Err(Fault::Malformed) => {
                drop(behind);
                let problem = Problem::malformed("the body ended too early, or its chunks are broken");
                self.refuse(&problem, client.is_head, false).await
            }
            Err(Fault::Behind) => {
                drop(behind);
                self.refuse(&unanswered(), client.is_head, false).await
            }
        }
    }
}

fn unanswered() -> Problem {
    Problem { status: 500, code: "internal", detail: "the request was not answered".into() }
}

fn crowded() -> Problem {
    Problem::overloaded("the process has no descriptor left for another request; try again later".into())
}

/// The head, its frame, and what is there of the body.
fn first_part(head: Vec<u8>, body: &Framing, has_length: bool, content: &[u8]) -> Vec<u8> {
    let mut first = head;
    first.reserve(content.len() + 64);
    match body {
        Framing::Length(left) if !body.is_whole() => {
            let length = left + content.len() as u64;
            first.extend_from_slice(format!("content-length: {length}\r\n\r\n").as_bytes());
            first.extend_from_slice(content);
        }
        Framing::Chunked(_) if !body.is_whole() => {
            first.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            push_chunk(&mut first, content);
        }
        _ if content.is_empty() && !has_length => first.extend_from_slice(b"\r\n"),
        _ => {
            first.extend_from_slice(format!("content-length: {}\r\n\r\n", content.len()).as_bytes());
            first.extend_from_slice(content);
        }
    }
    first
}

/// Appends one chunk; none where there is nothing in it, which would be the last.
pub(crate) fn push_chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
    }
}

/// Where the rest of a long body comes from.
struct Upload<'a> {
    state: &'a State,
    stream: &'a TcpStream,
    id: Id,
    buffer: &'a mut Vec<u8>,
}

async fn send(behind: &UnixStream, first: Vec<u8>, mut upload: Upload<'_>, body: &mut Framing) -> Result<(), Fault> {
    write_all(behind, &first).await?;
    drop(first);
    let is_chunked = matches!(body, Framing::Chunked(_));
    let (began, mut total) = (Instant::now(), 0);
    let (mut part, mut framed) = (Vec::new(), Vec::new());
    while !body.is_whole() {
        upload.part(body, &mut part, began, &mut total).await?;
        if is_chunked {
            push_chunk(&mut framed, &part);
            if body.is_whole() {
                framed.extend_from_slice(b"0\r\n\r\n");
            }
            write_all(behind, &framed).await?;
            framed.clear();
        } else {
            write_all(behind, &part).await?;
        }
        part.clear();
    }
    upload.hold(0);
    Ok(())
}

impl Upload<'_> {
    /// Reads a part that is worth passing on.
    async fn part(
        &mut self,
        body: &mut Framing,
        part: &mut Vec<u8>,
        began: Instant,
        total: &mut u64,
    ) -> Result<(), Fault> {
        let allowed = self.state.times.body;
        loop {
            let before = part.len();
            let used = body.take(self.buffer, part).map_err(|_| Fault::Malformed)?;
            take_off(self.buffer, used);
            *total += (part.len() - before) as u64;
            self.hold(part.len());
            if body.is_whole() || part.len() >= PART {
                return Ok(());
            }
            self.state.table.borrow_mut().set_due(self.id, Some(due_by(began, allowed, *total)));
            let reading = read_into(self.state, self.stream, self.buffer);
            let read = if part.is_empty() {
                reading.await
            } else {
                match tokio::time::timeout(QUIET, reading).await {
                    Ok(read) => read,
                    Err(_quiet) => return Ok(()),
                }
            };
            match read {
                Ok(0) => return Err(Fault::Malformed),
                Ok(_) => {}
                Err(_) => return Err(Fault::Gone),
            }
        }
    }

    fn hold(&self, bytes: usize) {
        self.state.table.borrow_mut().hold(self.id, Purpose::Bodies, bytes + self.buffer.capacity());
    }
}

async fn write_all(behind: &UnixStream, mut bytes: &[u8]) -> Result<(), Fault> {
    while !bytes.is_empty() {
        match behind.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                behind.writable().await.map_err(|_| Fault::Behind)?;
            }
            Err(_) => return Err(Fault::Behind),
        }
    }
    Ok(())
}

/// Returns when the client is gone: a reset, or its end where nobody would read what still comes. One that has only
/// closed its own side gets its answer.
async fn watch(state: &State, stream: &TcpStream, id: Id, watched: &Watched) {
    match stream.peek(&mut [0]).await {
        Ok(0) => {
            watched.half_close();
            state.table.borrow_mut().half_closed(id, Instant::now() + state.times.answer);
            if watched.is_event_stream() {
                return;
            }
        }
        // Another request waits behind this one.
        Ok(_) => {}
        Err(_) => return,
    }
    let _ = stream.ready(Interest::ERROR).await;
}
