//! Names of connections, and time as an argument.

/// A moment, handed in by whoever drives the hub: it has no clock of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic milliseconds since some fixed start; every timer runs on it.
    pub mono_ms: u64,
    /// The same in microseconds: what is measured, never what is waited for.
    pub mono_us: u64,
    /// Unix time in milliseconds; only for timestamps and token expiry.
    pub wall_ms: u64,
}

/// One connection for its whole life: shard (8 bits), generation (32 bits), slot (24 bits).
///
/// The generation goes up each time a slot is used again, so a command for a connection that is gone never
/// reaches the one that took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(u64);

impl ConnId {
    /// Slots that one shard can hold.
    pub const SLOTS_MAX: usize = 1 << 24;

    /// Packs the three parts; `slot` is below [`Self::SLOTS_MAX`].
    #[must_use]
    pub const fn new(shard: u8, generation: u32, slot: u32) -> Self {
        debug_assert!((slot as usize) < Self::SLOTS_MAX);
        Self((shard as u64) << 56 | (generation as u64) << 24 | slot as u64)
    }

    /// The shard that owns the connection.
    #[must_use]
    pub const fn shard(self) -> usize {
        (self.0 >> 56) as usize
    }

    /// How often the slot had been used before.
    #[must_use]
    pub const fn generation(self) -> u32 {
        (self.0 >> 24) as u32
    }

    /// The slot in the shard's slab.
    #[must_use]
    pub const fn slot(self) -> usize {
        (self.0 & 0xFF_FFFF) as usize
    }

    /// The form that crosses to Python.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Back from Python; any number is safe: a slot or generation that does not exist is passed over.
    #[must_use]
    pub const fn from_u64(raw: u64) -> Self {
        Self(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_id_come_back() {
        let id = ConnId::new(7, u32::MAX, 0xFF_FFFF);
        assert_eq!((id.shard(), id.generation(), id.slot()), (7, u32::MAX, 0xFF_FFFF));
        assert_eq!(ConnId::from_u64(id.as_u64()), id);
    }
}
