//! Credits: what a command under way holds of its connection, given back with its answer.
//!
//! A connection is read while it has fewer commands under way than `limits.commands_waiting_max`. A credit travels with
//! its command, through a channel, the log or Python, and comes back to the connection's shard by the inbox.

/// Credits on their way back to their connection. There is no copy of one, so it comes back once.
#[must_use = "without its credit a connection is not read on"]
#[derive(Debug, PartialEq, Eq)]
pub enum Credit {
    /// Of so many commands that Python had.
    Python(u16),
    /// Of one command of the hub's own, on its way to a channel or the log.
    Own,
}

impl Credit {
    /// The credit of so many commands that Python has done with; None of none.
    pub const fn of_python(count: u16) -> Option<Self> {
        if count == 0 { None } else { Some(Self::Python(count)) }
    }
}
