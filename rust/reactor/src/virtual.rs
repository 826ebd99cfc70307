//! The engine over links in memory, with a clock that is moved by hand: for tests.

mod engine;
mod link;
mod link_client;

pub use engine::VirtualEngine;
pub use link_client::Received;
