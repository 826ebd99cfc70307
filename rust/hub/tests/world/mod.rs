//! Shards, a log and clients in one thread, joined by virtual links: the hub's second driver.
//!
//! The log is the smallest thing that keeps the contract: it commits requests one by one, in order, and a crash loses
//! what stands in its queue. Clients parse frames as any client would.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod doors;
pub(crate) mod orders;

use realtime_hub::{
    Admitted, Amendment, AppendError, AppendedEvent, Bounds, Command, ConnId, Event, Hub, LogFailure, LogQueue,
    LogRequest, Now, Options, Outcome, PageRequest, Publish, Read, Release, SendOp, ShardCore, StoredEvent, TermStarts,
    Terms, Wire,
};
use realtime_protocol::connection::{Inbound, Item, Role};
use realtime_protocol::deflate::Inflater;
use realtime_protocol::extensions::Deflate;
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Options of a server with conversations, typing, one handler and one raw endpoint.
pub(crate) fn options() -> Value {
    serde_json::json!({
        "limits": {"enabled": false},
        "token": {"keys": [{"algorithm": "HS256", "key": SECRET}]},
        "endpoints": [
            {"path": "/ws", "mode": "json", "auth": "token"},
            {"path": "/echo", "mode": "raw", "auth": "none"},
            {"path": "/hook", "mode": "json", "auth": "hook"},
        ],
        "routes": ["send_message"],
        "relays": [
            {"type": "typing_start", "channel": "conversation:{data.conversationId}", "event": "typing_indicator",
             "data": {"userId": "{session.user}", "isTyping": true}, "latest_by": "{session.user}",
             "ends_after_ms": 30000, "undo": {"isTyping": false}},
            {"type": "typing_stop", "channel": "conversation:{data.conversationId}", "event": "typing_indicator",
             "data": {"userId": "{session.user}", "isTyping": false}, "ends": "typing_start"},
        ],
        "policies": [
            {"pattern": "conversation:*", "durable": true, "history": 8},
            {"pattern": "ring:*", "history": 4},
            {"pattern": "strict:*", "overflow": "close"},
        ],
        "open_grants": [
            {"pattern": "conversation:*", "rights": ["subscribe", "publish", "presence", "history"]},
            {"pattern": "ring:*", "rights": ["subscribe", "publish", "history"]},
            {"pattern": "news:*", "rights": ["subscribe", "publish", "history"]},
            {"pattern": "strict:*", "rights": ["subscribe", "publish"]},
            {"pattern": "user:{session.user}", "rights": ["subscribe"]},
        ],
        "authorize": ["poll:*"],
        "reserved_events": ["new_message"],
    })
}

/// A user of whom nothing else is known.
pub(crate) fn admitted(user: &str) -> Admitted {
    Admitted { user: user.into(), grants: None, expires_at_ms: None, issued_at_s: None, token_id: None }
}

static NEXT: AtomicU64 = AtomicU64::new(1);

#[derive(Debug, Clone)]
struct Row {
    stored: StoredEvent,
    /// User and key.
    dedupe: Option<(String, String)>,
    /// What it amends.
    refers: Option<u64>,
}

/// What a crash leaves.
#[derive(Debug, Default, Clone)]
pub(crate) struct Store {
    channels: BTreeMap<String, Vec<Row>>,
    heads: BTreeMap<String, u64>,
    tails: BTreeMap<String, u64>,
    /// Epochs of the starts, oldest first.
    pub(crate) terms: Vec<String>,
    starts: BTreeMap<String, Vec<(u64, u64)>>,
    /// What each offset of a channel was when it was given: no two events of all stores have the same number.
    births: BTreeMap<String, Vec<u64>>,
}

impl Store {
    /// Another start: a term that no other store has.
    fn begin(&mut self) {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        // The first one has the same name in every store, as tests write it.
        let epoch = if self.terms.is_empty() { "log-epoch".to_owned() } else { format!("log-epoch-{next}") };
        self.terms.push(epoch);
    }

    /// What stands, or stood, at an offset; 0 before the first.
    pub(crate) fn birth(&self, channel: &str, offset: u64) -> Option<u64> {
        let Some(place) = (offset as usize).checked_sub(1) else { return Some(0) };
        self.births.get(channel).and_then(|births| births.get(place).copied())
    }

    fn append(&mut self, publish: &Publish, time_ms: u64) -> Result<AppendedEvent, AppendError> {
        let all = self.channels.entry(publish.channel.to_string()).or_default();
        let user = publish.user.as_deref().unwrap_or_default().to_owned();
        let dedupe = publish.dedupe.as_ref().map(|key| (user, key.to_string()));
        if let Some(Row { stored, .. }) = all.iter().find(|row| dedupe.is_some() && row.dedupe == dedupe) {
            return Ok(AppendedEvent { duplicate: true, stored: stored.clone(), amended: Vec::new(), erased_up_to: 0 });
        }
        let target = publish.amends.as_ref().map_or(0, |amends| amends.offset);
        if publish.amends.is_some() && !all.iter().any(|row| row.stored.offset == target) {
            return Err(AppendError::NotFound);
        }
        let head = self.heads.entry(publish.channel.to_string()).or_default();
        *head += 1;
        let offset = *head;
        let term = self.terms.len() as u64;
        let starts = self.starts.entry(publish.channel.to_string()).or_default();
        if starts.last().is_none_or(|(last, _)| *last < term) {
            starts.push((term, offset));
        }
        let births = self.births.entry(publish.channel.to_string()).or_default();
        births.push(NEXT.fetch_add(1, Ordering::Relaxed));
        let mut data = publish.data.to_vec();
        if publish.number {
            let comma = if data.len() > 2 { "," } else { "" };
            data.splice(1..1, format!("\"number\":{offset}{comma}").into_bytes());
        }
        let stored = StoredEvent {
            offset,
            event: (&*publish.event).into(),
            data: data.into(),
            user: publish.user.as_deref().map(Into::into),
            request: publish.request.clone(),
            time_ms,
        };
        let mut amended = Vec::new();
        for row in all.iter_mut() {
            let Some(amends) = &publish.amends else { break };
            match (&amends.replacement, amends.erases) {
                (Some(replacement), _) if row.stored.offset == target => row.stored.data = (**replacement).into(),
                (_, true) if row.refers == Some(target) => row.stored.data = Arc::clone(&stored.data),
                _ => continue,
            }
            amended.push(row.stored.clone());
        }
        let refers = publish.amends.as_ref().map(|amends| amends.offset);
        all.push(Row { stored: stored.clone(), dedupe, refers });
        Ok(AppendedEvent { duplicate: false, stored, amended, erased_up_to: 0 })
    }

    /// Lets go of what stands up to `tail`.
    pub(crate) fn sweep(&mut self, channel: &str, tail: u64) {
        self.tails.insert(channel.to_owned(), tail.max(self.bounds(channel).tail));
        if let Some(all) = self.channels.get_mut(channel) {
            all.retain(|row| row.stored.offset > tail);
        }
    }

    pub(crate) fn bounds(&self, channel: &str) -> Bounds {
        let tail = self.tails.get(channel).copied().unwrap_or(0);
        let firsts = self.starts.get(channel).cloned().unwrap_or_default();
        Bounds { head: self.head(channel), tail, starts: TermStarts { firsts, oldest: 0 } }
    }

    pub(crate) fn head(&self, channel: &str) -> u64 {
        self.heads.get(channel).copied().unwrap_or(0)
    }

    /// Something else has written to the log.
    pub(crate) fn set_head(&mut self, channel: &str, head: u64) {
        self.heads.insert(channel.to_owned(), head);
    }

    pub(crate) fn page(
        &self,
        channel: &str,
        after: u64,
        head: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Vec<StoredEvent> {
        let all = self.channels.get(channel).map_or(&[][..], Vec::as_slice);
        let mut bytes = 0;
        let wanted = after + 1..=head;
        let rest =
            all.iter().filter(|row| wanted.contains(&row.stored.offset)).take(limit).map(|row| row.stored.clone());
        let events = rest.take_while(|stored| {
            let fits = bytes == 0 || bytes + stored.data.len() <= bytes_max;
            bytes += stored.data.len();
            fits
        });
        events.collect()
    }
}

/// A log that nobody asks.
pub(crate) struct Nowhere;

impl LogQueue for Nowhere {
    fn push(&self, _: LogRequest) {}
}

#[derive(Clone, Default)]
struct Queue {
    requests: Arc<Mutex<VecDeque<LogRequest>>>,
    /// Pages that are read beside the others, where that is so.
    pages: Arc<Mutex<Option<VecDeque<PageRequest>>>>,
}

impl LogQueue for Queue {
    fn push(&self, request: LogRequest) {
        self.requests.lock().unwrap().push_back(request);
    }

    fn read(&self, page: PageRequest) -> Result<(), PageRequest> {
        match &mut *self.pages.lock().unwrap() {
            Some(pages) => pages.push_back(page),
            None => self.push(LogRequest::Page(page)),
        }
        Ok(())
    }
}

/// A page that was read and not handed over.
type ReadPage = (PageRequest, u64, Vec<StoredEvent>);

/// The server's side of all links.
#[derive(Default)]
struct Links {
    /// Bytes on their way to a client, and how many the kernel takes before it refuses (None: all).
    links: HashMap<ConnId, (Vec<u8>, Option<usize>)>,
}

impl Wire for Links {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        for op in batch {
            let Some((buffer, room)) = self.links.get_mut(&op.conn) else { continue };
            let take = room.map_or(op.bytes.len(), |room| room.saturating_sub(buffer.len()).min(op.bytes.len()));
            buffer.extend_from_slice(&op.bytes[..take]);
            op.outcome = Outcome::Sent(take);
        }
    }
}

/// What a client got, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Got {
    Json(Value),
    Text(String),
    Binary(Vec<u8>),
    Ping,
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Http(String),
    End,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) conn: ConnId,
    pub(crate) shard: usize,
    inbound: Inbound,
    /// Where permessage-deflate was agreed, and the bytes that a deflated message may have been.
    inflater: Option<(Inflater, usize)>,
    /// Messages that came deflated.
    pub(crate) inflated: usize,
    head: Vec<u8>,
    upgraded: bool,
    raw: bool,
    pub(crate) got: VecDeque<Got>,
    pub(crate) cut: bool,
}

pub(crate) struct World {
    pub(crate) hub: Arc<Hub>,
    pub(crate) shards: Vec<ShardCore>,
    queue: Queue,
    pub(crate) store: Store,
    links: Links,
    pub(crate) clients: Vec<Client>,
    pub(crate) events: Vec<Event>,
    pub(crate) now: Now,
    pub(crate) log_fails: bool,
    pub(crate) log_stands: bool,
    heard: Arc<Mutex<Vec<Event>>>,
    tickets: u64,
    /// Events that are committed and not published.
    committed: VecDeque<(Publish, Result<AppendedEvent, AppendError>)>,
    page: Option<ReadPage>,
}

impl World {
    pub(crate) fn new(shards: usize) -> Self {
        Self::with(&options(), shards, Store::default())
    }

    pub(crate) fn with(options: &Value, shards: usize, mut store: Store) -> Self {
        let options = Options::from_json(options.to_string().as_bytes()).unwrap();
        let queue = Queue::default();
        store.begin();
        let terms = Terms::new(store.terms.iter().zip(1..).map(|(epoch, number)| (number, epoch.as_str().into())));
        let hub = Hub::new(&options, shards, Box::new(queue.clone()), terms, [7; 32]).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        hub.set_ear(Box::new(move |event| ear.lock().unwrap().push(event)));
        let cores = (0..shards).map(|shard| ShardCore::new(Arc::clone(&hub), shard)).collect();
        Self {
            hub,
            shards: cores,
            queue,
            store,
            links: Links::default(),
            clients: Vec::new(),
            events: Vec::new(),
            now: Now { mono_ms: 1_000, mono_us: 1_000_000, wall_ms: 1_795_415_400_000 },
            log_fails: false,
            log_stands: false,
            heard,
            tickets: 0,
            committed: VecDeque::new(),
            page: None,
        }
    }

    /// A client whose socket is accepted by `shard`; nothing is sent yet.
    pub(crate) fn socket(&mut self, shard: usize) -> usize {
        self.socket_from(shard, [127, 0, 0, 1].into())
    }

    /// As [`Self::socket`], from another address.
    pub(crate) fn socket_from(&mut self, shard: usize, peer: std::net::IpAddr) -> usize {
        let conn = self.shards[shard].open(peer, self.now);
        self.links.links.insert(conn, (Vec::new(), None));
        let inbound = Inbound::new(Role::Client);
        let got = VecDeque::new();
        self.clients.push(Client {
            conn,
            shard,
            inbound,
            inflater: None,
            inflated: 0,
            head: Vec::new(),
            upgraded: false,
            raw: false,
            got,
            cut: false,
        });
        self.clients.len() - 1
    }

    /// A client of `/ws` that speaks `realtime.v1`; its hello is taken.
    pub(crate) fn connect(&mut self, shard: usize, user: &str) -> usize {
        let client = self.socket(shard);
        let conn = self.clients[client].conn;
        self.shards[shard].admit_as(conn, 0, user, None, false, self.now).unwrap();
        self.run();
        let Some(Got::Json(hello)) = self.clients[client].got.pop_front() else { panic!("no hello") };
        assert_eq!(hello["type"], "connection_established");
        client
    }

    /// A client of `/ws` that upgrades by itself and offers this extension; nothing is run yet.
    pub(crate) fn offer(&mut self, shard: usize, user: &str, extension: &str) -> usize {
        self.offer_at("/ws", shard, user, extension)
    }

    /// As [`Self::offer`], at another path.
    pub(crate) fn offer_at(&mut self, path: &str, shard: usize, user: &str, extension: &str) -> usize {
        let claims = serde_json::json!({"sub": user, "exp": 4_000_000_000_u64});
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
        let client = self.socket(shard);
        let head = format!(
            "GET {path}?token={token} HTTP/1.1\r\nHost: edge\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: realtime.v1\r\nSec-WebSocket-Extensions: {extension}\r\n\r\n"
        );
        self.raw_bytes(client, head.as_bytes());
        client
    }

    pub(crate) fn raw_bytes(&mut self, client: usize, bytes: &[u8]) {
        let (conn, shard) = (self.clients[client].conn, self.clients[client].shard);
        self.shards[shard].bytes_in(conn, &mut bytes.to_vec(), self.now);
    }

    /// As a driver over another library's sockets: what it had to read although the connection is not read is kept, and
    /// handed in once it is read again. False where the connection must end.
    pub(crate) fn pushed_bytes(&mut self, client: usize, bytes: &[u8], slack: usize) -> bool {
        let (conn, core) = (self.clients[client].conn, &mut self.shards[self.clients[client].shard]);
        if core.pause_unless_readable(conn) {
            core.bytes_in(conn, &mut bytes.to_vec(), self.now);
            return true;
        }
        core.keep(conn, bytes, slack, self.now)
    }

    pub(crate) fn send_text(&mut self, client: usize, text: &str) {
        let mut bytes = Vec::new();
        encode_masked_frame(Opcode::Text, true, text.as_bytes(), [1, 2, 3, 4], &mut bytes);
        self.raw_bytes(client, &bytes);
    }

    pub(crate) fn send(&mut self, client: usize, json: &Value) {
        self.send_text(client, &json.to_string());
    }

    pub(crate) fn submit(&mut self, command: Command) {
        let mut events = Vec::new();
        self.hub.submit(vec![command], self.now, &mut events);
        self.events.append(&mut events);
    }

    pub(crate) fn publish(&mut self, channel: &str, event: &str, data: &Value) {
        let publish = self.event(channel, event, data);
        self.submit(Command::Publish(publish));
    }

    /// An event that amends another one; Python is told its outcome.
    pub(crate) fn amend(
        &mut self,
        channel: &str,
        data: &Value,
        offset: u64,
        replacement: Option<&Value>,
        erases: bool,
    ) {
        let replacement = replacement.map(|data| data.to_string().into_bytes().into());
        let amends = Some(Amendment { offset, replacement, erases });
        let publish = Publish { amends, notify: true, ..self.event(channel, "amended", data) };
        self.submit(Command::Publish(publish));
    }

    pub(crate) fn event(&mut self, channel: &str, event: &str, data: &Value) -> Publish {
        self.tickets += 1;
        Publish {
            ticket: self.tickets,
            channel: channel.into(),
            event: event.into(),
            data: data.to_string().into_bytes().into(),
            user: None,
            key: None,
            dedupe: None,
            number: false,
            request: None,
            amends: None,
            notify: false,
            reply: None,
        }
    }

    /// The client's kernel takes only so much until it is read.
    pub(crate) fn limit(&mut self, client: usize, room: Option<usize>) {
        let conn = self.clients[client].conn;
        if let Some((_, limit)) = self.links.links.get_mut(&conn) {
            *limit = room;
        }
    }

    /// Ends the limit.
    pub(crate) fn open_up(&mut self, client: usize) {
        self.limit(client, None);
        let (conn, shard) = (self.clients[client].conn, self.clients[client].shard);
        self.shards[shard].writable(conn);
        self.run();
    }

    pub(crate) fn cut(&mut self, client: usize) {
        let (conn, shard) = (self.clients[client].conn, self.clients[client].shard);
        self.clients[client].cut = true;
        self.shards[shard].closed(conn, self.now);
    }

    pub(crate) fn advance(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(250) {
            self.now.mono_ms += 250;
            self.now.mono_us += 250_000;
            self.now.wall_ms += 250;
            for shard in &mut self.shards {
                shard.tick(self.now);
            }
            self.run();
        }
    }

    /// From now on pages are read beside appends, by [`Self::read_page`] and [`Self::hand_over`].
    pub(crate) fn read_beside(&mut self) {
        self.queue.pages.lock().unwrap().get_or_insert_default();
    }

    /// Commits the append that is next, without publishing it; false where there is none.
    pub(crate) fn commit(&mut self) -> bool {
        let mut requests = self.queue.requests.lock().unwrap();
        if !matches!(requests.front(), Some(LogRequest::Append { .. })) {
            return false;
        }
        let Some(LogRequest::Append { publish, received_wall_ms }) = requests.pop_front() else { return false };
        drop(requests);
        let outcome = self.store.append(&publish, received_wall_ms);
        self.committed.push_back((publish, outcome));
        true
    }

    /// Publishes what was committed first; false where there is nothing.
    pub(crate) fn publish_committed(&mut self) -> bool {
        let Some((publish, outcome)) = self.committed.pop_front() else { return false };
        self.hub.appended(publish, outcome, self.now, &mut self.events);
        true
    }

    /// Reads the page that is next, as the log is now; false where there is none.
    pub(crate) fn read_page(&mut self) -> bool {
        if self.page.is_some() {
            return false;
        }
        let next = self.queue.pages.lock().unwrap().as_mut().and_then(VecDeque::pop_front);
        let Some(page) = next else { return false };
        let changes = self.hub.changes(&page.channel);
        let found = self.store.page(page.channel.name(), page.after, page.head, page.limit, page.bytes_max);
        self.page = Some((page, changes, found));
        true
    }

    /// Hands the page over that was read; false where there is none. It may have to be read again.
    pub(crate) fn hand_over(&mut self) -> bool {
        let Some((page, changes, found)) = self.page.take() else { return false };
        let emit = |event| self.events.push(event);
        if let Some(again) = self.hub.page_read(page, Read::Beside { changes }, Ok(found), self.now, emit) {
            self.queue.pages.lock().unwrap().get_or_insert_default().push_front(again);
        }
        true
    }

    /// One request of the log; false when none waits.
    pub(crate) fn step_log(&mut self) -> bool {
        let Some(request) = self.queue.requests.lock().unwrap().pop_front() else { return false };
        let failure = || LogFailure("told to fail".into());
        let mut events = Vec::new();
        match request {
            LogRequest::Append { publish, received_wall_ms } => {
                let outcome = if self.log_fails {
                    Err(AppendError::Log(failure()))
                } else {
                    self.store.append(&publish, received_wall_ms)
                };
                self.hub.appended(publish, outcome, self.now, &mut events);
            }
            LogRequest::Head { channel } => {
                let outcome = if self.log_fails { Err(failure()) } else { Ok(self.store.bounds(channel.name())) };
                self.hub.head_read(&channel, outcome, self.now, &mut events);
            }
            LogRequest::Page(page) => {
                let stored = self.store.page(page.channel.name(), page.after, page.head, page.limit, page.bytes_max);
                let outcome = if self.log_fails { Err(failure()) } else { Ok(stored) };
                let again = self.hub.page_read(page, Read::InOrder, outcome, self.now, |event| events.push(event));
                assert!(again.is_none(), "what is read in order is never read again");
            }
        }
        self.events.append(&mut events);
        true
    }

    /// One turn of one shard; true if anything came of it.
    pub(crate) fn turn(&mut self, shard: usize) -> bool {
        let core = &mut self.shards[shard];
        core.run_inbox(self.now);
        core.end_evicted(self.now);
        core.flush(&mut self.links, self.now);
        if core.has_fanned_out() {
            core.fanned_out(self.now);
        }
        let before = self.events.len();
        core.take_events(&mut self.events);
        let mut releases = Vec::new();
        core.take_releases(&mut releases);
        let mut unpaused = Vec::new();
        core.take_unpaused(&mut unpaused);
        for conn in unpaused {
            core.kept_in(conn, self.now);
        }
        let mut moved = self.events.len() > before || !releases.is_empty() || core.more_to_flush();
        for release in releases {
            let (Release::Shutdown(conn) | Release::Close(conn)) = release;
            let client = self.clients.iter().position(|client| client.conn == conn);
            if let Some(client) = client {
                moved |= self.receive(client);
                if matches!(release, Release::Close(_)) || !self.clients[client].got.contains(&Got::End) {
                    self.clients[client].got.push_back(Got::End);
                }
            }
            if matches!(release, Release::Close(_)) {
                self.links.links.remove(&conn);
            }
        }
        moved
    }

    /// The client reads what is there; true if there was anything.
    pub(crate) fn receive(&mut self, client: usize) -> bool {
        let conn = self.clients[client].conn;
        let shard = self.clients[client].shard;
        let Some((buffer, room)) = self.links.links.get_mut(&conn) else { return false };
        let mut bytes = std::mem::take(buffer);
        if bytes.is_empty() {
            return false;
        }
        if room.is_some() {
            self.shards[shard].writable(conn);
        }
        self.clients[client].parse(&mut bytes);
        true
    }

    /// Runs shards, log and clients until nothing moves.
    pub(crate) fn run(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "the world does not come to rest");
            let mut moved = false;
            for shard in 0..self.shards.len() {
                moved |= self.turn(shard);
            }
            if !self.log_stands {
                while self.step_log() {
                    moved = true;
                }
            }
            for client in 0..self.clients.len() {
                if self.reads(client) {
                    moved |= self.receive(client);
                }
            }
            // What a shard pushed to an inbox waits there for the next turn, as it keeps the reactor from sleeping.
            for shard in 0..self.shards.len() {
                moved |= !self.hub.inbox(shard).may_sleep();
                self.hub.inbox(shard).woke();
            }
            if !moved {
                return;
            }
        }
    }

    fn reads(&self, client: usize) -> bool {
        let link = self.links.links.get(&self.clients[client].conn);
        link.is_some_and(|(_, room)| room.is_none())
    }

    pub(crate) fn take(&mut self, client: usize) -> Vec<Got> {
        self.clients[client].got.drain(..).collect()
    }

    /// Everything the client got as JSON; anything else but a ping fails.
    pub(crate) fn take_json(&mut self, client: usize) -> Vec<Value> {
        let json = |got| if let Got::Json(value) = got { value } else { panic!("not JSON: {got:?}") };
        self.take(client).into_iter().filter(|got| *got != Got::Ping).map(json).collect()
    }

    /// Sends and gives what came back.
    pub(crate) fn ask(&mut self, client: usize, text: &str) -> Vec<Value> {
        self.send_text(client, text);
        self.run();
        self.take_json(client)
    }

    /// What Python heard of channels that it listens to: the channel and the frame.
    pub(crate) fn take_heard(&mut self) -> Vec<(String, Value)> {
        let heard = |event| match event {
            Event::Heard { channel, frame } => (channel.to_string(), serde_json::from_slice(&frame).unwrap()),
            other => panic!("{other:?} is not heard"),
        };
        std::mem::take(&mut *self.heard.lock().unwrap()).into_iter().map(heard).collect()
    }

    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}

impl Client {
    /// Whether permessage-deflate was agreed.
    pub(crate) const fn agrees(&self) -> bool {
        self.inflater.is_some()
    }

    /// The subprotocol that was agreed to.
    pub(crate) fn subprotocol(&self) -> Option<String> {
        let head = String::from_utf8_lossy(&self.head);
        head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: ")).map(Into::into)
    }

    fn parse(&mut self, mut bytes: &mut [u8]) {
        if !self.upgraded {
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else { return };
            let head = String::from_utf8_lossy(&self.head).into_owned();
            if !head.starts_with("HTTP/1.1 101") {
                return self.got.push_back(Got::Http(head));
            }
            let rest = self.head.len() - end - 4;
            self.upgraded = true;
            let answer = head.lines().filter_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
            if let Some(agreed) = Deflate::from_answer(answer).expect("what was offered") {
                self.inflater = Some((Inflater::new(), 1 << agreed.server_max_window_bits.unwrap_or(30)));
            }
            let skip = bytes.len() - rest;
            bytes = &mut bytes[skip..];
        }
        let mut at = 0;
        while at < bytes.len() {
            let inflater = self.inflater.as_mut().map(|(inflater, _)| inflater);
            let item = self.inbound.receive(&mut bytes[at..], 64 << 20, inflater);
            let (used, item) = item.expect("the server keeps RFC 6455 and RFC 7692");
            at += used;
            let got = match item {
                None => continue,
                Some(Item::Text(text)) => match serde_json::from_slice(text) {
                    Ok(json) => Got::Json(json),
                    Err(_) => Got::Text(String::from_utf8_lossy(text).into_owned()),
                },
                Some(Item::Binary(bytes)) => Got::Binary(bytes.to_vec()),
                Some(Item::Ping(_)) => Got::Ping,
                Some(Item::Pong(payload)) => Got::Pong(payload.to_vec()),
                Some(Item::Close(code, reason)) => Got::Close(code.map(|code| code.0), reason.to_owned()),
            };
            self.got.push_back(got);
            if let Some((inflater, window)) = &mut self.inflater
                && let Some(len) = inflater.take_inflated()
            {
                assert!(len <= *window, "{len} bytes may refer beyond the window of {window}");
                self.inflated += 1;
            }
        }
    }
}
