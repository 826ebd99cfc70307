//! One connection's state in its shard: what is touched by every message is small and in one place, the rest is
//! boxed and there only while it is needed.

use crate::bucket::Bucket;
use crate::by_address::NO_PLACE;
use crate::channel::Channel;
use crate::compression::Window;
use crate::core::Seat;
use crate::credit::Credit;
use crate::outbox::Backlog;
use crate::pattern::{Grant, Rights};
use crate::way::Way;
use realtime_protocol::connection::{Inbound, Role};
use realtime_protocol::extensions::Deflate;
use std::net::IpAddr;
use std::sync::Arc;

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The slot waits for its next use.
    Free,
    /// The head of the upgrade is still coming.
    Handshake,
    /// Python decides about the upgrade.
    Deciding,
    /// Messages go both ways.
    Open,
    /// The peer closed or broke the protocol: what it had asked for before is still answered, then comes our Close.
    Finishing,
    /// The last thing that we say is queued; what still comes in is thrown away.
    Closing,
}

pub(crate) mod flag {
    /// `realtime.v1` was agreed: the client knows our close codes and can resume.
    pub(crate) const VERSION_1: u16 = 1;
    /// Counted as open; Python heard `Open` and will hear `Close`.
    pub(crate) const ANNOUNCED: u16 = 1 << 1;
    /// The kernel refused bytes and has not said that there is room.
    pub(crate) const BLOCKED: u16 = 1 << 2;
    /// Stands in the list of connections with something to send.
    pub(crate) const DIRTY: u16 = 1 << 3;
    /// The peer's Close has come.
    pub(crate) const PEER_CLOSED: u16 = 1 << 4;
    /// `Shutdown` was given out.
    pub(crate) const SHUT: u16 = 1 << 5;
    /// Reading was refused: tell the driver when that changes.
    pub(crate) const PAUSED: u16 = 1 << 6;
    /// Members that replay are behind this connection.
    pub(crate) const REPLAYS: u16 = 1 << 7;
    /// The peer broke the protocol: what it sends is no longer parsed.
    pub(crate) const BROKEN: u16 = 1 << 8;
    /// The kernel has not had the whole 101 and first frame yet.
    pub(crate) const FRESH: u16 = 1 << 9;
    /// Four bits: the window that permessage-deflate was agreed with, by its place.
    pub(crate) const WINDOW_SHIFT: u16 = 10;
    pub(crate) const WINDOW: u16 = 0xF << WINDOW_SHIFT;
    /// It owes tokens, and nobody would hear that it is over its rate: it is not read until they are paid.
    pub(crate) const HELD: u16 = 1 << 14;
    /// Stands in the list of those that are not read since their user has much in Python.
    pub(crate) const WAITS: u16 = 1 << 15;
}

/// End of the pending list.
pub(crate) const NOTHING: u32 = u32::MAX;

/// The hot part: at most 128 bytes.
#[derive(Debug)]
pub(crate) struct Conn {
    pub generation: u32,
    pub phase: Phase,
    pub flags: u16,
    pub pings_unanswered: u8,
    pub endpoint: u16,
    /// Commands that are not answered yet: Python's and the hub's own.
    pub under_way: u16,
    /// Those of the hub's own, on their way to a channel or the log: their queues keep the order, so nothing is sent
    /// behind them.
    pub own_way: u16,
    /// Bytes of unfinished messages that it is charged.
    pub charged: u32,
    /// Bytes that went up to Python or to the log since all commands were answered the last time; the most that there
    /// is where the connection is held back.
    pub way_bytes: u32,
    /// The tick from which silence counts: the last sign of life, the last ping, or when reading went on.
    pub silent_from: u32,
    /// This turn's frames: a list in the shard's arena.
    pub pending_head: u32,
    pub pending_tail: u32,
    pub close_code: u16,
    pub inbound: Inbound,
    pub session: Option<Box<Session>>,
    pub subscriptions: Vec<Subscription>,
    pub backlog: Option<Box<Backlog>>,
    pub cold: Option<Box<Cold>>,
    pub commands: Bucket,
    pub relays: Bucket,
    pub bytes: Bucket,
}

const _: () = assert!(std::mem::size_of::<Conn>() <= 128, "the hot part of a connection is at most 128 bytes");

/// Who the connection is.
#[derive(Debug)]
pub(crate) struct Session {
    pub user: Arc<str>,
    pub grants: Box<[Grant]>,
    /// 0 for never.
    pub expires_at_ms: u64,
    /// Monotonic.
    pub opened_ms: u64,
    /// 0 where nobody said.
    pub issued_at_s: u64,
    pub token_id: Option<Box<str>>,
    /// Charged to `identities_bytes`.
    pub identity_bytes: usize,
    pub seat: Seat,
    /// Its commands that Python has.
    pub way: Way,
    /// Where it comes from, if it has no user that could be charged.
    pub address: Option<Box<IpAddr>>,
}

/// A channel that the connection asked for.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub channel: Arc<Channel>,
    /// The last command was subscribe and not unsubscribe.
    pub is_wanted: bool,
    /// `Join`s on their way: what Python takes away meanwhile is forgotten only behind them, since they are answers.
    pub joining: u16,
    /// Place among the channel's members here, once `Join` was taken from the inbox.
    pub member: Option<u32>,
    /// Volatile events that came while it replays; told by `lag` before the first live event.
    pub skipped: u32,
    /// The offset from which a page of the log was asked for, 0 for none. A page from another one was asked for by a
    /// membership that has ended meanwhile.
    pub awaited: u64,
}

/// What only some connections need, some of the time.
#[derive(Debug)]
pub(crate) struct Cold {
    pub peer: IpAddr,
    /// The head of the upgrade, as far as it came.
    pub head: Vec<u8>,
    pub head_searched: usize,
    /// Its place in the hub's table of unfinished or of refused connections.
    pub place: u32,
    /// The answer to the upgrade that Python decides about.
    pub answer: Option<Box<Answer>>,
    /// Bytes that came while reading was paused.
    pub unread: Vec<u8>,
    /// Rights that hooks gave, by channel.
    pub granted: Vec<(Arc<str>, Rights)>,
    /// Bytes that were read behind our last word.
    pub in_vain: usize,
    /// Relays of this session that last.
    pub lasting: Vec<LastingRelay>,
    /// When a phase is over, monotonic ms.
    pub phase_ends_ms: u64,
    /// How to close once everything is answered.
    pub finish: Option<(u16, Box<str>)>,
    /// `token_expiring` was sent.
    pub told_of_expiry: bool,
    /// Until when it is not read for what it owes, monotonic ms; 0 where it is.
    pub held_until_ms: u64,
}

/// An upgrade that passed all checks but who it is.
#[derive(Debug)]
pub(crate) struct Answer {
    pub accept: Option<String>,
    pub deflate: Option<Deflate>,
    /// The subprotocol that is agreed to; where there is one a refusal comes as a Close.
    pub subprotocol: Option<Box<str>>,
    pub version_1: bool,
}

/// A relay that this session started and that has not ended.
#[derive(Debug)]
pub(crate) struct LastingRelay {
    pub channel: Arc<Channel>,
    pub rule: u16,
    pub ends_ms: u64,
}

impl Conn {
    pub(crate) const fn free(generation: u32) -> Self {
        Self {
            generation,
            phase: Phase::Free,
            flags: 0,
            pings_unanswered: 0,
            endpoint: 0,
            under_way: 0,
            own_way: 0,
            charged: 0,
            way_bytes: 0,
            silent_from: 0,
            pending_head: NOTHING,
            pending_tail: NOTHING,
            close_code: 0,
            inbound: Inbound::new(Role::Server),
            session: None,
            subscriptions: Vec::new(),
            backlog: None,
            cold: None,
            commands: Bucket::full(),
            relays: Bucket::full(),
            bytes: Bucket::full(),
        }
    }

    pub(crate) const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(crate) const fn set(&mut self, flag: u16) {
        self.flags |= flag;
    }

    pub(crate) const fn clear(&mut self, flag: u16) {
        self.flags &= !flag;
    }

    /// How far back deflated frames to it may refer.
    pub(crate) const fn window(&self) -> Window {
        Window::at(((self.flags & flag::WINDOW) >> flag::WINDOW_SHIFT) as u8)
    }

    pub(crate) const fn set_window(&mut self, window: Window) {
        self.flags = self.flags & !flag::WINDOW | (window.place() as u16) << flag::WINDOW_SHIFT;
    }

    pub(crate) fn user(&self) -> &str {
        self.session.as_ref().map_or("", |session| &session.user)
    }

    pub(crate) fn cold(&mut self) -> &mut Cold {
        self.cold.get_or_insert_with(|| Box::new(Cold::new(IpAddr::from([0, 0, 0, 0]))))
    }

    /// A sign of life: the silence begins anew.
    pub(crate) const fn heard(&mut self, tick: u32) {
        self.silent_from = tick;
        self.pings_unanswered = 0;
    }

    /// A command of the hub's own goes to a channel or to the log, with so many bytes.
    pub(crate) const fn take_own_credit(&mut self, bytes: usize) -> Credit {
        self.under_way += 1;
        self.own_way += 1;
        self.way_bytes = self.way_bytes.saturating_add(bytes as u32);
        Credit::Own
    }

    /// Nothing more is read from the connection until all that is under way is answered.
    pub(crate) const fn hold_back(&mut self) {
        if self.under_way > 0 {
            self.way_bytes = u32::MAX;
        }
    }

    /// Whether as much is under way as one connection may have, in commands or, of large ones, in bytes.
    pub(crate) const fn is_full(&self, commands_max: u16, bytes_max: usize) -> bool {
        let is_much = self.way_bytes == u32::MAX || self.way_bytes as usize >= bytes_max;
        self.under_way >= commands_max || (self.under_way > 0 && is_much)
    }

    pub(crate) fn backlog_bytes(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.bytes())
    }

    pub(crate) fn subscription(&mut self, channel: u64) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|subscription| subscription.channel.id == channel)
    }

    /// Frees the cold part when nothing in it is needed any more.
    pub(crate) fn warm(&mut self) {
        if self.cold.as_ref().is_some_and(|cold| cold.is_spent()) {
            self.cold = None;
        }
    }
}

impl Cold {
    pub(crate) const fn new(peer: IpAddr) -> Self {
        Self {
            peer,
            head: Vec::new(),
            head_searched: 0,
            place: NO_PLACE,
            answer: None,
            unread: Vec::new(),
            granted: Vec::new(),
            in_vain: 0,
            lasting: Vec::new(),
            phase_ends_ms: 0,
            finish: None,
            told_of_expiry: false,
            held_until_ms: 0,
        }
    }

    fn is_spent(&self) -> bool {
        self.head.is_empty()
            && self.answer.is_none()
            && self.unread.is_empty()
            && self.granted.is_empty()
            && self.in_vain == 0
            && self.lasting.is_empty()
            && self.finish.is_none()
            && self.phase_ends_ms == 0
            && !self.told_of_expiry
            && self.held_until_ms == 0
    }
}
