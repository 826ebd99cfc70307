//! A channel's newest publications in memory, by number and by bytes.
//!
//! A ring holds at most `history` publications of the channel's policy and `ring_bytes_max` bytes, all rings together
//! `rings_bytes_max`: the oldest go first. A durable channel reads what went from its log; a channel in memory has lost
//! it, and says so to whoever comes with an older position. Each publication is charged what it holds at most: its frame,
//! a deflated copy where one may be made, and the places around them, so what is charged never changes while it is kept.

use crate::channel::{Channel, Publication};
use crate::compression::DEFLATED_BYTES_MAX;
use crate::counters::{Counters, add, sub};
use crate::lock::lock;
use crate::options::Options;
use crate::prepared::Prepared;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// What a publication is taken to cost beside its bytes: three allocations, its place, and room that the ring has over.
const PUBLICATION_BYTES: usize = 256;

/// What rings may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingLimits {
    /// One channel's.
    pub ring_bytes_max: usize,
    /// All together.
    pub rings_bytes_max: usize,
    /// Payloads from this on may have a deflated copy, up to what is deflated at all; None where nothing is.
    deflated_from: Option<usize>,
}

impl RingLimits {
    pub(crate) fn of(options: &Options) -> Self {
        Self {
            ring_bytes_max: options.limits.ring_bytes_max,
            rings_bytes_max: options.limits.rings_bytes_max,
            deflated_from: options.compression.enabled.then_some(options.compression.threshold_bytes),
        }
    }

    /// The bytes of a frame, and of the deflated copy where there may be one.
    pub(crate) fn frame_bytes(&self, frame: &Prepared) -> usize {
        let len = frame.payload().len();
        let is_deflatable = self.deflated_from.is_some_and(|least| (least..=DEFLATED_BYTES_MAX).contains(&len));
        len * (1 + usize::from(is_deflatable))
    }

    /// What keeping a publication costs.
    fn cost(&self, publication: &Publication) -> usize {
        PUBLICATION_BYTES + self.frame_bytes(&publication.frame)
    }
}

#[derive(Debug)]
struct Kept {
    publication: Arc<Publication>,
    cost: usize,
}

/// The newest publications, oldest first, offsets rising by one.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    kept: VecDeque<Kept>,
    bytes: usize,
    /// Where [`Rings`] lists it.
    listed: Option<Place>,
}

impl Ring {
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        debug_assert_eq!(self.bytes, self.kept.iter().map(|kept| kept.cost).sum::<usize>());
        self.bytes
    }

    /// The oldest.
    pub(crate) fn first(&self) -> Option<&Publication> {
        self.kept.front().map(|kept| &*kept.publication)
    }

    /// The part from `next` on, at most `most`; None where it begins later.
    pub(crate) fn from(&self, next: u64, most: usize) -> Option<Vec<Arc<Publication>>> {
        let skip = next.checked_sub(self.first()?.offset)? as usize;
        Some(self.kept.iter().skip(skip).take(most).map(|kept| Arc::clone(&kept.publication)).collect())
    }

    /// Keeps one more, at most `most`; others go for it, and where it is too large alone, all do.
    pub(crate) fn push(
        &mut self,
        publication: Arc<Publication>,
        most: usize,
        limits: &RingLimits,
        counters: &Counters,
    ) {
        if most == 0 {
            return;
        }
        // A hole would make the ring lie about what it covers.
        if self.kept.back().is_some_and(|last| last.publication.offset + 1 != publication.offset) {
            self.clear(counters);
        }
        let cost = limits.cost(&publication);
        while self.kept.len() >= most {
            self.pop(counters);
        }
        while self.bytes + cost > limits.ring_bytes_max && self.pop(counters) {
            add(&counters.ring_events_evicted, 1);
        }
        if cost > limits.ring_bytes_max {
            return add(&counters.ring_events_evicted, 1);
        }
        self.charge(cost, counters);
        self.kept.push_back(Kept { publication, cost });
    }

    /// Puts an event whose data has changed in the place of what it was; where there is no room for it, what is older
    /// goes, and it too.
    pub(crate) fn amend(&mut self, publication: Arc<Publication>, limits: &RingLimits, counters: &Counters) {
        let place = self.first().and_then(|first| publication.offset.checked_sub(first.offset));
        let Some(place) = place.map(|place| place as usize).filter(|place| *place < self.kept.len()) else { return };
        let cost = limits.cost(&publication);
        let before = std::mem::replace(&mut self.kept[place], Kept { publication, cost }).cost;
        self.bytes = self.bytes - before + cost;
        add(&counters.rings_bytes, (cost as u64).wrapping_sub(before as u64));
        while self.bytes > limits.ring_bytes_max && self.pop(counters) {
            add(&counters.ring_events_evicted, 1);
        }
    }

    /// Lets the oldest go for as long as `is_gone` says so.
    pub(crate) fn pop_while(&mut self, is_gone: impl Fn(&Publication) -> bool, counters: &Counters) {
        while self.first().is_some_and(&is_gone) {
            self.pop(counters);
        }
    }

    pub(crate) fn clear(&mut self, counters: &Counters) {
        while self.pop(counters) {}
    }

    fn pop(&mut self, counters: &Counters) -> bool {
        let Some(Kept { cost, .. }) = self.kept.pop_front() else { return false };
        self.bytes -= cost;
        sub(&counters.rings_bytes, cost as u64);
        if self.kept.len() * 4 < self.kept.capacity() {
            self.kept.shrink_to(self.kept.len() * 2);
        }
        true
    }

    fn charge(&mut self, cost: usize, counters: &Counters) {
        self.bytes += cost;
        add(&counters.rings_bytes, cost as u64);
    }
}

/// A class of size, and who came into it first.
type Place = (u32, u64);

/// Which channels have rings, by size: who pays when all of them hold too much.
///
/// Sizes are told apart by powers of two, so that a ring moves seldom and a publish that leaves it where it is takes no
/// lock. Its lock is taken under a channel's, never the other way round.
#[derive(Debug, Default)]
pub(crate) struct Rings(Mutex<Listed>);

#[derive(Debug, Default)]
struct Listed {
    by_size: BTreeMap<Place, Arc<Channel>>,
    last: u64,
}

impl Rings {
    /// Lists a ring where its size belongs; a change of less than a class is none.
    pub(crate) fn list(&self, channel: &Arc<Channel>, ring: &mut Ring) {
        let class = class_of(ring.bytes);
        match ring.listed {
            Some((known, _)) if class == known || class > 0 && class + 1 == known => return,
            None if class == 0 => return,
            _ => {}
        }
        let mut listed = lock(&self.0);
        if let Some(place) = ring.listed.take() {
            listed.by_size.remove(&place);
        }
        if class > 0 {
            listed.last += 1;
            let place = (class, listed.last);
            listed.by_size.insert(place, Arc::clone(channel));
            ring.listed = Some(place);
        }
    }

    /// Lets go of the oldest of the largest rings where all hold more than they may, until a sixty-fourth is free. No
    /// lock of a channel is held.
    pub(crate) fn make_room(&self, limits: &RingLimits, counters: &Counters) {
        let held = || counters.rings_bytes.load(Ordering::Relaxed) as usize;
        if held() <= limits.rings_bytes_max {
            return;
        }
        let goal = limits.rings_bytes_max - limits.rings_bytes_max / 64;
        while held() > goal {
            let Some((place, channel)) = self.largest() else { return };
            let mut state = channel.lock();
            let ring = &mut state.ring;
            if ring.listed != Some(place) {
                // Another thread was here first.
                continue;
            }
            // A ring that shrank since it was listed is one of its present size.
            let pays = class_of(ring.bytes) == place.0;
            while pays && ring.bytes >= least_of(place.0) && held() > goal && ring.pop(counters) {
                add(&counters.ring_events_evicted, 1);
            }
            self.relist(&channel, ring);
        }
    }

    /// The ring that has been one of the largest for longest.
    fn largest(&self) -> Option<(Place, Arc<Channel>)> {
        let listed = lock(&self.0);
        let class = listed.by_size.last_key_value()?.0.0;
        let (place, channel) = listed.by_size.range((class, 0)..).next()?;
        Some((*place, Arc::clone(channel)))
    }

    /// Lists a ring anew, as the last of its class.
    fn relist(&self, channel: &Arc<Channel>, ring: &mut Ring) {
        if let Some(place) = ring.listed.take() {
            lock(&self.0).by_size.remove(&place);
        }
        self.list(channel, ring);
    }

    /// Takes a ring off that is empty for good.
    pub(crate) fn forget(&self, ring: &mut Ring) {
        if let Some(place) = ring.listed.take() {
            lock(&self.0).by_size.remove(&place);
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).by_size.len()
    }
}

/// 0 for an empty ring, else one more than the place of its size's highest bit in units of a KiB.
const fn class_of(bytes: usize) -> u32 {
    if bytes == 0 { 0 } else { usize::BITS - (bytes >> 10).leading_zeros() + 1 }
}

/// The bytes below which a ring is of a lower class.
const fn least_of(class: u32) -> usize {
    if class <= 1 { 0 } else { 1 << (class + 8) }
}
