//! Unfinished handshakes by client address: finds the address with the most and its oldest connection in O(1).
//!
//! Three sets of intrusive lists over two slabs: the connections of each address from oldest to newest, the addresses
//! by their number of connections, and the addresses by the bit length of their bytes (so the heaviest is found within
//! a factor of two). A connection that arrives, leaves or grows moves its address by one list operation each. The table
//! holds one entry for each open socket at most, so the limit of descriptors bounds it. [`crate::Hub`] keeps it behind
//! a lock that shards take when a handshake begins, grows or ends, and never for a message.

use crate::ConnId;
use std::collections::HashMap;
use std::hash::RandomState;
use std::net::IpAddr;

/// The end of a list, and the place of a connection that has none.
pub(crate) const NO_PLACE: u32 = u32::MAX;

/// Doubly linked lists of node numbers; a node is in one list at most.
#[derive(Debug, Default)]
struct Lists {
    /// First and last node of each list.
    ends: Vec<(u32, u32)>,
    /// Previous and next node of each node.
    links: Vec<(u32, u32)>,
}

impl Lists {
    fn push(&mut self, list: usize, node: u32) {
        if list >= self.ends.len() {
            self.ends.resize(list + 1, (NO_PLACE, NO_PLACE));
        }
        if node as usize >= self.links.len() {
            self.links.resize(node as usize + 1, (NO_PLACE, NO_PLACE));
        }
        let last = self.ends[list].1;
        self.links[node as usize] = (last, NO_PLACE);
        match self.links.get_mut(last as usize) {
            Some(link) => link.1 = node,
            None => self.ends[list].0 = node,
        }
        self.ends[list].1 = node;
    }

    fn remove(&mut self, list: usize, node: u32) {
        let (previous, next) = self.links[node as usize];
        match self.links.get_mut(previous as usize) {
            Some(link) => link.1 = next,
            None => self.ends[list].0 = next,
        }
        match self.links.get_mut(next as usize) {
            Some(link) => link.0 = previous,
            None => self.ends[list].1 = previous,
        }
    }

    fn first(&self, list: usize) -> Option<u32> {
        self.ends.get(list).map(|ends| ends.0).filter(|node| *node != NO_PLACE)
    }
}

/// Numbers from 0 that are given again once they are free.
#[derive(Debug)]
struct Slab<T> {
    items: Vec<T>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    fn put(&mut self, item: T) -> u32 {
        match self.free.pop() {
            Some(place) => {
                self.items[place as usize] = item;
                place
            }
            None => {
                self.items.push(item);
                self.items.len() as u32 - 1
            }
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// None where the place is free.
    conn: Option<ConnId>,
    host: u32,
    bytes: usize,
}

#[derive(Debug)]
struct Host {
    address: IpAddr,
    count: usize,
    bytes: usize,
}

/// Connections by address.
#[derive(Debug, Default)]
pub(crate) struct ByAddress {
    entries: Slab<Entry>,
    hosts: Slab<Host>,
    /// Addresses come from clients: std's keyed hash.
    known: HashMap<IpAddr, u32, RandomState>,
    /// Entries of each host, oldest first.
    queues: Lists,
    /// Hosts by their number of entries.
    by_count: Lists,
    /// The highest number of entries that a host has.
    most: usize,
    /// Hosts by the bit length of their bytes.
    by_weight: Lists,
    len: usize,
    bytes: usize,
}

impl ByAddress {
    /// Adds a connection and returns its place.
    pub(crate) fn enter(&mut self, conn: ConnId, address: IpAddr) -> u32 {
        let host = match self.known.get(&address) {
            Some(host) => *host,
            None => {
                let host = self.hosts.put(Host { address, count: 0, bytes: 0 });
                self.known.insert(address, host);
                self.by_count.push(0, host);
                self.by_weight.push(0, host);
                host
            }
        };
        self.set_count(host, self.hosts.items[host as usize].count + 1);
        let place = self.entries.put(Entry { conn: Some(conn), host, bytes: 0 });
        self.queues.push(host as usize, place);
        self.len += 1;
        place
    }

    /// Sets the bytes that a connection holds, if the place is still its own.
    pub(crate) fn weigh(&mut self, place: u32, conn: ConnId, bytes: usize) {
        let Some(entry) = self.entries.items.get_mut(place as usize).filter(|entry| entry.conn == Some(conn)) else {
            return;
        };
        let (host, before) = (entry.host, std::mem::replace(&mut entry.bytes, bytes));
        self.bytes = self.bytes - before + bytes;
        let weight = self.hosts.items[host as usize].bytes - before + bytes;
        self.set_weight(host, weight);
    }

    /// Removes a connection, if the place is still its own.
    pub(crate) fn leave(&mut self, place: u32, conn: ConnId) {
        if self.entries.items.get(place as usize).is_some_and(|entry| entry.conn == Some(conn)) {
            self.weigh(place, conn, 0);
            self.remove(place);
        }
    }

    /// Connections in the table.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Bytes that they hold.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes the oldest connection of the address that has the most.
    pub(crate) fn pop_of_most(&mut self) -> Option<ConnId> {
        let host = self.by_count.first(self.most).filter(|_| self.most > 0)?;
        self.pop_oldest(host)
    }

    /// Removes the oldest connection of the address that holds the most bytes, within a factor of two.
    pub(crate) fn pop_of_heaviest(&mut self) -> Option<ConnId> {
        let host = (1..self.by_weight.ends.len()).rev().find_map(|weight| self.by_weight.first(weight))?;
        self.pop_oldest(host)
    }

    fn pop_oldest(&mut self, host: u32) -> Option<ConnId> {
        let place = self.queues.first(host as usize)?;
        let conn = self.entries.items[place as usize].conn?;
        self.leave(place, conn);
        Some(conn)
    }

    fn remove(&mut self, place: u32) {
        let host = self.entries.items[place as usize].host;
        self.entries.items[place as usize].conn = None;
        self.queues.remove(host as usize, place);
        self.entries.free.push(place);
        self.len -= 1;
        let count = self.hosts.items[host as usize].count - 1;
        self.set_count(host, count);
        if count == 0 {
            self.by_count.remove(0, host);
            self.by_weight.remove(0, host);
            self.known.remove(&self.hosts.items[host as usize].address);
            self.hosts.free.push(host);
        }
    }

    fn set_count(&mut self, host: u32, count: usize) {
        let before = std::mem::replace(&mut self.hosts.items[host as usize].count, count);
        self.by_count.remove(before, host);
        self.by_count.push(count, host);
        self.most = self.most.max(count);
        // A host leaves a list for a neighbouring one, so an empty list of the most is followed by the next lower one.
        if self.by_count.first(self.most).is_none() {
            self.most -= 1;
        }
    }

    fn set_weight(&mut self, host: u32, bytes: usize) {
        let before = std::mem::replace(&mut self.hosts.items[host as usize].bytes, bytes);
        if weight_of(before) != weight_of(bytes) {
            self.by_weight.remove(weight_of(before), host);
            self.by_weight.push(weight_of(bytes), host);
        }
    }
}

/// The bit length: 0 for nothing.
const fn weight_of(bytes: usize) -> usize {
    (usize::BITS - bytes.leading_zeros()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn conn(n: u32) -> ConnId {
        ConnId::new(0, n, 0)
    }

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn the_oldest_of_the_address_with_the_most_goes_first() {
        let mut table = ByAddress::default();
        for (n, host) in [(1, 1), (2, 2), (3, 1), (4, 3), (5, 1), (6, 2)] {
            table.enter(conn(n), address(host));
        }
        // Host 1 has three; then hosts 1 and 2 have two each.
        assert_eq!(table.pop_of_most(), Some(conn(1)));
        let next = [table.pop_of_most(), table.pop_of_most()];
        assert!(next.contains(&Some(conn(2))) && next.contains(&Some(conn(3))), "{next:?}");
        for _ in 0..3 {
            assert!(table.pop_of_most().is_some());
        }
        assert_eq!((table.pop_of_most(), table.len(), table.known.len()), (None, 0, 0));
    }

    #[test]
    fn the_address_that_holds_the_most_bytes_pays_whatever_it_has_in_number() {
        let mut table = ByAddress::default();
        for n in 0..100 {
            table.enter(conn(n), address(1));
        }
        let heavy = table.enter(conn(200), address(2));
        table.weigh(heavy, conn(200), 60_000);
        let light = table.enter(conn(201), address(3));
        table.weigh(light, conn(201), 10_000);
        assert_eq!(table.bytes(), 70_000);
        assert_eq!(table.pop_of_heaviest(), Some(conn(200)));
        assert_eq!(table.pop_of_heaviest(), Some(conn(201)));
        assert_eq!((table.pop_of_heaviest(), table.bytes(), table.len()), (None, 0, 100));
    }

    #[test]
    fn a_place_that_was_taken_away_is_not_given_back_again() {
        let mut table = ByAddress::default();
        let first = table.enter(conn(1), address(1));
        assert_eq!(table.pop_of_most(), Some(conn(1)));
        let second = table.enter(conn(2), address(1));
        assert_eq!(second, first, "the place is used again");
        table.weigh(first, conn(1), 500);
        table.leave(first, conn(1));
        assert_eq!((table.len(), table.bytes()), (1, 0));
        table.leave(second, conn(2));
        table.leave(NO_PLACE, conn(2));
        assert_eq!(table.len(), 0);
    }

    /// A plain list of (connection, host, bytes), oldest first, does the same.
    #[test]
    fn it_agrees_with_a_plain_list() {
        let mut table = ByAddress::default();
        let mut plain: Vec<(u32, u32, u32, usize)> = Vec::new();
        let mut random = 12_345_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for n in 0..20_000 {
            match next(4) {
                0 | 1 => {
                    let host = next(9) as u32;
                    plain.push((n, host, table.enter(conn(n), address(host)), 0));
                }
                2 if !plain.is_empty() => {
                    let at = next(plain.len() as u64) as usize;
                    plain[at].3 = next(10_000) as usize;
                    table.weigh(plain[at].2, conn(plain[at].0), plain[at].3);
                }
                3 if !plain.is_empty() && next(2) == 0 => {
                    let (n, _, place, _) = plain.remove(next(plain.len() as u64) as usize);
                    table.leave(place, conn(n));
                }
                _ => {
                    let count = |host| plain.iter().filter(|entry| entry.1 == host).count();
                    let most = (0..9).map(count).max().unwrap_or(0);
                    let gone = table.pop_of_most();
                    let oldest = |host| plain.iter().position(|entry| entry.1 == host);
                    let at = gone.and_then(|gone| plain.iter().position(|entry| conn(entry.0) == gone));
                    assert_eq!(at.is_none(), plain.is_empty());
                    if let Some(at) = at {
                        let host = plain[at].1;
                        assert_eq!((count(host), oldest(host)), (most, Some(at)));
                        plain.remove(at);
                    }
                }
            }
            let bytes: usize = plain.iter().map(|entry| entry.3).sum();
            assert_eq!((table.len(), table.bytes()), (plain.len(), bytes));
        }
    }
}
