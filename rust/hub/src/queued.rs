//! A frame on its way to connections: in a turn's log for many of them, or in the outbox of one.

use crate::channel::Channel;
use crate::class::Class;
use crate::compression::{Compressor, Window};
use crate::options::Overflow;
use crate::prepared::{Form, Prepared};
use std::sync::Arc;

/// What one connection alone gets stays plain below this: nobody shares the cost.
const REPLY_BYTES_MIN: usize = 1_024;

/// A frame on its way to connections.
#[derive(Debug, Clone)]
pub(crate) struct Queued {
    pub frame: Arc<Prepared>,
    pub class: Class,
    /// None for what belongs to no channel.
    pub channel: Option<Arc<Channel>>,
    /// Plain in a turn's log, where it is for many; in an outbox what this connection gets.
    pub form: Form,
}

/// Channel and key of an event that a newer one may replace.
pub(crate) type Key = (u64, Arc<str>);

impl Queued {
    pub(crate) const fn reply(frame: Arc<Prepared>) -> Self {
        Self { frame, class: Class::Reply, channel: None, form: Form::Plain }
    }

    /// Bytes on the wire.
    pub(crate) fn wire_len(&self) -> usize {
        self.frame.wire_len(self.form)
    }

    /// What goes to the socket.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.frame.bytes(self.form)
    }

    /// What a connection with this window gets, always the same.
    pub(crate) fn form_for(&self, window: Window, compressor: &mut Compressor) -> Form {
        if !window.is_agreed() {
            return Form::Plain;
        }
        let threshold = compressor.options().threshold_bytes;
        let is_reply = matches!(self.class, Class::Reply | Class::Confirmation);
        let bytes_min = if is_reply || self.frame.is_for_one() { threshold.max(REPLY_BYTES_MIN) } else { threshold };
        self.frame.form_for(window, bytes_min, compressor)
    }

    /// The same for the outbox of a connection with this window.
    pub(crate) fn to(&self, window: Window, compressor: &mut Compressor) -> Self {
        Self { form: self.form_for(window, compressor), ..self.clone() }
    }

    /// Which events go first for a reader that is over its hard limit; None for what never goes. The newest state of
    /// a key goes last: a flood of others does not push it out.
    pub(crate) const fn rank(&self, resumable: bool) -> Option<usize> {
        match self.class {
            Class::Durable if !resumable => Some(0),
            Class::Reply | Class::Confirmation | Class::Durable | Class::Volatile(Overflow::Close) => None,
            Class::Volatile(Overflow::DropOldest) => Some(0),
            Class::Latest(_) | Class::Snapshot => Some(1),
        }
    }

    /// Channel and key of one that a newer one may replace.
    pub(crate) fn latest_key(&self) -> Option<Key> {
        match &self.class {
            Class::Latest(key) => Some((self.channel_id(), Arc::clone(key))),
            _ => None,
        }
    }

    /// 0 for none.
    pub(crate) fn channel_id(&self) -> u64 {
        self.channel.as_ref().map_or(0, |channel| channel.id)
    }
}
