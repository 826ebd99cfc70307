//! The only way into a shard from outside: a queue of messages and the [wake protocol](crate::wake).
//!
//! Who pushes for a channel holds that channel's lock, so all shards see its messages in one order. A shard that is
//! awake is never woken again: it looks into its inbox before it sleeps.
//!
//! What waits is counted in bytes, a frame once in each inbox. Above [`SOFT_BYTES`] whoever publishes to the shard is
//! held: a client by a credit that goes through this inbox ([`ShardMsg::Passed`]), so that it comes back when the shard
//! has taken what was before it, and Python by `overloaded`. Above [`HARD_BYTES`] events are refused, however many
//! publishers there are. What is committed, what ends and what is about one connection always goes in: the log's queue,
//! the states that are kept and the credits bound it. Nobody ever waits here.

use crate::ConnId;
use crate::channel::{Channel, Publication};
use crate::class::Class;
use crate::command::Rejection;
use crate::core::Eviction;
use crate::credit::Credit;
use crate::identity::Identity;
use crate::lock::lock;
use crate::prepared::{Form, Prepared};
use crate::revocations::Revocation;
use crate::wake::Wake;
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Bytes in one inbox above which whoever publishes to its shard is held. A shard takes all at once, every turn, so that
/// 4 MiB are some milliseconds of its work.
pub(crate) const SOFT_BYTES: usize = 4 << 20;
/// Bytes in one inbox above which events for its shard are refused: a message of each of many publishers comes in before
/// they are held.
pub(crate) const HARD_BYTES: usize = 2 * SOFT_BYTES;
/// What a message takes beside its frame, in a list that may be twice as long as what is in it.
const MESSAGE_BYTES: usize = 2 * size_of::<ShardMsg>();

/// One thing that a shard has to do.
#[derive(Debug)]
pub(crate) enum ShardMsg {
    /// A connection becomes a member; counted already.
    Join(Join),
    /// A member subscribes again.
    Resubscribe(Box<Resubscribe>),
    /// A member goes.
    Leave { conn: ConnId, channel: Arc<Channel>, reply: Option<Arc<Prepared>>, credit: Option<Credit> },
    /// A subscribe could not be done.
    NotJoined { conn: ConnId, channel: Arc<Channel>, reply: Arc<Prepared>, credit: Option<Credit> },
    /// An event for the channel's members here.
    Deliver(Deliver),
    /// One frame to one connection; credits come back with it.
    Send { conn: ConnId, frame: Arc<Prepared>, credit: Option<Credit> },
    /// A page was answered: the bytes that it has, for which `reserved` thousandths of a token were taken.
    Settle { conn: ConnId, reserved: u32, bytes: usize },
    /// One frame to some connections of this shard.
    SendMany { conns: Vec<ConnId>, frame: Arc<Prepared>, key: Option<Arc<str>> },
    /// One frame to every open `json` connection.
    SendAll { frame: Arc<Prepared>, key: Option<Arc<str>> },
    /// Who is told of whom from now on; who is online where that is everybody.
    PresenceMode { users: Option<Arc<[Arc<str>]>> },
    /// A user came or went, of which everybody is told.
    PresenceChange { user: Arc<str>, is_online: bool },
    /// One frame to the members of several channels, each connection once.
    SendUnion { channels: Arc<[u64]>, frame: Arc<Prepared>, key: Option<Arc<str>> },
    /// Tell Python which connections of this shard are members.
    Members { ticket: u64, channel: u64 },
    /// The log from `next` on for a member that replays; None when it could not be read.
    Page { conn: ConnId, channel: Arc<Channel>, next: u64, events: Option<Vec<Arc<Publication>>> },
    /// An upgrade is let in.
    Accept { conn: ConnId, identity: Box<Identity> },
    /// An upgrade is refused.
    Reject { conn: ConnId, how: Rejection },
    /// A session goes on as this, or not at all where it could not be read.
    Renew { conn: ConnId, id: Option<Box<[u8]>>, identity: Option<Box<Identity>> },
    /// Sessions whose token was revoked have to end.
    Revoke(Arc<Revocation>),
    /// A connection has to end.
    Close { conn: ConnId, code: u16, reason: Box<str> },
    /// The process ends soon: clients are told when to come back.
    AnnounceDrain { spread_ms: u64 },
    /// Every connection has to end, within `over_ms`.
    CloseAll { code: u16, reason: Box<str>, over_ms: u64 },
    /// Rights on a channel, then the command that had asked.
    Grant { conn: ConnId, channel: Arc<str>, rights: crate::pattern::Rights, raw: Box<[u8]> },
    /// A command that comes back in its order.
    Resume { conn: ConnId, raw: Box<[u8]> },
    /// Python makes a connection a member.
    Subscribe { conn: ConnId, channel: Arc<str> },
    /// Python takes a subscription away.
    Unsubscribe { conn: ConnId, channel: Arc<str>, code: Box<str>, retryable: bool },
    /// A publisher's credits have come through an inbox that was too full: they go back to it.
    Passed { conn: ConnId, credit: Credit },
    /// Credits come back.
    Done { conn: ConnId, credit: Credit },
    /// Volatile events of a channel were dropped before its members had joined.
    Skipped { channel: u64, count: u64 },
    /// A channel's order is lost: its members lose their subscription.
    LoseMembers { channel: u64 },
    /// Slow readers hold too much together, and those who hold most are not on the shard that found out.
    MakeRoom,
    /// A connection's user has less in Python: it may be read again.
    ReadOn { conn: ConnId },
    /// A connection holds more of unfinished messages than any other, and all hold too much.
    GiveUp { conn: ConnId },
    /// A connection without a session has to make room.
    Evict { conn: ConnId, why: Eviction },
    /// Something changed that every shard has to look at (pressure, draining).
    RecheckPauses,
}

impl ShardMsg {
    /// What it takes in an inbox; a frame of Python's is counted with its commands.
    fn bytes(&self) -> usize {
        match self {
            Self::Deliver(deliver) => MESSAGE_BYTES + deliver.frame.wire_len(Form::Plain),
            _ => MESSAGE_BYTES,
        }
    }

    /// The one connection that it is about.
    pub(crate) const fn conn(&self) -> Option<ConnId> {
        match self {
            Self::Join(Join { conn, .. })
            | Self::Leave { conn, .. }
            | Self::NotJoined { conn, .. }
            | Self::Send { conn, .. }
            | Self::Settle { conn, .. }
            | Self::Page { conn, .. }
            | Self::Accept { conn, .. }
            | Self::Reject { conn, .. }
            | Self::Renew { conn, .. }
            | Self::Close { conn, .. }
            | Self::Grant { conn, .. }
            | Self::Resume { conn, .. }
            | Self::Subscribe { conn, .. }
            | Self::Unsubscribe { conn, .. }
            | Self::Done { conn, .. }
            | Self::Evict { conn, .. }
            | Self::GiveUp { conn }
            | Self::ReadOn { conn } => Some(*conn),
            Self::Resubscribe(again) => Some(again.conn),
            Self::Deliver(_) | Self::SendMany { .. } | Self::SendAll { .. } | Self::SendUnion { .. } => None,
            Self::Members { .. }
            | Self::PresenceMode { .. }
            | Self::PresenceChange { .. }
            | Self::AnnounceDrain { .. }
            | Self::CloseAll { .. }
            | Self::Revoke(_)
            | Self::Passed { .. }
            | Self::Skipped { .. }
            | Self::LoseMembers { .. }
            | Self::MakeRoom
            | Self::RecheckPauses => None,
        }
    }
}

/// A member to be, with all that the channel's lock decided.
#[derive(Debug)]
pub(crate) struct Join {
    pub conn: ConnId,
    pub channel: Arc<Channel>,
    /// `subscription_confirmed`.
    pub confirm: Arc<Prepared>,
    /// States that the channel retains, with their keys.
    pub latest: Vec<(Arc<str>, Arc<Prepared>)>,
    /// The first offset that it has to get; above the head when there is nothing to replay.
    pub next: u64,
    /// Whether offsets below the head are still to be replayed.
    pub replays: bool,
    pub credit: Option<Credit>,
}

/// A second subscribe of a member, with all that the channel's lock decided. The shard confirms it, since only the
/// shard knows how far a member that replays has come.
#[derive(Debug)]
pub(crate) struct Resubscribe {
    pub conn: ConnId,
    pub channel: Arc<Channel>,
    pub id: Option<Box<[u8]>>,
    pub epoch: Arc<str>,
    pub head: u64,
    /// Whether the position that it names is whole; None where it names none.
    pub recovered: Option<bool>,
    /// The first offset that it has to get where it names a position; None leaves it where it is.
    pub next: Option<u64>,
    pub credit: Option<Credit>,
}

/// An event on its way to members.
#[derive(Debug)]
pub(crate) struct Deliver {
    pub channel: u64,
    pub frame: Arc<Prepared>,
    /// 0 where the channel does not number.
    pub offset: u64,
    pub class: Class,
    /// When the event came to the hub, monotonic µs: what its delivery is measured from.
    pub read_us: u64,
}

/// What waits for a shard.
#[derive(Default)]
struct Pending {
    messages: Vec<ShardMsg>,
    /// How many events of a channel were refused of which nobody else is told; its members here are.
    skipped: FxHashMap<u64, u64>,
}

/// One shard's inbox.
#[derive(Default)]
pub struct Inbox {
    queue: Mutex<Pending>,
    /// Of the messages; written under the lock alone, so that it takes no more than a store.
    bytes: AtomicUsize,
    wake: Wake,
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Inbox {
    /// Says how the shard's thread is woken; once, before it runs.
    pub fn set_waker(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.waker.set(wake);
    }

    /// To be called before polling: true when nothing waits, so that the shard may sleep.
    pub fn may_sleep(&self) -> bool {
        self.wake.may_sleep(|| {
            let queue = lock(&self.queue);
            queue.messages.is_empty() && queue.skipped.is_empty()
        })
    }

    /// To be called after polling.
    pub fn woke(&self) {
        self.wake.woke();
    }

    /// Wakes the shard if it sleeps.
    pub fn wake(&self) {
        if self.wake.is_to_be_woken()
            && let Some(wake) = self.waker.get()
        {
            wake();
        }
    }

    /// Puts a message down; returns the bytes that wait then.
    pub(crate) fn push(&self, message: ShardMsg) -> usize {
        let mut queue = lock(&self.queue);
        let bytes = self.bytes() + message.bytes();
        self.bytes.store(bytes, Ordering::Relaxed);
        queue.messages.push(message);
        drop(queue);
        self.wake();
        bytes
    }

    /// Notes that an event of a channel was refused, behind what waits.
    pub(crate) fn skip(&self, channel: u64) {
        *lock(&self.queue).skipped.entry(channel).or_default() += 1;
        self.wake();
    }

    /// Swaps the queue with an empty one.
    pub(crate) fn take(&self, into: &mut Vec<ShardMsg>) {
        debug_assert!(into.is_empty());
        let mut queue = lock(&self.queue);
        self.bytes.store(0, Ordering::Relaxed);
        std::mem::swap(&mut queue.messages, into);
        if !queue.skipped.is_empty() {
            let skipped = std::mem::take(&mut queue.skipped);
            into.extend(skipped.into_iter().map(|(channel, count)| ShardMsg::Skipped { channel, count }));
        }
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether it takes no more events.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes() > HARD_BYTES
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}
