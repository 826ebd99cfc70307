//! What every open connection is told, and each that opens later: that the process ends, and who is online.

use super::drain::Drain;
use super::presence::Presence;

/// What this shard has to tell to whoever opens.
#[derive(Debug, Default)]
pub(super) struct Notices {
    pub(super) drain: Drain,
    pub(super) presence: Presence,
}
