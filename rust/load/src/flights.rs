//! Messages under way: per channel a sequence 0, 1, 2 …, for each message when it was due and how many receipts are still to come.
//!
//! A message is over when every receipt has come (each member's delivery, and for stored messages the ack). The closed loop asks for
//! channels whose messages ended ([`Flights::take_ready`]), the end of a run for what is still out. Invariant: `outstanding` is the sum of
//! messages with receipts to come; one more receipt than expected is ignored here, because the receiver's audit counts it.

use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
struct Flight {
    due_ns: u64,
    receipts_left: u32,
}

#[derive(Debug, Default)]
struct Lane {
    oldest: u64,
    flights: VecDeque<Flight>,
    in_flight: u32,
}

/// All channels' messages under way.
#[derive(Debug)]
pub struct Flights {
    lanes: Vec<Lane>,
    ready: Vec<usize>,
    outstanding: u64,
}

impl Flights {
    /// Nothing under way on `channels` channels; all of them are ready for their first message.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        Self { lanes: (0..channels).map(|_| Lane::default()).collect(), ready: (0..channels).collect(), outstanding: 0 }
    }

    /// A message of `channel` leaves and waits for `receipts` > 0; returns its number in the channel's sequence.
    pub fn depart(&mut self, channel: usize, receipts: u32, due_ns: u64) -> u64 {
        let lane = &mut self.lanes[channel];
        lane.flights.push_back(Flight { due_ns, receipts_left: receipts });
        lane.in_flight += 1;
        self.outstanding += 1;
        lane.oldest + lane.flights.len() as u64 - 1
    }

    /// One receipt of message `seq`; returns when it was due, or `None` if it is over or never left.
    pub fn arrive(&mut self, channel: usize, seq: u64) -> Option<u64> {
        let lane = &mut self.lanes[channel];
        let index = usize::try_from(seq.checked_sub(lane.oldest)?).ok()?;
        let flight = lane.flights.get_mut(index)?;
        flight.receipts_left = flight.receipts_left.checked_sub(1)?;
        let due_ns = flight.due_ns;
        if flight.receipts_left == 0 {
            lane.in_flight -= 1;
            self.outstanding -= 1;
            self.ready.push(channel);
            while lane.flights.front().is_some_and(|flight| flight.receipts_left == 0) {
                lane.flights.pop_front();
                lane.oldest += 1;
            }
        }
        Some(due_ns)
    }

    /// Messages of `channel` so far.
    #[must_use]
    pub fn departed(&self, channel: usize) -> u64 {
        let lane = &self.lanes[channel];
        lane.oldest + lane.flights.len() as u64
    }

    /// Messages of `channel` with receipts to come.
    #[must_use]
    pub fn in_flight(&self, channel: usize) -> u32 {
        self.lanes[channel].in_flight
    }

    /// Messages with receipts to come, in all channels.
    #[must_use]
    pub const fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Channels of which a message ended since the last call, with repetitions.
    pub fn take_ready(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_over_with_its_last_receipt_and_its_channel_becomes_ready() {
        let mut flights = Flights::new(2);
        assert_eq!(flights.take_ready(), [0, 1]);
        assert_eq!(flights.depart(1, 2, 70), 0);
        assert_eq!(flights.arrive(1, 0), Some(70));
        assert_eq!((flights.outstanding(), flights.in_flight(1)), (1, 1));
        assert_eq!(flights.arrive(1, 0), Some(70));
        assert_eq!((flights.outstanding(), flights.in_flight(1), flights.departed(1)), (0, 0, 1));
        assert_eq!(flights.take_ready(), [1]);
        assert_eq!(flights.arrive(1, 0), None, "a third receipt of two is not counted");
    }

    #[test]
    fn later_message_may_end_first_and_numbers_go_on() {
        let mut flights = Flights::new(1);
        assert_eq!((flights.depart(0, 1, 5), flights.depart(0, 1, 6)), (0, 1));
        assert_eq!(flights.arrive(0, 1), Some(6));
        assert_eq!(flights.arrive(0, 1), None);
        assert_eq!(flights.depart(0, 1, 7), 2);
        assert_eq!(flights.arrive(0, 0), Some(5));
        assert_eq!(flights.arrive(0, 2), Some(7));
        assert_eq!(flights.outstanding(), 0);
    }

    #[test]
    fn message_that_never_left_has_no_receipts() {
        assert_eq!(Flights::new(1).arrive(0, 3), None);
    }
}
