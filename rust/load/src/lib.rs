//! The load generator: thousands of clients of one server on one thread, with an account of every delivery.
//!
//! It answers what a delivery, a message and a connection cost the server, and how long receivers wait; benches/README.md says how the
//! figures are read. It counts every event at every receiver, and a run in which one is lost, doubled or out of order fails, whatever its times.
//! Readiness by mio, frames by a parser of its own, JSON members found by scanning: it must be quicker than what it measures, and its own
//! CPU stands beside every result. Layers: `frame deflate dialect corpus scan histogram audit flights figures process clock watch` know no socket; `connection`
//! and `swarm` own the sockets; `fanout pings stored idle recovery` are the workloads; `drive` runs them; `run` is the whole, between `options` and
//! `report`. Two programs call it: `realtime-load`, and `realtime bench` through `rust/bindings`.

pub mod audit;
pub mod clock;
pub mod connection;
pub mod corpus;
pub mod deflate;
pub mod descriptors;
pub mod dialect;
pub mod drive;
pub mod failure;
pub mod fanout;
pub mod figures;
pub mod flights;
pub mod frame;
pub mod histogram;
pub mod idle;
pub mod options;
pub mod pings;
pub mod process;
pub mod recovery;
pub mod refusals;
pub mod report;
pub mod run;
pub mod scan;
pub mod stored;
pub mod subscription;
pub mod swarm;
pub mod watch;
