//! What came from outside since the last turn: each message of the inbox is taken to where it is done.

use super::ShardCore;
use super::command::Source;
use super::deliver::unnumbered;
use crate::conn::Phase;
use crate::counters::add;
use crate::credit::Credit;
use crate::inbox::{Deliver, ShardMsg};
use crate::queued::Queued;
use crate::refusal::Refusal;
use crate::{ConnId, Now};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Lists that one turn leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Mail {
    messages: Vec<ShardMsg>,
    burst: Vec<Deliver>,
}

impl ShardCore {
    /// Does what came from outside since the last turn.
    pub fn run_inbox(&mut self, now: Now) {
        self.now = now;
        let hub = Arc::clone(&self.hub);
        let mut messages = std::mem::take(&mut self.mail.messages);
        hub.inbox(self.connections.shard()).take(&mut messages);
        let mut rest = messages.drain(..).peekable();
        while let Some(message) = rest.next() {
            let ShardMsg::Deliver(first) = message else {
                self.run_caught(message);
                continue;
            };
            // A burst in one channel goes through its members once.
            let mut burst = std::mem::take(&mut self.mail.burst);
            let channel = first.channel;
            burst.push(first);
            let is_next = |next: &ShardMsg| matches!(next, ShardMsg::Deliver(deliver) if deliver.channel == channel);
            while let Some(ShardMsg::Deliver(deliver)) = rest.next_if(is_next) {
                burst.push(deliver);
            }
            self.deliver(channel, &mut burst);
            self.mail.burst = burst;
        }
        drop(rest);
        if messages.capacity() > 1 << 16 {
            messages = Vec::new();
        }
        self.mail.messages = messages;
    }

    /// A panic over what is meant for one connection ends that connection; anywhere else it ends the engine.
    fn run_caught(&mut self, message: ShardMsg) {
        let Some(conn) = message.conn() else { return self.run(message) };
        if catch_unwind(AssertUnwindSafe(|| self.run(message))).is_err() {
            add(&self.hub.counters.panics, 1);
            self.closed(conn, self.now);
        }
    }

    fn run(&mut self, message: ShardMsg) {
        match message {
            ShardMsg::Deliver(deliver) => self.deliver(deliver.channel, &mut vec![deliver]),
            ShardMsg::Settle { conn, reserved, bytes } => {
                if let Some(slot) = self.connections.find(conn) {
                    self.settle_page(slot, reserved, bytes);
                }
            }
            ShardMsg::Send { conn, frame, credit } => {
                self.take_command_bytes(&frame);
                let frame = self.outgoing.turn.add(Queued::reply(frame));
                self.send_to(conn, frame);
                self.give_back_to(conn, credit);
            }
            ShardMsg::Done { conn, credit } => self.give_back_to(conn, Some(credit)),
            ShardMsg::Passed { conn, credit } => self.hub.to(conn, ShardMsg::Done { conn, credit }),
            ShardMsg::ReadOn { conn } => self.read_on_for_user(conn),
            ShardMsg::GiveUp { conn } => self.give_up_chosen(conn),
            ShardMsg::Evict { conn, why } => self.doors.evictions.push((conn, why)),
            ShardMsg::Join(join) => self.join(join),
            ShardMsg::Resubscribe(again) => self.resubscribe(*again),
            ShardMsg::Leave { conn, channel, reply, credit } => self.leave_now(conn, &channel, reply, credit),
            ShardMsg::NotJoined { conn, channel, reply, credit } => self.not_joined(conn, &channel, reply, credit),
            ShardMsg::SendMany { conns, frame, key } => {
                self.take_command_bytes(&frame);
                let frame = self.outgoing.turn.add(unnumbered(frame, key));
                for conn in conns {
                    self.send_to(conn, frame);
                }
            }
            ShardMsg::SendAll { frame, key } => {
                self.take_command_bytes(&frame);
                self.send_all(frame, key);
            }
            ShardMsg::PresenceMode { users } => self.set_presence(users.as_deref()),
            ShardMsg::PresenceChange { user, is_online } => self.change_presence(user, is_online),
            ShardMsg::SendUnion { channels, frame, key } => {
                self.take_command_bytes(&frame);
                self.send_union(&channels, frame, key);
            }
            ShardMsg::Members { ticket, channel } => self.tell_members(ticket, channel),
            ShardMsg::Page { conn, channel, next, events } => self.page_in(conn, &channel, next, events),
            ShardMsg::Accept { conn, identity } => self.decided(conn, Ok(*identity)),
            ShardMsg::Renew { conn, id, identity } => {
                if let Some(slot) = self.answerable(conn) {
                    let identity = identity.map(|identity| *identity).ok_or(Refusal::Hook);
                    self.renew(slot, id.as_deref(), identity);
                }
                self.give_back_to(conn, Some(Credit::Python(1)));
            }
            ShardMsg::Revoke(revocation) => self.revoke(&revocation),
            ShardMsg::Reject { conn, how } => self.decided(conn, Err(how)),
            ShardMsg::Close { conn, code, reason } => {
                if let Some(slot) = self.connections.find(conn) {
                    self.close(slot, code, &reason);
                }
            }
            ShardMsg::AnnounceDrain { spread_ms } => self.announce_drain(spread_ms),
            ShardMsg::CloseAll { code, reason, over_ms } => self.close_all(code, &reason, over_ms),
            ShardMsg::Grant { conn, channel, rights, raw } => self.granted(conn, channel, rights, raw),
            ShardMsg::Resume { conn, mut raw } => {
                if let Some(slot) = self.answerable(conn) {
                    self.carry_out(slot, &mut raw, Source::Resumed);
                } else {
                    self.give_back_to(conn, Some(Credit::Python(1)));
                }
            }
            ShardMsg::Subscribe { conn, channel } => {
                if let Some(slot) = self.answerable(conn) {
                    let _ = self.subscribe_to(slot, &channel, None, None, None, None);
                }
            }
            ShardMsg::Unsubscribe { conn, channel, code, retryable } => self.evict(conn, &channel, &code, retryable),
            ShardMsg::Skipped { channel, count } => self.tell_skipped(channel, count),
            ShardMsg::LoseMembers { channel } => self.lose_members(channel),
            ShardMsg::MakeRoom => drop(self.collect_room(0)),
            ShardMsg::RecheckPauses => {
                for slot in self.connections.slots() {
                    self.unpause(slot);
                }
            }
        }
    }

    /// A connection whose commands still count.
    pub(super) fn answerable(&self, conn: ConnId) -> Option<usize> {
        self.connections
            .find(conn)
            .filter(|&slot| matches!(self.connections[slot].phase, Phase::Open | Phase::Finishing))
    }
}
