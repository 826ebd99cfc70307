//! RFC 6455, RFC 7692 and the HTTP/1.1 of its upgrade, without a socket, a thread or a clock.
//!
//! Bytes go in as slices and come out as items or as bytes; who owns the socket, the deadlines and the buffers is
//! the caller: the reactor for real connections, tests and the load generator for virtual ones. One noun a module:
//! [`frame`] writes frames, [`mask`] and [`utf8`] are the two passes over a payload, [`close`] is the table of close
//! codes, [`connection`] turns received bytes into messages, [`handshake`] is the way from TCP to the first frame,
//! [`address`] says whose it is, [`extensions`] is what it agrees on, [`deflate`] compresses and decompresses the messages of who agreed.
//!
//! Invariants: nothing here panics on any input; memory grows with bytes received and never with a length that a
//! peer announces; the same bytes give the same items and the same violation, however they are cut.
#![forbid(unsafe_code)]

pub mod address;
pub mod close;
pub mod connection;
pub mod deflate;
pub mod error;
pub mod extensions;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod utf8;
