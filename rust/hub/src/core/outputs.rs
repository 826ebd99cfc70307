//! What a shard gives out but for frames: events for Python, and what its driver has to do with sockets.

use super::ShardCore;
use crate::{ConnId, Event, Release};

/// What the driver takes each turn.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    pub(super) events: Vec<Event>,
    pub(super) releases: Vec<Release>,
    /// Connections that somebody else serves, with what was read of them.
    pub(super) passed: Vec<(ConnId, Vec<u8>)>,
    pub(super) unpaused: Vec<ConnId>,
}

impl ShardCore {
    /// Moves what Python has to hear to the end of `into`.
    pub fn take_events(&mut self, into: &mut Vec<Event>) {
        if !self.outputs.events.is_empty() {
            self.hub.weigh_events();
        }
        into.append(&mut self.outputs.events);
    }

    /// Moves what the driver has to do with sockets to the end of `into`.
    pub fn take_releases(&mut self, into: &mut Vec<Release>) {
        into.append(&mut self.outputs.releases);
    }

    /// Moves the connections whose reading goes on to the end of `into`.
    pub fn take_unpaused(&mut self, into: &mut Vec<ConnId>) {
        into.append(&mut self.outputs.unpaused);
    }

    /// Moves the connections that somebody else serves to the end of `into`, each with what was read of it; before
    /// [`Self::take_releases`], which would close them.
    pub fn take_passed(&mut self, into: &mut Vec<(ConnId, Vec<u8>)>) {
        into.append(&mut self.outputs.passed);
    }
}
