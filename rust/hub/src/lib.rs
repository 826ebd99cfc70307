//! A shard's whole logic and what shards share, without a socket, a clock or a thread.
//!
//! Bytes and commands go in; frames, events for Python and requests to the log come out. Three things drive it: the
//! reactor, a virtual link for tests of apps, and the tests of this crate. One noun a module: [`Hub`] is what is
//! shared (rules, channels, inboxes), [`ShardCore`] is one shard, [`Event`] and [`Command`] are the two queues to
//! Python, [`LogQueue`] is the one to the log, [`Wire`] is the way out.
//!
//! Invariants, each with a test: order is per channel and given under its lock; a shard changes its members only from
//! its inbox; what is acknowledged was committed before; a member sees an offset once and in order, replayed or live;
//! a frame leaves whole or its connection ends.
#![forbid(unsafe_code)]

mod accounts;
pub mod bucket;
mod by_address;
mod channel;
pub mod channel_name;
mod class;
mod command;
pub mod compose;
mod compression;
mod confidential;
mod conn;
mod core;
mod counters;
mod credit;
mod event;
mod handshakes;
mod histogram;
mod holders;
mod hub;
mod id;
mod identity;
mod inbox;
mod jose_header;
pub mod json;
mod key;
mod latest;
mod lock;
mod log_queue;
mod options;
pub mod origin;
mod outbox;
pub mod pattern;
mod portions;
mod prepared;
mod queued;
mod refusal;
pub mod relay;
mod revocations;
mod ring;
mod rules;
mod scramble;
mod session_id;
mod shares;
mod terms;
pub mod token;
mod token_witness;
mod unique;
mod waiting;
mod wake;
mod way;
mod wire;

pub use channel::{Channel, Keep, Policy, Publication};
pub use class::{Class, latest_key};
pub use command::{Admitted, Amendment, Command, Publish, Rejection, Reply};
pub use confidential::Confidential;
pub use core::{ShardCore, TICK_MS};
pub use counters::{Counters, Tally, add_own};
pub use credit::Credit;
pub use event::{Event, HistoryPage, Published};
pub use hub::{Hub, Read};
pub use id::{ConnId, Now};
pub use identity::Identity;
pub use inbox::Inbox;
pub use latest::Retain;
pub use log_queue::{
    AppendError, AppendedEvent, Bounds, LogFailure, LogQueue, LogRequest, PagePurpose, PageRequest, Reader,
    StoredEvent, TermStarts,
};
pub use options::{
    Auth, CompressionOptions, Crowd, Endpoint, Expiry, FlushOption, KeyRule, Limits, Mode, OpenGrant, Options,
    Overflow, PolicyOptions, RelayOptions, Retention, Route, TokenRule,
};

pub use prepared::{Form, Prepared};
pub use refusal::Refusal;
pub use terms::Terms;
pub use wire::{Outcome, Release, SendOp, Wire};
