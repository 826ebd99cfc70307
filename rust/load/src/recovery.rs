//! W8: how long does it take until everybody is back after all connections were cut at once, and does anybody miss anything?
//! Unit: seconds and µs from the cut to the last missed event of each member.
//!
//! Members only listen. Each channel has a publisher of its own, which is not cut and goes on sending stored messages by a schedule. After
//! the warm-up every member's socket is dropped without a Close frame; all of them reconnect at once, as many handshakes at a time as
//! `--window` says, and subscribe with the position of the last event that they have seen. What is checked: the server recovers every
//! position, and every member sees every number once and in order, replayed or live, over the whole run.

use crate::audit::{Audit, Faults};
use crate::clock::ns;
use crate::drive::{Pace, Schedule};
use crate::failure::Failure;
use crate::histogram::Histogram;
use crate::options::Options;
use crate::refusals::Refusals;
use crate::scan;
use crate::subscription::Channel;
use crate::swarm::{Swarm, Target};
use crate::watch::{Progress, Wish};
use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    /// Its subscription is not confirmed yet.
    Joining,
    /// It waits for what it missed, up to this number.
    Missing(u64),
    /// It has everything that the confirmation told of.
    Live,
}

struct Member {
    audit: Audit,
    stand: Stand,
    /// The last number it has seen, or was confirmed at.
    last: u64,
}

/// The state of the run; connections `0..members` listen, those after them publish.
struct Recovery<'a> {
    options: &'a Options,
    channels: Vec<Channel>,
    members: Vec<Member>,
    /// By channel: the number of its first message, what was sent, what was acknowledged.
    books: Vec<Book>,
    epoch: String,
    cut_ns: Option<u64>,
    /// Members that greeted the server and have to subscribe.
    greeted: Vec<usize>,
    live: usize,
    found: Recovered,
}

#[derive(Clone, Copy, Default)]
struct Book {
    first: Option<u64>,
    sent: u64,
    acknowledged: u64,
}

/// What came of it.
#[derive(Default)]
pub struct Recovered {
    /// From the cut until a member had everything again.
    pub back: Histogram,
    /// Members whose position was not recovered.
    pub refused: u64,
    /// Events that came to members that had been cut and were not yet live.
    pub replayed: u64,
    /// Messages sent.
    pub messages: u64,
    /// Messages that were never acknowledged.
    pub unacknowledged: u64,
    /// Deliveries to all members.
    pub deliveries: u64,
    /// Faults of all members.
    pub faults: Faults,
    /// What should not have come.
    pub refusals: Refusals,
}

/// Run it over the open connections of `swarm`: the members, and after them a publisher for each of `channels`.
///
/// # Errors
/// [`Failure::Server`] when members are not back within the time-out; when the poller fails or whoever watches wants no more.
pub fn recover(
    swarm: &mut Swarm,
    target: &Target,
    channels: Vec<Channel>,
    options: &Options,
) -> Result<Recovered, Failure> {
    let members =
        (0..options.connections).map(|_| Member { audit: Audit::default(), stand: Stand::Joining, last: 0 }).collect();
    let mut run = Recovery {
        options,
        books: vec![Book::default(); channels.len()],
        channels,
        members,
        epoch: String::new(),
        cut_ns: None,
        greeted: (0..options.connections).collect(),
        live: 0,
        found: Recovered::default(),
    };
    run.until_all_are_live(swarm, target, None, &mut VecDeque::new())?;
    let Pace::Open(rate) = options.pace else {
        return Err(Failure::Call(
            "--rate 0: members can only miss what is sent by a schedule; give a rate".to_owned(),
        ));
    };
    let mut schedule = Schedule::new(rate, swarm.clock().now_ns());
    run.keep_sending(swarm, &mut schedule, options.warmup)?;
    run.cut(swarm);
    let mut waiting = (0..options.connections).collect();
    run.until_all_are_live(swarm, target, Some(&mut schedule), &mut waiting)?;
    run.keep_sending(swarm, &mut schedule, options.measured)?;
    run.finish(swarm)?;
    Ok(run.found)
}

impl Recovery<'_> {
    /// Every member's socket is gone at once.
    fn cut(&mut self, swarm: &mut Swarm) {
        for (index, member) in self.members.iter_mut().enumerate() {
            swarm.cut(index);
            member.stand = Stand::Joining;
        }
        swarm.forget_connect_times();
        self.live = 0;
        self.cut_ns = Some(swarm.clock().now_ns());
    }

    /// Reconnect who waits, subscribe who greeted, and go on sending, until every member has what it missed.
    fn until_all_are_live(
        &mut self,
        swarm: &mut Swarm,
        target: &Target,
        mut schedule: Option<&mut Schedule>,
        waiting: &mut VecDeque<usize>,
    ) -> Result<(), Failure> {
        let deadline_ns = swarm.clock().now_ns() + ns(self.options.timeout);
        while self.live < self.members.len() {
            while swarm.under_way() < self.options.window
                && let Some(index) = waiting.pop_front()
            {
                swarm.reopen(target, index).map_err(|error| Failure::Call(format!("connection {index}: {error}")))?;
            }
            for index in std::mem::take(&mut self.greeted) {
                self.subscribe(swarm, index);
            }
            self.turn(swarm, schedule.as_deref_mut())?;
            if swarm.clock().now_ns() > deadline_ns {
                let (live, all, timeout) = (self.live, self.members.len(), self.options.timeout);
                return Err(Failure::Server(format!(
                    "{live} of {all} members have what they missed after {timeout:?}"
                )));
            }
        }
        Ok(())
    }

    fn keep_sending(&mut self, swarm: &mut Swarm, schedule: &mut Schedule, time: Duration) -> Result<(), Failure> {
        let end_ns = swarm.clock().now_ns() + ns(time);
        while swarm.clock().now_ns() < end_ns && !swarm.stopped() {
            self.turn(swarm, Some(schedule))?;
        }
        Ok(())
    }

    /// Let everything arrive, then count what did not.
    fn finish(&mut self, swarm: &mut Swarm) -> Result<(), Failure> {
        let patience_ns = ns(self.options.timeout.min(Duration::from_secs(10)));
        let (mut before, mut last_ns) = (self.found.deliveries, swarm.clock().now_ns());
        while !self.complete() && swarm.clock().now_ns() < last_ns + patience_ns {
            self.turn(swarm, None)?;
            if self.found.deliveries != before {
                (before, last_ns) = (self.found.deliveries, swarm.clock().now_ns());
            }
        }
        // What comes twice may come after the last that was expected.
        let quiet_ns = swarm.clock().now_ns() + 200_000_000;
        while swarm.clock().now_ns() < quiet_ns {
            self.turn(swarm, None)?;
        }
        for (index, channel) in self.channels.iter().enumerate() {
            let Book { first, sent, acknowledged } = self.books[index];
            self.found.unacknowledged += sent.saturating_sub(acknowledged);
            for member in &channel.members {
                self.found.faults.add(self.members[*member].audit.close(first.unwrap_or(0) + sent));
            }
        }
        Ok(())
    }

    fn complete(&self) -> bool {
        self.books.iter().zip(&self.channels).all(|(book, channel)| {
            let end = book.first.unwrap_or(0) + book.sent;
            book.acknowledged == book.sent && channel.members.iter().all(|member| self.members[*member].last + 1 >= end)
        })
    }

    fn turn(&mut self, swarm: &mut Swarm, schedule: Option<&mut Schedule>) -> Result<(), Failure> {
        let now_ns = swarm.clock().now_ns();
        if let Some(schedule) = schedule {
            while schedule.due_ns() <= now_ns {
                let channel = (schedule.sent() % self.channels.len() as u64) as usize;
                schedule.leave();
                self.send(swarm, channel);
            }
        }
        let (cut_ns, found) = (self.cut_ns, &self.found);
        let phase = if self.live == self.members.len() {
            "all there"
        } else if cut_ns.is_some() {
            "returning"
        } else {
            "joining"
        };
        let wish = swarm.look(|now_ns| Progress {
            phase,
            elapsed: Duration::from_nanos(cut_ns.map_or(0, |cut_ns| now_ns - cut_ns)),
            messages: found.messages,
            deliveries: found.deliveries,
            p50_ns: found.back.quantile_ns(0.5),
            p99_ns: found.back.quantile_ns(0.99),
            faults: found.refusals.count + found.refused,
            ..Progress::default()
        });
        // Before everybody is back there is nothing to report.
        if wish == Wish::Abandon || (wish == Wish::Finish && self.live < self.members.len()) {
            return Err(Failure::Stopped);
        }
        swarm.turn(Some(Duration::from_millis(1)), |connection, payload, read_ns| {
            self.text(connection, payload, read_ns);
        })?;
        if let Some((index, end)) = swarm.ends().first() {
            return Err(Failure::Server(format!("connection {index}: {end}")));
        }
        Ok(())
    }

    fn subscribe(&self, swarm: &mut Swarm, index: usize) {
        let name = &self.channels[index % self.channels.len()].name;
        let position = match self.cut_ns {
            None => String::new(),
            Some(_) => {
                format!(",\"position\":{{\"offset\":{},\"epoch\":\"{}\"}}", self.members[index].last, self.epoch)
            }
        };
        let command = format!("{{\"type\":\"subscribe\",\"data\":{{\"channel\":\"{name}\"{position}}},\"id\":1}}");
        swarm.send(index, command.as_bytes());
    }

    fn send(&mut self, swarm: &mut Swarm, channel: usize) {
        let mut command = Vec::with_capacity(160 + self.options.payload);
        self.books[channel].sent += 1;
        self.found.messages += 1;
        // Writing to a Vec cannot fail.
        let _ = write!(
            command,
            "{{\"type\":\"send_message\",\"data\":{{\"conversationId\":\"{}\",\"content\":\"{:x<width$}\"}},\"id\":{}}}",
            self.channels[channel].conversation(),
            "",
            self.books[channel].sent,
            width = self.options.payload.max(1),
        );
        swarm.send(self.options.connections + channel, &command);
    }

    fn text(&mut self, connection: usize, payload: &[u8], now_ns: u64) {
        let Some(channel) = connection.checked_sub(self.members.len()) else {
            return self.heard(connection, payload, now_ns);
        };
        match scan::event_type(payload) {
            b"ack" => self.books[channel].acknowledged += 1,
            _ => self.found.refusals.sort(payload),
        }
    }

    fn heard(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        match scan::event_type(payload) {
            b"connection_established" => self.greeted.push(index),
            b"subscription_confirmed" => self.confirmed(index, payload, now_ns),
            b"new_message" => self.delivered(index, payload, now_ns),
            _ => self.found.refusals.sort(payload),
        }
    }

    fn confirmed(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        let (offset, epoch) =
            (scan::member_integer(payload, b"\"offset\":"), scan::member_text(payload, b"\"epoch\":\""));
        let (Some(offset), Some(epoch)) = (offset, epoch) else {
            return self.found.refusals.add(payload);
        };
        let head = scan::member_integer(payload, b"\"head\":").unwrap_or(offset);
        let member = &mut self.members[index];
        if self.cut_ns.is_none() {
            (member.last, member.audit) = (offset, Audit::starting_at(offset + 1));
            self.epoch = String::from_utf8_lossy(epoch).into_owned();
            self.books[index % self.channels.len()].first.get_or_insert(offset + 1);
        } else if scan::after(payload, b"\"recovered\":true").is_none() {
            self.found.refused += 1;
            if self.found.refusals.first.is_none() {
                self.found.refusals.first = Some(String::from_utf8_lossy(payload).into_owned());
            }
            // What lies between is missing in the audit; waiting for it would be in vain.
            member.last = offset;
        }
        member.stand = Stand::Missing(head);
        self.arrived(index, now_ns);
    }

    fn delivered(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        let Some(number) = scan::member_integer(payload, b"\"number\":") else {
            return self.found.refusals.add(payload);
        };
        if !self.channels[index % self.channels.len()].owns(payload) {
            return self.found.refusals.add(payload);
        }
        self.found.deliveries += 1;
        let member = &mut self.members[index];
        member.audit.see(number);
        member.last = member.last.max(number);
        if member.stand != Stand::Live {
            self.found.replayed += 1;
            self.arrived(index, now_ns);
        }
    }

    /// A member that has all it was told of is live.
    fn arrived(&mut self, index: usize, now_ns: u64) {
        let member = &mut self.members[index];
        if let Stand::Missing(until) = member.stand
            && member.last >= until
        {
            member.stand = Stand::Live;
            self.live += 1;
            if let Some(cut_ns) = self.cut_ns {
                self.found.back.record(now_ns.saturating_sub(cut_ns));
            }
        }
    }
}
