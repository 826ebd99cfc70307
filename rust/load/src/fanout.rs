//! W1, W1b, W2, W6: what does it cost to bring one event to the members of its channel, and how long does it take?
//! Unit: µs of the server's CPU per delivery (W1, W1b) or per message in (W2); latency from the schedule to each receiver.
//!
//! The first member of each channel publishes `bench` events that carry their number `s` and their time `t`; every member, the publisher
//! too, must receive every number once and in order. Padding brings a delivered event to the size asked for: what a server puts around
//! the data (`userId` and the like) is learned from the first event of each channel, so that all servers send as many bytes.
//! Counts every delivery at every receiver; `drive` decides when the next message leaves. Messages are `publish` commands, or of a type that
//! a handler of the server's takes with the same data and publishes: that asks what the way through the handler costs.

use crate::audit::{Audit, Faults};
use crate::corpus::Corpus;
use crate::drive::Workload;
use crate::figures::Figures;
use crate::flights::Flights;
use crate::options::Options;
use crate::scan;
use crate::subscription::Channel;
use crate::swarm::Swarm;
use std::io::Write;

/// How a delivery begins when the server keeps the order of the members, as all of ours do.
const DELIVERY_HEAD: &[u8] = br#"{"type":"bench","data":{"s":"#;

/// The state of the run.
pub struct FanOut {
    channels: Vec<Channel>,
    event_bytes: usize,
    flights: Flights,
    audits: Vec<Audit>,
    envelopes: Vec<Option<usize>>,
    command: Vec<u8>,
    kind: String,
    corpus: Option<Corpus>,
    figures: Figures,
}

impl FanOut {
    /// Events over `channels`, whose members are the connections.
    #[must_use]
    pub fn new(channels: Vec<Channel>, options: &Options) -> Self {
        let event_bytes = options.payload;
        Self {
            flights: Flights::new(channels.len()),
            envelopes: vec![None; channels.len()],
            channels,
            event_bytes,
            audits: vec![Audit::default(); options.connections],
            command: Vec::new(),
            kind: options.message_type.clone(),
            // A run of one letter would compress to nothing.
            corpus: options.compress.then(|| Corpus::new(event_bytes)),
            figures: Figures::default(),
        }
    }
}

impl Workload for FanOut {
    fn text(&mut self, connection: usize, payload: &[u8], now_ns: u64) {
        let Some((seq, sent_ns)) = delivery(payload) else {
            return self.figures.refusals.sort(payload);
        };
        let channel = connection % self.channels.len();
        if !self.channels[channel].owns(payload) {
            return self.figures.refusals.add(payload);
        }
        if let Some(corpus) = &self.corpus
            && scan::member_text(payload, b"\"p\":\"").is_none_or(|text| text != corpus.text(seq, text.len()))
        {
            return self.figures.refusals.add(payload);
        }
        if self.envelopes[channel].is_none() {
            self.envelopes[channel] = envelope_bytes(payload);
        }
        self.figures.deliver(payload.len());
        self.figures.latency.record(now_ns.saturating_sub(sent_ns));
        if self.audits[connection].see(seq) {
            self.flights.arrive(channel, seq);
        }
    }

    fn send_next(&mut self, swarm: &mut Swarm, channel: usize, due_ns: u64) {
        let Channel { name, members, .. } = &self.channels[channel];
        let seq = self.flights.depart(channel, members.len() as u32, due_ns);
        let data_bytes = self.event_bytes.saturating_sub(self.envelopes[channel].unwrap_or(0));
        write_publish(&mut self.command, &self.kind, name, seq, due_ns, data_bytes, self.corpus.as_ref());
        swarm.send(members[0], &self.command);
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
            for member in &channel.members {
                sum.add(self.audits[*member].close(self.flights.departed(index)));
            }
        }
        sum
    }

    fn faults_so_far(&self) -> u64 {
        self.audits.iter().map(Audit::faults_so_far).sum()
    }
}

/// The number and the time of a delivered event; `None` for any other event.
fn delivery(payload: &[u8]) -> Option<(u64, u64)> {
    if let Some(rest) = payload.strip_prefix(DELIVERY_HEAD) {
        let (seq, used) = scan::integer(rest)?;
        let (sent_ns, _) = scan::integer(rest[used..].strip_prefix(b",\"t\":")?)?;
        return Some((seq, sent_ns));
    }
    if scan::event_type(payload) != b"bench" {
        return None;
    }
    Some((scan::member_integer(payload, b"\"s\":")?, scan::member_integer(payload, b"\"t\":")?))
}

/// What stands around the data of a delivered event; `None` if its members are not where they are in every server here.
fn envelope_bytes(event: &[u8]) -> Option<usize> {
    let data = scan::after(event, b"\"data\":")?;
    let data_bytes = scan::after(&event[data..], b"\"}")?;
    Some(event.len() - data_bytes)
}

/// The command of type `kind`, its event's data padded to `data_bytes` bytes, or as short as it can be.
fn write_publish(
    out: &mut Vec<u8>,
    kind: &str,
    channel: &str,
    seq: u64,
    due_ns: u64,
    data_bytes: usize,
    corpus: Option<&Corpus>,
) {
    out.clear();
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{{\"type\":\"{kind}\",\"data\":{{\"channel\":\"{channel}\",\"event\":\"bench\",\"data\":");
    let start = out.len();
    let _ = write!(out, "{{\"s\":{seq},\"t\":{due_ns},\"p\":\"");
    let padding = data_bytes.saturating_sub(out.len() - start + b"\"}".len());
    match corpus {
        Some(corpus) => out.extend_from_slice(corpus.text(seq, padding)),
        None => out.resize(out.len() + padding, b'x'),
    }
    out.extend_from_slice(b"\"}}}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(workload: &str) -> Options {
        let line = format!("--workload {workload} --url ws://127.0.0.1:9/ws --connections 4 --members 2");
        crate::options::parse(line.split(' ').map(str::to_owned)).expect("a good line")
    }

    /// The event that a server makes of a command.
    fn delivered(command: &[u8]) -> Vec<u8> {
        let command: serde_json::Value = serde_json::from_slice(command).expect("a command is JSON");
        let data = &command["data"];
        let (event, channel) = (data["event"].as_str().expect("a name"), data["channel"].as_str().expect("a name"));
        let inner = &data["data"];
        let (seq, time, padding) = (&inner["s"], &inner["t"], inner["p"].as_str().expect("padding"));
        format!(
            "{{\"type\":\"{event}\",\"data\":{{\"s\":{seq},\"t\":{time},\"p\":\"{padding}\"}},\
             \"timestamp\":\"2026-11-05T07:08:09.123Z\",\"userId\":\"u1\",\"channel\":\"{channel}\"}}"
        )
        .into_bytes()
    }

    #[test]
    fn events_have_exactly_the_size_asked_for_once_the_envelope_is_known() {
        let mut command = Vec::new();
        write_publish(&mut command, "publish", "bench:0", 0, 0, 0, None);
        let first = delivered(&command);
        assert_eq!(delivery(&first), Some((0, 0)));
        let envelope = envelope_bytes(&first).expect("the members are in their places");
        for (seq, due_ns, asked) in [(1, 1, 131), (99_999, 12_345_678_901, 131), (7, 7, 730)] {
            write_publish(&mut command, "publish", "bench:0", seq, due_ns, asked - envelope, None);
            let event = delivered(&command);
            assert_eq!(event.len(), asked, "{}", String::from_utf8_lossy(&event));
            assert_eq!(delivery(&event), Some((seq, due_ns)));
        }
    }

    #[test]
    fn delivery_is_read_in_any_order_of_members_and_nothing_else_is_one() {
        assert_eq!(delivery(br#"{"channel":"c","type":"bench","data":{"p":"","t":9,"s":4}}"#), Some((4, 9)));
        assert_eq!(delivery(br#"{"type":"user_presence","data":{"s":1,"t":2}}"#), None);
        assert_eq!(delivery(br#"{"type":"bench","data":{"s":1}}"#), None);
    }

    #[test]
    fn delivery_of_another_channel_and_an_undelivered_message_are_faults() {
        let mut fan_out = FanOut::new(Channel::all("bench:", 2, 4), &options("w2"));
        let mut command = Vec::new();
        fan_out.flights.depart(0, 2, 0);
        write_publish(&mut command, "publish", "bench:0", 0, 0, 131, None);
        let event = delivered(&command);
        fan_out.text(0, &event, 5);
        fan_out.text(1, &event, 5);
        assert_eq!(fan_out.figures.refusals.count, 1, "connection 1 is a member of the other channel");
        assert_eq!(fan_out.faults(), Faults { lost: 1, doubled: 0, reordered: 0 }, "connection 2 got nothing");
        fan_out.text(2, &event, 6);
        assert!(fan_out.faults().none());
        assert_eq!(fan_out.flights.outstanding(), 0);
    }

    #[test]
    fn text_that_was_compressed_on_its_way_is_compared_as_a_whole() {
        let options = options("w5");
        let mut fan_out = FanOut::new(Channel::all("bench:", 2, 4), &options);
        fan_out.flights.depart(0, 2, 0);
        let mut command = Vec::new();
        write_publish(&mut command, "publish", "bench:0", 0, 0, 500, fan_out.corpus.as_ref());
        let event = delivered(&command);
        fan_out.text(0, &event, 5);
        assert_eq!((fan_out.figures.deliveries, fan_out.figures.refusals.count), (1, 0));
        let mut changed = event;
        let at = scan::after(&changed, b"\"p\":\"").expect("a text") + 100;
        changed[at] = b'#';
        fan_out.text(2, &changed, 5);
        assert_eq!((fan_out.figures.deliveries, fan_out.figures.refusals.count), (1, 1));
    }
}
