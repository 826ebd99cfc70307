//! The engine over sockets of uWebSockets, on the thread of an event loop.
//!
//! The library reads, writes and knows the frames; one shard of the hub decides. `library` is its C interface,
//! `callbacks` is what it calls, `sockets` is the wire.

mod callbacks;
mod engine;
mod library;
mod shard;
mod sockets;

pub use callbacks::Callbacks;
pub use engine::UwsEngine;
pub use library::FUNCTIONS;
