//! The reactor: the only sockets, threads and clocks of the engine.
//!
//! It drives what has none of them: bytes from sockets go into [`realtime_hub::ShardCore`], what comes out of it goes
//! to sockets, the log's requests to SQLite, events to Python. [`Engine`] does it over TCP with one acceptor, a thread
//! for each shard and one for the log; [`VirtualEngine`] over links in memory with a clock that is moved by hand. Both
//! are held through a [`Handle`].
//!
//! Invariants: no thread takes the GIL and none blocks on a peer, on Python or on another thread's work; what can
//! grow without end has a limit or a pause; a panic ends one connection, or is told as [`realtime_hub::Event::Fatal`].

mod acceptor;
mod arrivals;
mod backup;
mod bridge;
mod clock;
mod descriptors;
mod disk_room;
mod engine;
mod error;
mod flush;
mod forks;
mod handle;
mod link;
mod link_client;
mod listener;
mod log_chores;
mod log_faults;
mod log_health;
mod log_reads;
mod log_thread;
mod log_wal;
mod log_worker;
mod loop_engine;
mod loop_shard;
mod notify;
mod panics;
mod send_loop;
#[cfg(target_os = "linux")]
mod send_ring;
mod shard;
mod sockets;
mod turns;
mod uws_callbacks;
mod uws_library;
mod uws_sockets;
mod virtual_engine;
mod wiring;

pub use backup::{backup, restore, stored};
pub use engine::{Engine, shard_count};
pub use error::{StartCode, StartError};
pub use flush::flush_of;
pub use forks::close_inherited;
pub use handle::Handle;
pub use link_client::Received;
pub use loop_engine::LoopEngine;
pub use uws_callbacks::Callbacks;
pub use uws_library::FUNCTIONS;
pub use virtual_engine::VirtualEngine;
