//! What waits for a connection whose socket took less than it was given.
//!
//! States: clear (no [`Backlog`]); behind (there is one: everything queues); over soft (reading pauses until it is
//! below again); over hard: droppable events go, oldest first, and the reader is told by `lag` at the place of the
//! first one; when nothing is droppable the connection is closed with 4000 and resumes from its position. The frame
//! at the front never counts against the limits, so one large event does not close everybody.

use crate::channel::Channel;
use crate::compose;
use crate::compression::{Compressor, Window};
use crate::counters::{Counters, add, sub};
use crate::hub::channel_member;
use crate::options::Overflow;
use crate::prepared::{Form, Prepared};
use std::collections::VecDeque;
use std::sync::Arc;

/// What one connection alone gets stays plain below this: nobody shares the cost.
const REPLY_BYTES_MIN: usize = 1_024;

/// What may happen to an event whose reader is too slow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// An answer to a command, or a message on a raw endpoint: never dropped.
    Reply,
    /// Has an offset: never dropped where the reader can resume.
    Durable,
    /// A newer one of the same channel and key may take its place.
    Latest(Arc<str>),
    /// Dropped under the channel's policy.
    Volatile(Overflow),
}

/// A frame on its way to connections.
#[derive(Debug, Clone)]
pub(crate) struct Queued {
    pub frame: Arc<Prepared>,
    pub class: Class,
    /// None for what belongs to no channel.
    pub channel: Option<Arc<Channel>>,
    /// Plain in a turn's log, where it is for many; in an outbox what this connection gets.
    pub form: Form,
}

impl Queued {
    pub(crate) const fn reply(frame: Arc<Prepared>) -> Self {
        Self { frame, class: Class::Reply, channel: None, form: Form::Plain }
    }

    /// Bytes on the wire.
    pub(crate) fn wire_len(&self) -> usize {
        self.frame.wire_len(self.form)
    }

    /// What goes to the socket.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.frame.bytes(self.form)
    }

    /// What a connection with this window gets, always the same.
    pub(crate) fn form_for(&self, window: Window, compressor: &mut Compressor) -> Form {
        if !window.is_agreed() {
            return Form::Plain;
        }
        let threshold = compressor.options().threshold_bytes;
        let bytes_min = if self.class == Class::Reply || self.frame.is_for_one() {
            threshold.max(REPLY_BYTES_MIN)
        } else {
            threshold
        };
        self.frame.form_for(window, bytes_min, compressor)
    }

    /// The same for the outbox of a connection with this window.
    pub(crate) fn to(&self, window: Window, compressor: &mut Compressor) -> Self {
        Self { form: self.form_for(window, compressor), ..self.clone() }
    }

    const fn is_droppable(&self, resumable: bool) -> bool {
        match self.class {
            Class::Reply | Class::Volatile(Overflow::Close) => false,
            Class::Durable => !resumable,
            Class::Latest(_) | Class::Volatile(Overflow::DropOldest) => true,
        }
    }
}

/// The hard limit is passed and nothing may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooSlow;

/// Limits of one backlog.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub hard_bytes: usize,
    /// Of the whole process, each shared frame once.
    pub all_bytes: usize,
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
}

/// Frames that wait, the first perhaps partly sent.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    entries: VecDeque<Entry>,
    /// Bytes of the first frame that the kernel has.
    front_sent: usize,
    /// Bytes that wait, without `front_sent`.
    bytes: usize,
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
        let mut backlog = Self { entries: VecDeque::new(), front_sent, bytes: 0 };
        for queued in frames {
            backlog.append(queued, counters);
        }
        backlog.bytes -= front_sent;
        backlog
    }

    fn append(&mut self, queued: Queued, counters: &Counters) {
        self.bytes += queued.wire_len();
        if queued.frame.hold(queued.form) {
            add(&counters.outbox_bytes, queued.wire_len() as u64);
        }
        self.entries.push_back(Entry::Frame(queued));
    }

    fn forget(&mut self, queued: &Queued, counters: &Counters) {
        self.bytes -= queued.wire_len();
        if queued.frame.release(queued.form) {
            sub(&counters.outbox_bytes, queued.wire_len() as u64);
        }
    }

    /// Bytes that wait behind the first frame.
    fn behind(&self) -> usize {
        match self.entries.front() {
            Some(Entry::Frame(first)) => self.bytes - (first.wire_len() - self.front_sent),
            _ => self.bytes,
        }
    }

    /// Adds a frame, dropping others or itself where the limits ask for it.
    pub(crate) fn push(&mut self, queued: Queued, bounds: Bounds, counters: &Counters) -> Result<(), TooSlow> {
        let len = queued.wire_len();
        let is_over = |backlog: &Self| {
            if backlog.is_empty() {
                None
            } else if backlog.behind() + len > bounds.hard_bytes {
                Some(&counters.dropped_slow)
            } else {
                let all_bytes = counters.outbox_bytes.load(std::sync::atomic::Ordering::Relaxed);
                (all_bytes as usize > bounds.all_bytes).then_some(&counters.dropped_budget)
            }
        };
        let mut from = usize::from(self.front_sent > 0);
        while let Some(dropped) = is_over(self) {
            let droppable = |entry: &Entry| matches!(entry, Entry::Frame(q) if q.is_droppable(bounds.resumable));
            let Some(place) = self.entries.iter().skip(from).position(droppable).map(|place| place + from) else {
                if !queued.is_droppable(bounds.resumable) {
                    return Err(TooSlow);
                }
                add(dropped, 1);
                self.note_lag(self.entries.len(), queued.channel);
                return Ok(());
            };
            if let Some(Entry::Frame(oldest)) = self.entries.remove(place) {
                self.forget(&oldest, counters);
                add(dropped, 1);
                self.note_lag(place, oldest.channel);
            }
            from = place;
        }
        self.append(queued, counters);
        Ok(())
    }

    /// Adds the last frame of a connection, whatever the limits.
    pub(crate) fn push_last(&mut self, queued: Queued, counters: &Counters) {
        self.append(queued, counters);
    }

    /// Counts a dropped event in the mark of its channel before `place`, or makes one there.
    fn note_lag(&mut self, place: usize, channel: Option<Arc<Channel>>) {
        let id = channel.as_ref().map(|channel| channel.id);
        let mark = self.entries.iter_mut().take(place).find_map(|entry| match entry {
            Entry::Lag { channel, skipped } if channel.as_ref().map(|c| c.id) == id => Some(skipped),
            _ => None,
        });
        match mark {
            Some(skipped) => *skipped += 1,
            None => self.entries.insert(place, Entry::Lag { channel, skipped: 1 }),
        }
    }

    /// Appends what goes out next, up to about `most` bytes and at least one frame.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, most: usize, wall_ms: u64, counters: &Counters) {
        let start = out.len();
        for place in 0..self.entries.len() {
            if let Entry::Lag { channel, skipped } = &self.entries[place] {
                let lag = Queued::reply(lag_frame(channel.as_deref(), *skipped, wall_ms));
                self.bytes += lag.wire_len();
                if lag.frame.hold(lag.form) {
                    add(&counters.outbox_bytes, lag.wire_len() as u64);
                }
                self.entries[place] = Entry::Frame(lag);
            }
            let Entry::Frame(queued) = &self.entries[place] else { continue };
            let skip = if place == 0 { self.front_sent } else { 0 };
            let bytes = &queued.bytes()[skip..];
            // A frame that is longer than the room goes in parts: copying all of it again for each would be quadratic.
            let room = most.saturating_sub(out.len() - start);
            out.extend_from_slice(&bytes[..bytes.len().min(room)]);
            if out.len() - start >= most {
                break;
            }
        }
    }

    /// The kernel took so many of the bytes that `fill` gave.
    pub(crate) fn sent(&mut self, mut count: usize, counters: &Counters) {
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
            if let Some(Entry::Frame(first)) = self.entries.pop_front() {
                self.forget(&first, counters);
            }
        }
    }

    /// Drops whole frames that wait behind one that is partly written.
    pub(crate) fn drop_whole_frames(&mut self, counters: &Counters) {
        let keep = usize::from(self.front_sent > 0);
        for entry in self.entries.split_off(keep) {
            if let Entry::Frame(queued) = entry {
                self.forget(&queued, counters);
            }
        }
    }

    /// Gives everything back.
    pub(crate) fn discard(mut self, counters: &Counters) {
        self.bytes += self.front_sent;
        for entry in std::mem::take(&mut self.entries) {
            if let Entry::Frame(queued) = entry {
                self.forget(&queued, counters);
            }
        }
    }
}

fn lag_frame(channel: Option<&Channel>, skipped: u64, wall_ms: u64) -> Arc<Prepared> {
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
mod tests {
    use super::*;
    use crate::channel::Policy;

    fn event(channel: &Arc<Channel>, class: Class, text: &str) -> Queued {
        Queued { frame: Prepared::text(text.as_bytes()), class, channel: Some(Arc::clone(channel)), form: Form::Plain }
    }

    fn channel() -> Arc<Channel> {
        Arc::new(Channel::new("c".into(), 1, Policy::VOLATILE, "e".into(), false, 1))
    }

    fn all(backlog: &mut Backlog, counters: &Counters) -> String {
        let mut out = Vec::new();
        backlog.fill(&mut out, 1 << 20, 0, counters);
        backlog.sent(out.len(), counters);
        String::from_utf8_lossy(&out).into_owned()
    }

    const VOLATILE: Class = Class::Volatile(Overflow::DropOldest);

    #[test]
    fn over_the_hard_limit_the_oldest_volatile_events_go_and_lag_stands_in_their_place() {
        let (channel, counters) = (channel(), Counters::default());
        let bounds = Bounds { hard_bytes: 36, all_bytes: 1 << 20, resumable: true };
        let mut backlog = Backlog::start([event(&channel, VOLATILE, "first-0000")].into_iter(), 3, &counters);
        for n in 1..=5 {
            backlog.push(event(&channel, VOLATILE, &format!("event-000{n}")), bounds, &counters).unwrap();
        }
        let out = all(&mut backlog, &counters);
        let places: Vec<Option<usize>> =
            ["rst-0000", "\"skipped\":2", "event-0003", "event-0005"].iter().map(|t| out.find(t)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{out}");
        assert!(!out.contains("event-0001") && !out.contains("event-0002"), "{out}");
        assert_eq!((backlog.bytes(), counters.outbox_bytes.into_inner()), (0, 0));
    }

    #[test]
    fn durable_events_are_never_dropped_for_who_can_resume() {
        let (channel, counters) = (channel(), Counters::default());
        let bounds = |resumable| Bounds { hard_bytes: 20, all_bytes: 1 << 20, resumable };
        let mut backlog = Backlog::start([event(&channel, Class::Durable, &"x".repeat(500))].into_iter(), 0, &counters);
        backlog.push(event(&channel, Class::Durable, "0123456789"), bounds(true), &counters).unwrap();
        assert_eq!(backlog.push(event(&channel, Class::Durable, "0123456789"), bounds(true), &counters), Err(TooSlow));
        backlog.push(event(&channel, Class::Durable, "abcdefghij"), bounds(false), &counters).unwrap();
        assert!(all(&mut backlog, &counters).contains("\"skipped\""));
    }

    #[test]
    fn partial_sends_of_any_size_give_the_same_bytes() {
        for step in 1..40 {
            let (channel, counters) = (channel(), Counters::default());
            let frames: Vec<Queued> = (0..4).map(|n| event(&channel, Class::Reply, &format!("frame {n}"))).collect();
            let whole: Vec<u8> = frames.iter().flat_map(|q| q.bytes().to_vec()).collect();
            let mut backlog = Backlog::start(frames.into_iter(), 2, &counters);
            let mut got = whole[..2].to_vec();
            while !backlog.is_empty() {
                let mut out = Vec::new();
                backlog.fill(&mut out, 16, 0, &counters);
                let taken = out.len().min(step);
                got.extend_from_slice(&out[..taken]);
                backlog.sent(taken, &counters);
            }
            assert_eq!(got, whole);
            assert_eq!((backlog.bytes(), counters.outbox_bytes.into_inner()), (0, 0));
        }
    }
}
