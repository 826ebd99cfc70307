//! What the shards, the log's thread and Python share: rules, channels, inboxes.
//!
//! Nothing here blocks on I/O. Whoever calls brings the time and a place for events that Python has to hear.

use crate::channel::{
    Channel, Directory, Head, HistoryFor, HistoryRequest, Publication, State, SubscribeRequest, Waiting,
};
use crate::command::{Command, Publish, Reply};
use crate::compose::{self, ChannelEvent, Fault};
use crate::counters::{Counters, add, sub};
use crate::event::{Event, HistoryPage, Published};
use crate::inbox::{Deliver, Inbox, Join, ShardMsg, lock};
use crate::log_queue::{AppendedEvent, LogFailure, LogPage, LogQueue, LogRequest, PagePurpose, StoredEvent};
use crate::options::Options;
use crate::pattern::{Rights, is_channel_name};
use crate::prepared::Prepared;
use crate::rules::Rules;
use crate::{ConnId, Now};
use realtime_protocol::frame::Opcode;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes that one `history` answer or one page of a replay may have.
pub(crate) const PAGE_BYTES_MAX: usize = 1 << 20;
/// Events of one answer to `history`, and the most that `last` asks for.
pub(crate) const HISTORY_EVENTS_MAX: u64 = 1_000;
/// What may wait for a channel's head before volatile events are no longer kept for those who subscribe.
const WAITING_MAX: usize = 1_024;

/// The shared part of the engine.
pub struct Hub {
    pub(crate) rules: Rules,
    pub(crate) counters: Counters,
    inboxes: Box<[Inbox]>,
    directory: Directory,
    log: Box<dyn LogQueue>,
    durable_epoch: Arc<str>,
    memory_epoch: Arc<str>,
    channel_ids: AtomicU64,
    session_nonce: u64,
    pressure: AtomicBool,
    stopped_reading: AtomicBool,
    /// Bytes that wait for connections that are behind; only those stand here.
    behind: Mutex<HashMap<ConnId, usize>>,
}

impl Hub {
    /// Compiles the options. `epoch` is the log's; `nonce` makes session ids and the epoch of channels in memory.
    ///
    /// # Errors
    /// One line that names what is wrong in the options.
    pub fn new(
        options: &Options,
        shards: usize,
        log: Box<dyn LogQueue>,
        epoch: &str,
        nonce: [u8; 16],
    ) -> Result<Arc<Self>, String> {
        let [memory, session] = [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|i| nonce[at + i])));
        Ok(Arc::new(Self {
            rules: Rules::compile(options)?,
            counters: Counters::default(),
            inboxes: (0..shards).map(|_| Inbox::default()).collect(),
            directory: Directory::default(),
            log,
            durable_epoch: epoch.into(),
            memory_epoch: format!("{memory:016x}").into(),
            channel_ids: AtomicU64::new(1),
            session_nonce: session,
            pressure: AtomicBool::new(false),
            stopped_reading: AtomicBool::new(false),
            behind: Mutex::default(),
        }))
    }

    /// The inbox of a shard.
    #[must_use]
    pub fn inbox(&self, shard: usize) -> &Inbox {
        &self.inboxes[shard]
    }

    /// What happened since the start.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counters.connections.load(Ordering::Relaxed) as usize
    }

    /// Whether `connections_max` are open. Where it is not set the reactor goes by the descriptors alone.
    pub(crate) fn is_full(&self) -> bool {
        let most = self.rules.limits.connections_max;
        most > 0 && self.connections() >= most
    }

    /// Members of a channel, on all shards.
    #[must_use]
    pub fn members(&self, channel: &str) -> usize {
        self.directory.find(channel).map_or(0, |channel| channel.lock().members_total())
    }

    /// Channels that are in memory.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.directory.len()
    }

    /// Bytes that wait for a connection.
    #[must_use]
    pub fn backlog(&self, conn: ConnId) -> usize {
        lock(&self.behind).get(&conn).copied().unwrap_or(0)
    }

    pub(crate) fn set_backlog(&self, conn: ConnId, bytes: usize) {
        let mut behind = lock(&self.behind);
        if bytes == 0 {
            behind.remove(&conn);
        } else {
            behind.insert(conn, bytes);
        }
    }

    /// Too many events wait for Python: shards stop reading and accepting until it is off again.
    pub fn set_pressure(&self, on: bool) {
        self.pressure.store(on, Ordering::SeqCst);
        if !on {
            self.everywhere(|| ShardMsg::Look);
        }
    }

    /// Nothing is read any more, for good.
    pub fn stop_reading(&self) {
        self.stopped_reading.store(true, Ordering::SeqCst);
    }

    pub(crate) fn may_read(&self) -> bool {
        !self.pressure.load(Ordering::Relaxed) && !self.has_stopped_reading()
    }

    /// Nothing more is taken from clients, what was read and kept unparsed included: the process ends.
    pub(crate) fn has_stopped_reading(&self) -> bool {
        self.stopped_reading.load(Ordering::Relaxed)
    }

    /// Ends every connection.
    pub fn close_all(&self, code: u16, reason: &str) {
        self.everywhere(|| ShardMsg::CloseAll { code, reason: reason.into() });
    }

    fn everywhere(&self, message: impl Fn() -> ShardMsg) {
        for inbox in &self.inboxes {
            inbox.push(message());
        }
    }

    /// The `sessionId` of a connection: its id under a permutation that is new with each start.
    #[must_use]
    pub fn session_id(&self, conn: ConnId) -> String {
        format!("{:016x}", scramble(conn.as_u64() ^ self.session_nonce))
    }

    /// The connection that a `sessionId` names, whether it is still there or not.
    #[must_use]
    pub fn conn_of(&self, session_id: &str) -> Option<ConnId> {
        if session_id.len() != 16 || session_id.bytes().any(|b| !b.is_ascii_digit() && !(b'a'..=b'f').contains(&b)) {
            return None;
        }
        let raw = u64::from_str_radix(session_id, 16).ok()?;
        let conn = ConnId::from_u64(unscramble(raw) ^ self.session_nonce);
        (conn.shard() < self.inboxes.len()).then_some(conn)
    }

    /// Applies a batch of Python's, in order.
    pub fn submit(&self, commands: Vec<Command>, now: Now, events: &mut Vec<Event>) {
        for command in commands {
            self.apply(command, now, events);
        }
    }

    fn apply(&self, command: Command, now: Now, events: &mut Vec<Event>) {
        match command {
            Command::Publish(publish) => self.publish(publish, now, events),
            Command::Send { conn, text, payload, done } => {
                let opcode = if text { Opcode::Text } else { Opcode::Binary };
                self.send(conn, Prepared::frame(opcode, &payload), done);
            }
            Command::SendMany { conns, payload } => self.send_many(conns, &payload),
            Command::SendAll { payload } => {
                let frame = Prepared::text(&payload);
                self.everywhere(|| ShardMsg::SendAll { frame: Arc::clone(&frame) });
            }
            Command::PublishUnion { channels, payload } => {
                let ids: Arc<[u64]> =
                    channels.iter().filter_map(|name| self.directory.find(name)).map(|c| c.id).collect();
                let frame = Prepared::text(&payload);
                self.everywhere(|| ShardMsg::SendUnion { channels: Arc::clone(&ids), frame: Arc::clone(&frame) });
            }
            Command::History { ticket, channel, after, limit } => {
                let limit = limit.min(HISTORY_EVENTS_MAX as usize);
                self.history(
                    &channel,
                    HistoryRequest { who: HistoryFor::Python { ticket }, after, limit },
                    now,
                    events,
                );
            }
            Command::Accept { conn, user, grants, expires_at_ms } => match parse_grants(grants.as_deref()) {
                Ok(grants) => {
                    let identity = Box::new(crate::token::Identity { user, grants, expires_at_ms });
                    self.to(conn, ShardMsg::Accept { conn, identity });
                }
                Err(_) => self.to(conn, ShardMsg::Reject { conn, status: 401, body: "Unauthorized".into() }),
            },
            Command::Reject { conn, status, body } => self.to(conn, ShardMsg::Reject { conn, status, body }),
            Command::Close { conn, code, reason } => self.to(conn, ShardMsg::Close { conn, code, reason }),
            Command::Grant { conn, channel, rights, raw } => {
                let rights = Rights::from_names(&rights).unwrap_or(Rights::NONE);
                self.to(conn, ShardMsg::Grant { conn, channel, rights, raw });
            }
            Command::Resume { conn, raw } => self.to(conn, ShardMsg::Resume { conn, raw }),
            Command::Subscribe { conn, channel } => self.to(conn, ShardMsg::Subscribe { conn, channel }),
            Command::Unsubscribe { conn, channel, code, retryable } => {
                self.to(conn, ShardMsg::Unsubscribe { conn, channel, code, retryable });
            }
            Command::Done { conn, count } => self.to(conn, ShardMsg::Done { conn, count }),
        }
    }

    fn to(&self, conn: ConnId, message: ShardMsg) {
        if let Some(inbox) = self.inboxes.get(conn.shard()) {
            inbox.push(message);
        }
    }

    pub(crate) fn send(&self, conn: ConnId, frame: Arc<Prepared>, credits: u16) {
        add(&self.counters.commands_bytes, frame.wire_len() as u64);
        self.to(conn, ShardMsg::Send { conn, frame, credits });
    }

    fn send_many(&self, conns: Vec<ConnId>, payload: &[u8]) {
        let frame = Prepared::text(payload);
        let mut by_shard = vec![Vec::new(); self.inboxes.len()];
        for conn in conns {
            if let Some(part) = by_shard.get_mut(conn.shard()) {
                part.push(conn);
            }
        }
        for (inbox, conns) in self.inboxes.iter().zip(by_shard) {
            if !conns.is_empty() {
                inbox.push(ShardMsg::SendMany { conns, frame: Arc::clone(&frame) });
            }
        }
    }

    // ---- channels

    fn make_channel(&self, name: Arc<str>) -> Channel {
        let policy = self.rules.policy_of(&name);
        let epoch = Arc::clone(if policy.durable { &self.durable_epoch } else { &self.memory_epoch });
        Channel::new(name, self.channel_ids.fetch_add(1, Ordering::Relaxed), policy, epoch, self.inboxes.len())
    }

    /// Runs `act` under the channel's lock, making the channel where it is not there.
    fn in_channel<R>(&self, name: &str, act: impl FnOnce(&Arc<Channel>, &mut State) -> R) -> R {
        loop {
            let channel = self.directory.find_or_insert(name, |name| self.make_channel(name));
            let mut state = channel.lock();
            if !state.dead {
                return act(&channel, &mut state);
            }
        }
    }

    /// Runs `act` under the channel's lock, if the channel is there.
    fn in_known_channel<R>(&self, name: &str, act: impl FnOnce(&Arc<Channel>, &mut State) -> R) -> Option<R> {
        let channel = self.directory.find(name)?;
        let mut state = channel.lock();
        // A dead channel had no members and no history: as good as none.
        (!state.dead).then(|| act(&channel, &mut state))
    }

    /// Hands an event to every shard that has members; the lock is held.
    fn deliver(&self, channel: &Channel, state: &State, frame: &Arc<Prepared>, offset: u64, key: Option<Arc<str>>) {
        add(&self.counters.publications, 1);
        let class = channel.class(offset, key);
        for (inbox, _) in self.inboxes.iter().zip(&state.members).filter(|(_, count)| **count > 0) {
            let (frame, class) = (Arc::clone(frame), class.clone());
            inbox.push(ShardMsg::Deliver(Deliver { channel: channel.id, frame, offset, class }));
        }
    }

    /// Publishes what is not stored in the log: now.
    fn emit(&self, event: ChannelEvent<'_>, key: Option<Arc<str>>) {
        let act = |channel: &Arc<Channel>, state: &mut State| self.emit_locked(channel, state, event, key.clone());
        if self.rules.policy_of(event.channel).history > 0 {
            self.in_channel(event.channel, act);
        } else {
            self.in_known_channel(event.channel, act);
        }
    }

    fn emit_locked(
        &self,
        channel: &Arc<Channel>,
        state: &mut State,
        mut event: ChannelEvent<'_>,
        key: Option<Arc<str>>,
    ) {
        let mut offset = 0;
        if let (true, false, Head::Known(head)) = (channel.policy.history > 0, channel.policy.durable, state.head) {
            offset = head + 1;
            state.head = Head::Known(offset);
            event.offset = Some(offset);
        } else if !state.waiting.is_empty() {
            if state.waiting.len() < WAITING_MAX {
                let frame = Prepared::text(&event.to_json());
                state.waiting.push(Waiting::Deliver { frame, key });
            }
            return;
        } else if state.members_total() == 0 {
            return;
        }
        let frame = Prepared::text(&event.to_json());
        if offset > 0 {
            state.keep(Arc::new(Publication { offset, frame: Arc::clone(&frame) }), channel.policy.history);
        }
        self.deliver(channel, state, &frame, offset, key);
    }

    pub(crate) fn publish(&self, publish: Publish, now: Now, events: &mut Vec<Event>) {
        if !is_channel_name(&publish.channel) {
            return self.fail(publish, "invalid_message", "Invalid channel name", now, events);
        }
        if publish.data.len() > self.rules.limits.publication_bytes_max {
            return self.fail(publish, TOO_LARGE.code, TOO_LARGE.message, now, events);
        }
        if self.rules.policy_of(&publish.channel).durable {
            add(&self.counters.log_waiting, 1);
            return self.log.push(LogRequest::Append { publish, received_wall_ms: now.wall_ms });
        }
        let event = ChannelEvent {
            event: &publish.event,
            data: &publish.data,
            time_ms: now.wall_ms,
            user: publish.user.as_deref(),
            channel: &publish.channel,
            offset: None,
        };
        self.emit(event, publish.key.clone());
        self.succeed(publish.reply, b"null", now);
    }

    fn succeed(&self, reply: Option<Reply>, data: &[u8], now: Now) {
        let Some(Reply { conn, id, credits, .. }) = reply else { return };
        match id {
            Some(id) => {
                let json = compose::reply("ack", Some(&id), now.wall_ms, |out| out.extend_from_slice(data));
                self.send(conn, Prepared::text(&json), credits);
            }
            None if credits == 0 => {}
            None => self.to(conn, ShardMsg::Done { conn, count: credits }),
        }
    }

    fn fail(&self, publish: Publish, code: &'static str, message: &str, now: Now, events: &mut Vec<Event>) {
        if let Some(reply) = publish.reply {
            let message = reply.failure.as_deref().unwrap_or(message);
            let fault = Fault { code, message, channel: Some(&publish.channel), ..Fault::default() };
            add(&self.counters.errors, 1);
            self.send(reply.conn, Prepared::text(&fault.to_json(reply.id.as_deref(), now.wall_ms)), reply.credits);
        }
        if publish.notify {
            events.push(Event::Published { ticket: publish.ticket, outcome: Err(code) });
        }
    }

    // ---- the log's answers, in log order

    /// An append is committed, or failed: publish, then acknowledge, then tell Python.
    pub fn appended(
        &self,
        publish: Publish,
        outcome: Result<AppendedEvent, LogFailure>,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        sub(&self.counters.log_waiting, 1);
        let AppendedEvent { duplicate, stored } = match outcome {
            Ok(appended) => appended,
            Err(LogFailure(_)) => return self.fail(publish, "unavailable", "The log could not store it", now, events),
        };
        if !duplicate {
            add(&self.counters.log_events, 1);
            self.in_known_channel(&publish.channel, |channel, state| {
                // Unknown or still loading: nobody is a member, and the head comes later in the same queue.
                if let Head::Known(_) = state.head {
                    let publication = publication_of(channel, &stored);
                    state.head = Head::Known(stored.offset);
                    self.deliver(channel, state, &publication.frame, stored.offset, None);
                    state.keep(publication, channel.policy.history);
                }
            });
        }
        self.succeed(publish.reply, &stored.data, now);
        if publish.notify {
            let published = Published { offset: stored.offset, duplicate, data: stored.data };
            events.push(Event::Published { ticket: publish.ticket, outcome: Ok(published) });
        }
    }

    /// The head of a channel was read: what waited for it goes on.
    pub fn head_read(
        &self,
        channel: &Arc<Channel>,
        outcome: Result<u64, LogFailure>,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        match outcome {
            Ok(head) => {
                let mut state = channel.lock();
                state.head = Head::Known(head);
                for one in std::mem::take(&mut state.waiting) {
                    self.run_waiting(channel, &mut state, one, now, events);
                }
                drop(state);
                // It may have been made for a question alone.
                self.directory.remove_idle(channel);
            }
            Err(_) => {
                for one in self.directory.give_up(channel) {
                    self.fail_waiting(channel, one, now, events);
                }
            }
        }
    }

    fn run_waiting(
        &self,
        channel: &Arc<Channel>,
        state: &mut State,
        waiting: Waiting,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        match waiting {
            Waiting::Subscribe(request) => self.subscribe_locked(channel, state, request, now),
            Waiting::Unsubscribe { conn, reply, credits } => {
                self.to(conn, ShardMsg::Leave { conn, channel: Arc::clone(channel), reply, credits });
            }
            Waiting::History(request) => self.history_locked(channel, state, request, now, events),
            Waiting::Deliver { frame, key } => self.deliver(channel, state, &frame, 0, key),
        }
    }

    fn fail_waiting(&self, channel: &Arc<Channel>, waiting: Waiting, now: Now, events: &mut Vec<Event>) {
        match waiting {
            Waiting::Subscribe(SubscribeRequest { conn, id, credits, .. }) => {
                let fault = Fault { channel: Some(channel.name()), ..UNREADABLE };
                add(&self.counters.errors, 1);
                let reply = Prepared::text(&fault.to_json(id.as_deref(), now.wall_ms));
                self.to(conn, ShardMsg::NotJoined { conn, channel: Arc::clone(channel), reply, credits });
            }
            Waiting::Unsubscribe { conn, reply, credits } => {
                self.to(conn, ShardMsg::Leave { conn, channel: Arc::clone(channel), reply, credits });
            }
            Waiting::History(request) => self.fail_history(channel, request.who, now, events),
            Waiting::Deliver { .. } => {}
        }
    }

    /// A page of a channel's log was read.
    pub fn page_read(
        &self,
        channel: &Arc<Channel>,
        purpose: PagePurpose,
        outcome: Result<LogPage, LogFailure>,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        let who = match purpose {
            PagePurpose::Replay { conn, next } => {
                let events =
                    outcome.ok().map(|page| page.events.iter().map(|stored| publication_of(channel, stored)).collect());
                return self.to(conn, ShardMsg::Page { conn, channel: Arc::clone(channel), next, events });
            }
            PagePurpose::History { conn, id, credits } => HistoryFor::Client { conn, id, credits },
            PagePurpose::Python { ticket } => HistoryFor::Python { ticket },
        };
        match outcome {
            Ok(page) => {
                let found: Vec<_> = page.events.iter().map(|stored| publication_of(channel, stored)).collect();
                self.answer_history(channel, page.head, who, &found, now, events);
            }
            Err(_) => self.fail_history(channel, who, now, events),
        }
    }

    // ---- subscribe and history

    /// Takes a subscribe to the channel's lock; the shard keeps the channel for its own list. `known` is the channel
    /// that the session has asked for before: where that one was given up, the name is another channel now and this
    /// is no second subscribe.
    pub(crate) fn subscribe(
        &self,
        name: &str,
        known: Option<u64>,
        mut request: SubscribeRequest,
        now: Now,
    ) -> Arc<Channel> {
        self.in_channel(name, |channel, state| {
            request.again = known == Some(channel.id);
            if self.waits_for_head(channel, state) {
                state.waiting.push(Waiting::Subscribe(request));
            } else {
                self.subscribe_locked(channel, state, request, now);
            }
            Arc::clone(channel)
        })
    }

    /// Whether `next` is above the newest offset: asked under the lock by a member that replays.
    pub(crate) fn is_head(&self, channel: &Channel, next: u64) -> bool {
        matches!(channel.lock().head, Head::Known(head) if next > head)
    }

    /// Whether a position of this epoch is one of the channel's.
    pub(crate) fn is_epoch(&self, channel: &str, epoch: &str) -> bool {
        let policy = self.rules.policy_of(channel);
        policy.numbers() && *epoch == **(if policy.durable { &self.durable_epoch } else { &self.memory_epoch })
    }

    /// Whether the head is still to come; asks for it once.
    fn waits_for_head(&self, channel: &Arc<Channel>, state: &mut State) -> bool {
        if state.head == Head::Unknown {
            state.head = Head::Loading;
            self.log.push(LogRequest::Head { channel: Arc::clone(channel) });
        }
        state.head == Head::Loading
    }

    fn subscribe_locked(&self, channel: &Arc<Channel>, state: &mut State, request: SubscribeRequest, now: Now) {
        let SubscribeRequest { conn, id, position, last, again, credits } = request;
        let head = if let Head::Known(head) = state.head { head } else { 0 };
        let numbers = channel.policy.numbers();
        let oldest = if channel.policy.durable { 1 } else { state.ring.front().map_or(head + 1, |first| first.offset) };
        let mut recovered = None;
        let mut next = head + 1;
        if let (false, Some((offset, epoch))) = (again, &position) {
            let is_whole = numbers && **epoch == *channel.epoch && *offset <= head && *offset + 1 >= oldest;
            recovered = Some(is_whole);
            if is_whole {
                next = offset + 1;
            }
        } else if let (false, Some(last)) = (again, last) {
            next = (head + 1).saturating_sub(last).max(oldest).min(head + 1);
        }
        let json = compose::reply("subscription_confirmed", id.as_deref(), now.wall_ms, |out| {
            out.extend_from_slice(b"{\"channel\":");
            compose::string(out, channel.name());
            if numbers {
                out.extend_from_slice(b",\"position\":");
                compose::position(out, head, &channel.epoch);
            }
            if let Some(recovered) = recovered {
                out.extend_from_slice(if recovered { b",\"recovered\":true" } else { b",\"recovered\":false" });
            }
            if numbers {
                out.extend_from_slice(b",\"replayed\":");
                compose::number(out, head + 1 - next);
            }
            out.push(b'}');
        });
        let confirm = Prepared::text(&channel_member(json, channel.name()));
        if again {
            return self.send(conn, confirm, credits);
        }
        state.members[conn.shard()] += 1;
        let join = Join { conn, channel: Arc::clone(channel), confirm, next, replays: next <= head, credits };
        self.to(conn, ShardMsg::Join(join));
    }

    /// Takes an unsubscribe to the channel's lock, so that it comes behind the subscribe before it.
    pub(crate) fn unsubscribe(&self, channel: &Arc<Channel>, conn: ConnId, reply: Option<Arc<Prepared>>, credits: u16) {
        let mut state = channel.lock();
        if state.waiting.is_empty() {
            self.to(conn, ShardMsg::Leave { conn, channel: Arc::clone(channel), reply, credits });
        } else {
            state.waiting.push(Waiting::Unsubscribe { conn, reply, credits });
        }
    }

    /// A member is gone: its shard has done it.
    pub(crate) fn left(&self, channel: &Arc<Channel>, shard: usize) {
        let mut state = channel.lock();
        state.members[shard] -= 1;
        let is_idle = state.is_idle(channel.policy);
        drop(state);
        if is_idle {
            self.directory.remove_idle(channel);
        }
    }

    /// What a member that replays gets next from memory.
    pub(crate) fn replay(&self, channel: &Arc<Channel>, conn: ConnId, next: u64, most: usize) -> Replay {
        let state = channel.lock();
        match state.head {
            Head::Known(head) if next > head => Replay::Live,
            _ => match state.in_ring(next, most) {
                Some(found) if !found.is_empty() => Replay::Events(found),
                _ if !channel.policy.durable => Replay::Lost,
                _ => {
                    let purpose = PagePurpose::Replay { conn, next };
                    let channel = Arc::clone(channel);
                    self.log.push(LogRequest::Page {
                        channel,
                        after: next - 1,
                        limit: most,
                        bytes_max: PAGE_BYTES_MAX / 4,
                        purpose,
                    });
                    Replay::Asked
                }
            },
        }
    }

    pub(crate) fn history(&self, name: &str, request: HistoryRequest, now: Now, events: &mut Vec<Event>) {
        self.in_channel(name, |channel, state| {
            if self.waits_for_head(channel, state) {
                state.waiting.push(Waiting::History(request));
            } else {
                self.history_locked(channel, state, request, now, events);
            }
        });
        // It may have been made for this question alone.
        if let Some(channel) = self.directory.find(name) {
            self.directory.remove_idle(&channel);
        }
    }

    fn history_locked(
        &self,
        channel: &Arc<Channel>,
        state: &mut State,
        request: HistoryRequest,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        let HistoryRequest { who, after, limit } = request;
        let head = if let Head::Known(head) = state.head { head } else { 0 };
        let after = after.unwrap_or_else(|| head.saturating_sub(limit as u64));
        let found = match state.in_ring(after.saturating_add(1), limit) {
            _ if after >= head => Vec::new(),
            Some(found) => found,
            None if !channel.policy.durable => state.ring.iter().take(limit).cloned().collect(),
            None => {
                let purpose = match who {
                    HistoryFor::Client { conn, id, credits } => PagePurpose::History { conn, id, credits },
                    HistoryFor::Python { ticket } => PagePurpose::Python { ticket },
                };
                let channel = Arc::clone(channel);
                return self.log.push(LogRequest::Page { channel, after, limit, bytes_max: PAGE_BYTES_MAX, purpose });
            }
        };
        self.answer_history(channel, head, who, &found, now, events);
    }

    fn answer_history(
        &self,
        channel: &Channel,
        head: u64,
        who: HistoryFor,
        found: &[Arc<Publication>],
        now: Now,
        events: &mut Vec<Event>,
    ) {
        let (conn, id, credits) = match who {
            HistoryFor::Client { conn, id, credits } => (conn, id, credits),
            HistoryFor::Python { ticket } => {
                let all = found.iter().map(|publication| publication.frame.payload().into()).collect();
                let page = HistoryPage { events: all, offset: head, epoch: Arc::clone(&channel.epoch) };
                return events.push(Event::History { ticket, outcome: Ok(page) });
            }
        };
        let json = compose::reply("history", id.as_deref(), now.wall_ms, |out| {
            out.extend_from_slice(b"{\"channel\":");
            compose::string(out, channel.name());
            out.extend_from_slice(b",\"events\":[");
            let start = out.len();
            let mut last = None;
            for publication in found {
                let payload = publication.frame.payload();
                if last.is_some() && out.len() - start + payload.len() > PAGE_BYTES_MAX {
                    break;
                }
                if last.is_some() {
                    out.push(b',');
                }
                out.extend_from_slice(payload);
                last = Some(publication.offset);
            }
            out.extend_from_slice(b"],\"position\":");
            if channel.policy.numbers() {
                compose::position(out, head, &channel.epoch);
            } else {
                out.extend_from_slice(b"null");
            }
            out.extend_from_slice(b",\"next\":");
            match last {
                Some(offset) if offset < head => compose::position(out, offset, &channel.epoch),
                _ => out.extend_from_slice(b"null"),
            }
            out.push(b'}');
        });
        self.send(conn, Prepared::text(&channel_member(json, channel.name())), credits);
    }

    fn fail_history(&self, channel: &Channel, who: HistoryFor, now: Now, events: &mut Vec<Event>) {
        match who {
            HistoryFor::Client { conn, id, credits } => {
                let fault = Fault { channel: Some(channel.name()), ..UNREADABLE };
                add(&self.counters.errors, 1);
                self.send(conn, Prepared::text(&fault.to_json(id.as_deref(), now.wall_ms)), credits);
            }
            HistoryFor::Python { ticket } => events.push(Event::History { ticket, outcome: Err(UNREADABLE.code) }),
        }
    }

    // ---- relays

    /// Sends a relay; Some when it lasts now, so that the shard watches for its end.
    pub(crate) fn relay(&self, sent: Relayed<'_>) -> Option<Arc<Channel>> {
        let relay = &self.rules.relays[sent.rule as usize];
        self.in_known_channel(sent.channel, |channel, state| {
            let mut data = sent.data;
            let mut still;
            let mut lasts = false;
            if let Some(start) = relay.ends {
                let key = (start, Arc::clone(sent.user));
                if let Some(lasting) = state.lasting.get_mut(&key) {
                    lasting.sessions.retain(|conn| *conn != sent.conn);
                    if lasting.sessions.is_empty() {
                        state.lasting.remove(&key);
                    } else {
                        // Another session of the user goes on: what is told is how things are now.
                        still = lasting.data.clone();
                        data = &mut *still;
                    }
                }
            } else if let Some(undo) = sent.undo {
                let lasting = state.lasting.entry((sent.rule, Arc::clone(sent.user))).or_insert_with(|| {
                    crate::channel::Lasting { sessions: Vec::new(), undo: Box::default(), data: Box::default() }
                });
                lasting.undo = undo.into();
                lasting.data = data.into();
                if !lasting.sessions.contains(&sent.conn) {
                    lasting.sessions.push(sent.conn);
                }
                lasts = true;
            }
            let event = ChannelEvent {
                event: &relay.event,
                data,
                time_ms: sent.now.wall_ms,
                user: Some(sent.user),
                channel: channel.name(),
                offset: None,
            };
            self.emit_locked(channel, state, event, sent.key);
            lasts.then(|| Arc::clone(channel))
        })
        .flatten()
    }

    /// A session's relay is over by time, unsubscribe or close; the last session's end is told.
    pub(crate) fn end_relay(&self, channel: &Arc<Channel>, rule: u16, user: &Arc<str>, conn: ConnId, now: Now) {
        let key = (rule, Arc::clone(user));
        let mut state = channel.lock();
        let Some(lasting) = state.lasting.get_mut(&key) else { return };
        lasting.sessions.retain(|session| *session != conn);
        if !lasting.sessions.is_empty() {
            return;
        }
        let Some(lasting) = state.lasting.remove(&key) else { return };
        let event = ChannelEvent {
            event: &self.rules.relays[rule as usize].event,
            data: &lasting.undo,
            time_ms: now.wall_ms,
            user: Some(user),
            channel: channel.name(),
            offset: None,
        };
        self.emit_locked(channel, &mut state, event, None);
        let is_idle = state.is_idle(channel.policy);
        drop(state);
        if is_idle {
            self.directory.remove_idle(channel);
        }
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("shards", &self.inboxes.len()).finish_non_exhaustive()
    }
}

/// A relay on its way to its channel.
pub(crate) struct Relayed<'a> {
    pub rule: u16,
    pub conn: ConnId,
    pub user: &'a Arc<str>,
    pub channel: &'a str,
    pub data: &'a mut [u8],
    pub undo: Option<Vec<u8>>,
    pub key: Option<Arc<str>>,
    pub now: Now,
}

/// What a member that replays gets.
pub(crate) enum Replay {
    /// It has everything up to the head.
    Live,
    /// The next ones.
    Events(Vec<Arc<Publication>>),
    /// A page of the log comes to the shard's inbox.
    Asked,
    /// The ring went on past it, and there is no log.
    Lost,
}

pub(crate) const TOO_LARGE: Fault<'static> = Fault {
    code: "too_large",
    message: "The publication is larger than publication_bytes_max",
    path: None,
    channel: None,
    retry_after_ms: None,
};

const UNREADABLE: Fault<'static> = Fault {
    code: "unavailable",
    message: "The log could not be read",
    path: None,
    channel: None,
    retry_after_ms: None,
};

fn publication_of(channel: &Channel, stored: &StoredEvent) -> Arc<Publication> {
    let event = ChannelEvent {
        event: &stored.event,
        data: &stored.data,
        time_ms: stored.time_ms,
        user: stored.user.as_deref(),
        channel: channel.name(),
        offset: Some(stored.offset),
    };
    Arc::new(Publication { offset: stored.offset, frame: Prepared::text(&event.to_json()) })
}

/// Adds the top-level `channel`: every event of a channel carries it.
pub(crate) fn channel_member(mut json: Vec<u8>, channel: &str) -> Vec<u8> {
    json.pop();
    json.extend_from_slice(b",\"channel\":");
    compose::string(&mut json, channel);
    json.push(b'}');
    json
}

fn parse_grants(json: Option<&[u8]>) -> Result<Box<[crate::pattern::Grant]>, String> {
    let Some(json) = json else { return Ok(Box::default()) };
    let value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    crate::token::grants_of(&value)
}

/// An odd number with its bits well spread (2^64 over the golden ratio), and its inverse modulo 2^64.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
const GATHER: u64 = inverse(SPREAD);

const fn inverse(odd: u64) -> u64 {
    // Newton's iteration doubles the number of right bits each time.
    let mut found: u64 = odd;
    let mut round = 0;
    while round < 6 {
        found = found.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(found)));
        round += 1;
    }
    found
}

const fn scramble(raw: u64) -> u64 {
    let mixed = raw.wrapping_mul(SPREAD);
    (mixed ^ (mixed >> 32)).wrapping_mul(SPREAD)
}

const fn unscramble(raw: u64) -> u64 {
    let mixed = raw.wrapping_mul(GATHER);
    (mixed ^ (mixed >> 32)).wrapping_mul(GATHER)
}
