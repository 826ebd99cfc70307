//! The log's thread: appends in batches, pages beside them, chores when it is idle.
//!
//! `thread` owns the queue, `worker` serves it and has no thread of its own, so that the virtual engine can call it.

mod backup;
mod chores;
mod disk_room;
mod faults;
mod health;
mod reads;
mod thread;
mod turns;
mod wal;
mod worker;

pub use backup::{backup, restore, stored};
pub(crate) use disk_room::DiskRoom;
pub(crate) use health::LogHealth;
pub(crate) use reads::{LogReads, ReadBounds, Ways, spawn as spawn_reader};
pub(crate) use thread::{LogPort, LogRequests, far_deadline, spawn};
pub(crate) use worker::LogWorker;
