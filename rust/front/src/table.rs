//! The connections, by address: who goes when there is no room for one more, or no byte.
//!
//! Of the address with the most connections the one goes that has been idle longest; one whose head is not whole is
//! idle, too. Only where all of them are at work, one that still sends its body or does not take its answer goes, then
//! one that waits for its turn. A request that Python works at stays. Every step is O(log n); the holder of the most
//! bytes is looked for only when they are over the limit.

use crate::counters::{Counters, End, Purpose, add, sub};
use realtime_protocol::address::limited_as;
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long a connection has for its request to be read before it goes for want of descriptors.
const YOUNG: Duration = Duration::from_millis(50);

/// A connection's name; never given twice.
pub(crate) type Id = u64;

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing of a request has come.
    Idle,
    /// A part of a head has.
    Head,
    /// The head is whole, the body is not, and nobody was asked yet.
    Body,
    /// The request waits for its turn.
    Waiting,
    /// The server behind has it, and its body still comes.
    Upload,
    /// The server behind has it.
    InFlight,
    /// The server behind is done, and the client has not taken all of the answer.
    Answer,
}

impl Stage {
    /// Who goes first; None for those that stay.
    const fn rank(self) -> Option<u8> {
        match self {
            Self::Idle | Self::Head => Some(0),
            Self::Body | Self::Answer => Some(1),
            Self::Waiting => Some(2),
            Self::Upload | Self::InFlight => None,
        }
    }

    /// Why one is ended whose time is over.
    const fn overdue(self) -> End {
        match self {
            Self::Idle => End::Idle,
            Self::Head => End::Head,
            Self::Body | Self::Upload | Self::Waiting => End::Body,
            Self::InFlight | Self::Answer => End::Answer,
        }
    }
}

/// What a connection's task hears of its end.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    end: Cell<Option<End>>,
    told: Notify,
}

impl Fate {
    /// Waits for the end.
    pub(crate) async fn told(&self) -> End {
        loop {
            if let Some(end) = self.end.get() {
                return end;
            }
            self.told.notified().await;
        }
    }

    fn tell(&self, why: End) {
        self.end.set(Some(why));
        self.told.notify_one();
    }
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    stage: Stage,
    /// When it entered its stage, counted in entries of all connections.
    since: u64,
    entered: Instant,
    due: Option<Instant>,
    /// Its time between requests is shorter the fuller the table is.
    is_kept: bool,
    is_half_closed: bool,
    bytes: [usize; 3],
    fate: Rc<Fate>,
}

impl Entry {
    fn held(&self) -> usize {
        self.bytes.iter().sum()
    }
}

#[derive(Debug, Default)]
struct Address {
    connections: usize,
    bytes: usize,
    /// By rank, then by how long.
    may_go: BTreeSet<(u8, u64, Id)>,
}

impl Address {
    /// Its place among those of whom somebody may go.
    fn crowd(&self) -> Option<usize> {
        (!self.may_go.is_empty()).then_some(self.connections)
    }
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Table {
    entries: HashMap<Id, Entry>,
    addresses: HashMap<IpAddr, Address>,
    crowds: BTreeSet<(usize, IpAddr)>,
    entered: u64,
    bytes: usize,
    bytes_max: usize,
    connections_max: usize,
    keep_alive: Duration,
    counters: Arc<Counters>,
}

impl Table {
    pub(crate) fn new(connections_max: usize, bytes_max: usize, keep_alive: Duration, counters: Arc<Counters>) -> Self {
        Self {
            entries: HashMap::new(),
            addresses: HashMap::new(),
            crowds: BTreeSet::new(),
            entered: 0,
            bytes: 0,
            bytes_max,
            connections_max,
            keep_alive,
            counters,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether one more would be too many.
    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.connections_max
    }

    /// Takes a connection in; see to it that there is room. It has until `due` for its first byte.
    pub(crate) fn open(&mut self, peer: IpAddr, due: Instant, now: Instant) -> (Id, Rc<Fate>) {
        self.entered += 1;
        let (id, address, fate) = (self.entered, limited_as(peer), Rc::new(Fate::default()));
        let entry = Entry {
            address,
            stage: Stage::Idle,
            since: id,
            entered: now,
            due: Some(due),
            is_kept: false,
            is_half_closed: false,
            bytes: [0; 3],
            fate: Rc::clone(&fate),
        };
        self.entries.insert(id, entry);
        self.change(address, |address| {
            address.connections += 1;
            address.may_go.insert((0, id, id));
        });
        add(&self.counters.connections, 1);
        (id, fate)
    }

    /// The connection is at something else now, until `due`. One that was ended meanwhile is not concerned.
    pub(crate) fn enter(&mut self, id: Id, stage: Stage, due: Option<Instant>, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let before = (entry.stage.rank(), entry.since);
        self.entered += 1;
        (entry.stage, entry.since, entry.entered, entry.due) = (stage, self.entered, now, due);
        entry.is_kept = false;
        let (address, since) = (entry.address, entry.since);
        self.change(address, |address| {
            if let (Some(rank), since) = before {
                address.may_go.remove(&(rank, since, id));
            }
            if let Some(rank) = stage.rank() {
                address.may_go.insert((rank, since, id));
            }
        });
    }

    /// The connection waits for another request, as long as there is room.
    pub(crate) fn keep(&mut self, id: Id, now: Instant) {
        self.enter(id, Stage::Idle, None, now);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_kept = true;
        }
    }

    /// Sets another time for what the connection is at.
    pub(crate) fn set_due(&mut self, id: Id, due: Option<Instant>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.due = due;
        }
    }

    /// The client has closed its side.
    pub(crate) fn half_closed(&mut self, id: Id, due: Instant) {
        if let Some(entry) = self.entries.get_mut(&id) {
            (entry.is_half_closed, entry.due) = (true, Some(due));
        }
    }

    /// The connection is gone.
    pub(crate) fn close(&mut self, id: Id) {
        let Some(entry) = self.entries.remove(&id) else { return };
        let held = entry.held();
        self.bytes -= held;
        for (purpose, bytes) in [Purpose::Heads, Purpose::Bodies, Purpose::Answers].into_iter().zip(entry.bytes) {
            self.counters.held(purpose, bytes, 0);
        }
        self.change(entry.address, |address| {
            address.connections -= 1;
            address.bytes -= held;
            if let Some(rank) = entry.stage.rank() {
                address.may_go.remove(&(rank, entry.since, id));
            }
        });
        sub(&self.counters.connections, 1);
    }

    /// Says how many bytes a connection holds for a purpose; above the limit the largest of the address that holds
    /// most is ended, which may be this one.
    pub(crate) fn hold(&mut self, id: Id, purpose: Purpose, now: usize) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let before = std::mem::replace(&mut entry.bytes[purpose as usize], now);
        if before == now {
            return;
        }
        self.counters.held(purpose, before, now);
        self.bytes = self.bytes - before + now;
        if let Some(address) = self.addresses.get_mut(&entry.address) {
            address.bytes = address.bytes - before + now;
        }
        while now > before && self.bytes > self.bytes_max {
            let Some(largest) = self.largest() else { return };
            self.end(largest, End::Bytes);
        }
    }

    fn largest(&self) -> Option<Id> {
        let (most, _) = self.addresses.iter().max_by_key(|(_, address)| address.bytes)?;
        let of_it = self.entries.iter().filter(|(_, entry)| entry.address == *most);
        of_it.max_by_key(|(_, entry)| entry.held()).map(|(id, _)| *id)
    }

    /// Ends one connection, to have room for another: false where all of them are at work.
    pub(crate) fn make_room(&mut self) -> bool {
        self.end_first(|_| true)
    }

    /// As [`Self::make_room`], for another part of the process: not of one that has come only now, as its request may
    /// be in the kernel.
    pub(crate) fn give_up_one(&mut self, now: Instant) -> bool {
        self.end_first(|entry| now.duration_since(entry.entered) >= YOUNG)
    }

    fn end_first(&mut self, may_go: impl Fn(&Entry) -> bool) -> bool {
        let first = self.crowds.last().and_then(|(_, address)| self.addresses.get(address)?.may_go.first().copied());
        let Some((_, _, id)) = first.filter(|(_, _, id)| self.entries.get(id).is_some_and(may_go)) else {
            return false;
        };
        self.end(id, End::Crowded);
        true
    }

    /// Ends a connection by its task; it counts no more from here on.
    pub(crate) fn end(&mut self, id: Id, why: End) {
        if let Some(entry) = self.entries.get(&id) {
            self.counters.ended(why);
            entry.fate.tell(why);
            self.close(id);
        }
    }

    /// Ends whoever is overdue.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let keep_alive = self.keep_alive();
        let is_over = |entry: &Entry| {
            entry.due.is_some_and(|due| due <= now) || (entry.is_kept && now.duration_since(entry.entered) > keep_alive)
        };
        let over: Vec<(Id, End)> = self
            .entries
            .iter()
            .filter(|(_, entry)| is_over(entry))
            .map(|(id, entry)| (*id, if entry.is_half_closed { End::HalfClosed } else { entry.stage.overdue() }))
            .collect();
        for (id, why) in over {
            self.end(id, why);
        }
    }

    /// How long a connection may be idle between requests: all of the time while the table is half empty, down to a
    /// second where it is full.
    fn keep_alive(&self) -> Duration {
        let used = self.entries.len() as f64 / self.connections_max as f64;
        let share = ((1.0 - used) * 2.0).clamp(0.0, 1.0);
        self.keep_alive.mul_f64(share).max(Duration::from_secs(1).min(self.keep_alive))
    }

    /// Ends whoever has no request, or everybody.
    pub(crate) fn end_all(&mut self, is_everybody: bool) {
        let ids: Vec<Id> = self
            .entries
            .iter()
            .filter(|(_, entry)| is_everybody || entry.stage == Stage::Idle)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.end(id, End::Stopped);
        }
    }

    fn change(&mut self, address: IpAddr, change: impl FnOnce(&mut Address)) {
        let found = self.addresses.entry(address).or_default();
        let before = found.crowd();
        change(found);
        let (now, is_empty) = (found.crowd(), found.connections == 0);
        if before != now {
            if let Some(connections) = before {
                self.crowds.remove(&(connections, address));
            }
            if let Some(connections) = now {
                self.crowds.insert((connections, address));
            }
        }
        if is_empty {
            self.addresses.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests;
