//! The engine over sockets of its own.
//!
//! One acceptor takes connections and gives each to the shard with the fewest; each shard is a thread that polls, reads,
//! runs the hub and sends, through io_uring where the kernel allows it.

mod acceptor;
mod arrivals;
mod engine;
mod flush;
mod listener;
mod send_loop;
#[cfg(target_os = "linux")]
mod send_ring;
mod shard;
mod sockets;

pub use engine::{Engine, shard_count};
pub(crate) use flush::Flushes;
pub use flush::flush_of;
