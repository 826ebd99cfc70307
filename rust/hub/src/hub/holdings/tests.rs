//! What is charged is what is held: after any operations the counters are what a walk over all channels finds.

use super::*;
use crate::channel::SubscribeRequest;
use crate::command::{Command, Publish};
use crate::hub::Relayed;
use crate::inbox::{Join, ShardMsg};
use crate::log_queue::{AppendError, AppendedEvent, Bounds, LogFailure, LogQueue, LogRequest, StoredEvent, TermStarts};
use crate::{ConnId, Now, Options};
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

#[derive(Clone, Default)]
struct Queue(Arc<Mutex<VecDeque<LogRequest>>>);

impl LogQueue for Queue {
    fn push(&self, request: LogRequest) {
        self.0.lock().unwrap().push_back(request);
    }
}

const OPTIONS: &str = r#"{
    "limits": {"publication_bytes_max": 2000, "log_queue_bytes_max": 40000, "ring_bytes_max": 6000,
               "rings_bytes_max": 20000, "retained_bytes_max": 12000, "channels_bytes_max": 16000},
    "idle_s": 20,
    "relays": [{"type": "start", "channel": "c", "event": "typing", "data": {"on": true}, "undo": {"on": false},
                "latest_by": "{session.user}"},
               {"type": "stop", "channel": "c", "event": "typing", "data": {"on": false}, "ends": "start"}],
    "policies": [{"pattern": "log:*", "durable": true, "history": 20, "retain_latest": 5},
                 {"pattern": "ring:*", "history": 20}, {"pattern": "aged:*", "history": 20, "keep_s": 5},
                 {"pattern": "state:*", "retain_latest": 5, "retain_latest_s": 5}]
}"#;

struct Walk {
    hub: Arc<Hub>,
    queue: Queue,
    heads: HashMap<String, u64>,
    members: Vec<(ConnId, Arc<Channel>)>,
    /// Relays that last: the channel and the user.
    lasting: Vec<(Arc<Channel>, Arc<str>)>,
    now: Now,
    random: u64,
}

impl Walk {
    fn new(seed: u64) -> Self {
        let options = Options::from_json(OPTIONS.as_bytes()).unwrap();
        let queue = Queue::default();
        let hub = Hub::new(&options, 1, Box::new(queue.clone()), "epoch".into(), [7; 32]).unwrap();
        let now = Now { mono_ms: 1_000, mono_us: 1_000_000, wall_ms: 1_000 };
        let (heads, members, lasting) = (HashMap::new(), Vec::new(), Vec::new());
        Self { hub, queue, heads, members, lasting, now, random: seed * 2 + 1 }
    }

    fn below(&mut self, most: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % most
    }

    fn channel(&mut self) -> String {
        let kinds = ["log", "ring", "aged", "state"];
        format!("{}:{}", kinds[self.below(4) as usize], self.below(6))
    }

    fn user(&mut self) -> Arc<str> {
        format!("user-{}", self.below(3)).into()
    }

    fn step(&mut self) {
        match self.below(12) {
            0..=3 => self.publish(),
            4 | 5 => self.subscribe(),
            6 => self.relay(),
            7 => self.leave(),
            8..=9 => self.serve_log(),
            10 => {
                self.now.mono_ms += self.below(3_000);
                (0..16).for_each(|_| self.hub.age(self.now));
            }
            _ => {
                let channel = self.channel();
                let tail = self.heads.get(&channel).copied().unwrap_or(0) / 2;
                self.hub.swept(&channel, tail);
            }
        }
        self.take_inbox();
    }

    fn publish(&mut self) {
        let key = (self.below(3) == 0).then(|| format!("key-{}", self.below(9)).into());
        let user = (self.below(4) > 0).then(|| self.user());
        let data =
            if self.below(6) == 0 { "null".into() } else { format!("\"{}\"", "x".repeat(self.below(1_900) as usize)) };
        let publish = Publish {
            ticket: 0,
            channel: self.channel().into(),
            event: "e".into(),
            data: data.into_bytes().into(),
            user,
            key,
            dedupe: None,
            number: false,
            request: None,
            amends: None,
            notify: false,
            reply: None,
        };
        self.hub.submit(vec![Command::Publish(publish)], self.now, &mut Vec::new());
    }

    fn subscribe(&mut self) {
        let conn = ConnId::new(0, 1, self.below(1_000) as u32);
        let (channel, user) = (self.channel(), self.user());
        let request = SubscribeRequest { conn, id: None, position: None, last: None, again: false, credit: None };
        let _ = self.hub.subscribe(&channel, &user, None, request, self.now);
    }

    fn relay(&mut self) {
        let (name, user) = (self.channel(), self.user());
        let conn = ConnId::new(0, 2, 0);
        let rule = self.below(2) as u16;
        let mut data = b"{\"on\":true}".to_vec();
        let undo = (rule == 0).then(|| b"{\"on\":false}".to_vec());
        let sent = Relayed { rule, conn, user: &user, channel: &name, data: &mut data, undo, key: None, now: self.now };
        if let Ok(Some(channel)) = self.hub.relay(sent).map(|outcome| outcome.lasting)
            && !self.lasting.iter().any(|(known, of)| Arc::ptr_eq(known, &channel) && *of == user)
        {
            self.lasting.push((channel, user));
        }
    }

    fn leave(&mut self) {
        if self.below(2) == 0 && !self.members.is_empty() {
            let place = self.below(self.members.len() as u64) as usize;
            let (_, channel) = self.members.swap_remove(place);
            self.hub.left(&channel, 0);
        } else if !self.lasting.is_empty() {
            let place = self.below(self.lasting.len() as u64) as usize;
            let (channel, user) = self.lasting.swap_remove(place);
            self.hub.end_relay(&channel, 0, &user, ConnId::new(0, 2, 0), self.now);
        }
    }

    fn serve_log(&mut self) {
        let request = self.queue.0.lock().unwrap().pop_front();
        let fails = self.below(5) == 0;
        let failure = || LogFailure("told to fail".into());
        match request {
            Some(LogRequest::Append { publish, .. }) => {
                let head = self.heads.entry(publish.channel.to_string()).or_default();
                *head += u64::from(!fails);
                let stored = StoredEvent {
                    offset: *head,
                    event: "e".into(),
                    data: (*publish.data).into(),
                    user: None,
                    request: None,
                    time_ms: 0,
                };
                let amended =
                    if *head > 1 { vec![StoredEvent { offset: *head - 1, ..stored.clone() }] } else { Vec::new() };
                let appended = AppendedEvent { duplicate: false, stored, amended, erased_up_to: 0 };
                let outcome = if fails { Err(AppendError::Log(failure())) } else { Ok(appended) };
                self.hub.appended(publish, outcome, self.now, &mut Vec::new());
            }
            Some(LogRequest::Head { channel }) => {
                let head = self.heads.get(&**channel.name()).copied().unwrap_or(0);
                let bounds = Bounds { head, tail: 0, starts: TermStarts::default() };
                let outcome = if fails { Err(failure()) } else { Ok(bounds) };
                self.hub.head_read(&channel, outcome, self.now, &mut Vec::new());
            }
            Some(LogRequest::Page { .. }) | None => {}
        }
    }

    fn take_inbox(&mut self) {
        let mut messages = Vec::new();
        self.hub.inbox(0).take(&mut messages);
        for message in messages {
            if let ShardMsg::Join(Join { conn, channel, .. }) = message {
                self.members.push((conn, channel));
            }
        }
    }

    /// Compares what is charged with what is there.
    fn check(&self) {
        let (hub, counters) = (&self.hub, &self.hub.counters);
        let [mut rings, mut listed, mut channels, mut retained, mut waiting] = [0; 5];
        for channel in hub.directory.all() {
            let state = channel.lock();
            let bytes = state.ring.bytes();
            assert!(bytes <= 6_000, "{}: {bytes} bytes", channel.name());
            rings += bytes;
            listed += usize::from(bytes > 0);
            channels += Channel::cost(channel.name(), 1);
            retained += state.latest.bytes();
            waiting += state.waiting.iter().map(|waits| waits.cost).sum::<usize>();
        }
        // Of a channel that was given up relays may last still.
        let mut lasting: Vec<&Arc<Channel>> = self.lasting.iter().map(|(channel, _)| channel).collect();
        lasting.sort_by_key(|channel| channel.id);
        lasting.dedup_by_key(|channel| channel.id);
        retained += lasting
            .iter()
            .map(|channel| channel.lock().lasting.values().map(|lasting| lasting.cost).sum::<usize>())
            .sum::<usize>();
        let queue = self.queue.0.lock().unwrap();
        let appends = queue.iter().map(|request| match request {
            LogRequest::Append { publish, .. } => publish.cost(),
            _ => 0,
        });
        waiting += appends.sum::<usize>();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as usize;
        assert_eq!(read(&counters.rings_bytes), rings, "rings");
        assert!(rings <= 20_000, "{rings}");
        assert!(hub.rings.len() >= listed, "every ring can be found");
        assert_eq!(read(&counters.channels_bytes), channels, "channels");
        assert_eq!(read(&counters.retained_bytes), retained, "retained");
        assert_eq!(read(&counters.log_queue_bytes), waiting, "the log's queue");
        assert_eq!(hub.bounds.channels.held().1, channels);
        assert_eq!(hub.bounds.retained.held().1, retained);
        assert_eq!(hub.bounds.log.held().1, waiting);
        assert!(channels <= 16_000 && retained <= 12_000 && waiting <= 40_000 + 60 * 300);
    }
}

#[test]
fn what_is_charged_is_what_a_walk_over_all_channels_finds() {
    for seed in 0..60 {
        let mut walk = Walk::new(seed);
        for _ in 0..400 {
            walk.step();
            walk.check();
        }
        while !walk.members.is_empty() || !walk.lasting.is_empty() || !walk.queue.0.lock().unwrap().is_empty() {
            walk.leave();
            walk.serve_log();
            walk.take_inbox();
        }
        walk.now.mono_ms += 60_000;
        (0..16).for_each(|_| walk.hub.age(walk.now));
        walk.check();
        assert_eq!(walk.hub.directory.len(), 0, "nothing stays");
        assert_eq!(walk.hub.rings.len(), 0);
    }
}
