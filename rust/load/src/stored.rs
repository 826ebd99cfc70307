//! W7 `send`: how many messages a second are stored, acknowledged and delivered in the order of their numbers, and how long does that take?
//! Unit: µs of the server's CPU per message; latency from the schedule to the ack and to each receiver.
//!
//! The members of a channel take turns at sending. A message is over when its ack and all its deliveries have come. What is checked: every
//! message acknowledged once, to its sender; numbers without holes and in order at every receiver; one number is one message at every
//! receiver and in the ack, and one message has one number. A message that is sent twice, as after a lost ack, is acknowledged twice and
//! stored once. With a record, each acknowledged message is written as a line
//! `conversationId,number,clientMessageId` and flushed in the same turn, for a check after the server was killed.

use crate::audit::{Audit, Faults};
use crate::drive::Workload;
use crate::figures::Figures;
use crate::flights::Flights;
use crate::histogram::Histogram;
use crate::refusals::Refusals;
use crate::scan;
use crate::subscription::Channel;
use crate::swarm::Swarm;
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// What the log says about one channel, as its receivers and senders were told.
#[derive(Default)]
struct Book {
    /// The number of the first message of this run.
    first: u64,
    /// Index: number - first; value: the message's place in the sending order + 1, or 0 while nobody has told.
    messages: Vec<u32>,
    /// Index: place in the sending order; how many acks are still to come.
    owed: Vec<u8>,
}

impl Book {
    /// Enter that `number` is message `seq`; false if it is known to be another, or is no number of this run.
    fn enter(&mut self, number: u64, seq: u64) -> bool {
        let Some(index) = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok()) else {
            return false;
        };
        // Far beyond what was sent, a number is nonsense, and no reason to allocate.
        if index > self.owed.len() {
            return false;
        }
        if index >= self.messages.len() {
            self.messages.resize(index + 1, 0);
        }
        let entry = seq as u32 + 1;
        let known = &mut self.messages[index];
        if *known == 0 {
            *known = entry;
        }
        *known == entry
    }

    /// Messages that have more than one number.
    fn stored_twice(&self) -> u64 {
        let mut entries: Vec<u32> = self.messages.iter().copied().filter(|entry| *entry != 0).collect();
        let all = entries.len();
        entries.sort_unstable();
        entries.dedup();
        (all - entries.len()) as u64
    }
}

/// Faults of the log, beside those of the deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFaults {
    /// Messages that were never acknowledged.
    pub unacked: u64,
    /// Acks beyond the first, or to somebody who did not send the message.
    pub stray_acks: u64,
    /// Numbers that are one message here and another there.
    pub disagreements: u64,
    /// Messages with two numbers.
    pub stored_twice: u64,
}

/// The state of the run.
pub struct Stored {
    channels: Vec<Channel>,
    content: String,
    run: String,
    flights: Flights,
    audits: Vec<Audit>,
    books: Vec<Book>,
    log_faults: LogFaults,
    command: Vec<u8>,
    record: Option<BufWriter<File>>,
    /// Every so many messages of a channel one is sent a second time; 0 for none.
    pub repeat_every: u64,
    /// Acks since the start.
    pub acks: u64,
    /// From the schedule to the ack.
    pub ack_latency: Histogram,
    figures: Figures,
}

impl Stored {
    /// Messages of `content_bytes` over `channels`; `run` (short, unique) begins every `clientMessageId`;
    /// `offsets` are the positions that each connection's subscription was confirmed with.
    #[must_use]
    pub fn new(
        channels: Vec<Channel>,
        content_bytes: usize,
        run: String,
        offsets: &[u64],
        record: Option<File>,
    ) -> Self {
        let mut refusals = Refusals::default();
        let mut books = Vec::with_capacity(channels.len());
        for channel in &channels {
            let first = offsets[channel.members[0]] + 1;
            if channel.members.iter().any(|member| offsets[*member] + 1 != first) {
                refusals.add(format!("members of {} were confirmed at different positions", channel.name).as_bytes());
            }
            books.push(Book { first, ..Book::default() });
        }
        Self {
            flights: Flights::new(channels.len()),
            channels,
            content: "x".repeat(content_bytes.max(1)),
            run,
            audits: offsets.iter().map(|offset| Audit::starting_at(offset + 1)).collect(),
            books,
            log_faults: LogFaults::default(),
            command: Vec::new(),
            record: record.map(BufWriter::new),
            repeat_every: 0,
            acks: 0,
            ack_latency: Histogram::default(),
            figures: Figures { refusals, ..Figures::default() },
        }
    }

    /// Faults of the log.
    #[must_use]
    pub fn log_faults(&self) -> LogFaults {
        let unacked = self.books.iter().flat_map(|book| &book.owed).filter(|owed| **owed > 0).count() as u64;
        let stored_twice = self.books.iter().map(Book::stored_twice).sum();
        LogFaults { unacked, stored_twice, ..self.log_faults }
    }

    /// `clientMessageId` is `run-channel-seq`; `None` for a message of somebody else.
    fn message_of(&self, event: &[u8]) -> Option<(usize, u64)> {
        let rest = scan::member_text(event, b"\"clientMessageId\":\"")?
            .strip_prefix(self.run.as_bytes())?
            .strip_prefix(b"-")?;
        let (channel, used) = scan::integer(rest)?;
        let (seq, _) = scan::integer(rest[used..].strip_prefix(b"-")?)?;
        let channel = usize::try_from(channel).ok().filter(|channel| *channel < self.channels.len())?;
        Some((channel, seq))
    }

    fn delivered(&mut self, connection: usize, event: &[u8], now_ns: u64) {
        let (Some((channel, seq)), Some(number)) =
            (self.message_of(event), scan::member_integer(event, b"\"number\":"))
        else {
            return self.figures.refusals.add(event);
        };
        if channel != connection % self.channels.len() || !self.channels[channel].owns(event) {
            return self.figures.refusals.add(event);
        }
        self.figures.deliver(event.len());
        if !self.books[channel].enter(number, seq) {
            self.log_faults.disagreements += 1;
        }
        if self.audits[connection].see(number)
            && let Some(due_ns) = self.flights.arrive(channel, seq)
        {
            self.figures.latency.record(now_ns.saturating_sub(due_ns));
        }
    }

    fn acknowledged(&mut self, connection: usize, event: &[u8], now_ns: u64) {
        let (Some((channel, seq)), Some(number)) =
            (self.message_of(event), scan::member_integer(event, b"\"number\":"))
        else {
            return self.figures.refusals.add(event);
        };
        if !self.books[channel].enter(number, seq) {
            self.log_faults.disagreements += 1;
        }
        let members = &self.channels[channel].members;
        let mine = members[seq as usize % members.len()] == connection;
        match self.books[channel].owed.get_mut(seq as usize) {
            Some(owed) if mine && *owed > 0 => *owed -= 1,
            _ => return self.log_faults.stray_acks += 1,
        }
        self.acks += 1;
        if let Some(due_ns) = self.flights.arrive(channel, seq) {
            self.ack_latency.record(now_ns.saturating_sub(due_ns));
        }
        if let Some(record) = &mut self.record {
            let conversation = self.channels[channel].conversation();
            // An error stays in the writer and comes out of the flush after this turn.
            let _ = writeln!(record, "{conversation},{number},{}-{channel}-{seq}", self.run);
        }
    }
}

impl Workload for Stored {
    fn text(&mut self, connection: usize, payload: &[u8], now_ns: u64) {
        match scan::event_type(payload) {
            b"new_message" => self.delivered(connection, payload, now_ns),
            b"ack" => self.acknowledged(connection, payload, now_ns),
            _ => self.figures.refusals.sort(payload),
        }
    }

    fn send_next(&mut self, swarm: &mut Swarm, channel: usize, due_ns: u64) {
        let members = &self.channels[channel].members;
        let next = self.flights.departed(channel) + 1;
        let copies = if self.repeat_every > 0 && next.is_multiple_of(self.repeat_every) { 2 } else { 1 };
        let seq = self.flights.depart(channel, members.len() as u32 + u32::from(copies), due_ns);
        self.books[channel].owed.push(copies);
        self.command.clear();
        // Writing to a Vec cannot fail.
        let _ = write!(
            self.command,
            "{{\"type\":\"send_message\",\"data\":{{\"conversationId\":\"{}\",\"content\":\"{}\",\
             \"clientMessageId\":\"{}-{channel}-{seq}\"}},\"id\":{}}}",
            self.channels[channel].conversation(),
            self.content,
            self.run,
            seq + 1,
        );
        for _ in 0..copies {
            swarm.send(members[seq as usize % members.len()], &self.command);
        }
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
        for (index, channel) in self.channels.iter().enumerate() {
            let end = self.books[index].first + self.flights.departed(index);
            for member in &channel.members {
                sum.add(self.audits[*member].close(end));
            }
        }
        sum
    }

    fn faults_so_far(&self) -> u64 {
        let LogFaults { stray_acks, disagreements, .. } = self.log_faults;
        self.audits.iter().map(Audit::faults_so_far).sum::<u64>() + stray_acks + disagreements
    }

    fn measure_from_here(&mut self) {
        self.figures.measure_from_here();
        self.ack_latency.clear();
    }

    fn after_turn(&mut self) -> io::Result<()> {
        self.record.as_mut().map_or(Ok(()), Write::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> Stored {
        let mut stored = Stored::new(Channel::all("conversation:w-", 1, 2), 4, "r1".to_owned(), &[10, 10], None);
        for _ in 0..2 {
            stored.flights.depart(0, 3, 0);
            stored.books[0].owed.push(1);
        }
        stored
    }

    fn event(kind: &str, number: u64, seq: u64) -> Vec<u8> {
        format!(
            "{{\"type\":\"{kind}\",\"data\":{{\"id\":\"m\",\"conversationId\":\"w-0\",\"number\":{number},\"content\":\"xxxx\",\
             \"clientMessageId\":\"r1-0-{seq}\"}},\"timestamp\":\"\",\"channel\":\"conversation:w-0\"}}"
        )
        .into_bytes()
    }

    #[test]
    fn messages_that_are_numbered_delivered_and_acknowledged_leave_no_fault() {
        let mut stored = world();
        for (seq, number, sender) in [(0, 12, 0), (1, 11, 1)] {
            stored.text(sender, &event("ack", number, seq), 1);
        }
        for connection in [0, 1] {
            for (number, seq) in [(11, 1), (12, 0)] {
                stored.text(connection, &event("new_message", number, seq), 2);
            }
        }
        assert!(stored.faults().none());
        assert_eq!(stored.log_faults(), LogFaults::default());
        assert_eq!((stored.flights.outstanding(), stored.acks, stored.figures.refusals.count), (0, 2, 0));
    }

    #[test]
    fn each_broken_promise_has_its_own_count() {
        let mut stored = world();
        stored.text(1, &event("ack", 11, 0), 1); // message 0 was sent by connection 0
        stored.text(0, &event("new_message", 11, 0), 1);
        stored.text(1, &event("new_message", 11, 1), 1); // number 11 is message 0
        stored.text(0, &event("new_message", 12, 0), 1); // message 0 again, under a second number
        let expected = LogFaults { unacked: 2, stray_acks: 1, disagreements: 1, stored_twice: 1 };
        assert_eq!(stored.log_faults(), expected);
        assert_eq!(stored.faults(), Faults { lost: 1, doubled: 0, reordered: 0 });
    }

    #[test]
    fn message_of_another_run_is_a_fault_of_the_test_bed() {
        let mut stored = world();
        let foreign = String::from_utf8(event("new_message", 11, 0)).expect("text").replace("r1-0-0", "r2-0-0");
        stored.text(0, foreign.as_bytes(), 1);
        assert!(stored.figures.refusals.first.is_some_and(|text| text.contains("r2-0-0")));
    }
}
