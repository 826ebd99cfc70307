//! The connections of one shard, by slot.
//!
//! A slot is used again after its connection has ended, under the next generation: a [`ConnId`] of an earlier one finds
//! nothing. Each slot has one deadline, in ticks; they stand beside the connections, so that a walk over all of them
//! reads four bytes each.

use super::timers::Timers;
use crate::ConnId;
use crate::conn::{Conn, Phase};
use std::ops::{Index, IndexMut, Range};

/// The deadline of a slot that has none.
const NEVER: u32 = u32::MAX;

/// Slots, their generations and their deadlines.
#[derive(Debug)]
pub(super) struct Connections {
    shard: usize,
    slots: Vec<Conn>,
    /// The tick at which each connection must be looked at.
    deadlines: Vec<u32>,
    free: Vec<u32>,
    pub(super) timers: Timers,
}

impl Connections {
    pub(super) const fn new(shard: usize) -> Self {
        Self { shard, slots: Vec::new(), deadlines: Vec::new(), free: Vec::new(), timers: Timers::new() }
    }

    /// The shard's number, a part of each connection's id.
    pub(super) const fn shard(&self) -> usize {
        self.shard
    }

    /// Takes a free slot, or a new one; its connection begins in the phase [`Phase::Handshake`].
    pub(super) fn take(&mut self) -> usize {
        let slot = self.free.pop().map_or_else(
            || {
                self.slots.push(Conn::free(0));
                self.deadlines.push(NEVER);
                self.slots.len() - 1
            },
            |slot| slot as usize,
        );
        self.slots[slot].phase = Phase::Handshake;
        slot
    }

    /// Gives a slot back: from now on the id of its connection finds nothing. Returns the connection as it was.
    pub(super) fn release(&mut self, slot: usize) -> Conn {
        let generation = self.slots[slot].generation.wrapping_add(1);
        self.deadlines[slot] = NEVER;
        self.free.push(slot as u32);
        std::mem::replace(&mut self.slots[slot], Conn::free(generation))
    }

    /// The slot of a connection that has not ended.
    pub(super) fn find(&self, id: ConnId) -> Option<usize> {
        let conn = self.slots.get(id.slot())?;
        (id.shard() == self.shard && conn.generation == id.generation() && conn.phase != Phase::Free).then(|| id.slot())
    }

    /// The id of the connection in a slot.
    pub(super) fn id(&self, slot: usize) -> ConnId {
        ConnId::new(self.shard as u8, self.slots[slot].generation, slot as u32)
    }

    /// All slots, free ones included.
    pub(super) const fn slots(&self) -> Range<usize> {
        0..self.slots.len()
    }

    /// Connections, handshakes included.
    pub(super) const fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether the slot's deadline is `tick` or earlier.
    pub(super) fn is_due(&self, slot: usize, tick: u32) -> bool {
        self.deadlines[slot] <= tick
    }

    /// Sets the tick at which the connection must be looked at.
    pub(super) fn set_deadline(&mut self, slot: usize, tick: u32) {
        self.deadlines[slot] = tick;
    }

    /// Has the connection looked at by `tick`, or earlier where it was to be already.
    pub(super) fn bring_deadline_forward(&mut self, slot: usize, tick: u32) {
        self.deadlines[slot] = self.deadlines[slot].min(tick);
    }
}

impl Index<usize> for Connections {
    type Output = Conn;

    fn index(&self, slot: usize) -> &Conn {
        &self.slots[slot]
    }
}

impl IndexMut<usize> for Connections {
    fn index_mut(&mut self, slot: usize) -> &mut Conn {
        &mut self.slots[slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_finds_its_connection_until_the_slot_is_released_and_never_again() {
        let mut connections = Connections::new(3);
        let slot = connections.take();
        let first = connections.id(slot);
        assert_eq!((first.shard(), connections.find(first)), (3, Some(slot)));
        connections.release(slot);
        assert_eq!(connections.find(first), None);
        assert_eq!(connections.take(), slot, "the slot is used again");
        assert_ne!(connections.id(slot), first, "under another generation");
        assert_eq!(connections.find(first), None);
    }

    #[test]
    fn an_id_of_another_shard_finds_nothing() {
        let mut connections = Connections::new(0);
        let slot = connections.take();
        assert_eq!(connections.find(ConnId::new(1, 0, slot as u32)), None);
        assert_eq!(connections.find(ConnId::new(0, 0, 1)), None, "nor one of a slot that never was");
    }

    #[test]
    fn free_slots_are_counted_out_and_never_due() {
        let mut connections = Connections::new(0);
        let (one, other) = (connections.take(), connections.take());
        connections.set_deadline(one, 7);
        assert_eq!((connections.len(), connections.slots()), (2, 0..2));
        assert!(connections.is_due(one, 7) && !connections.is_due(other, 7));
        connections.bring_deadline_forward(one, 9);
        assert!(connections.is_due(one, 7), "it only comes forward");
        connections.release(one);
        assert_eq!((connections.len(), connections.slots()), (1, 0..2));
        assert!(!connections.is_due(one, NEVER - 1));
    }
}
