//! Whose turn it is: so many requests at once for the server behind, and who waits for one.
//!
//! A place that becomes free goes to the waiting address that has the fewest; within an address to who came first. Only
//! a part of the places may be held by requests whose body still comes, so that slow senders keep nobody else from being
//! answered. Of either kind an address has at most [`SHARE`] times what stays free, so that the next one finds something,
//! however slow the requests of one are. Where addresses one after the other have taken all places of bodies that still
//! come, the oldest of the address with the most goes for a newcomer that has fewer by two ([`Slots::in_the_way`]). Paths that say how the server is have a few places of their own, and take no
//! others: a flood of them is nobody else's.
//!
//! The server behind is a Python event loop, which serves WebSockets, too. It is given a few requests more than it has
//! begun, so that a crowd of them waits here, where each address has its turn, and not in the loop before all else.
//!
//! Invariant: nobody waits for whom there is a place. So a newcomer for whom there is one takes nobody's turn.

use crate::counters::{Counters, add, sub};
use crate::table::Id;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Places of the reserved paths.
pub(crate) const RESERVED: usize = 8;
/// Requests that the server behind has been given and has not begun: enough for it never to wait for the next one.
pub(crate) const UNBEGUN_MAX: usize = 8;
/// The part of the places that requests may hold whose body is not whole.
const UPLOADS_PART: usize = 4;
/// An address alone has three quarters of the places, and beside others as much of what they leave.
const SHARE: usize = 3;

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its body is whole.
    Whole,
    /// Its body still comes.
    Upload,
}

#[derive(Default)]
struct Inner {
    free: usize,
    free_uploads: usize,
    /// Numbers of the requests that the server behind has not begun.
    unbegun: HashSet<u64>,
    next: u64,
    /// Requests whose body still comes from their client, by number, so the oldest first.
    coming: BTreeMap<u64, (IpAddr, Id)>,
    held: HashMap<IpAddr, Held>,
    waiting: HashMap<IpAddr, VecDeque<(Kind, oneshot::Sender<Place>)>>,
}

/// What an address holds.
#[derive(Clone, Copy, Default)]
struct Held {
    all: usize,
    uploads: usize,
}

impl Inner {
    fn held(&self, address: IpAddr) -> Held {
        self.held.get(&address).copied().unwrap_or_default()
    }

    /// Whether there is a place for a request.
    fn has_room(&self, address: IpAddr, kind: Kind) -> bool {
        let held = self.held(address);
        let has_upload = kind == Kind::Whole || held.uploads < SHARE * self.free_uploads;
        has_upload && held.all < SHARE * self.free && self.unbegun.len() < UNBEGUN_MAX
    }
}

/// The places of some paths.
pub(crate) struct Slots {
    inner: RefCell<Inner>,
    counters: Arc<Counters>,
}

/// A request's place; dropping it gives it back.
pub(crate) struct Place {
    slots: Rc<Slots>,
    address: IpAddr,
    kind: Kind,
    number: u64,
}

impl Place {
    /// The number of the request, by which the server behind says that it has begun it.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Slots {
    /// `first` is the number of the first request: those of all slots differ.
    pub(crate) fn new(places: usize, first: u64, counters: Arc<Counters>) -> Rc<Self> {
        let inner =
            Inner { free: places, free_uploads: (places / UPLOADS_PART).max(1), next: first, ..Inner::default() };
        Rc::new(Self { inner: RefCell::new(inner), counters })
    }

    /// A place at once; None where there is none.
    pub(crate) fn try_take(self: &Rc<Self>, address: IpAddr, kind: Kind) -> Option<Place> {
        self.take(&mut self.inner.borrow_mut(), address, kind)
    }

    fn take(self: &Rc<Self>, inner: &mut Inner, address: IpAddr, kind: Kind) -> Option<Place> {
        if !inner.has_room(address, kind) {
            return None;
        }
        inner.free -= 1;
        if kind == Kind::Upload {
            inner.free_uploads -= 1;
        }
        let held = inner.held.entry(address).or_default();
        held.all += 1;
        held.uploads += usize::from(kind == Kind::Upload);
        let number = inner.next;
        inner.next += 1;
        inner.unbegun.insert(number);
        add(&self.counters.in_flight, 1);
        Some(Place { slots: Rc::clone(self), address, kind, number })
    }

    /// The server behind has begun a request: it may be given another one.
    pub(crate) fn begun(self: &Rc<Self>, number: u64) {
        let was_awaited = self.inner.borrow_mut().unbegun.remove(&number);
        if was_awaited {
            self.pass_on();
        }
    }

    /// The body of a request with a place comes from this connection.
    pub(crate) fn comes(&self, place: &Place, id: Id) {
        self.inner.borrow_mut().coming.insert(place.number, (place.address, id));
    }

    /// The body of a request is whole: nobody takes its place any more.
    pub(crate) fn came(&self, number: u64) {
        self.inner.borrow_mut().coming.remove(&number);
    }

    /// The connection that has to go for a body of this address, which is about to wait: the oldest body of the address
    /// with the most, where all places are taken and this one has fewer by two and than three, those that wait included.
    pub(crate) fn in_the_way(&self, address: IpAddr) -> Option<Id> {
        let mut inner = self.inner.borrow_mut();
        if inner.free_uploads > 0 {
            return None;
        }
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for (of, _) in inner.coming.values() {
            *counts.entry(*of).or_default() += 1;
        }
        let (most, crowd) = counts.into_iter().map(|(of, count)| (count, of)).max()?;
        let is_upload = |(kind, sender): &&(Kind, oneshot::Sender<Place>)| *kind == Kind::Upload && !sender.is_closed();
        let waiting = inner.waiting.get(&address).map_or(0, |queue| queue.iter().filter(is_upload).count());
        let has = inner.held(address).uploads + waiting;
        // Of a single free place it may have no more than that.
        if has >= SHARE || most < has + 2 {
            return None;
        }
        let oldest = inner.coming.iter().find(|(_, (of, _))| *of == crowd).map(|(number, _)| *number)?;
        inner.coming.remove(&oldest).map(|(_, id)| id)
    }

    /// A place, when it is this one's turn.
    pub(crate) async fn wait(self: &Rc<Self>, address: IpAddr, kind: Kind) -> Option<Place> {
        if let Some(place) = self.try_take(address, kind) {
            return Some(place);
        }
        let (sender, receiver) = oneshot::channel();
        self.inner.borrow_mut().waiting.entry(address).or_default().push_back((kind, sender));
        add(&self.counters.waiting, 1);
        let _waiting = Waiting { slots: Rc::clone(self), address };
        receiver.await.ok()
    }

    /// Gives what is free to who waits.
    fn pass_on(self: &Rc<Self>) {
        loop {
            let mut inner = self.inner.borrow_mut();
            let of_address = |(address, queue): (&IpAddr, &VecDeque<(Kind, _)>)| {
                let at = queue.iter().position(|(kind, _)| inner.has_room(*address, *kind))?;
                Some((inner.held(*address).all, *address, at))
            };
            let Some((_, address, at)) = inner.waiting.iter().filter_map(of_address).min() else { return };
            let waiting = &mut inner.waiting;
            let Some((kind, sender)) = waiting.get_mut(&address).and_then(|queue| queue.remove(at)) else { return };
            if waiting.get(&address).is_some_and(VecDeque::is_empty) {
                waiting.remove(&address);
            }
            let place = self.take(&mut inner, address, kind);
            drop(inner);
            // Whoever has gone meanwhile gives it back, which comes here again.
            if let Some(place) = place {
                drop(sender.send(place));
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut inner = self.slots.inner.borrow_mut();
            inner.unbegun.remove(&self.number);
            inner.coming.remove(&self.number);
            inner.free += 1;
            if self.kind == Kind::Upload {
                inner.free_uploads += 1;
            }
            if let Some(held) = inner.held.get_mut(&self.address) {
                held.all -= 1;
                held.uploads -= usize::from(self.kind == Kind::Upload);
                if held.all == 0 {
                    inner.held.remove(&self.address);
                }
            }
        }
        sub(&self.slots.counters.in_flight, 1);
        self.slots.pass_on();
    }
}

/// Counts one who waits, and forgets those who have stopped to.
struct Waiting {
    slots: Rc<Slots>,
    address: IpAddr,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        sub(&self.slots.counters.waiting, 1);
        let mut inner = self.slots.inner.borrow_mut();
        if let Some(queue) = inner.waiting.get_mut(&self.address) {
            queue.retain(|(_, sender)| !sender.is_closed());
            if queue.is_empty() {
                inner.waiting.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn slots(places: usize) -> Rc<Slots> {
        Slots::new(places, 0, Arc::default())
    }

    async fn settled() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    async fn local(test: impl Future<Output = ()>) {
        tokio::task::LocalSet::new().run_until(test).await;
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(local(test));
    }

    #[test]
    fn a_free_place_goes_to_the_address_that_has_the_fewest() {
        run(async {
            let slots = slots(2);
            let first = slots.try_take(A, Kind::Whole).unwrap();
            let _second = slots.try_take(A, Kind::Whole).unwrap();
            let waits = |address| {
                let slots = Rc::clone(&slots);
                tokio::task::spawn_local(async move { slots.wait(address, Kind::Whole).await })
            };
            let (of_a, of_b) = (waits(A), waits(B));
            settled().await;
            assert_eq!(slots.counters.waiting.load(std::sync::atomic::Ordering::Relaxed), 2);
            drop(first);
            settled().await;
            assert!(of_b.is_finished() && !of_a.is_finished());
            drop(of_b.await.unwrap());
            assert!(of_a.await.unwrap().is_some());
        });
    }

    #[test]
    fn the_server_behind_is_given_few_requests_that_it_has_not_begun() {
        run(async {
            let slots = slots(100);
            let given: Vec<_> = std::iter::from_fn(|| slots.try_take(A, Kind::Whole)).collect();
            assert_eq!(given.len(), UNBEGUN_MAX);
            let waits = |address| {
                let slots = Rc::clone(&slots);
                tokio::task::spawn_local(async move { slots.wait(address, Kind::Whole).await })
            };
            let (of_a, of_b) = (waits(A), waits(B));
            settled().await;
            slots.begun(given[3].number());
            slots.begun(given[3].number());
            settled().await;
            assert!(of_b.is_finished() && !of_a.is_finished(), "one for one, by address");
            drop(given);
            assert!(of_a.await.unwrap().is_some(), "one that ends unbegun is not waited for");
        });
    }

    #[test]
    fn requests_whose_body_still_comes_hold_a_part_of_the_places() {
        let slots = slots(8);
        let uploads: Vec<_> = std::iter::from_fn(|| slots.try_take(A, Kind::Upload)).collect();
        assert_eq!(uploads.len(), 2);
        assert!(slots.try_take(B, Kind::Whole).is_some());
    }

    #[test]
    fn an_address_leaves_places_of_either_kind_to_the_next_however_many_it_asks_for() {
        let slots = slots(64);
        let taken = |kind| {
            let begun = |place: &Place| slots.begun(place.number());
            std::iter::from_fn(|| slots.try_take(A, kind).inspect(begun)).collect::<Vec<_>>()
        };
        let (uploads, whole) = (taken(Kind::Upload), taken(Kind::Whole));
        assert_eq!((uploads.len(), whole.len()), (12, 36), "three quarters of 16, and of all 64");
        assert!(slots.try_take(B, Kind::Upload).is_some() && slots.try_take(B, Kind::Whole).is_some());
        drop(uploads);
        assert_eq!(taken(Kind::Whole).len(), 12);
    }

    #[test]
    fn where_bodies_hold_all_places_the_oldest_of_the_address_with_the_most_goes_for_a_newcomer() {
        run(async {
            let slots = slots(64);
            let address = |last: u8| IpAddr::from([10, 0, 0, last]);
            let mut held = HashMap::new();
            for last in 1..=3 {
                while let Some(place) = slots.try_take(address(last), Kind::Upload) {
                    slots.begun(place.number());
                    slots.comes(&place, place.number());
                    held.insert(place.number(), place);
                }
            }
            assert_eq!(held.len(), 16, "12, 3 and 1: all of them");
            let mut given = Vec::new();
            for _ in 0..20 {
                let gone = slots.in_the_way(address(4));
                let waiting = Rc::clone(&slots);
                given.push(tokio::task::spawn_local(async move { waiting.wait(address(4), Kind::Upload).await }));
                settled().await;
                if let Some(number) = gone {
                    drop(held.remove(&number));
                    settled().await;
                    assert!(given.last().unwrap().is_finished());
                }
            }
            let mut left: Vec<u64> = held.into_keys().collect();
            left.sort_unstable();
            assert_eq!(left, (3..16).collect::<Vec<u64>>(), "the oldest, for three: further ones wait");
        });
    }

    #[test]
    fn a_body_that_is_whole_gives_way_to_nobody_and_neither_does_one_where_there_is_room() {
        let slots = slots(64);
        let take = |address| {
            let place = slots.try_take(address, Kind::Upload)?;
            slots.begun(place.number());
            slots.comes(&place, place.number());
            Some(place)
        };
        let mut held: Vec<_> = std::iter::from_fn(|| take(A)).collect();
        assert_eq!(slots.in_the_way(B), None, "four are free");
        held.extend((1..=4).map_while(|last| take(IpAddr::from([10, 0, 1, last]))));
        assert_eq!(held.len(), 16);
        slots.came(held[0].number());
        assert_eq!(slots.in_the_way(B), Some(held[1].number()));
        assert_eq!(slots.in_the_way(A), None);
        held.iter().for_each(|place| slots.came(place.number()));
        assert_eq!(slots.in_the_way(B), None);
    }

    #[test]
    fn who_waits_for_an_upload_takes_no_turn_of_others() {
        run(async {
            let slots = slots(8);
            let uploads: Vec<_> = std::iter::from_fn(|| slots.try_take(A, Kind::Upload)).collect();
            let waiting = Rc::clone(&slots);
            let task = tokio::task::spawn_local(async move { waiting.wait(A, Kind::Upload).await });
            settled().await;
            assert!(slots.try_take(B, Kind::Whole).is_some(), "there is a place, and nobody waits who may have it");
            drop(uploads);
            assert!(task.await.unwrap().is_some());
        });
    }

    #[test]
    fn who_stops_to_wait_leaves_nothing_behind() {
        run(async {
            let slots = slots(1);
            let held = slots.try_take(A, Kind::Whole).unwrap();
            let waiting = Rc::clone(&slots);
            let task = tokio::task::spawn_local(async move { waiting.wait(B, Kind::Whole).await });
            settled().await;
            task.abort();
            settled().await;
            assert!(slots.inner.borrow().waiting.is_empty());
            drop(held);
            assert!(slots.try_take(A, Kind::Whole).is_some());
        });
    }
}
