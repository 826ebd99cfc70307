//! What goes into the log and what comes out of it.
//!
//! Plain values without behaviour but one: an event whose payload tells its own number gets it here, because the
//! number exists only once the log has given it, and what is stored must be, byte for byte, what is published.

use std::io::Write as _;
use std::sync::Arc;

use rusqlite::Row;

use crate::error::Error;

/// One publication to be stored. `channel` and `event` are names that the caller has checked.
#[derive(Debug, Clone, Copy)]
pub struct Append<'a> {
    /// The channel that numbers it.
    pub channel: &'a str,
    /// The event's type on the wire, such as `new_message`.
    pub event: &'a str,
    /// The payload: JSON text that the caller has checked. It is stored as it is.
    pub data: &'a [u8],
    /// Splice `"number":N` as the first member into `data`, so that what is stored and published carries its number.
    /// `data` is then an object without such a member; anything but an object stays as it is.
    pub number_field: bool,
    /// Whose command it was. `None` (the server's own) is a user of its own for `dedupe`.
    pub user: Option<&'a str>,
    /// The key by which a repeated command is known, within its channel and user.
    pub dedupe: Option<&'a str>,
    /// Names the request that led to it, for whoever follows one through several systems.
    pub request: Option<&'a str>,
    /// The earlier event of the channel that this one is about, and what becomes of it.
    pub amends: Option<Amends<'a>>,
    /// Wall-clock time, unix milliseconds. Told to readers only; no order comes from it.
    pub time_ms: u64,
}

/// What an event does to an earlier one of its channel.
#[derive(Debug, Clone, Copy)]
pub struct Amends<'a> {
    /// The number of the earlier event.
    pub offset: u64,
    /// Its new payload; without one it stays as it is. Everything else about it stays in any case.
    pub replacement: Option<&'a [u8]>,
    /// Whether the earlier events that amended the same one lose their payload too: it becomes this event's.
    pub erases: bool,
}

/// What became of one [`Append`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Appended {
    /// The number of the event in its channel: the first one for a duplicate.
    pub offset: u64,
    /// Whether an event with this key was there already, from an earlier batch or earlier in this one.
    pub duplicate: bool,
    /// For a duplicate, the first result as it is stored; else `None`. Where the first event is kept no longer its
    /// payload is an object with `number`, and `id` where it had one.
    pub stored: Option<Stored>,
    /// For a new event, its payload as stored, the number in place; empty for a duplicate (see `stored`).
    pub data: Arc<[u8]>,
    /// Whether it amends an event that was never there or is no longer kept: nothing is stored, `offset` is 0.
    pub missing: bool,
    /// The earlier events whose payload this one has changed, with the payload that they have now: the amended one
    /// first, behind it those that had amended it before, oldest first.
    pub amended: Vec<Stored>,
    /// Where more had amended it than are changed at once: the newest of them. Read from the log, all of them have this
    /// event's payload; `amended` names the amended one alone. 0 where `amended` names all.
    pub erased_up_to: u64,
}

/// One event as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its number in its channel, from 1.
    pub offset: u64,
    /// Its type on the wire.
    pub event: Box<str>,
    /// Its payload, JSON text.
    pub data: Arc<[u8]>,
    /// Whose command it was; `None` for the server's own.
    pub user: Option<Box<str>>,
    /// The request that led to it.
    pub request: Option<Box<str>>,
    /// When it was handed over, unix milliseconds.
    pub time_ms: u64,
}

/// A stretch of a channel's events and where the channel stood when they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Oldest first. Whether the stretch is whole is seen by the first offset being `after + 1`.
    pub events: Vec<Stored>,
    /// The highest offset of the channel, 0 when it is empty.
    pub head: u64,
}

/// What of a channel is to be kept; the rest goes, oldest first. `None` sets no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// Events whose time is below it go, in unix milliseconds.
    pub since_ms: Option<u64>,
    /// The newest so many stay.
    pub events: Option<u64>,
}

/// How far a look for what is kept no longer has come.
#[derive(Debug, Default)]
pub struct Swept {
    /// Channels that lost events, and the highest offset of each that is gone.
    pub tails: Vec<(Box<str>, u64)>,
    /// Channels whose events could not be read or deleted, and why; they were passed over.
    pub failed: Vec<(Box<str>, Error)>,
    /// Where the next slice goes on; `None` at the end of the channels.
    pub next: Option<i64>,
}

impl Stored {
    /// Reads the columns `offset, event, data, user, request, time_ms`.
    pub(crate) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            offset: row.get::<_, i64>(0)?.cast_unsigned(),
            event: row.get(1)?,
            data: row.get(2)?,
            user: row.get(3)?,
            request: row.get(4)?,
            time_ms: row.get::<_, i64>(5)?.cast_unsigned(),
        })
    }
}

/// `data` with `"number":N` as its first member, or as it is when it is not an object.
pub(crate) fn with_number(data: &[u8], number: u64) -> Arc<[u8]> {
    let Some(start) = data.iter().position(|byte| !is_json_space(*byte)) else {
        return data.into();
    };
    if data[start] != b'{' {
        return data.into();
    }
    let (head, rest) = data.split_at(start + 1);
    let is_empty = rest.iter().find(|byte| !is_json_space(**byte)) == Some(&b'}');
    let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
    let comma = usize::from(!is_empty);
    let mut spliced = Vec::with_capacity(data.len() + br#""number":"#.len() + digits + comma);
    spliced.extend_from_slice(head);
    write!(spliced, r#""number":{number}"#).expect("a Vec takes every write");
    if !is_empty {
        spliced.push(b',');
    }
    spliced.extend_from_slice(rest);
    spliced.into()
}

/// White space of RFC 8259 §2.
const fn is_json_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::with_number;

    #[test]
    fn number_becomes_the_first_member_of_an_object() {
        for (data, number, spliced) in [
            (r#"{"a":1}"#, 7, r#"{"number":7,"a":1}"#),
            (r#"{}"#, 1, r#"{"number":1}"#),
            ("{ \n}", 10, "{\"number\":10 \n}"),
            (" \t{ \"a\":{}}", 99, " \t{\"number\":99, \"a\":{}}"),
            (r#"{"a":1}"#, u64::MAX, r#"{"number":18446744073709551615,"a":1}"#),
        ] {
            assert_eq!(with_number(data.as_bytes(), number).as_ref(), spliced.as_bytes());
        }
    }

    #[test]
    fn what_is_not_an_object_stays_as_it_is() {
        for data in ["", "  ", "[1]", "null", "\"{\"", "7"] {
            assert_eq!(with_number(data.as_bytes(), 1).as_ref(), data.as_bytes());
        }
    }
}
