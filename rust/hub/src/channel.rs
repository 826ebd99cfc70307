//! Channels: the lock that gives a channel its order, its ring, and who lasts in it.
//!
//! Who submits takes the lock, gives the offset, appends to the ring and, while holding it, pushes to the inboxes of
//! all shards that have members: the inbox rule. One channel's lock at a time, never held over I/O. Heads of durable
//! channels are read through the log's queue; until one is there, what needs it waits in [`State::waiting`].

use crate::ConnId;
use crate::class::Class;
use crate::counters::Counters;
use crate::credit::Credit;
use crate::latest::{Latest, Retain};
use crate::lock::lock;
use crate::log_queue::{Reader, TermStarts};
use crate::options::Overflow;
use crate::portions::Full;
use crate::prepared::{Form, Prepared};
use crate::ring::Ring;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a channel is taken to cost beside itself and its name: its places in the tables of the process and of one
/// shard, its epoch, and what an allocator adds.
const PLACES_BYTES: usize = 512;
/// What a place in [`State::waiting`] is taken to cost beside the texts: frames and ids are allocations of their own.
const WAITING_BYTES: usize = 256;
/// The same of a relay that lasts.
const LASTING_BYTES: usize = 320;

/// What kind of channel it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Stored in the log.
    pub durable: bool,
    /// Publications kept in memory.
    pub history: usize,
    /// What happens to volatile events for slow readers.
    pub overflow: Overflow,
    /// How long its publications are kept, and how many.
    pub keep: Keep,
    /// States that it retains for members who come later.
    pub retain: Retain,
}

/// What of a channel's publications is kept; None sets no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// Seconds.
    pub s: Option<u64>,
    /// The newest so many.
    pub events: Option<u64>,
}

impl Keep {
    /// Everything, for ever.
    pub const ALL: Self = Self { s: None, events: None };
}

impl Policy {
    /// Nothing is kept.
    pub const VOLATILE: Self =
        Self { durable: false, history: 0, overflow: Overflow::DropOldest, keep: Keep::ALL, retain: Retain::NOTHING };

    /// Whether publications have offsets.
    #[must_use]
    pub const fn numbers(self) -> bool {
        self.durable || self.history > 0
    }

    /// Whether something that it keeps in memory grows too old.
    pub(crate) const fn ages(self) -> bool {
        self.retain.keys > 0 || self.remembers()
    }

    /// Whether memory is all that keeps its publications.
    pub(crate) const fn remembers(self) -> bool {
        !self.durable && self.history > 0
    }
}

/// An event with an offset, as members get it.
#[derive(Debug)]
pub struct Publication {
    /// Its place, from 1.
    pub offset: u64,
    /// Its frame.
    pub frame: Arc<Prepared>,
    /// When it came, in monotonic milliseconds; told by channels in memory alone, which go by no other clock.
    pub(crate) since_ms: u64,
}

/// One channel.
#[derive(Debug)]
pub struct Channel {
    name: Arc<str>,
    pub(crate) id: u64,
    pub(crate) policy: Policy,
    /// Whether Python hears its events.
    pub(crate) is_heard: bool,
    /// Who made it, and is charged for it.
    pub(crate) owner: Option<Arc<str>>,
    state: Mutex<State>,
}

/// What the lock guards.
#[derive(Debug)]
pub(crate) struct State {
    /// Taken out of the directory: who finds it so looks the name up again.
    pub dead: bool,
    /// Members by shard, counted when `Join` and `Leave` are pushed.
    pub members: Box<[u32]>,
    pub head: Head,
    /// Names the history that its offsets belong to: the log's current term, or this channel in memory.
    pub epoch: Arc<str>,
    /// The terms of a durable channel, once its head is known.
    pub starts: TermStarts,
    /// What waits for the head, in order.
    pub waiting: Vec<Waits>,
    /// What the events in it are charged.
    pub waiting_bytes: usize,
    /// When it was last seen in use, in monotonic ms; told by channels in memory alone.
    pub used_ms: u64,
    /// The newest offset that the log keeps no longer.
    pub tail: u64,
    /// How often stored events were changed or erased.
    pub changes: u64,
    /// Pages of the log that were asked and not handed over.
    pub reading: u32,
    /// The newest publications.
    pub ring: Ring,
    /// Relays that last, by rule and user.
    pub lasting: HashMap<(u16, Arc<str>), Lasting>,
    /// States that it retains.
    pub latest: Latest,
}

/// What is known of a channel's newest offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    Unknown,
    Loading,
    Known(u64),
}

/// Sessions of one user that hold a lasting relay.
#[derive(Debug, Default)]
pub(crate) struct Lasting {
    pub sessions: Vec<ConnId>,
    /// JSON of the data when the last one ends.
    pub undo: Box<[u8]>,
    /// JSON of the data while it lasts.
    pub data: Box<[u8]>,
    /// Key of class `latest`: the end takes the place of the start for who has not got that.
    pub key: Option<Arc<str>>,
    /// What the user is charged for it.
    pub cost: usize,
}

impl Lasting {
    /// What a relay costs while it lasts, the list of sessions included: a user has few.
    pub(crate) fn cost(data: &[u8], undo: &[u8], key: Option<&Arc<str>>) -> usize {
        LASTING_BYTES + data.len() + undo.len() + key.map_or(0, |key| key.len())
    }
}

/// Something that waits, and what of it is charged to whom.
#[derive(Debug)]
pub(crate) struct Waits {
    pub one: Waiting,
    pub user: Option<Arc<str>>,
    pub cost: usize,
}

/// A command that needs the head.
#[derive(Debug)]
pub(crate) enum Waiting {
    Subscribe(SubscribeRequest),
    Unsubscribe {
        conn: ConnId,
        reply: Option<Arc<Prepared>>,
        credit: Option<Credit>,
    },
    History(HistoryRequest),
    /// A volatile event behind a subscribe: who subscribed first hears it.
    Deliver {
        frame: Arc<Prepared>,
        key: Option<Arc<str>>,
        /// What the key stood for is over.
        is_over: bool,
    },
    /// So many volatile events for which there was no room.
    Skipped {
        count: u64,
    },
}

impl Waiting {
    /// What it holds.
    pub(crate) fn cost(&self) -> usize {
        let text = |text: Option<usize>| text.unwrap_or(0);
        WAITING_BYTES
            + match self {
                Self::Subscribe(SubscribeRequest { id, position, .. }) => {
                    text(id.as_ref().map(|id| id.len())) + text(position.as_ref().map(|(_, epoch)| epoch.len()))
                }
                Self::History(HistoryRequest { who, epoch, .. }) => {
                    let id = if let HistoryFor::Client { id, .. } = who { id.as_ref() } else { None };
                    text(id.map(|id| id.len())) + text(epoch.as_ref().map(|epoch| epoch.len()))
                }
                Self::Unsubscribe { reply, .. } => text(reply.as_ref().map(|reply| reply.wire_len(Form::Plain))),
                Self::Deliver { frame, key, .. } => {
                    frame.wire_len(Form::Plain) + text(key.as_ref().map(|key| key.len()))
                }
                Self::Skipped { .. } => 0,
            }
    }
}

/// A subscribe on its way to the channel's lock.
#[derive(Debug)]
pub(crate) struct SubscribeRequest {
    pub conn: ConnId,
    pub id: Option<Box<[u8]>>,
    /// The last position that the client has seen.
    pub position: Option<(u64, Box<str>)>,
    /// How many of the last events it wants.
    pub last: Option<u64>,
    /// It is a member already: confirmed, and replayed from its position where it names one.
    pub again: bool,
    pub credit: Option<Credit>,
}

/// A history command on its way to the channel's lock.
#[derive(Debug)]
pub(crate) struct HistoryRequest {
    pub who: HistoryFor,
    /// Events after this offset, else the last `limit`.
    pub after: Option<u64>,
    /// Of the position, where it is one and not a bare offset.
    pub epoch: Option<Box<str>>,
    pub limit: usize,
    /// Whose turn it is to read.
    pub reader: Reader,
}

/// Who asks for history.
#[derive(Debug)]
pub(crate) enum HistoryFor {
    /// A command of a client's, for which `reserved` thousandths of a token were taken.
    Client {
        conn: ConnId,
        id: Option<Box<[u8]>>,
        credit: Option<Credit>,
        reserved: u32,
    },
    Python {
        ticket: u64,
    },
}

impl Channel {
    pub(crate) fn new(
        name: Arc<str>,
        id: u64,
        policy: Policy,
        epoch: Arc<str>,
        is_heard: bool,
        owner: Option<Arc<str>>,
        shards: usize,
    ) -> Self {
        let head = if policy.durable { Head::Unknown } else { Head::Known(0) };
        let state = State {
            dead: false,
            members: vec![0; shards].into(),
            head,
            epoch,
            starts: TermStarts::default(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            used_ms: 0,
            tail: 0,
            changes: 0,
            reading: 0,
            ring: Ring::default(),
            lasting: HashMap::new(),
            latest: Latest::default(),
        };
        Self { name, id, policy, is_heard, owner, state: Mutex::new(state) }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What a channel of this name costs while it is there, whatever it keeps.
    pub(crate) fn cost(name: &str, shards: usize) -> usize {
        size_of::<Self>() + PLACES_BYTES + name.len() + shards * size_of::<u32>()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The class of an event in this channel; a relay in a durable one has no offset and is volatile.
    pub(crate) fn class(&self, offset: u64, key: Option<Arc<str>>) -> Class {
        match key {
            _ if offset > 0 => Class::Durable,
            Some(key) => Class::Latest(key),
            None => Class::Volatile(self.policy.overflow),
        }
    }
}

impl State {
    /// Puts something at the end of what waits for the head.
    pub(crate) fn put_off(&mut self, waits: Waits) {
        if matches!(waits.one, Waiting::Deliver { .. }) {
            self.waiting_bytes += waits.cost;
        }
        self.waiting.push(waits);
    }

    /// Members on all shards.
    pub(crate) fn members_total(&self) -> usize {
        self.members.iter().map(|&count| count as usize).sum()
    }

    /// Whether nothing would be lost if the channel were made anew.
    pub(crate) fn is_idle(&self, policy: Policy) -> bool {
        self.members_total() == 0
            && self.waiting.is_empty()
            && self.reading == 0
            && self.lasting.is_empty()
            && self.latest.is_empty()
            && self.head != Head::Loading
            && (policy.durable
                || policy.history == 0
                || self.head == Head::Known(0)
                || policy.keep.s.is_some() && self.ring.is_empty())
    }

    /// Whether a channel in memory was used by nobody for so long that it is forgotten with what it keeps.
    pub(crate) fn is_forgotten(&self, policy: Policy, mono_ms: u64, idle_ms: u64) -> bool {
        let is_unused = self.members_total() == 0
            && self.waiting.is_empty()
            && self.lasting.is_empty()
            && self.latest.is_empty()
            && self.used_ms.saturating_add(idle_ms) <= mono_ms;
        policy.remembers() && is_unused
    }

    /// Lets go of what a channel in memory keeps no longer.
    pub(crate) fn trim(&mut self, policy: Policy, mono_ms: u64, counters: &Counters) {
        let Some(keep_s) = policy.keep.s.filter(|_| !policy.durable) else { return };
        let is_old = |publication: &Publication| publication.since_ms.saturating_add(keep_s * 1_000) <= mono_ms;
        self.ring.pop_while(is_old, counters);
    }

    /// Lets go of what the log has let go of.
    pub(crate) fn cut(&mut self, tail: u64, counters: &Counters) {
        self.tail = self.tail.max(tail);
        self.ring.pop_while(|publication| publication.offset <= tail, counters);
    }

    /// The oldest offset that a member can still get.
    pub(crate) fn oldest(&self, policy: Policy, head: u64) -> u64 {
        if policy.durable { self.tail + 1 } else { self.ring.first().map_or(head + 1, |first| first.offset) }
    }
}

/// A channel with this key, made when it is not there.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// Names come from clients: std's keyed hash.
    parts: [Mutex<HashMap<Arc<str>, Arc<Channel>>>; 16],
}

impl Directory {
    fn part(&self, name: &str) -> &Mutex<HashMap<Arc<str>, Arc<Channel>>> {
        let sum = name.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte as usize));
        &self.parts[sum % self.parts.len()]
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Channel>> {
        lock(self.part(name)).get(name).cloned()
    }

    pub(crate) fn find_or_insert(
        &self,
        name: &str,
        make: impl FnOnce(Arc<str>) -> Result<Channel, Full>,
    ) -> Result<Arc<Channel>, Full> {
        let mut part = lock(self.part(name));
        if let Some(channel) = part.get(name) {
            return Ok(Arc::clone(channel));
        }
        let name: Arc<str> = name.into();
        let channel = Arc::new(make(Arc::clone(&name))?);
        part.insert(name, Arc::clone(&channel));
        Ok(channel)
    }

    /// Takes a channel out if `is_over` says so of it; true where it did. The directory's lock is taken before the
    /// channel's, in this type alone.
    pub(crate) fn remove_if(&self, channel: &Arc<Channel>, is_over: impl FnOnce(&State) -> bool) -> bool {
        let mut part = lock(self.part(&channel.name));
        let mut state = channel.lock();
        let is_removed = !state.dead && is_over(&state);
        if is_removed {
            state.dead = true;
            part.remove(&channel.name);
        }
        is_removed
    }

    /// Channels that keep something in memory for a time, of one part of the directory.
    pub(crate) fn ageing(&self, part: usize) -> Vec<Arc<Channel>> {
        let part = lock(&self.parts[part % self.parts.len()]);
        let is_ageing = |channel: &&Arc<Channel>| channel.policy.ages();
        part.values().filter(is_ageing).cloned().collect()
    }

    #[cfg(test)]
    pub(crate) fn all(&self) -> Vec<Arc<Channel>> {
        self.parts.iter().flat_map(|part| lock(part).values().cloned().collect::<Vec<_>>()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(|part| lock(part).len()).sum()
    }
}
