//! Requests for the HTTP side where it shares this port: they go on to it, with their socket.

use super::ShardCore;
use realtime_protocol::handshake::Request;

impl ShardCore {
    /// Whether a request is for somebody else: on a shared port every path but those of endpoints.
    pub(super) fn passes_on(&self, request: &Request<'_>) -> bool {
        self.hub.passes_on() && self.hub.rules.endpoints.iter().all(|endpoint| endpoint.path != request.path)
    }

    /// Lets a connection go, with what was read of it.
    pub(super) fn pass_on(&mut self, slot: usize, read: Vec<u8>) {
        self.outputs.passed.push((self.connections.id(slot), read));
        self.end(slot);
    }
}
