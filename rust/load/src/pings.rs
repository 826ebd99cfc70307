//! W3: what does one round trip cost, and how long does it take?
//! Unit: µs of the server's CPU per `ping`; latency from the schedule to its `pong`.
//!
//! Every connection is a sequence of its own ("channel" `i` of `drive` is connection `i`): it sends `ping` commands whose ids count 1, 2, 3 …
//! and must receive the pong of each once and in order.

use crate::audit::{Audit, Faults};
use crate::drive::Workload;
use crate::figures::Figures;
use crate::flights::Flights;
use crate::scan;
use crate::swarm::Swarm;
use std::io::Write;

/// The state of the run.
pub struct Pings {
    flights: Flights,
    audits: Vec<Audit>,
    command: Vec<u8>,
    figures: Figures,
}

impl Pings {
    /// Pings over connections `0..connections`.
    #[must_use]
    pub fn new(connections: usize) -> Self {
        Self {
            flights: Flights::new(connections),
            audits: vec![Audit::default(); connections],
            command: Vec::new(),
            figures: Figures::default(),
        }
    }
}

impl Workload for Pings {
    fn text(&mut self, connection: usize, payload: &[u8], now_ns: u64) {
        if scan::event_type(payload) != b"pong" {
            return self.figures.refusals.sort(payload);
        }
        let Some(seq) = scan::member_integer(payload, b"\"id\":").and_then(|id| id.checked_sub(1)) else {
            return self.figures.refusals.add(payload);
        };
        self.figures.deliver(payload.len());
        if self.audits[connection].see(seq)
            && let Some(due_ns) = self.flights.arrive(connection, seq)
        {
            self.figures.latency.record(now_ns.saturating_sub(due_ns));
        }
    }

    fn send_next(&mut self, swarm: &mut Swarm, channel: usize, due_ns: u64) {
        let seq = self.flights.depart(channel, 1, due_ns);
        self.command.clear();
        // Writing to a Vec cannot fail.
        let _ = write!(self.command, "{{\"type\":\"ping\",\"data\":{{}},\"id\":{}}}", seq + 1);
        swarm.send(channel, &self.command);
        self.figures.messages += 1;
    }

    fn flights(&mut self) -> &mut Flights {
        &mut self.flights
    }

    fn figures(&mut self) -> &mut Figures {
        &mut self.figures
    }

    fn faults(&self) -> Faults {
        let mut sum = Faults::default();
        for (connection, audit) in self.audits.iter().enumerate() {
            sum.add(audit.close(self.flights.departed(connection)));
        }
        sum
    }

    fn faults_so_far(&self) -> u64 {
        self.audits.iter().map(Audit::faults_so_far).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pong_that_is_missing_doubled_or_without_an_id_is_a_fault() {
        let mut pings = Pings::new(2);
        pings.flights.depart(0, 1, 0);
        pings.flights.depart(1, 1, 0);
        pings.text(0, br#"{"type":"pong","data":{"timestamp":""},"timestamp":"","id":1}"#, 5);
        assert_eq!(pings.faults(), Faults { lost: 1, doubled: 0, reordered: 0 });
        pings.text(1, br#"{"type":"pong","data":{"timestamp":""},"timestamp":"","id":1}"#, 6);
        assert!(pings.faults().none());
        assert_eq!((pings.flights.outstanding(), pings.figures.latency.max_ns()), (0, 6));
        pings.text(1, br#"{"type":"pong","data":{"timestamp":""},"timestamp":"","id":1}"#, 7);
        assert_eq!(pings.faults().doubled, 1);
        pings.text(1, br#"{"type":"pong","data":{"timestamp":""}}"#, 8);
        assert_eq!(pings.figures.refusals.count, 1);
    }
}
