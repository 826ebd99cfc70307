//! All connections of the generator on one poller and one thread.
//!
//! A workload works in turns: queue frames on connections, [`Swarm::turn`] sends them, waits, reads all that is ready and hands every text
//! frame to a callback. Frames queued for one connection between two turns leave in one write, as those of a busy client do.
//! Invariants: an ended connection is reported once in [`Swarm::ends`] and never read again; the callback runs on the caller's stack and
//! cannot reach the swarm, so it records and the caller acts after the turn. Edge-triggered: every ready socket is read until empty.

use crate::clock::{Clock, ns};
use crate::connection::{Connection, End, Reader, Stage, Traffic};
use crate::deflate::Inflater;
use crate::dialect::Dialect;
use crate::failure::Failure;
use crate::histogram::Histogram;
use crate::watch::{Progress, Watch, Wish};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Where to connect and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server.
    pub address: SocketAddr,
    /// Value of the `Host` header.
    pub host: String,
    /// Path of the endpoint, with its query if it has one.
    pub path: String,
    /// Tokens, used round-robin; without any, no `token` is sent.
    pub tokens: Vec<String>,
    /// Whether permessage-deflate is offered, and required.
    pub compress: bool,
    /// What the server speaks.
    pub dialect: Dialect,
}

impl Target {
    fn request(&self, index: usize) -> Vec<u8> {
        if self.tokens.is_empty() {
            return Connection::request(&self.host, &self.path, self.compress);
        }
        let token = &self.tokens[index % self.tokens.len()];
        let separator = if self.path.contains('?') { '&' } else { '?' };
        Connection::request(&self.host, &format!("{}{separator}token={token}", self.path), self.compress)
    }
}

/// The connections.
pub struct Swarm {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    reader: Reader,
    dirty: Vec<usize>,
    ends: Vec<(usize, End)>,
    under_way: usize,
    alive: usize,
    clock: Clock,
    watch: Watch,
    connect: Histogram,
}

impl Swarm {
    /// No connections yet.
    ///
    /// # Errors
    /// When the system gives no poller.
    pub fn new(clock: Clock, watch: Watch) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            connections: Vec::new(),
            reader: Reader { buffer: vec![0; 256 * 1024].into_boxed_slice(), inflater: Inflater::default() },
            dirty: Vec::new(),
            ends: Vec::new(),
            under_way: 0,
            alive: 0,
            clock,
            watch,
            connect: Histogram::default(),
        })
    }

    /// Ask whoever watches whether to go on; `progress` gets the time in ns and says how far the run is, but for the connections.
    pub fn look(&mut self, progress: impl FnOnce(u64) -> Progress) -> Wish {
        let now_ns = self.clock.now_ns();
        let connections = self.alive - self.under_way;
        self.watch.look(now_ns, || Progress { connections, ..progress(now_ns) })
    }

    /// Whether the run was told to end early.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.watch.stopped()
    }

    /// From the connect of each connection to its first frame, of the last [`Self::open`].
    #[must_use]
    pub const fn connect_times(&self) -> &Histogram {
        &self.connect
    }

    /// What went over all connections since they were opened, WebSocket and HTTP.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        for connection in &self.connections {
            sum.add(connection.traffic());
        }
        sum
    }

    /// The clock of every time that callbacks are given.
    #[must_use]
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// Connections that are not over.
    #[must_use]
    pub const fn alive(&self) -> usize {
        self.alive
    }

    /// Connections that ended since the last [`Self::open`], each once, with the reason.
    #[must_use]
    pub fn ends(&self) -> &[(usize, End)] {
        &self.ends
    }

    /// Open `count` connections, at most `window` handshakes at a time, and wait for the first frame of each.
    /// Connections of an earlier call must be closed; indices start at 0 again.
    ///
    /// # Errors
    /// With the first connection that failed and why, or that `timeout` passed. It is [`Failure::Call`] where the first of all could not
    /// reach a server, which nobody but the caller can mend.
    pub fn open(&mut self, target: &Target, count: usize, window: usize, timeout: Duration) -> Result<(), Failure> {
        self.connect.clear();
        self.connections.clear();
        self.ends.clear();
        self.dirty.clear();
        (self.under_way, self.alive) = (0, 0);
        let deadline_ns = self.clock.now_ns() + ns(timeout);
        while self.connections.len() < count || self.under_way > 0 {
            while self.connections.len() < count && self.under_way < window {
                let index = self.connections.len();
                self.connect(target).map_err(|error| Failure::Call(format!("connection {index}: {error}")))?;
            }
            if self.look(|_| Progress { phase: "connecting", ..Progress::default() }) != Wish::GoOn {
                return Err(Failure::Stopped);
            }
            self.turn(Some(Duration::from_millis(100)), |_, _, _| {})?;
            let open = self.connect.samples();
            if let Some((index, end)) = self.ends.first() {
                let sentence = format!("connection {index} to {}: {end} ({open} were open)", target.host);
                let nobody = open == 0 && matches!(end, End::Io(_));
                return Err(if nobody { Failure::Call(sentence) } else { Failure::Server(sentence) });
            }
            if self.clock.now_ns() > deadline_ns {
                return Err(Failure::Server(format!(
                    "{open} of {count} connections open after {timeout:?}; raise --timeout or open fewer"
                )));
            }
        }
        Ok(())
    }

    /// Drop a connection's socket without a Close frame; it is no end that [`Self::ends`] tells of.
    pub fn cut(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if connection.stage() != Stage::Closed {
            // Failing to deregister a dead socket changes nothing.
            let _ = self.poll.registry().deregister(connection.stream());
            connection.end();
            self.alive -= 1;
        }
    }

    /// Open a connection that was cut once more; its first frame comes to the callback of [`Self::turn`].
    ///
    /// # Errors
    /// When the system gives no socket.
    pub fn reopen(&mut self, target: &Target, index: usize) -> io::Result<()> {
        let connection = self.begin(target, index)?;
        self.connections[index] = connection;
        Ok(())
    }

    /// Handshakes that are under way.
    #[must_use]
    pub const fn under_way(&self) -> usize {
        self.under_way
    }

    /// Begin [`Self::connect_times`] anew.
    pub fn forget_connect_times(&mut self) {
        self.connect.clear();
    }

    fn connect(&mut self, target: &Target) -> io::Result<()> {
        let connection = self.begin(target, self.connections.len())?;
        self.connections.push(connection);
        Ok(())
    }

    fn begin(&mut self, target: &Target, index: usize) -> io::Result<Connection> {
        let stream = TcpStream::connect(target.address)?;
        let now_ns = self.clock.now_ns();
        let mut connection = Connection::new(stream, target.request(index), index as u32 ^ 0x9e37_79b9, now_ns);
        connection.speak(target.dialect);
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(connection.stream(), Token(index), both)?;
        self.under_way += 1;
        self.alive += 1;
        Ok(connection)
    }

    /// Queue a text frame; the next turn sends it. Nothing happens on a connection that is over.
    pub fn send(&mut self, index: usize, payload: &[u8]) {
        let connection = &mut self.connections[index];
        if connection.stage() == Stage::Open {
            if !connection.has_output() {
                self.dirty.push(index);
            }
            connection.say(payload);
        }
    }

    /// Send what is queued, wait at most `wait` (`None`: until something happens), read everything that is ready.
    /// `on_text` gets the connection's index, the payload, and the time in ns at which it was read.
    ///
    /// # Errors
    /// When the poller fails; a connection's failure is its end, not an error.
    pub fn turn(&mut self, wait: Option<Duration>, mut on_text: impl FnMut(usize, &[u8], u64)) -> io::Result<()> {
        self.flush_dirty();
        match self.poll.poll(&mut self.events, wait) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let Self { events, connections, reader, ends, clock, dirty, under_way, alive, poll, connect, .. } = self;
        for event in events.iter() {
            let index = event.token().0;
            // An event of a connection that an earlier `open` left behind has no slot any more.
            let Some(connection) = connections.get_mut(index) else {
                continue;
            };
            if connection.stage() == Stage::Closed {
                continue;
            }
            let before = connection.stage();
            let mut result = Ok(());
            if event.is_writable() && (before == Stage::Connecting || connection.has_output()) {
                result = connection.writable();
            }
            if result.is_ok() && (event.is_readable() || event.is_read_closed() || event.is_error()) {
                result = connection.readable(reader, clock, |payload, now_ns| on_text(index, payload, now_ns));
            }
            let opening = |stage| matches!(stage, Stage::Connecting | Stage::Upgrading | Stage::Greeting);
            if let Err(end) = result {
                // Failing to deregister a dead socket changes nothing: closing it removes it from the poller.
                let _ = poll.registry().deregister(connection.stream());
                connection.end();
                ends.push((index, end));
                *alive -= 1;
            } else if connection.has_output() {
                dirty.push(index);
            }
            if opening(before) && !opening(connection.stage()) {
                *under_way -= 1;
                if connection.stage() == Stage::Open {
                    connect.record(clock.now_ns().saturating_sub(connection.started_ns()));
                }
            }
        }
        Ok(())
    }

    fn flush_dirty(&mut self) {
        while let Some(index) = self.dirty.pop() {
            let connection = &mut self.connections[index];
            if connection.stage() != Stage::Closed
                && let Err(end) = connection.flush()
            {
                let _ = self.poll.registry().deregister(connection.stream());
                connection.end();
                self.ends.push((index, end));
                self.alive -= 1;
            }
        }
    }

    /// Turn until no frame has come for `quiet`, at most for `longest`; true if it became quiet.
    ///
    /// # Errors
    /// When the poller fails, or whoever watches wants no more of it.
    pub fn settle(&mut self, quiet: Duration, longest: Duration) -> Result<bool, Failure> {
        let limit_ns = self.clock.now_ns() + ns(longest);
        let mut last_ns = self.clock.now_ns();
        loop {
            let now_ns = self.clock.now_ns();
            if now_ns - last_ns > ns(quiet) {
                return Ok(true);
            }
            if now_ns > limit_ns {
                return Ok(false);
            }
            if self.look(|_| Progress { phase: "settling", ..Progress::default() }) != Wish::GoOn {
                return Err(Failure::Stopped);
            }
            self.turn(Some(Duration::from_millis(10)), |_, _, read_ns| last_ns = read_ns)?;
        }
    }

    /// Close every connection with 1000 and wait for the server's answers; returns how many did not answer within `timeout`
    /// or ended without a Close frame of 1000.
    ///
    /// # Errors
    /// When the poller fails.
    pub fn close_all(&mut self, timeout: Duration) -> io::Result<usize> {
        let ended_before = self.ends.len();
        for (index, connection) in self.connections.iter_mut().enumerate() {
            if connection.stage() == Stage::Open {
                connection.begin_close();
                self.dirty.push(index);
            }
        }
        let deadline_ns = self.clock.now_ns() + ns(timeout);
        while self.alive > 0 && self.clock.now_ns() < deadline_ns {
            self.turn(Some(Duration::from_millis(50)), |_, _, _| {})?;
        }
        let unclean = self.ends[ended_before..].iter().filter(|(_, end)| !matches!(end, End::Close(1000, _))).count();
        Ok(unclean + self.alive)
    }
}
