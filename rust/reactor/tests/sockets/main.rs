//! The engine over real sockets on loopback.

mod balance;
mod client;
mod doors;
mod endings;
mod fan_out;
mod flow;
mod log;
mod order;
mod server;
mod start;
