//! One client's connection: its requests, one after the other, and what it is told when it has to go.

use crate::answers::Problem;
use crate::body::{Framing, Malformed};
use crate::counters::{End, Purpose, add};
use crate::options::Options;
use crate::rates::Account;
use crate::request::{Checked, check};
use crate::slots::{Kind, Place, Slots};
use crate::state::{PACE, State};
use crate::table::{Fate, Id, Stage};
use realtime_protocol::address::limited_as;
use realtime_protocol::handshake::{Head, HttpError, Limits, parse_head};
use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A body that is read whole before its request takes a place: as long as one of the API may be.
const BODY_KEPT: usize = 1 << 20;
/// How long a body may be silent before it is passed on in parts, where there is a place: its sender may wait for an
/// answer, and at the end of the server its request is under way.
const SILENCE: Duration = Duration::from_millis(50);
/// How long one that is closed may take to read why, and what is read of it meanwhile: an early close would throw the
/// answer away.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 16 << 20;
/// Connections that count no more and are given that time.
const LINGERING_MAX: u64 = 16;

/// How far the exchange with the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Nothing of a request has come.
    Nothing,
    /// A part of one has, and nothing of an answer has gone.
    Asked,
    /// A part of an answer has.
    Begun,
}

/// What follows on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Again,
    /// The client may still send, and shall be able to read its answer.
    Linger,
    Close,
}

pub(crate) struct Connection<'a> {
    pub(crate) state: &'a Rc<State>,
    pub(crate) stream: &'a TcpStream,
    pub(crate) id: Id,
    pub(crate) said: &'a Cell<Said>,
    peer: SocketAddr,
    /// Whose turn its requests take: the peer's, or of whom a proxy passes the request on.
    address: IpAddr,
    /// What was read and belongs to nothing yet.
    pub(crate) buffer: Vec<u8>,
}

/// A connection's place in the table; gone with its task, however that ends.
struct Seat<'a>(&'a Rc<State>, Id);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            add(&self.0.counters.panics, 1);
        }
        self.0.table.borrow_mut().close(self.1);
    }
}

/// Serves a connection until it ends or has to go.
pub(crate) async fn serve(
    state: Rc<State>,
    stream: TcpStream,
    peer: SocketAddr,
    begun: Vec<u8>,
    id: Id,
    fate: Rc<Fate>,
) {
    let seat = Seat(&state, id);
    let said = Cell::new(Said::Nothing);
    let mut connection = Connection {
        state: &state,
        stream: &stream,
        id,
        said: &said,
        peer,
        address: limited_as(peer.ip()),
        buffer: begun,
    };
    let end = tokio::select! {
        biased;
        end = fate.told() => Some(end),
        next = connection.run() => {
            if next == Next::Linger {
                state.table.borrow_mut().enter(id, Stage::Idle, Some(Instant::now() + LINGER), Instant::now());
                linger(&state, &stream).await;
            }
            None
        }
    };
    drop(connection);
    drop(seat);
    if let Some(end) = end {
        last_words(&state, &stream, end, said.get()).await;
    }
}

/// Tells one that has to go why, as far as there is room for it.
async fn last_words(state: &Rc<State>, stream: &TcpStream, end: End, said: Said) {
    let options = &state.options;
    let problem = match end {
        _ if said != Said::Asked => return,
        End::Head => Problem::too_slow(format!(
            "the head did not come within {} s (limits.handshake_timeout_s); send it at once",
            options.head_timeout_s
        )),
        End::Body => Problem::too_slow(format!(
            "the body did not come within {} s (api.body_timeout_s) and one more for each 4 KiB; send it faster",
            options.body_timeout_s
        )),
        End::Crowded => crowded(options),
        End::GaveWay => Problem::overloaded(
            "other addresses need the place of this body, of which this address has the most; send fewer at once, or \
             try again later"
                .into(),
        ),
        End::Bytes => Problem::overloaded(format!(
            "HTTP requests and answers hold over {} bytes (api.bytes_max); send less at once, or try again later",
            options.bytes_max
        )),
        End::Stopped => Problem { code: "unavailable", ..Problem::overloaded("the server ends".into()) },
        End::Idle | End::Answer | End::HalfClosed => return,
    };
    state.counters.refused(problem.status);
    // A socket to which nothing was written has room for it.
    let _ = stream.try_write(&problem.answer(false, false));
    let lingering = &state.lingering;
    if matches!(end, End::Head | End::Body | End::GaveWay) && lingering.get() < LINGERING_MAX {
        lingering.set(lingering.get() + 1);
        linger(state, stream).await;
        lingering.set(lingering.get() - 1);
    }
}

fn crowded(options: &Options) -> Problem {
    Problem::overloaded(format!(
        "{} connections are open (api.connections_max); use fewer at once, or try again later",
        options.connections_max
    ))
}

/// Answers 503 to one for whom nobody could go.
pub(crate) fn turn_away(state: &State, stream: &TcpStream) {
    state.counters.refused(503);
    let problem = crowded(&state.options);
    let _ = stream.try_write(&problem.answer(false, false));
}

/// Sends nothing more, and reads what still comes for a while.
async fn linger(state: &Rc<State>, stream: &TcpStream) {
    let _ = socket_shutdown(stream);
    let rest = async {
        let mut left = LINGER_BYTES;
        while left > 0 {
            let read = stream.try_read(&mut state.scratch.borrow_mut());
            match read {
                Ok(0) => return,
                Ok(count) => left = left.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if stream.readable().await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, rest).await;
}

fn socket_shutdown(stream: &TcpStream) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor is the stream's, which lives through the call; no pointer is passed.
    if unsafe { libc::shutdown(stream.as_raw_fd(), libc::SHUT_WR) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl Connection<'_> {
    async fn run(&mut self) -> Next {
        loop {
            match self.request().await {
                Ok(Next::Again) if !self.state.is_stopping.get() => {}
                Ok(Next::Again) | Err(_) => return Next::Close,
                Ok(next) => return next,
            }
            self.said.set(Said::Nothing);
            self.hold(Purpose::Bodies, 0);
            self.hold(Purpose::Answers, 0);
            self.state.table.borrow_mut().keep(self.id, Instant::now());
        }
    }

    async fn request(&mut self) -> io::Result<Next> {
        let mut request = match self.head().await? {
            None => return Ok(Next::Close),
            Some(Err(problem)) => return self.refuse(&problem, false, false).await,
            Some(Ok(request)) => request,
        };
        self.address = limited_as(request.client);
        self.said.set(Said::Asked);
        add(&self.state.counters.requests, 1);
        let account = match self.rated(&request).await? {
            Ok(account) => account,
            Err(refused) => return Ok(refused),
        };
        let mut content = Vec::new();
        let (is_head, is_kept) = (request.is_head, request.is_kept);
        let place = match self.body(&mut request, &mut content).await? {
            Ok(place) => place,
            Err(problem) => return self.refuse(&problem, is_head, false).await,
        };
        let is_whole = request.body.is_whole();
        let (slots, kind) = match (request.is_reserved, is_whole) {
            (true, true) => (&self.state.reserve, Kind::Whole),
            (false, true) => (&self.state.slots, Kind::Whole),
            (_, false) => (&self.state.slots, Kind::Upload),
        };
        let Some(place) = self.place(place, slots, kind).await else {
            let Options { requests_max, wait_s, .. } = &self.state.options;
            let problem = Problem::overloaded(format!(
                "no turn came within {wait_s} s (api.wait_s): {requests_max} requests are under way (api.in_flight_max), \
                 or three quarters of these for this address; send fewer at once, or try again later"
            ));
            return self.refuse(&problem, is_head, is_kept && is_whole).await;
        };
        if request.expects && !is_whole && content.is_empty() {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        self.exchange(request, content, place, account).await
    }

    /// Waits until the rate of the address lets the request go on, and says who was charged. Where it does not, the
    /// refusal waits, too: a crowd that asks again at once costs no more than one that waits.
    async fn rated(&mut self, request: &Checked) -> io::Result<Result<Account, Next>> {
        let (now, most) = (Instant::now(), self.state.times.wait);
        let account = Account { address: self.address, is_reserved: request.is_reserved };
        let taken = self.state.rates.take(account, now, most);
        let wait = taken.map_or(most, |(wait, _)| wait);
        if !wait.is_zero() {
            self.enter(Stage::Waiting, None);
            tokio::time::sleep(wait).await;
        }
        if let Ok((_, charged)) = taken {
            return Ok(Ok(charged));
        }
        let Options { address_requests_per_s: rate, .. } = self.state.options;
        let problem = Problem::too_often(format!(
            "this address has sent over {rate} requests a second without a token that is accepted \
             (limits.address_requests_per_s), so no other is looked at; try again later"
        ));
        self.refuse(&problem, request.is_head, request.is_kept && request.body.is_whole()).await.map(Err)
    }

    /// Reads a head; None where the client has ended the connection instead.
    async fn head(&mut self) -> io::Result<Option<Result<Checked, Problem>>> {
        let limits = Limits { head_bytes_max: self.state.options.head_bytes_max, ..Limits::default() };
        let mut searched = 0;
        loop {
            if self.said.get() == Said::Nothing {
                // A line end too many behind the last request is let pass (RFC 9112 §2.2).
                while self.buffer.starts_with(b"\r\n") {
                    self.buffer.drain(..2);
                }
            }
            if !self.buffer.is_empty() {
                match parse_head(&self.buffer, &mut searched, &limits) {
                    Head::Request(request, len) => {
                        let checked = check(&request, self.peer, &self.state.options);
                        take_off(&mut self.buffer, len);
                        return Ok(Some(checked));
                    }
                    Head::Bad(error) => return Ok(Some(Err(self.problem_of(error)))),
                    Head::Partial if self.said.get() == Said::Nothing => {
                        self.said.set(Said::Asked);
                        self.enter(Stage::Head, Some(self.state.times.head));
                    }
                    Head::Partial => {}
                }
            }
            self.hold(Purpose::Heads, self.buffer.capacity());
            if self.read().await? == 0 {
                return Ok(None);
            }
        }
    }

    fn problem_of(&self, error: HttpError) -> Problem {
        let most = self.state.options.head_bytes_max;
        let too_large = |status, detail: String| Problem { status, code: "too_large", detail };
        match error.status {
            414 => too_large(414, format!("the request line passes {most} bytes (limits.head_bytes_max); shorten it")),
            431 => too_large(
                431,
                format!("the head has over {most} bytes (limits.head_bytes_max) or 100 headers; send fewer cookies"),
            ),
            _ => Problem::malformed("the head is not HTTP/1.1 by the letter"),
        }
    }

    /// Reads the body, whole where it is short. Where it is not, its request may have found a place meanwhile.
    async fn body(
        &mut self,
        request: &mut Checked,
        content: &mut Vec<u8>,
    ) -> io::Result<Result<Option<Place>, Problem>> {
        if matches!(request.body, Framing::Length(left) if left > BODY_KEPT as u64) {
            return Ok(Ok(None));
        }
        let (began, mut is_begun) = (Instant::now(), false);
        loop {
            match request.body.take(&self.buffer, content) {
                Ok(used) => take_off(&mut self.buffer, used),
                Err(Malformed) => {
                    return Ok(Err(Problem::malformed("the body ended too early: its chunks are broken")));
                }
            }
            self.hold(Purpose::Heads, request.head.len() + self.buffer.capacity());
            self.hold(Purpose::Bodies, content.len());
            if request.body.is_whole() || content.len() > BODY_KEPT {
                return Ok(Ok(None));
            }
            if !is_begun {
                is_begun = true;
                self.enter(Stage::Body, None);
                if request.expects && content.is_empty() {
                    self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                    request.expects = false;
                }
            }
            self.due_by(began, self.state.times.body, content.len() as u64);
            let read = match tokio::time::timeout(SILENCE, self.read()).await {
                Ok(read) => read?,
                Err(_silent) => match self.state.slots.try_take(self.address, Kind::Upload) {
                    Some(place) => return Ok(Ok(Some(place))),
                    None => self.read().await?,
                },
            };
            if read == 0 {
                return Ok(Err(Problem::malformed("the body ended too early")));
            }
        }
    }

    /// A place for the request, once it is its turn; None where that takes too long.
    async fn place(&self, taken: Option<Place>, slots: &Rc<Slots>, kind: Kind) -> Option<Place> {
        let place = taken.or_else(|| slots.try_take(self.address, kind));
        if place.is_some() {
            return place;
        }
        self.enter(Stage::Waiting, None);
        if kind == Kind::Upload
            && let Some(other) = slots.in_the_way(self.address)
        {
            self.state.table.borrow_mut().end(other, End::GaveWay);
        }
        tokio::time::timeout(self.state.times.wait, slots.wait(self.address, kind)).await.ok().flatten()
    }

    /// Answers by the front itself.
    pub(crate) async fn refuse(&mut self, problem: &Problem, is_head: bool, is_kept: bool) -> io::Result<Next> {
        self.state.counters.refused(problem.status);
        self.said.set(Said::Begun);
        self.enter(Stage::Answer, Some(self.state.times.answer));
        self.write(&problem.answer(is_kept, is_head)).await?;
        Ok(if is_kept { Next::Again } else { Next::Linger })
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is there, or waits for it; 0 at the end.
    async fn read(&mut self) -> io::Result<usize> {
        read_into(self.state, self.stream, &mut self.buffer).await
    }

    pub(crate) fn enter(&self, stage: Stage, within: Option<Duration>) {
        let now = Instant::now();
        self.state.table.borrow_mut().enter(self.id, stage, within.map(|time| now + time), now);
    }

    fn hold(&self, purpose: Purpose, bytes: usize) {
        self.state.table.borrow_mut().hold(self.id, purpose, bytes);
    }

    fn due_by(&self, began: Instant, time: Duration, bytes: u64) {
        self.state.table.borrow_mut().set_due(self.id, Some(due_by(began, time, bytes)));
    }
}

/// When something has to be done that moves: later for each part that came at [`PACE`].
pub(crate) fn due_by(began: Instant, time: Duration, bytes: u64) -> Instant {
    began + time + Duration::from_millis(bytes * 1_000 / PACE)
}

/// Takes what was used off the front. A buffer that is empty keeps no memory: connections wait for most of their time.
pub(crate) fn take_off(buffer: &mut Vec<u8>, count: usize) {
    if count == buffer.len() {
        *buffer = Vec::new();
    } else {
        buffer.drain(..count);
    }
}

/// Reads from a client what is there, or waits for it; 0 at the end.
pub(crate) async fn read_into(state: &State, stream: &TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        {
            let mut scratch = state.scratch.borrow_mut();
            match stream.try_read(&mut scratch) {
                Ok(count) => {
                    buffer.extend_from_slice(&scratch[..count]);
                    if count > 0 && count < scratch.len() {
                        let _ = stream.try_io(Interest::READABLE, emptied);
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        stream.readable().await?;
    }
}

/// A short read emptied the socket, and what comes later is told anew: saves the read that would find nothing.
pub(crate) fn emptied() -> io::Result<()> {
    Err(io::ErrorKind::WouldBlock.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_empty_keeps_no_memory() {
        let mut buffer = vec![b'x'; 1_000];
        take_off(&mut buffer, 999);
        assert_eq!(buffer, b"x");
        take_off(&mut buffer, 1);
        assert_eq!(buffer.capacity(), 0);
    }
}
