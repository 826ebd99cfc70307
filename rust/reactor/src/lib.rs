//! The reactor: the only sockets, threads and clocks of the engine.
//!
//! It drives what has none of them: bytes from sockets go into [`realtime_hub::ShardCore`], what comes out of it goes
//! to sockets, the log's requests to SQLite, events to Python. Each engine has a
//! room: `tcp` has [`Engine`], with a thread for each shard; `uws` has [`UwsEngine`], over sockets of uWebSockets on the
//! thread of an event loop; `virtual` has [`VirtualEngine`], over links in memory with a clock that is moved by hand.
//! `log` is the log's thread, which all of them share. Each engine is held through a [`Handle`].
//!
//! Invariants: no thread takes the GIL and none blocks on a peer, on Python or on another thread's work; what can
//! grow without end has a limit or a pause; a panic ends one connection, or is told as [`realtime_hub::Event::Fatal`].

mod bridge;
mod clock;
mod descriptors;
mod error;
mod forks;
mod handle;
mod log;
mod notify;
mod panics;
mod tcp;
mod uws;
mod r#virtual;
mod wiring;

pub use error::{StartCode, StartError};
pub use forks::close_inherited;
pub use handle::Handle;
pub use log::{backup, restore, stored};
pub use tcp::{Engine, flush_of, shard_count};
pub use uws::{Callbacks, FUNCTIONS, UwsEngine};
pub use r#virtual::{Received, VirtualEngine};
