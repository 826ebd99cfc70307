//! The acceptor's thread: takes sockets from the listener and hands each to the least loaded shard.
//!
//! A thread of its own, so that its pauses hold up nobody: while Python is behind it leaves new peers in the kernel's
//! backlog. When no further socket can be held, by `sockets_max` or by the system, an unfinished handshake has to make
//! room: the hub names the oldest of the address with the most. Its shard ends it; until then the new socket stands
//! in a small reserve, and once that is used, or where the system refuses, accepting pauses instead of spinning. Only
//! where no unfinished handshake is left a peer is answered 503 and let go; that `connections_max` are open is told by
//! the hub. The thread ends when accepting ends; the port is free then.

use crate::bridge::Bridge;
use crate::handle::Elsewhere;
use crate::panics;
use crate::tcp::arrivals::{Arrival, Arrivals};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use realtime_hub::Hub;
use realtime_protocol::handshake::error_response;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LISTENER: Token = Token(0);
const WAKE: Token = Token(1);
/// How long nothing is accepted after the system refused a socket.
const PAUSE: Duration = Duration::from_millis(100);
/// The same where connections were told to make room: their shards end them in their next turn.
const PAUSE_FOR_ROOM: Duration = Duration::from_millis(5);
/// Sockets above `sockets_max` that may be open until those that make room for them are closed.
const MAKING_ROOM_MAX: usize = 16;
/// How long a peer that was turned away may take to read why: an early close could throw the answer away.
const LINGER: Duration = Duration::from_secs(1);
/// Peers that are given that time at once; beyond, the oldest goes early.
const LINGERING_MAX: usize = 16;

/// What the acceptor shares with the engine.
pub(crate) struct Door {
    waker: Waker,
    closing: AtomicBool,
}

impl Door {
    /// Makes the acceptor look at what has changed.
    pub(crate) fn wake(&self) {
        // Fails only when the poller's descriptor is broken, and then the thread has ended.
        let _ = self.waker.wake();
    }

    /// Asks for the end of accepting.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake();
    }
}

/// Where accepted sockets go and when they do not.
pub(crate) struct Admission {
    pub(crate) shards: Vec<Arc<Arrivals>>,
    pub(crate) sockets_max: usize,
    pub(crate) bridge: Arc<Bridge>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) elsewhere: Arc<OnceLock<Elsewhere>>,
}

struct Acceptor {
    poll: Poll,
    listener: TcpListener,
    /// Edge-triggered, as everywhere: set by an event, cleared only by an accept that would block.
    ready: bool,
    /// Set while the system gives no sockets.
    paused_until: Option<Instant>,
    lingering: VecDeque<(TcpStream, Instant)>,
    /// Accepted while there was no place, and the hub did not know yet who could make one.
    placeless: Option<Arrival>,
    admission: Admission,
    door: Arc<Door>,
}

/// The acceptor's poller and the door to it, made before anything runs so that whoever stops the engine has it.
pub(crate) fn open() -> io::Result<(Poll, Arc<Door>)> {
    let poll = Poll::new()?;
    let door = Arc::new(Door { waker: Waker::new(poll.registry(), WAKE)?, closing: AtomicBool::new(false) });
    Ok((poll, door))
}

/// Starts the thread on a listener that does not block; it ends after [`Door::close`].
pub(crate) fn spawn(
    poll: Poll,
    door: Arc<Door>,
    listener: std::net::TcpListener,
    admission: Admission,
) -> io::Result<JoinHandle<()>> {
    let mut listener = TcpListener::from_std(listener);
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut acceptor = Acceptor {
        poll,
        listener,
        ready: false,
        paused_until: None,
        lingering: VecDeque::new(),
        placeless: None,
        admission,
        door,
    };
    std::thread::Builder::new().name("realtime-accept".into()).spawn(move || {
        let bridge = Arc::clone(&acceptor.admission.bridge);
        let run = panics::caught(move || acceptor.run());
        if let Err(what) = run.and_then(|ended| ended.map_err(|error| error.to_string())) {
            bridge.fatal(format!("acceptor thread failed: {what}; end the process and start it again"));
        }
    })
}

impl Acceptor {
    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(4);
        loop {
            match self.poll.poll(&mut events, self.timeout()) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if events.iter().any(|event| event.token() == LISTENER) {
                self.ready = true;
            }
            let now = Instant::now();
            self.paused_until = self.paused_until.filter(|until| *until > now);
            while self.lingering.front().is_some_and(|(_, until)| *until <= now) {
                self.lingering.pop_front();
            }
            while self.may_accept() {
                self.accept();
            }
            if self.is_closing() {
                return Ok(());
            }
        }
    }

    /// Until something is due: the end of a pause, or of a turned-away peer's time.
    fn timeout(&self) -> Option<Duration> {
        let lingering = self.lingering.front().map(|(_, until)| *until);
        let due = [self.paused_until, lingering].into_iter().flatten().min()?;
        Some(due.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    fn is_closing(&self) -> bool {
        self.door.closing.load(Ordering::Acquire)
    }

    fn may_accept(&self) -> bool {
        // Behind a shared port somebody asks how the server is, pressed or not.
        let is_pressed = self.admission.bridge.is_pressed() && !self.admission.hub.passes_on();
        self.ready && self.paused_until.is_none() && !self.is_closing() && !is_pressed
    }

    fn accept(&mut self) {
        if let Some((socket, peer)) = self.placeless.take() {
            return self.hand_over(socket, peer);
        }
        match self.listener.accept() {
            Ok((stream, peer)) => {
                #[cfg(not(target_os = "linux"))]
                let _ = stream.set_nodelay(true);
                self.hand_over(stream.into(), peer.ip().to_canonical());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready = false,
            Err(error) if is_exhausted(&error) => {
                let errors = &self.admission.hub.counters().accept_errors;
                errors.fetch_add(1, Ordering::Relaxed);
                let is_making_room = self.make_room();
                self.pause(is_making_room);
            }
            // The peer went away between the handshake and here, or a signal came: the next one is not concerned.
            Err(_) => {}
        }
    }

    /// The system has no descriptor left: has as many connections end as may be accepted until their shards have.
    fn make_room(&mut self) -> bool {
        let had_lingering = !self.lingering.is_empty();
        self.lingering.clear();
        let ended = (0..MAKING_ROOM_MAX).take_while(|_| self.admission.hub.evict_one()).count();
        let makes_room = had_lingering || ended > 0;
        if !makes_room && let Some(make_room) = self.admission.elsewhere.get() {
            // Whether one goes there is not known: it is tried again after the long pause.
            make_room();
        }
        makes_room
    }

    fn pause(&mut self, is_making_room: bool) {
        self.paused_until = Some(Instant::now() + if is_making_room { PAUSE_FOR_ROOM } else { PAUSE });
    }

    fn hand_over(&mut self, socket: OwnedFd, peer: IpAddr) {
        let Admission { shards, sockets_max, hub, .. } = &self.admission;
        while self.open().saturating_sub(hub.making_room()) >= *sockets_max {
            if hub.evict_one() {
                continue;
            }
            if shards.iter().any(|shard| shard.has_unbegun()) {
                self.placeless = Some((socket, peer));
                return self.pause(true);
            }
            return self.turn_away(socket.into());
        }
        if let Some(shard) = shards.iter().min_by_key(|shard| shard.load()) {
            shard.push((socket, peer));
        }
        if self.open() >= sockets_max + MAKING_ROOM_MAX && hub.making_room() > 0 {
            self.pause(true);
        }
    }

    /// Sockets that shards have, or have not taken yet.
    fn open(&self) -> usize {
        self.admission.shards.iter().map(|shard| shard.load()).sum()
    }

    /// Answers 503 without having read the request: there is no room to keep it.
    fn turn_away(&mut self, mut stream: TcpStream) {
        self.admission.hub.counters().peer_refused(503);
        let answer = error_response(503, "Service Unavailable", &[("Retry-After", "1")]);
        // A fresh socket has room for it; a peer that is gone needs no answer.
        let _ = io::Write::write_all(&mut stream, &answer);
        let _ = stream.shutdown(Shutdown::Write);
        if self.lingering.len() == LINGERING_MAX {
            self.lingering.pop_front();
        }
        self.lingering.push_back((stream, Instant::now() + LINGER));
    }
}

/// No descriptor or no memory: trying again at once would only burn the processor.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_acceptor_pauses_only_where_the_system_has_run_out() {
        for (errno, exhausted) in [
            (libc::EMFILE, true),
            (libc::ENFILE, true),
            (libc::ENOBUFS, true),
            (libc::ENOMEM, true),
            (libc::ECONNABORTED, false),
            (libc::EINTR, false),
            (libc::EPERM, false),
        ] {
            assert_eq!(is_exhausted(&io::Error::from_raw_os_error(errno)), exhausted);
        }
    }
}
