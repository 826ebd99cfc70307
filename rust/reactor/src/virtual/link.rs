//! A virtual link: bytes both ways between a shard and a client, without a socket.
//!
//! The server's side is a small buffer as the kernel has one: it takes what fits and refuses the rest until the client
//! has read. The client's side is a WebSocket client with a browser's manners: it answers pings, echoes a close and
//! sees the end of the stream after what was sent before it. How fast it reads is set by the test.

use crate::r#virtual::link_client::{LinkClient, Received};
use realtime_hub::{ConnId, Outcome};

/// What the link holds between server and client when the client does not read: the kernel's part.
pub(crate) const LINK_BYTES: usize = 16 << 10;

/// One link between a shard and a client.
pub(crate) struct Link {
    /// The server's name for it.
    pub(crate) conn: ConnId,
    pub(crate) client: LinkClient,
    /// Sent by the server, not read by the client yet.
    down: Vec<u8>,
    /// None: the client reads at once.
    bytes_per_s: Option<u64>,
    /// What the client may still read, in bytes × 1,000, so that slow rates add up over short times.
    allowance_milli: u64,
    /// The server was refused bytes and waits to hear of room.
    pub(crate) blocked: bool,
    /// The server sends nothing more.
    pub(crate) server_shut: bool,
    /// The server's side is closed.
    pub(crate) server_closed: bool,
    /// Cut, as by a lost network, or ended by the client.
    pub(crate) cut: bool,
}

impl Link {
    pub(crate) const fn new(conn: ConnId, client: LinkClient) -> Self {
        Self {
            conn,
            client,
            down: Vec::new(),
            bytes_per_s: None,
            allowance_milli: 0,
            blocked: false,
            server_shut: false,
            server_closed: false,
            cut: false,
        }
    }

    /// The server sends; what the client reads at once does not pass through the buffer.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Outcome {
        if self.cut || self.server_closed {
            return Outcome::Gone;
        }
        if self.bytes_per_s.is_none() {
            self.client.bytes_in(bytes);
            return Outcome::Sent(bytes.len());
        }
        let taken = bytes.len().min(LINK_BYTES - self.down.len());
        self.down.extend_from_slice(&bytes[..taken]);
        self.blocked = taken < bytes.len();
        Outcome::Sent(taken)
    }

    /// How fast the client reads from now on.
    pub(crate) fn set_rate(&mut self, bytes_per_s: Option<u64>) {
        self.bytes_per_s = bytes_per_s;
        self.allowance_milli = 0;
    }

    /// Time passes for the client.
    pub(crate) fn advance(&mut self, ms: u64) {
        if let Some(rate) = self.bytes_per_s {
            self.allowance_milli = self.allowance_milli.saturating_add(rate.saturating_mul(ms));
        }
    }

    /// The client reads what it may; true if it read anything or saw the end.
    pub(crate) fn client_reads(&mut self) -> bool {
        let may = match self.bytes_per_s {
            None => self.down.len(),
            Some(_) => usize::try_from(self.allowance_milli / 1_000).unwrap_or(usize::MAX).min(self.down.len()),
        };
        if self.cut {
            return false;
        }
        let bytes: Vec<u8> = self.down.drain(..may).collect();
        if self.bytes_per_s.is_some() {
            self.allowance_milli -= (may as u64) * 1_000;
            if self.down.is_empty() {
                // What was not used is not saved up.
                self.allowance_milli %= 1_000;
            }
        }
        self.client.bytes_in(&bytes);
        let is_end = (self.server_shut || self.server_closed) && self.down.is_empty();
        (is_end && self.client.end()) || may > 0
    }

    /// Whether the server, having been refused, may send again; true once.
    pub(crate) fn has_room_again(&mut self) -> bool {
        let has_room = self.blocked && self.down.len() < LINK_BYTES;
        self.blocked &= !has_room;
        has_room
    }

    pub(crate) fn take_received(&mut self) -> Vec<Received> {
        self.client.take_received()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link::new(ConnId::new(0, 0, 0), LinkClient::admitted())
    }

    #[test]
    fn a_client_that_does_not_read_leaves_the_kernels_part() {
        let mut link = link();
        link.set_rate(Some(0));
        assert_eq!(link.send(&[0; 20_000]), Outcome::Sent(LINK_BYTES));
        assert_eq!(link.send(&[0; 1]), Outcome::Sent(0));
        link.advance(60_000);
        assert!(!link.client_reads());
        assert!(!link.has_room_again());
        link.set_rate(None);
        assert!(link.client_reads());
        assert!(link.has_room_again());
        assert!(!link.has_room_again());
    }

    #[test]
    fn a_slow_client_reads_at_its_rate_and_saves_nothing_up() {
        let mut link = link();
        link.set_rate(Some(100));
        link.send(&[0; 300]);
        link.advance(999);
        link.client_reads();
        assert_eq!(link.down.len(), 201);
        link.advance(1);
        link.client_reads();
        assert_eq!(link.down.len(), 200);
        link.advance(1_000_000);
        link.client_reads();
        link.send(&[0; 300]);
        link.client_reads();
        assert_eq!(link.down.len(), 300);
    }

    #[test]
    fn a_cut_link_takes_nothing() {
        let mut link = link();
        link.cut = true;
        assert_eq!(link.send(b"x"), Outcome::Gone);
    }
}
