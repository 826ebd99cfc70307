//! Why a run came to no figures.
//!
//! A run that begins and finds something wrong is no failure: its report says so. `run` turns [`Failure::Server`] into such a report too.

use std::fmt;
use std::io;

/// What ended a run before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The call cannot be carried out here: an option, a file, a limit of this machine, nobody who listens.
    Call(String),
    /// The server is there and did not do what it must before a load can begin: it refused, closed, or was too slow.
    Server(String),
    /// Whoever watches wants no more of it.
    Stopped,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(sentence) | Self::Server(sentence) => out.write_str(sentence),
            Self::Stopped => out.write_str("stopped"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Call(format!("poll: {error}"))
    }
}
