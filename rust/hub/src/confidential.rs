//! Text that opens a door: keys and tokens, which no `Debug` of an option, a command or an event may show.

use serde::Deserialize;
use std::fmt;
use std::ops::Deref;

/// A key or a token.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Confidential(Box<str>);

impl Confidential {
    /// Keeps a text out of what is printed.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }
}

impl Deref for Confidential {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Confidential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}
