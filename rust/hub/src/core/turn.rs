//! This turn's frames, and which connection gets which.
//!
//! The turn's log holds each frame once; a connection's pending list is a chain of runs of indices into it, in one
//! arena for the shard, so an idle connection holds nothing and a burst in one channel is one link a member. Neighbours
//! with equal lists share the assembled bytes: one big channel costs one assembly and N sends.

use crate::compression::{Compressor, Window};
use crate::conn::{Conn, NOTHING, flag};
use crate::prepared::Form;
use crate::queued::Queued;

/// Frames of one send.
const FRAMES_MAX: usize = 32;
/// Bytes of one send.
const BYTES_MAX: usize = 64 << 10;
/// What the turn's log may hold when a turn ends with sends left over; beyond it they go out all the same, since only
/// an empty list of connections lets the log begin anew.
pub(super) const KEPT_FRAMES_MAX: usize = 4_096;
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Neighbours in the turn's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub first: u32,
    pub count: u32,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    run: Run,
    next: u32,
}

/// What is on its way out in this turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) frames: Vec<Queued>,
    /// Bytes of `frames`.
    frame_bytes: usize,
    links: Vec<Link>,
    /// Slots with something to send. One whose connection has ended or was closed stands here until its place comes:
    /// it is not marked then, or for its new owner. Taking it out at once would cost the list for each of many ends.
    pub(super) dirty: Vec<u32>,
    /// Assembled bytes of one batch.
    pub(super) scratch: Vec<u8>,
    /// The list assembled last for each window, so that clients of both kinds among each other still share.
    same: [Same; Window::COUNT],
    /// The list being planned.
    list: Vec<Run>,
    pub(super) sends: Vec<Planned>,
}

/// A pending list, and where its bytes are in the scratch.
#[derive(Debug, Default)]
struct Same {
    list: Vec<Run>,
    bytes: (usize, usize),
}

/// One send of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    pub slot: u32,
    pub source: Source,
    /// Frames of the pending list that it covers.
    pub frames: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Frame(u32, Form),
    Scratch { start: usize, end: usize },
    Backlog { start: usize, end: usize },
}

impl Turn {
    /// Notes a frame for this turn.
    pub(super) fn add(&mut self, queued: Queued) -> u32 {
        self.frame_bytes += queued.wire_len();
        self.frames.push(queued);
        (self.frames.len() - 1) as u32
    }

    pub(super) fn is_long(&self) -> bool {
        self.frames.len() > KEPT_FRAMES_MAX || self.frame_bytes > KEPT_BYTES_MAX
    }

    pub(super) fn frame(&self, index: u32) -> &Queued {
        &self.frames[index as usize]
    }

    pub(super) fn link(&mut self, slot: u32, conn: &mut Conn, run: Run) {
        if conn.pending_tail != NOTHING {
            let tail = &mut self.links[conn.pending_tail as usize];
            if tail.run.first + tail.run.count == run.first {
                tail.run.count += run.count;
                return;
            }
        }
        let link = self.links.len() as u32;
        self.links.push(Link { run, next: NOTHING });
        if conn.pending_tail == NOTHING {
            conn.pending_head = link;
        } else {
            self.links[conn.pending_tail as usize].next = link;
        }
        conn.pending_tail = link;
        self.mark(slot, conn);
    }

    pub(super) fn mark(&mut self, slot: u32, conn: &mut Conn) {
        if !conn.has(flag::DIRTY) {
            conn.set(flag::DIRTY);
            self.dirty.push(slot);
        }
    }

    /// A connection ends: nothing is pending for its slot any more.
    pub(super) fn forget(conn: &mut Conn) {
        conn.clear(flag::DIRTY);
        (conn.pending_head, conn.pending_tail) = (NOTHING, NOTHING);
    }

    fn runs(&self, conn: &Conn) -> impl Iterator<Item = Run> + '_ {
        let mut at = conn.pending_head;
        std::iter::from_fn(move || {
            let link = self.links.get(at as usize)?;
            at = link.next;
            Some(link.run)
        })
    }

    pub(super) fn pending(&self, conn: &Conn) -> impl Iterator<Item = u32> + '_ {
        self.runs(conn).flat_map(|run| run.first..run.first + run.count)
    }

    /// Takes frames that were sent off the front of a pending list.
    pub(super) fn take(&mut self, conn: &mut Conn, mut frames: u32) {
        while frames > 0 {
            let link = &mut self.links[conn.pending_head as usize];
            if link.run.count > frames {
                link.run.first += frames;
                link.run.count -= frames;
                return;
            }
            frames -= link.run.count;
            conn.pending_head = link.next;
        }
        if conn.pending_head == NOTHING {
            conn.pending_tail = NOTHING;
        }
    }

    /// Plans the next send of a pending list: the frame itself, bytes assembled for the one before, or new ones.
    pub(super) fn plan(&mut self, slot: u32, conn: &Conn, compressor: &mut Compressor) {
        let window = conn.window();
        let mut list = std::mem::take(&mut self.list);
        list.clear();
        let (mut frames, mut bytes) = (0, 0);
        'full: for run in self.runs(conn) {
            let mut count = 0;
            for frame in run.first..run.first + run.count {
                let queued = &self.frames[frame as usize];
                let len = queued.frame.wire_len(queued.form_for(window, compressor));
                if frames as usize == FRAMES_MAX || (frames > 0 && bytes + len > BYTES_MAX) {
                    if count > 0 {
                        list.push(Run { first: run.first, count });
                    }
                    break 'full;
                }
                (frames, count, bytes) = (frames + 1, count + 1, bytes + len);
            }
            list.push(Run { first: run.first, count });
        }
        let source = match list[..] {
            [Run { first, count: 1 }] => Source::Frame(first, self.frames[first as usize].form_for(window, compressor)),
            _ => self.assemble(&list, window, compressor),
        };
        self.list = list;
        self.sends.push(Planned { slot, source, frames });
    }

    fn assemble(&mut self, list: &[Run], window: Window, compressor: &mut Compressor) -> Source {
        let same = &mut self.same[usize::from(window.place())];
        if same.list != list {
            let start = self.scratch.len();
            for frame in list.iter().flat_map(|run| run.first..run.first + run.count) {
                let queued = &self.frames[frame as usize];
                self.scratch.extend_from_slice(queued.frame.bytes(queued.form_for(window, compressor)));
            }
            same.list.clear();
            same.list.extend_from_slice(list);
            same.bytes = (start, self.scratch.len());
        }
        let (start, end) = same.bytes;
        Source::Scratch { start, end }
    }

    /// Begins a batch of sends: what was assembled for the one before is gone from the scratch.
    pub(super) fn begin_batch(&mut self) {
        self.scratch.clear();
        self.forget_assembled();
        self.sends.clear();
    }

    /// Plans a send of bytes that a backlog put into the scratch from `start` on.
    pub(super) fn plan_backlog(&mut self, slot: u32, start: usize) {
        let end = self.scratch.len();
        if end > start {
            self.sends.push(Planned { slot, source: Source::Backlog { start, end }, frames: 0 });
        }
    }

    /// The bytes of a planned send.
    pub(super) fn bytes(&self, planned: &Planned) -> &[u8] {
        match planned.source {
            Source::Frame(frame, form) => self.frames[frame as usize].frame.bytes(form),
            Source::Scratch { start, end } | Source::Backlog { start, end } => &self.scratch[start..end],
        }
    }

    /// The sends of these places of the list were made; the log begins anew where nothing is left.
    pub(super) fn end(&mut self, done: std::ops::Range<usize>) {
        self.dirty.drain(done);
        if !self.dirty.is_empty() {
            return;
        }
        self.frames.clear();
        self.frame_bytes = 0;
        self.links.clear();
        self.forget_assembled();
        if self.scratch.capacity() > 4 << 20 {
            self.scratch = Vec::new();
        }
        if self.links.capacity() > 1 << 20 {
            self.links = Vec::new();
        }
    }

    fn forget_assembled(&mut self) {
        for same in &mut self.same {
            same.list.clear();
        }
    }
}
