//! The HTTP port: connections, heads and bodies of clients, before Python sees anything of them.
//!
//! One thread takes the connections, reads each request's head and body within limits, passes it on over a Unix socket
//! to the server that calls Python, and passes the answer back. Whoever is slow, silent or one too many is the
//! front's matter: Python is asked only for requests that are whole, or whose long body comes at a fair pace.
//!
//! Invariants: every wait for a client has an end, every buffer is charged to the connection's address, and at each limit the one
//! who holds most goes, never the newcomer. A request is framed anew on its way: what two programs could read
//! differently (two lengths, a length beside chunks, bare line feeds) is refused. The thread never takes the GIL.

mod accept;
mod answers;
mod body;
mod connection;
mod counters;
mod exchange;
mod front;
mod options;
mod rates;
mod relay;
mod request;
mod response;
mod slots;
mod state;
mod table;
mod upstream;

pub use front::Front;
pub use options::Options;
