//! History: pages of a channel, from its ring or from the log, for a client's command or for Python.

use super::{CHANNELS_FULL, Hub, LOG_FULL, NOT_RECOVERABLE, PAGE_BYTES_MAX, channel_member};
use crate::channel::{Channel, Head, HistoryFor, HistoryRequest, Publication, State, Waiting};
use crate::compose::{self, Fault};
use crate::credit::Credit;
use crate::event::{Event, HistoryPage};
use crate::inbox::ShardMsg;
use crate::log_queue::{PagePurpose, PageRequest};
use crate::prepared::Prepared;
use crate::{ConnId, Now};
use std::sync::Arc;

impl Hub {
    /// Answers a question for a channel's history; `user` is who asks.
    pub(crate) fn history(
        &self,
        name: &str,
        request: HistoryRequest,
        user: Option<&str>,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        let mut request = Some(request);
        let found = self.in_channel(name, user, |channel, state| {
            let Some(asked) = request.take() else { return };
            if !self.waits_for_head(channel, state) {
                self.history_locked(channel, state, asked, now, events);
            } else if let Err(Waiting::History(refused)) =
                self.wait(state, Waiting::History(asked), user).map_err(|one| *one)
            {
                request = Some(refused);
            }
        });
        if let Some(request) = request {
            let fault = if found.is_ok() { LOG_FULL } else { CHANNELS_FULL };
            return self.fail_history(name, request.who, fault, now, events);
        }
        // It may have been made for this question alone.
        if let Some(channel) = self.directory.find(name) {
            self.remove_idle(&channel);
        }
    }

    pub(super) fn history_locked(
        &self,
        channel: &Arc<Channel>,
        state: &mut State,
        request: HistoryRequest,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        let HistoryRequest { who, after, epoch, limit, reader } = request;
        let head = if let Head::Known(head) = state.head { head } else { 0 };
        if let (Some(offset), Some(epoch)) = (after, &epoch)
            && !self.is_of_history(channel, state, offset, epoch)
        {
            return self.fail_history(channel.name(), who, NOT_RECOVERABLE, now, events);
        }
        state.trim(channel.policy, now.mono_ms, &self.counters);
        // A page begins at what is kept.
        let after =
            after.unwrap_or_else(|| head.saturating_sub(limit as u64)).max(state.oldest(channel.policy, head) - 1);
        let found = match state.ring.from(after.saturating_add(1), limit) {
            _ if after >= head => Vec::new(),
            Some(found) => found,
            None if !channel.policy.durable => Vec::new(),
            None => {
                let purpose = match who {
                    HistoryFor::Client { conn, id, credit, reserved } => {
                        PagePurpose::History { conn, id, credit, reserved }
                    }
                    HistoryFor::Python { ticket } => PagePurpose::Python { ticket },
                };
                let channel = Arc::clone(channel);
                let page = PageRequest { channel, after, head, limit, bytes_max: PAGE_BYTES_MAX, reader, purpose };
                if let Err(page) = self.read_locked(state, page) {
                    self.refuse_read(page, now, events);
                }
                return;
            }
        };
        let answer = self.history_answer(channel, (head, &state.epoch), who, &found, now);
        self.give_history(answer, |event| events.push(event));
    }

    pub(super) fn give_history(&self, answer: Answer, mut emit: impl FnMut(Event)) {
        match answer {
            Answer::Client { conn, frame, credit, reserved, bytes } => {
                // First, so that what was too much is there for the command behind the answer.
                self.to(conn, ShardMsg::Settle { conn, reserved, bytes });
                self.send(conn, frame, credit);
            }
            Answer::Python(event) => emit(event),
        }
    }

    pub(super) fn history_answer(
        &self,
        channel: &Channel,
        (head, epoch): (u64, &Arc<str>),
        who: HistoryFor,
        found: &[Arc<Publication>],
        now: Now,
    ) -> Answer {
        let (conn, id, credit, reserved) = match who {
            HistoryFor::Client { conn, id, credit, reserved } => (conn, id, credit, reserved),
            HistoryFor::Python { ticket } => {
                let page = HistoryPage { events: page_of(found), offset: head, epoch: Arc::clone(epoch) };
                return Answer::Python(Event::History { ticket, outcome: Ok(page) });
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
                compose::position(out, head, epoch);
            } else {
                out.extend_from_slice(b"null");
            }
            out.extend_from_slice(b",\"next\":");
            match last {
                Some(offset) if offset < head => compose::position(out, offset, epoch),
                _ => out.extend_from_slice(b"null"),
            }
            out.push(b'}');
        });
        let bytes = json.len();
        let frame = Prepared::text(&channel_member(json, channel.name()));
        Answer::Client { conn, frame, credit, reserved, bytes }
    }

    pub(super) fn fail_history(
        &self,
        channel: &str,
        who: HistoryFor,
        fault: Fault<'static>,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        let failure = self.history_failure(channel, who, fault, now);
        self.give_history(failure, |event| events.push(event));
    }

    pub(super) fn history_failure(&self, channel: &str, who: HistoryFor, fault: Fault<'static>, now: Now) -> Answer {
        match who {
            HistoryFor::Client { conn, id, credit, reserved } => {
                let fault = Fault { channel: Some(channel), ..fault };
                self.counters.error_sent(fault.code);
                let frame = Prepared::text(&fault.to_json(id.as_deref(), now.wall_ms));
                Answer::Client { conn, frame, credit, reserved, bytes: 0 }
            }
            HistoryFor::Python { ticket } => Answer::Python(Event::History { ticket, outcome: Err(fault.code) }),
        }
    }
}

/// An answer to `history` on its way to who asked.
pub(super) enum Answer {
    /// `reserved` of a token was taken for it, and it has so many bytes.
    Client {
        conn: ConnId,
        frame: Arc<Prepared>,
        credit: Option<Credit>,
        reserved: u32,
        bytes: usize,
    },
    Python(Event),
}

impl Answer {
    /// The same, with the credit that its command left with a page.
    pub(super) fn with_credit_of(mut self, page: PagePurpose) -> Self {
        if let (Self::Client { credit, .. }, PagePurpose::History { credit: held, .. }) = (&mut self, page) {
            *credit = held;
        }
        self
    }
}

/// The first of these events, as many as a page takes, but one at least.
fn page_of(found: &[Arc<Publication>]) -> Vec<Box<[u8]>> {
    let mut bytes = 0;
    let payloads = found.iter().map(|publication| publication.frame.payload());
    let fits = |payload: &&[u8]| {
        let is_first = bytes == 0;
        bytes += payload.len();
        is_first || bytes <= PAGE_BYTES_MAX
    };
    payloads.take_while(fits).map(Into::into).collect()
}
