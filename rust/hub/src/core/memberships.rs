//! Which connections of one shard get a channel's events, and how far each has come.
//!
//! A member stands at a place of its channel's list, which its [`Subscription`] notes; whoever goes is replaced by the
//! last one, so that joining and leaving cost the same however many members there are. Members change only by messages
//! of the shard's inbox, or with the end of their connection.

use super::connections::Connections;
use crate::channel::Channel;
use crate::conn::Subscription;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// What a subscription takes in its connection and its shard, whose lists may be twice as long as what is in them.
pub(super) const MEMBERSHIP_BYTES: usize = 2 * (size_of::<Subscription>() + size_of::<Member>());

/// The members of all channels on one shard.
#[derive(Debug, Default)]
pub(super) struct Memberships {
    channels: FxHashMap<u64, LocalChannel>,
}

/// One channel's members on this shard.
#[derive(Debug)]
struct LocalChannel {
    channel: Arc<Channel>,
    members: Vec<Member>,
}

/// A connection that gets the channel's events.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub slot: u32,
    /// Still gets older ones: live events are not queued for it meanwhile.
    pub replays: bool,
    /// The lowest offset that it has not had.
    pub next: u64,
}

impl Memberships {
    /// Adds a member; returns its place.
    pub(super) fn join(&mut self, channel: &Arc<Channel>, member: Member) -> u32 {
        let local = self.channels.entry(channel.id);
        let local = local.or_insert_with(|| LocalChannel { channel: Arc::clone(channel), members: Vec::new() });
        local.members.push(member);
        local.members.len() as u32 - 1
    }

    /// Takes a member out; the last one takes its place.
    pub(super) fn leave(&mut self, channel: u64, place: u32, connections: &mut Connections) {
        let Some(local) = self.channels.get_mut(&channel) else { return };
        local.members.swap_remove(place as usize);
        match local.members.get(place as usize) {
            Some(moved) => {
                if let Some(subscription) = connections[moved.slot as usize].subscription(channel) {
                    subscription.member = Some(place);
                }
            }
            None if local.members.is_empty() => {
                self.channels.remove(&channel);
            }
            None => {}
        }
    }

    pub(super) fn member(&self, channel: u64, place: Option<u32>) -> Option<&Member> {
        self.channels.get(&channel)?.members.get(place? as usize)
    }

    pub(super) fn member_mut(&mut self, channel: u64, place: Option<u32>) -> Option<&mut Member> {
        self.channels.get_mut(&channel)?.members.get_mut(place? as usize)
    }

    /// The channel, if it has members here.
    pub(super) fn channel(&self, channel: u64) -> Option<&Arc<Channel>> {
        self.channels.get(&channel).map(|local| &local.channel)
    }

    pub(super) fn members(&self, channel: u64) -> &[Member] {
        self.channels.get(&channel).map_or(&[], |local| &local.members)
    }

    /// Lends a channel's members to a fan-out, which gives them back with [`Self::put_back`].
    pub(super) fn lend(&mut self, channel: u64) -> Option<(Arc<Channel>, Vec<Member>)> {
        let local = self.channels.get_mut(&channel)?;
        Some((Arc::clone(&local.channel), std::mem::take(&mut local.members)))
    }

    pub(super) fn put_back(&mut self, channel: u64, members: Vec<Member>) {
        if let Some(local) = self.channels.get_mut(&channel) {
            local.members = members;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Policy;
    use crate::conn::Conn;

    fn subscribed(memberships: &mut Memberships, connections: &mut Connections, channel: &Arc<Channel>) -> usize {
        let slot = connections.take();
        let member = memberships.join(channel, Member { slot: slot as u32, replays: false, next: 1 });
        let conn: &mut Conn = &mut connections[slot];
        conn.subscriptions.push(Subscription {
            channel: Arc::clone(channel),
            is_wanted: true,
            joining: 0,
            member: Some(member),
            skipped: 0,
            awaited: 0,
        });
        slot
    }

    #[test]
    fn the_last_member_takes_the_place_of_one_that_leaves_and_knows_it() {
        let (mut memberships, mut connections) = (Memberships::default(), Connections::new(0));
        let channel = Arc::new(Channel::new("c".into(), 7, Policy::VOLATILE, "e".into(), false, None, 1));
        let slots: Vec<usize> = (0..3).map(|_| subscribed(&mut memberships, &mut connections, &channel)).collect();
        memberships.leave(7, 0, &mut connections);
        let left: Vec<u32> = memberships.members(7).iter().map(|member| member.slot).collect();
        assert_eq!(left, [slots[2] as u32, slots[1] as u32]);
        assert_eq!(connections[slots[2]].subscription(7).unwrap().member, Some(0));
        assert_eq!(memberships.member(7, Some(0)).unwrap().slot, slots[2] as u32);
    }

    #[test]
    fn a_channel_without_members_is_forgotten() {
        let (mut memberships, mut connections) = (Memberships::default(), Connections::new(0));
        let channel = Arc::new(Channel::new("c".into(), 7, Policy::VOLATILE, "e".into(), false, None, 1));
        subscribed(&mut memberships, &mut connections, &channel);
        memberships.leave(7, 0, &mut connections);
        assert!(memberships.channel(7).is_none() && memberships.members(7).is_empty());
    }
}
