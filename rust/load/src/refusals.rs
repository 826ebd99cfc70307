//! Events that must not come in a load run: `error`, `lag`, `unsubscribed` and the like, and events of another channel.
//!
//! Each counts as a fault of the run; the first one is kept whole, since it says what to change. Presence and other events that nobody
//! asked about are counted apart and are no fault.

use crate::scan;

/// What came besides the deliveries.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    /// Faults.
    pub count: u64,
    /// The first of them, as it came, cut to 300 characters.
    pub first: Option<String>,
    /// Other events.
    pub ignored: u64,
}

impl Refusals {
    /// Sort an event that is no delivery.
    pub fn sort(&mut self, event: &[u8]) {
        match scan::event_type(event) {
            b"error" | b"lag" | b"unsubscribed" | b"position_reset" | b"draining" | b"" => self.add(event),
            _ => self.ignored += 1,
        }
    }

    /// Count a fault.
    pub fn add(&mut self, event: &[u8]) {
        self.count += 1;
        if self.first.is_none() {
            self.first = Some(String::from_utf8_lossy(event).chars().take(300).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_faults_and_presence_is_not() {
        let mut refusals = Refusals::default();
        refusals.sort(br#"{"type":"user_presence","data":{}}"#);
        refusals.sort(br#"{"type":"error","data":{"message":"first"}}"#);
        refusals.sort(br#"{"type":"lag","data":{}}"#);
        assert_eq!((refusals.count, refusals.ignored), (2, 1));
        assert!(refusals.first.is_some_and(|text| text.contains("first")));
    }
}
