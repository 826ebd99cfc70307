//! Who is subscribed to what: connection `i` of N is a member of channel `i mod C`, and of no other.
//!
//! So every receiver has one sequence to check, and a delivery of another channel is a fault by itself. Subscribing sends one command a
//! connection and waits for every confirmation; a refusal ends the run with the server's words.

use crate::failure::Failure;
use crate::scan;
use crate::swarm::Swarm;
use crate::watch::{Progress, Wish};
use std::time::Duration;

/// A channel and its members.
#[derive(Clone, Debug)]
pub struct Channel {
    /// Its name on the wire, for example `conversation:w-3`.
    pub name: String,
    /// Connections that are subscribed.
    pub members: Vec<usize>,
    /// How an event of this channel ends when `channel` is its last member: the cheap check.
    suffix: Vec<u8>,
}

impl Channel {
    /// `count` channels named after `prefix`, over `connections` connections.
    #[must_use]
    pub fn all(prefix: &str, count: usize, connections: usize) -> Vec<Self> {
        (0..count)
            .map(|index| Self {
                name: format!("{prefix}{index}"),
                members: (index..connections).step_by(count).collect(),
                suffix: format!("\"channel\":\"{prefix}{index}\"}}").into_bytes(),
            })
            .collect()
    }

    /// The conversation of a channel `conversation:…`; the whole name of any other.
    #[must_use]
    pub fn conversation(&self) -> &str {
        self.name.strip_prefix("conversation:").unwrap_or(&self.name)
    }

    /// Whether `event` says that it belongs to this channel.
    #[must_use]
    pub fn owns(&self, event: &[u8]) -> bool {
        event.ends_with(&self.suffix) || scan::member_text(event, b"\"channel\":\"") == Some(self.name.as_bytes())
    }
}

/// Subscribe every connection of `swarm` and wait for all confirmations.
///
/// # Returns
/// Per connection the offset in the confirmation's position: the last publication before the subscription; 0 without one.
///
/// # Errors
/// [`Failure::Server`] with the server's refusal, a connection that ended, or how many confirmations are missing after `timeout`.
pub fn subscribe_all(swarm: &mut Swarm, channels: &[Channel], timeout: Duration) -> Result<Vec<u64>, Failure> {
    let members: usize = channels.iter().map(|channel| channel.members.len()).sum();
    for channel in channels {
        let command = format!("{{\"type\":\"subscribe\",\"data\":{{\"channel\":\"{}\"}},\"id\":1}}", channel.name);
        for member in &channel.members {
            swarm.send(*member, command.as_bytes());
        }
    }
    let mut offsets: Vec<Option<u64>> = vec![None; members];
    let mut confirmed = 0;
    let mut refusal = None;
    let deadline_ns = swarm.clock().now_ns() + crate::clock::ns(timeout);
    while confirmed < members {
        if swarm.look(|_| Progress { phase: "subscribing", ..Progress::default() }) != Wish::GoOn {
            return Err(Failure::Stopped);
        }
        swarm.turn(Some(Duration::from_millis(50)), |connection, payload, _| match scan::event_type(payload) {
            b"subscription_confirmed" if offsets[connection].is_none() => {
                offsets[connection] = Some(scan::member_integer(payload, b"\"offset\":").unwrap_or(0));
                confirmed += 1;
            }
            b"error" => refusal = Some(String::from_utf8_lossy(payload).into_owned()),
            _ => {}
        })?;
        if let Some(refusal) = refusal {
            return Err(Failure::Server(format!("subscribe: {refusal}")));
        }
        if let Some((index, end)) = swarm.ends().first() {
            return Err(Failure::Server(format!("connection {index}, subscribing: {end}")));
        }
        if swarm.clock().now_ns() > deadline_ns {
            return Err(Failure::Server(format!("{confirmed} of {members} subscriptions confirmed after {timeout:?}")));
        }
    }
    Ok(offsets.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_is_a_member_of_exactly_one_channel() {
        let channels = Channel::all("conversation:w-", 3, 8);
        let mut members: Vec<usize> = channels.iter().flat_map(|channel| channel.members.clone()).collect();
        members.sort_unstable();
        assert_eq!(members, (0..8).collect::<Vec<_>>());
        assert_eq!(channels[2].members, [2, 5]);
    }

    #[test]
    fn event_belongs_to_its_channel_wherever_the_member_stands() {
        let channel = &Channel::all("conversation:w-", 2, 2)[1];
        assert!(channel.owns(br#"{"type":"bench","channel":"conversation:w-1"}"#));
        assert!(channel.owns(br#"{"channel":"conversation:w-1","type":"bench"}"#));
        assert!(!channel.owns(br#"{"type":"bench","channel":"conversation:w-11"}"#));
        assert!(!channel.owns(br#"{"type":"bench"}"#));
    }
}
