//! What waits for a connection whose socket took less than it was given.
//!
//! States: clear (no [`Backlog`]); behind (there is one: everything queues); over soft (a `latest` event takes the place
//! of a queued one of the same channel and key, nothing more is read from the connection and no past is replayed to
//! it); over hard: droppable events go, oldest first, and the reader is told by `lag` at the place of the first one;
//! when nothing is droppable the connection is closed with 4000 and resumes from its position. The frame at the front
//! never counts against the limits, so one large event does not close everybody.
//!
//! Whatever happens to a queued event costs the same however much is queued. Entries have numbers that rise by one
//! from `base`; an index finds the newest of a key, marks are found by channel, and what drops looks on from where it
//! looked last. An event that is dropped leaves a mark or a hole; holes are closed when they are half of everything.
//! The index is made when the first event could be replaced, so who is clear, or just behind, pays nothing for it.

use crate::channel::Channel;
use crate::class::Class;
use crate::compose;
use crate::counters::{Counters, add, sub};
use crate::hub::channel_member;
use crate::prepared::{Form, Prepared};
use crate::queued::{Key, Queued};
use rustc_hash::FxHashMap;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What a place in a queue is taken to cost beside the frame, in the process's budget: a frame is shared, its places
/// are not, and a million places of small frames are more than the frames.
pub(crate) const PLACE_BYTES: usize = 96;
const _: () = assert!(2 * std::mem::size_of::<Entry>() <= PLACE_BYTES, "a queue that has just grown is half empty");
/// What a frame is taken to cost beside its bytes: the places of its two encodings, and what an allocator adds.
pub(crate) const FRAME_BYTES: usize = 128;
/// Holes that are not worth closing.
const HOLES_MIN: usize = 32;

/// What all that hold an encoding of a frame are charged for it together.
fn cost_of(frame: &Prepared, form: Form) -> usize {
    FRAME_BYTES + frame.wire_len(form)
}

/// The hard limit is passed and nothing may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooSlow;

/// Limits of one backlog.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub soft_bytes: usize,
    pub hard_bytes: usize,
    pub resumable: bool,
}

#[derive(Debug)]
enum Entry {
    Frame(Queued),
    /// Events of a channel were dropped here.
    Lag {
        channel: Option<Arc<Channel>>,
        skipped: u64,
    },
    /// An event was dropped here that a mark counts.
    Hole,
}

/// A mark that is a frame for the time of one send.
#[derive(Debug)]
struct SendingLag {
    number: u64,
    channel: Option<Arc<Channel>>,
    skipped: u64,
}

/// Frames that wait, the first perhaps partly sent.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    entries: VecDeque<Entry>,
    /// The number of the first entry.
    base: u64,
    /// Bytes of the first frame that the kernel has.
    front_sent: usize,
    /// Bytes that wait, without `front_sent`.
    bytes: usize,
    holes: usize,
    /// No frame stands before it.
    first_frame: u64,
    /// Nothing of the rank stands before it that could be dropped.
    oldest: [u64; 2],
    /// Marks that wait, by channel.
    marks: FxHashMap<u64, u64>,
    /// Marks that `fill` has made frames of, until `sent` says how much of them went out.
    sending: Vec<SendingLag>,
    /// Where the newest event of a key stands. Keys come from clients: std's keyed hash.
    newest: Option<HashMap<Key, u64>>,
    /// What stands before it is not replaced: a membership began here, and who has just come is to get what is new
    /// behind its confirmation; or a snapshot stands here, which would undo what is newer and stood before it.
    replaced_from: u64,
}

impl Backlog {
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes the rest of what a send left: `front_sent` bytes of the first frame are with the kernel already.
    pub(crate) fn start(frames: impl Iterator<Item = Queued>, front_sent: usize, counters: &Counters) -> Self {
        let mut backlog = Self { front_sent, ..Self::default() };
        for queued in frames {
            backlog.append(queued, counters);
        }
        backlog.bytes -= front_sent;
        backlog
    }

    // ---- places

    fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.get(number.checked_sub(self.base)? as usize)
    }

    fn frame(&self, number: u64) -> Option<&Queued> {
        match self.entry(number) {
            Some(Entry::Frame(queued)) => Some(queued),
            _ => None,
        }
    }

    fn push_entry(&mut self, entry: Entry, counters: &Counters) {
        add(&counters.outbox_bytes, PLACE_BYTES as u64);
        self.entries.push_back(entry);
    }

    /// What one more frame would add to what outboxes hold.
    pub(crate) fn cost(queued: &Queued) -> usize {
        let frame = &queued.frame;
        let new = queued.form.kept().iter().filter(|form| frame.holders(**form) == 0);
        PLACE_BYTES + new.map(|form| cost_of(frame, *form)).sum::<usize>()
    }

    fn hold(&mut self, queued: &Queued, counters: &Counters) {
        self.bytes += queued.wire_len();
        for form in queued.form.kept() {
            if queued.frame.hold(*form) {
                add(&counters.outbox_bytes, cost_of(&queued.frame, *form) as u64);
            }
        }
    }

    fn forget(&mut self, queued: &Queued, counters: &Counters) {
        self.bytes -= queued.wire_len();
        for form in queued.form.kept() {
            if queued.frame.release(*form) {
                sub(&counters.outbox_bytes, cost_of(&queued.frame, *form) as u64);
            }
        }
    }

    fn append(&mut self, queued: Queued, counters: &Counters) {
        self.hold(&queued, counters);
        let number = self.end();
        if matches!(queued.class, Class::Confirmation | Class::Snapshot) {
            self.keep_before();
        }
        if let (Some(newest), Some(key)) = (&mut self.newest, queued.latest_key()) {
            newest.insert(key, number);
        }
        self.push_entry(Entry::Frame(queued), counters);
    }

    /// Bytes that wait behind the first frame; None where there is no frame.
    fn behind(&mut self) -> Option<usize> {
        self.first_frame = self.first_frame.max(self.base);
        while matches!(self.entry(self.first_frame), Some(Entry::Lag { .. } | Entry::Hole)) {
            self.first_frame += 1;
        }
        let first = self.frame(self.first_frame)?;
        let sent = if self.first_frame == self.base { self.front_sent } else { 0 };
        Some(self.bytes - (first.wire_len() - sent))
    }

    // ---- in

    /// Adds a frame, in the place of an older one or dropping others or itself where the limits ask for it.
    pub(crate) fn push(&mut self, queued: Queued, bounds: Bounds, counters: &Counters) -> Result<(), TooSlow> {
        let len = queued.wire_len();
        loop {
            let older = self.older(&queued, bounds.soft_bytes);
            let more = len - older.map_or(0, |(_, older_len)| older_len.min(len));
            let fits = more == 0 || self.behind().is_none_or(|behind| behind + more <= bounds.hard_bytes);
            if fits {
                match older {
                    Some((number, _)) => self.replace(number, queued, counters),
                    None => self.append(queued, counters),
                }
                return Ok(());
            }
            if !self.drop_oldest(bounds.resumable, &counters.dropped_slow, counters) {
                if queued.rank(bounds.resumable).is_none() {
                    return Err(TooSlow);
                }
                add(&counters.dropped_slow, 1);
                match self.marks.get(&queued.channel_id()) {
                    Some(&mark) => self.count_in(mark, 1),
                    None => {
                        self.marks.insert(queued.channel_id(), self.end());
                        self.push_entry(Entry::Lag { channel: queued.channel, skipped: 1 }, counters);
                    }
                }
                return Ok(());
            }
        }
    }

    /// Adds the last frame of a connection, whatever the limits.
    pub(crate) fn push_last(&mut self, queued: Queued, counters: &Counters) {
        self.append(queued, counters);
    }

    /// Nothing that is queued is replaced any more.
    fn keep_before(&mut self) {
        self.replaced_from = self.end();
    }

    // ---- conflation

    /// Number and length of the event that this one may take the place of: the newest of its key, so that a reader
    /// never gets an older state behind a newer one.
    fn older(&mut self, queued: &Queued, soft_bytes: usize) -> Option<(u64, usize)> {
        if self.bytes <= soft_bytes {
            return None;
        }
        let key = queued.latest_key()?;
        let first = self.replaced_from.max(self.base + u64::from(self.front_sent > 0));
        if self.newest.is_none() {
            self.index();
        }
        let number = *self.newest.as_ref()?.get(&key)?;
        let older = self.frame(number).filter(|_| number >= first)?;
        Some((number, older.wire_len()))
    }

    fn index(&mut self) {
        let numbered = (self.base..).zip(&self.entries);
        let latest = numbered.filter_map(|(number, entry)| match entry {
            Entry::Frame(queued) => Some((queued.latest_key()?, number)),
            _ => None,
        });
        self.newest = Some(latest.collect());
    }

    fn replace(&mut self, number: u64, queued: Queued, counters: &Counters) {
        self.hold(&queued, counters);
        let place = (number - self.base) as usize;
        if let Entry::Frame(older) = std::mem::replace(&mut self.entries[place], Entry::Frame(queued)) {
            self.forget(&older, counters);
        }
        add(&counters.dropped_conflated, 1);
    }

    /// An event is here no longer.
    fn forget_key(&mut self, number: u64, queued: &Queued) {
        if let Some(newest) = &mut self.newest
            && let Some(key) = queued.latest_key()
            && newest.get(&key) == Some(&number)
        {
            newest.remove(&key);
        }
    }

    // ---- dropping

    /// Drops a quarter of what is queued since all outboxes together hold too much, with the places that it had; false
    /// where none may go.
    pub(crate) fn drop_quarter(&mut self, resumable: bool, counters: &Counters) -> bool {
        let most = self.entries.len().div_ceil(4);
        let dropped = (0..most).take_while(|_| self.drop_oldest(resumable, &counters.dropped_budget, counters)).count();
        self.close_holes(counters);
        dropped > 0
    }

    /// What of the memory that outboxes hold is this one's: of a frame that others hold too, a part.
    pub(crate) fn part(&self) -> usize {
        let of_frame = |Queued { frame, form, .. }: &Queued| {
            form.kept().iter().map(|form| cost_of(frame, *form) / frame.holders(*form).max(1)).sum::<usize>()
        };
        let frames =
            self.entries.iter().map(|entry| if let Entry::Frame(queued) = entry { of_frame(queued) } else { 0 });
        frames.sum::<usize>() + self.entries.len() * PLACE_BYTES
    }

    /// Drops the event that goes first; false where none may go.
    fn drop_oldest(&mut self, resumable: bool, dropped: &AtomicU64, counters: &Counters) -> bool {
        let Some(number) = (0..self.oldest.len()).find_map(|rank| self.oldest_of(rank, resumable)) else {
            return false;
        };
        let place = (number - self.base) as usize;
        if let Entry::Frame(oldest) = std::mem::replace(&mut self.entries[place], Entry::Hole) {
            self.holes += 1;
            self.forget(&oldest, counters);
            self.forget_key(number, &oldest);
            add(dropped, 1);
            self.note_lag(number, oldest.channel, 1);
            if self.holes > HOLES_MIN && self.holes > self.entries.len() / 2 {
                self.close_holes(counters);
            }
        }
        true
    }

    fn oldest_of(&mut self, rank: usize, resumable: bool) -> Option<u64> {
        let mut number = self.oldest[rank].max(self.base + u64::from(self.front_sent > 0));
        while let Some(entry) = self.entry(number) {
            if matches!(entry, Entry::Frame(queued) if queued.rank(resumable) == Some(rank)) {
                break;
            }
            number += 1;
        }
        self.oldest[rank] = number;
        (number < self.end()).then_some(number)
    }

    /// Counts what was dropped at a hole in its channel's mark, which stands there or before.
    fn note_lag(&mut self, hole: u64, channel: Option<Arc<Channel>>, mut skipped: u64) {
        let id = channel.as_ref().map_or(0, |channel| channel.id);
        match self.marks.get(&id) {
            Some(&mark) if mark < hole => return self.count_in(mark, skipped),
            Some(&later) => {
                let place = (later - self.base) as usize;
                if let Entry::Lag { skipped: counted, .. } = std::mem::replace(&mut self.entries[place], Entry::Hole) {
                    self.holes += 1;
                    skipped += counted;
                }
            }
            None => {}
        }
        let place = (hole - self.base) as usize;
        self.entries[place] = Entry::Lag { channel, skipped };
        self.holes -= 1;
        self.marks.insert(id, hole);
    }

    fn count_in(&mut self, mark: u64, count: u64) {
        let place = (mark - self.base) as usize;
        if let Some(Entry::Lag { skipped, .. }) = self.entries.get_mut(place) {
            *skipped += count;
        }
    }

    fn close_holes(&mut self, counters: &Counters) {
        let is_there = |entry: &Entry| !matches!(entry, Entry::Hole);
        let before = self.replaced_from.saturating_sub(self.base) as usize;
        self.replaced_from =
            self.base + self.entries.iter().take(before).filter(|entry| is_there(entry)).count() as u64;
        self.entries.retain(is_there);
        self.entries.shrink_to(self.entries.len() * 2);
        sub(&counters.outbox_bytes, (self.holes * PLACE_BYTES) as u64);
        self.holes = 0;
        self.first_frame = self.base;
        self.oldest = [self.base; 2];
        let numbered = (self.base..).zip(&self.entries);
        self.marks = numbered
            .filter_map(|(number, entry)| match entry {
                Entry::Lag { channel, .. } => Some((channel.as_ref().map_or(0, |channel| channel.id), number)),
                _ => None,
            })
            .collect();
        if self.newest.is_some() {
            self.index();
        }
    }

    // ---- out

    /// Appends what goes out next, up to about `most` bytes: of a longer frame a part, or all of it where no `parts`
    /// are taken. [`Self::sent`] says afterwards how much of it went.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, most: usize, parts: bool, wall_ms: u64, counters: &Counters) {
        let start = out.len();
        for place in 0..self.entries.len() {
            if let Entry::Lag { channel, skipped } = &self.entries[place] {
                let sending =
                    SendingLag { number: self.base + place as u64, channel: channel.clone(), skipped: *skipped };
                let lag = Queued::reply(lag_frame(channel.as_deref(), *skipped, wall_ms));
                self.marks.remove(&channel.as_ref().map_or(0, |channel| channel.id));
                self.hold(&lag, counters);
                self.entries[place] = Entry::Frame(lag);
                self.first_frame = self.base;
                self.sending.push(sending);
            }
            let Entry::Frame(queued) = &self.entries[place] else { continue };
            let skip = if place == 0 { self.front_sent } else { 0 };
            let bytes = &queued.bytes()[skip..];
            // A frame that is longer than the room goes in parts: copying all of it again for each would be quadratic.
            let room = most.saturating_sub(out.len() - start);
            if !parts && bytes.len() > room && out.len() > start {
                break;
            }
            let count = if parts { bytes.len().min(room) } else { bytes.len() };
            out.extend_from_slice(&bytes[..count]);
            if out.len() - start >= most {
                break;
            }
        }
    }

    /// The kernel took so many of the bytes that `fill` gave.
    pub(crate) fn sent(&mut self, count: usize, counters: &Counters) {
        self.take(count, counters);
        self.take_back(counters);
    }

    fn take(&mut self, mut count: usize, counters: &Counters) {
        while count > 0 {
            let Some(Entry::Frame(first)) = self.entries.front() else { break };
            let rest = first.wire_len() - self.front_sent;
            if count < rest {
                self.front_sent += count;
                self.bytes -= count;
                return;
            }
            count -= rest;
            self.bytes += self.front_sent;
            self.front_sent = 0;
            self.pop_front(counters);
            while matches!(self.entries.front(), Some(Entry::Hole)) {
                self.holes -= 1;
                self.pop_front(counters);
            }
        }
    }

    /// Frames of marks of which nothing went out are marks again, so that they count what is dropped until the next
    /// send and do not add up: there is one for each channel, however often a reader takes nothing.
    fn take_back(&mut self, counters: &Counters) {
        let first = self.base + u64::from(self.front_sent > 0);
        let mut sending = std::mem::take(&mut self.sending);
        for SendingLag { number, channel, skipped } in sending.drain(..).filter(|lag| lag.number >= first) {
            let place = (number - self.base) as usize;
            if let Entry::Frame(lag) = std::mem::replace(&mut self.entries[place], Entry::Hole) {
                self.holes += 1;
                self.forget(&lag, counters);
                self.note_lag(number, channel, skipped);
            }
        }
        self.sending = sending;
    }

    fn pop_front(&mut self, counters: &Counters) {
        let Some(entry) = self.entries.pop_front() else { return };
        sub(&counters.outbox_bytes, PLACE_BYTES as u64);
        if let Entry::Frame(queued) = entry {
            self.forget(&queued, counters);
            self.forget_key(self.base, &queued);
        }
        self.base += 1;
    }

    /// Drops whole frames that wait behind one that is partly written.
    pub(crate) fn drop_whole_frames(&mut self, counters: &Counters) {
        let keep = usize::from(self.front_sent > 0);
        let dropped = self.entries.split_off(keep);
        sub(&counters.outbox_bytes, (dropped.len() * PLACE_BYTES) as u64);
        for entry in dropped {
            if let Entry::Frame(queued) = entry {
                self.forget(&queued, counters);
            }
        }
        self.holes = 0;
        self.marks.clear();
        self.sending.clear();
        self.newest = None;
        (self.first_frame, self.oldest) = (self.base, [self.base; 2]);
    }

    /// Gives everything back.
    pub(crate) fn discard(mut self, counters: &Counters) {
        self.bytes += self.front_sent;
        self.front_sent = 0;
        self.drop_whole_frames(counters);
    }
}

pub(crate) fn lag_frame(channel: Option<&Channel>, skipped: u64, wall_ms: u64) -> Arc<Prepared> {
    let json = compose::reply("lag", None, wall_ms, |out| {
        out.extend_from_slice(b"{\"channel\":");
        match channel {
            Some(channel) => compose::string(out, channel.name()),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"skipped\":");
        compose::number(out, skipped);
        out.push(b'}');
    });
    Prepared::text(&match channel {
        Some(channel) => channel_member(json, channel.name()),
        None => json,
    })
}

#[cfg(test)]
mod tests;
