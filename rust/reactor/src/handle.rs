//! What Python holds of an engine: commands down, events up, questions in between.
//!
//! The hub exists from the start of the engine on; before it there is nothing to command, and questions are answered
//! as for an engine without connections. All calls are safe from any thread and none blocks on I/O.

use crate::bridge::Bridge;
use crate::clock::Clock;
use crate::error::StartError;
use crate::log::{LogHealth, LogReads, LogRequests, ReadBounds};
use crate::tcp::Flushes;
use realtime_hub::{Command, ConnId, Counters, Event, Hub};
use std::io;
use std::net::IpAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long a page of the log waits to be read: as long as a handler may take.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// Takes a socket that somebody else serves, with what was read of it.
pub(crate) type Passer = Box<dyn Fn(OwnedFd, Vec<u8>) + Send + Sync>;

/// Has a socket that somebody else serves end.
pub(crate) type Elsewhere = Box<dyn Fn() + Send + Sync>;

/// Python's end of an engine.
pub struct Handle {
    pub(crate) hub: OnceLock<Arc<Hub>>,
    pub(crate) bridge: Arc<Bridge>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) requests: Arc<LogRequests>,
    pub(crate) reads: Arc<LogReads>,
    pub(crate) log_health: Arc<LogHealth>,
    pub(crate) stopped: AtomicBool,
    /// How sends reach the kernel; never set where there is no kernel, as over virtual links.
    pub(crate) flushes: OnceLock<Arc<Flushes>>,
    pub(crate) passer: Arc<OnceLock<Passer>>,
    pub(crate) elsewhere: Arc<OnceLock<Elsewhere>>,
    commands_waiting_bytes_max: usize,
}

impl Handle {
    pub(crate) fn new(limits: &realtime_hub::Limits, clock: Clock) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            hub: OnceLock::new(),
            bridge: Arc::new(Bridge::new(limits.events_waiting_max)?),
            clock: Arc::new(clock),
            requests: Arc::default(),
            reads: Arc::new(LogReads::new(ReadBounds {
                reader_most: limits.user_reads_waiting_max,
                patience: READ_PATIENCE,
            })),
            log_health: Arc::default(),
            stopped: AtomicBool::new(false),
            flushes: OnceLock::new(),
            passer: Arc::default(),
            elsewhere: Arc::default(),
            commands_waiting_bytes_max: limits.commands_waiting_bytes_max,
        }))
    }

    /// Whether commands have somewhere to go: true from the start of the engine on, also after its end, when they
    /// are dropped.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.hub.get().is_some()
    }

    /// Hands a batch over, in order. Before the start it is lost: ask [`Self::is_started`].
    pub fn submit(&self, commands: Vec<Command>) {
        let Some(hub) = self.hub.get().filter(|_| !self.stopped.load(Ordering::Acquire)) else {
            return;
        };
        let mut events = Vec::new();
        hub.submit(commands, self.clock.now(), &mut events);
        self.bridge.push(&mut events);
    }

    /// Replaces the rule of tokens and the origins; see [`Hub::set_identity`].
    ///
    /// # Errors
    /// Code `options`: what is wrong in the document, or that the engine has not started.
    pub fn set_identity(&self, json: &[u8]) -> Result<(), StartError> {
        let early = || StartError::options("this engine has not started; give the rule in its options");
        self.hub.get().ok_or_else(early)?.set_identity(json).map_err(StartError::options)
    }

    /// Takes what a request over HTTP costs its user; see [`Hub::charge`]. Before the start nothing is counted.
    ///
    /// # Errors
    /// Milliseconds until it is there.
    pub fn charge(&self, user: &str, peer: Option<IpAddr>, commands: u32, page_bytes: usize) -> Result<(), u32> {
        self.hub.get().map_or(Ok(()), |hub| hub.charge(user, peer, commands, page_bytes, self.clock.now()))
    }

    /// Settles what was taken for a page; see [`Hub::settle`].
    pub fn settle(&self, user: &str, peer: Option<IpAddr>, reserved: usize, bytes: usize) {
        if let Some(hub) = self.hub.get() {
            hub.settle(user, peer, reserved, bytes, self.clock.now());
        }
    }

    /// Takes up to `most` waiting events, oldest first.
    #[must_use]
    pub fn drain(&self, most: usize) -> Vec<Event> {
        let events = self.bridge.drain(most);
        let heard = |event: &Event| if let Event::Heard { frame, .. } = event { frame.len() as u64 } else { 0 };
        if let Some(hub) = self.hub.get() {
            hub.took_heard(events.iter().map(heard).sum());
        }
        events
    }

    /// A descriptor that is readable while events wait; open as long as this handle lives.
    #[must_use]
    pub fn fileno(&self) -> RawFd {
        self.bridge.fileno()
    }

    /// The `sessionId` of a connection; empty before the start.
    #[must_use]
    pub fn session_id(&self, conn: ConnId) -> String {
        self.hub.get().map_or_else(String::new, |hub| hub.session_id(conn))
    }

    /// The connection that a `sessionId` names.
    #[must_use]
    pub fn conn_of(&self, session_id: &str) -> Option<ConnId> {
        self.hub.get()?.conn_of(session_id)
    }

    /// How many connections are subscribed to a channel.
    #[must_use]
    pub fn members(&self, channel: &str) -> usize {
        self.hub.get().map_or(0, |hub| hub.members(channel))
    }

    /// Bytes queued for a connection behind what the kernel has taken.
    #[must_use]
    pub fn backlog(&self, conn: ConnId) -> usize {
        self.hub.get().map_or(0, |hub| hub.backlog(conn))
    }

    /// Whether bytes of commands that no shard has run yet pass `commands_waiting_bytes_max`, or too much waits for a
    /// shard. What waits for the log has
    /// a bound of its own, and each user a share of it: one who fills that holds nobody else up.
    #[must_use]
    pub fn overloaded(&self) -> bool {
        let Some(hub) = self.hub.get() else { return false };
        let commands = hub.counters().commands_bytes.load(Ordering::Relaxed);
        usize::try_from(commands).unwrap_or(usize::MAX) > self.commands_waiting_bytes_max || hub.has_full_inbox()
    }

    /// Waits until everything handed to the log so far is committed, published and acknowledged.
    #[must_use]
    pub fn flush_log(&self, timeout: Duration) -> bool {
        self.requests.flush(timeout)
    }

    /// How sends reach the kernel now: `uring`, `send` or `mixed`; `none` where there is no kernel, or before the start.
    pub(crate) fn flush(&self) -> &'static str {
        self.flushes.get().map_or("none", |flushes| flushes.name())
    }

    /// From now on `make_room` is called where the system has no descriptor left for a socket and no connection of the
    /// engine's may go. The first one stays.
    pub fn make_room_elsewhere(&self, make_room: impl Fn() + Send + Sync + 'static) {
        let _ = self.elsewhere.set(Box::new(make_room));
    }

    /// Has a connection without a session end, where another part of the process needs its descriptor. False where there
    /// is none.
    #[must_use]
    pub fn evict_one(&self) -> bool {
        self.hub.get().is_some_and(|hub| hub.evict_one())
    }

    /// From now on, requests for other paths than those of endpoints go to `passer`, with their sockets. Once, and after
    /// the start.
    ///
    /// # Errors
    /// Code `options`: the engine has not started, or somebody takes them already.
    pub fn pass_on(&self, passer: impl Fn(OwnedFd, Vec<u8>) + Send + Sync + 'static) -> Result<(), StartError> {
        let hub = self.hub.get().ok_or_else(|| StartError::options("this engine has not started"))?;
        let taken = self.passer.set(Box::new(passer));
        taken.map_err(|_| StartError::options("the port of this engine is shared already"))?;
        hub.pass_on();
        Ok(())
    }

    /// Tells Python that what stands beside the engine cannot go on, and so neither can the process.
    pub fn fail(&self, message: String) {
        self.bridge.fatal(message);
    }

    /// The engine's counters and the log's health, one JSON object.
    #[must_use]
    pub fn stats_json(&self) -> String {
        let Some(hub) = self.hub.get() else {
            return self.log_health.append_to(&Counters::default().to_json(&[]));
        };
        let counters = hub.counters();
        let gauge = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let elapsed_ns = self.clock.now().mono_us * 1_000;
        let shards: Vec<String> = hub
            .tallies()
            .iter()
            .enumerate()
            .map(|(shard, tally)| {
                let flush = self.flushes.get().map_or("none", |flushes| flushes.of(shard).name());
                let (busy_ns, connections) = (gauge(&tally.busy_ns), tally.connections());
                format!("{{\"busy_ns\":{busy_ns},\"elapsed_ns\":{elapsed_ns},\"connections\":{connections},\"flush\":\"{flush}\"}}")
            })
            .collect();
        let members = counters.to_json(hub.tallies());
        let json = format!(
            "{},\"inboxes_bytes\":{},\"flush\":\"{}\",\"shards\":[{}],\"queues\":{{\"events\":{},\"commands_bytes\":{},\"log\":{},\"outbox_bytes\":{}}}}}",
            members.strip_suffix('}').unwrap_or("{"),
            hub.inboxes_bytes(),
            self.flush(),
            shards.join(","),
            self.bridge.len(),
            gauge(&counters.commands_bytes),
            gauge(&counters.log_waiting),
            gauge(&counters.outbox_bytes),
        );
        self.log_health.append_to(&json)
    }
}
