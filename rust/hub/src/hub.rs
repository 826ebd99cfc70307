//! What the shards, the log's thread and Python share: rules, channels, inboxes.
//!
//! Nothing here blocks on I/O. Whoever calls brings the time and a place for events that Python has to hear.

mod charging;
mod history;
mod holdings;
mod identity;
mod membership;
mod pages;
mod publishing;
mod relays;
mod retention;

use holdings::Bounds;
pub(crate) use holdings::{CHANNELS_FULL, GRANTS_FULL, LOG_FULL, PAGES_FULL, PYTHON_FULL, RETAINED_FULL};
use identity::admitted;
pub(crate) use membership::{Pull, Replay, confirmation};
pub use pages::Read;
pub(crate) use publishing::Pace;
pub(crate) use relays::Relayed;

use crate::accounts::Accounts;
use crate::by_address::ByAddress;
use crate::channel::{Channel, Directory, HistoryFor, HistoryRequest, State};
use crate::command::{Command, Rejection};
use crate::compose::{self, Fault};
use crate::counters::{Counters, Tally, add};
use crate::credit::Credit;
use crate::event::Event;
use crate::handshakes::Handshakes;
use crate::holders::Holders;
use crate::identity::IdentityRules;
use crate::inbox::{Deliver, Inbox, SOFT_BYTES, ShardMsg};
use crate::lock::lock;
use crate::log_queue::{LogQueue, Reader};
use crate::options::Options;
use crate::pattern::Rights;
use crate::prepared::{Form, Prepared};
use crate::revocations::{Revocation, Revocations};
use crate::ring::{RingLimits, Rings};
use crate::rules::Rules;
use crate::scramble::scramble;
use crate::session_id::SessionIds;
use crate::shares::Shares;
use crate::terms::Terms;
use crate::{ConnId, Now};
use realtime_protocol::frame::Opcode;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

/// Bytes that one `history` answer or one page of a replay may have.
pub(crate) const PAGE_BYTES_MAX: usize = 1 << 20;
/// Events of one answer to `history`, and the most that `last` asks for.
pub(crate) const HISTORY_EVENTS_MAX: u64 = 1_000;

/// The shared part of the engine.
pub struct Hub {
    pub(crate) rules: Rules,
    pub(crate) counters: Counters,
    tallies: Box<[Tally]>,
    pub(crate) users: Accounts<Arc<str>>,
    pub(crate) addresses: Accounts<IpAddr>,
    pub(crate) handshakes: Handshakes,
    /// Connections whose request is not complete.
    pub(crate) half_open: Mutex<ByAddress>,
    /// Connections that were refused and are not closed yet.
    pub(crate) refused: Mutex<ByAddress>,
    /// Of both, those that the acceptor asked to end and that are still there.
    pub(crate) making_room: AtomicUsize,
    /// Who holds how much of the messages that are not complete.
    pub(crate) holders: Mutex<Holders>,
    /// What a connection holds at least to be among them.
    pub(crate) holders_least: usize,
    /// Upgrades that Python decides about.
    pub(crate) authenticating: Mutex<Shares>,
    inboxes: Box<[Inbox]>,
    directory: Directory,
    rings: Rings,
    ring_limits: RingLimits,
    bounds: Bounds,
    /// For how long a channel in memory is kept that nobody uses.
    idle_ms: u64,
    log: Box<dyn LogQueue>,
    terms: Terms,
    memory_nonce: u64,
    /// The part of the directory that is swept next.
    swept_part: AtomicUsize,
    channel_ids: AtomicU64,
    /// When a gap was told last, in monotonic ms.
    gap_told_ms: AtomicU64,
    session_ids: SessionIds,
    pressure: AtomicBool,
    /// Python has as many bytes as it may.
    pub(crate) is_behind: AtomicBool,
    stopped_reading: AtomicBool,
    /// Whether somebody else serves the paths that are of no endpoint.
    passes_on: AtomicBool,
    /// Read once a handshake.
    identity: RwLock<Arc<IdentityRules>>,
    revocations: Mutex<Revocations>,
    /// Bytes that wait for connections that are behind; only those stand here.
    behind: Mutex<HashMap<ConnId, usize>>,
    ear: OnceLock<Ear>,
}

/// Takes an event that Python hears.
type Ear = Box<dyn Fn(Event) + Send + Sync>;

impl Hub {
    /// Compiles the options. `terms` are the log's; `nonce` makes session ids (its first 24 bytes, which stay secret) and the
    /// epoch of channels in memory (the rest).
    ///
    /// # Errors
    /// One line that names what is wrong in the options.
    pub fn new(
        options: &Options,
        shards: usize,
        log: Box<dyn LogQueue>,
        terms: Terms,
        nonce: [u8; 32],
    ) -> Result<Arc<Self>, String> {
        let identity = IdentityRules::compile(options.token.as_ref(), options.origins.as_ref())?;
        let session_ids = SessionIds::new(std::array::from_fn(|i| nonce[i]), std::array::from_fn(|i| nonce[16 + i]));
        let memory = u64::from_le_bytes(std::array::from_fn(|i| nonce[24 + i]));
        let rules = Rules::compile(options)?;
        let holders = Holders::new(rules.unfinished_bytes_max());
        Ok(Arc::new(Self {
            users: Accounts::new(rules.user_seats(), rules.user_rates(), rules.limits.accounts_bytes_max),
            addresses: Accounts::new(rules.address_seats(), rules.address_rates(), rules.limits.accounts_bytes_max),
            handshakes: Handshakes::new(),
            half_open: Mutex::default(),
            refused: Mutex::default(),
            making_room: AtomicUsize::new(0),
            holders_least: holders.least(),
            holders: Mutex::new(holders),
            authenticating: Mutex::new(Shares::new(rules.limits.authenticating_max)),
            rules,
            counters: Counters::default(),
            tallies: (0..shards).map(|_| Tally::default()).collect(),
            inboxes: (0..shards).map(|_| Inbox::default()).collect(),
            directory: Directory::default(),
            rings: Rings::default(),
            ring_limits: RingLimits::of(options),
            bounds: Bounds::of(&options.limits),
            idle_ms: options.idle_s.saturating_mul(1_000),
            log,
            terms,
            memory_nonce: memory,
            swept_part: AtomicUsize::new(0),
            channel_ids: AtomicU64::new(1),
            gap_told_ms: AtomicU64::new(0),
            session_ids,
            pressure: AtomicBool::new(false),
            is_behind: AtomicBool::new(false),
            stopped_reading: AtomicBool::new(false),
            passes_on: AtomicBool::new(false),
            identity: RwLock::new(Arc::new(identity)),
            revocations: Mutex::new(Revocations::new(options.revocations_bytes_max)),
            behind: Mutex::default(),
            ear: OnceLock::new(),
        }))
    }

    /// Says where events of channels that Python listens to go; once, before anything is published. It is called under
    /// the channel's lock, so that they come in the channel's order: it must only put them down.
    pub fn set_ear(&self, ear: Ear) {
        let _ = self.ear.set(ear);
    }

    /// The inbox of a shard.
    #[must_use]
    pub fn inbox(&self, shard: usize) -> &Inbox {
        &self.inboxes[shard]
    }

    /// What happened since the start.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What each shard counts by itself.
    #[must_use]
    pub const fn tallies(&self) -> &[Tally] {
        &self.tallies
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counters.connections.load(Ordering::Relaxed) as usize
    }

    /// Whether `connections_max` are open. Where it is not set the reactor goes by the descriptors alone.
    pub(crate) fn is_full(&self) -> bool {
        let most = self.rules.limits.connections_max;
        most > 0 && self.connections() >= most
    }

    pub(crate) fn shards(&self) -> usize {
        self.inboxes.len()
    }

    /// Members of a channel, on all shards.
    #[must_use]
    pub fn members(&self, channel: &str) -> usize {
        self.directory.find(channel).map_or(0, |channel| channel.lock().members_total())
    }

    /// Channels that are in memory.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.directory.len()
    }

    /// Bytes that wait for a connection.
    #[must_use]
    pub fn backlog(&self, conn: ConnId) -> usize {
        lock(&self.behind).get(&conn).copied().unwrap_or(0)
    }

    pub(crate) fn set_backlog(&self, conn: ConnId, bytes: usize) {
        let mut behind = lock(&self.behind);
        if bytes == 0 {
            behind.remove(&conn);
        } else {
            behind.insert(conn, bytes);
        }
    }

    /// Connections of a shard that are behind, and how many there are on all.
    pub(crate) fn behind_on(&self, shard: usize) -> (Vec<ConnId>, usize) {
        let behind = lock(&self.behind);
        (behind.keys().copied().filter(|conn| conn.shard() == shard).collect(), behind.len())
    }

    /// Bytes that wait for shards.
    #[must_use]
    pub fn inboxes_bytes(&self) -> usize {
        self.inboxes.iter().map(Inbox::bytes).sum()
    }

    /// Whether so much waits for a shard that whoever publishes should wait.
    #[must_use]
    pub fn has_full_inbox(&self) -> bool {
        self.inboxes.iter().any(|inbox| inbox.bytes() > SOFT_BYTES)
    }

    /// Whether a shard that has members of the channel takes no more events.
    fn is_refused(&self, state: &State) -> bool {
        self.inboxes.iter().zip(&state.members).any(|(inbox, count)| *count > 0 && inbox.is_full())
    }

    /// Gives credits back once a shard has taken what waits for it now.
    pub(crate) fn give_back_through(&self, shard: usize, conn: ConnId, credit: Credit) {
        add(&self.counters.inboxes_pauses, 1);
        self.inboxes[shard].push(ShardMsg::Passed { conn, credit });
    }

    /// Tells the other shards.
    pub(crate) fn elsewhere(&self, shard: usize, message: impl Fn() -> ShardMsg) {
        for (_, inbox) in self.inboxes.iter().enumerate().filter(|(other, _)| *other != shard) {
            inbox.push(message());
        }
    }

    /// Too many events wait for Python: shards stop reading and accepting until it is off again.
    pub fn set_pressure(&self, on: bool) {
        self.pressure.store(on, Ordering::SeqCst);
        if !on {
            self.everywhere(|| ShardMsg::RecheckPauses);
        }
    }

    /// Nothing is read any more, for good.
    pub fn stop_reading(&self) {
        self.stopped_reading.store(true, Ordering::SeqCst);
    }

    /// From now on, requests for other paths than those of endpoints go on with their sockets: see
    /// [`crate::ShardCore::take_passed`].
    pub fn pass_on(&self) {
        self.passes_on.store(true, Ordering::Relaxed);
    }

    /// Whether they do.
    pub fn passes_on(&self) -> bool {
        self.passes_on.load(Ordering::Relaxed)
    }

    pub(crate) fn may_read(&self) -> bool {
        !self.pressure.load(Ordering::Relaxed) && !self.has_stopped_reading()
    }

    /// Nothing more is taken from clients, what was read and kept unparsed included: the process ends.
    pub(crate) fn has_stopped_reading(&self) -> bool {
        self.stopped_reading.load(Ordering::Relaxed)
    }

    /// Tells clients that the process ends: each open connection, and each that opens later, gets its own delay for
    /// coming back, within `spread_ms`.
    pub fn announce_drain(&self, spread_ms: u64) {
        self.everywhere(|| ShardMsg::AnnounceDrain { spread_ms });
    }

    /// Ends every connection: now, or with `over_ms` each at its own moment within that time, which is the one that
    /// its client was told where the same time was announced.
    pub fn close_all(&self, code: u16, reason: &str, over_ms: u64) {
        self.everywhere(|| ShardMsg::CloseAll { code, reason: reason.into(), over_ms });
    }

    /// A connection's own delay, spread evenly over 0 to `spread_ms` and the same each time.
    pub(crate) fn reconnect_delay_ms(&self, conn: ConnId, spread_ms: u64) -> u64 {
        let mixed = scramble(conn.as_u64() ^ self.memory_nonce.rotate_left(32));
        ((u128::from(mixed) * (u128::from(spread_ms) + 1)) >> 64) as u64
    }

    pub(crate) fn everywhere(&self, message: impl Fn() -> ShardMsg) {
        for inbox in &self.inboxes {
            inbox.push(message());
        }
    }

    /// The `sessionId` of a connection: see [`crate::session_id`].
    #[must_use]
    pub fn session_id(&self, conn: ConnId) -> String {
        self.session_ids.id_of(conn)
    }

    /// The connection that a `sessionId` names, whether it is still there or not.
    #[must_use]
    pub fn conn_of(&self, session_id: &str) -> Option<ConnId> {
        self.session_ids.conn_of(session_id).filter(|conn| conn.shard() < self.inboxes.len())
    }

    /// Applies a batch of Python's, in order.
    pub fn submit(&self, commands: Vec<Command>, now: Now, events: &mut Vec<Event>) {
        for command in commands {
            self.apply(command, now, events);
        }
    }

    fn apply(&self, command: Command, now: Now, events: &mut Vec<Event>) {
        match command {
            Command::Publish(publish) => {
                let _ = self.publish(publish, now, events);
            }
            Command::Send { conn, text, payload, done } => {
                let opcode = if text { Opcode::Text } else { Opcode::Binary };
                self.send(conn, Prepared::frame(opcode, &payload), Credit::of_python(done));
            }
            Command::SendMany { conns, payload, key } => self.send_many(conns, &payload, key.as_ref()),
            Command::SendAll { payload, key } => {
                let frame = Prepared::text(&payload);
                self.count_waiting(&frame, self.inboxes.len());
                self.everywhere(|| ShardMsg::SendAll { frame: Arc::clone(&frame), key: key.clone() });
            }
            Command::PresenceMode { users } => {
                let users: Option<Arc<[Arc<str>]>> = users.map(Into::into);
                self.everywhere(|| ShardMsg::PresenceMode { users: users.clone() });
            }
            Command::PresenceChange { user, is_online } => {
                self.everywhere(|| ShardMsg::PresenceChange { user: Arc::clone(&user), is_online });
            }
            Command::PublishUnion { channels, payload, key } => {
                let ids: Arc<[u64]> =
                    channels.iter().filter_map(|name| self.directory.find(name)).map(|c| c.id).collect();
                let frame = Prepared::text(&payload);
                self.count_waiting(&frame, self.inboxes.len());
                self.everywhere(|| ShardMsg::SendUnion {
                    channels: Arc::clone(&ids),
                    frame: Arc::clone(&frame),
                    key: key.clone(),
                });
            }
            Command::History { ticket, channel, after, epoch, limit, user } => {
                let limit = limit.min(HISTORY_EVENTS_MAX as usize);
                let (who, reader) = (HistoryFor::Python { ticket }, user.map_or(Reader::Server, Reader::User));
                let request = HistoryRequest { who, after, epoch, limit, reader };
                self.history(&channel, request, None, now, events);
            }
            Command::Members { ticket, channel } => match self.directory.find(&channel) {
                Some(channel) => self.everywhere(|| ShardMsg::Members { ticket, channel: channel.id }),
                None => events.push(Event::Members { ticket, conns: Vec::new(), total: 0, parts: 1 }),
            },
            Command::Accept { conn, who } => match admitted(who) {
                Ok(identity) => self.to(conn, ShardMsg::Accept { conn, identity }),
                Err(_) => self.to(conn, ShardMsg::Reject { conn, how: Rejection::unauthorized() }),
            },
            Command::Renew { conn, id, who } => {
                self.to(conn, ShardMsg::Renew { conn, id, identity: admitted(who).ok() });
            }
            Command::Revoke { user, token_id, before_s, close } => {
                self.revoke(Revocation { user: user.map(|user| (user, before_s)), token_id }, close);
            }
            Command::Reject { conn, how } => self.to(conn, ShardMsg::Reject { conn, how }),
            Command::Close { conn, code, reason } => self.to(conn, ShardMsg::Close { conn, code, reason }),
            Command::Grant { conn, channel, rights, raw } => {
                let rights = Rights::from_names(&rights).unwrap_or(Rights::NONE);
                self.to(conn, ShardMsg::Grant { conn, channel, rights, raw });
            }
            Command::Resume { conn, raw } => self.to(conn, ShardMsg::Resume { conn, raw }),
            Command::Subscribe { conn, channel } => self.to(conn, ShardMsg::Subscribe { conn, channel }),
            Command::Unsubscribe { conn, channel, code, retryable } => {
                self.to(conn, ShardMsg::Unsubscribe { conn, channel, code, retryable });
            }
            Command::Done { conn, count } => self.to(conn, ShardMsg::Done { conn, credit: Credit::Python(count) }),
        }
    }

    pub(crate) fn to(&self, conn: ConnId, message: ShardMsg) {
        if let Some(inbox) = self.inboxes.get(conn.shard()) {
            inbox.push(message);
        }
    }

    pub(crate) fn send(&self, conn: ConnId, frame: Arc<Prepared>, credit: Option<Credit>) {
        // Counted only where a shard takes it off again: any number may come as a connection.
        let Some(inbox) = self.inboxes.get(conn.shard()) else { return };
        self.count_waiting(&frame, 1);
        inbox.push(ShardMsg::Send { conn, frame, credit });
    }

    /// Counts a frame that so many shards have not run yet.
    fn count_waiting(&self, frame: &Prepared, shards: usize) {
        add(&self.counters.commands_bytes, (frame.wire_len(Form::Plain) * shards) as u64);
    }

    fn send_many(&self, conns: Vec<ConnId>, payload: &[u8], key: Option<&Arc<str>>) {
        let frame = Prepared::text(payload);
        let mut by_shard = vec![Vec::new(); self.inboxes.len()];
        for conn in conns {
            if let Some(part) = by_shard.get_mut(conn.shard()) {
                part.push(conn);
            }
        }
        for (inbox, conns) in self.inboxes.iter().zip(by_shard) {
            if !conns.is_empty() {
                self.count_waiting(&frame, 1);
                inbox.push(ShardMsg::SendMany { conns, frame: Arc::clone(&frame), key: key.cloned() });
            }
        }
    }

    // ---- channels

    /// Hands an event to Python where it listens; the lock is held.
    fn hear(&self, channel: &Channel, frame: &Prepared) {
        if let (true, Some(ear)) = (channel.is_heard, self.ear.get()) {
            let payload = frame.payload();
            add(&self.counters.heard_bytes, payload.len() as u64);
            ear(Event::Heard { channel: Arc::clone(channel.name()), frame: payload.into() });
        }
    }

    /// Hands an event to every shard that has members; the lock is held. `read_us` is when it came to the hub. Returns the
    /// shard for which the most waits, where that is so much that the publisher should be held.
    fn deliver(
        &self,
        channel: &Channel,
        state: &State,
        frame: &Arc<Prepared>,
        offset: u64,
        key: Option<Arc<str>>,
        read_us: u64,
    ) -> Option<usize> {
        add(&self.counters.publications, 1);
        let class = channel.class(offset, key);
        let (mut fullest, mut most) = (None, SOFT_BYTES);
        for (shard, inbox) in self.inboxes.iter().enumerate().filter(|(shard, _)| state.members[*shard] > 0) {
            let (frame, class) = (Arc::clone(frame), class.clone());
            let bytes = inbox.push(ShardMsg::Deliver(Deliver { channel: channel.id, frame, offset, class, read_us }));
            if bytes > most {
                (fullest, most) = (Some(shard), bytes);
            }
        }
        fullest
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("shards", &self.inboxes.len()).finish_non_exhaustive()
    }
}

pub(crate) const TOO_LARGE: Fault<'static> = Fault {
    code: "too_large",
    message: "The publication is larger than limits.publication_bytes_max; send less at once",
    path: None,
    channel: None,
    retry_after_ms: None,
};

const UNREADABLE: Fault<'static> = Fault {
    code: "unavailable",
    message: "The log could not be read",
    path: None,
    channel: None,
    retry_after_ms: None,
};

/// When a page may be asked again for which there was no room.
const BUSY_READING_MS: u32 = 1_000;

const BUSY_READING: Fault<'static> = Fault {
    code: "overloaded",
    message: "Too many pages of the log are waited for; ask again later",
    path: None,
    channel: None,
    retry_after_ms: Some(BUSY_READING_MS),
};

const NOT_RECOVERABLE: Fault<'static> = Fault {
    code: "not_recoverable",
    message: "The history is not the one of this position",
    path: None,
    channel: None,
    retry_after_ms: None,
};

/// Adds the top-level `channel`: every event of a channel carries it.
pub(crate) fn channel_member(mut json: Vec<u8>, channel: &str) -> Vec<u8> {
    json.pop();
    json.extend_from_slice(b",\"channel\":");
    compose::string(&mut json, channel);
    json.push(b'}');
    json
}
