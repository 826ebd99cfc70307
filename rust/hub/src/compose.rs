//! The server's frames as JSON: `{"type", "data", "timestamp", "conversationId"?, "userId"?, "channel"?, "offset"?,
//! "requestId"?, "id"?}`.

use std::io::Write as _;

/// Appends a JSON string.
pub fn string(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer(out, text);
    }
}

/// Appends a number in decimal.
pub fn number(out: &mut Vec<u8>, value: u64) {
    let _ = write!(out, "{value}");
}

/// The last millisecond of the year 9999: a later time is shown as this one, since years have four digits.
const LAST_MS: u64 = 253_402_300_799_999;

/// Appends a Unix time as JavaScript's `toISOString` writes it: `"2026-11-23T06:30:00.123Z"` with its quotes.
pub fn timestamp(out: &mut Vec<u8>, wall_ms: u64) {
    let wall_ms = wall_ms.min(LAST_MS);
    let (days, in_day_ms) = (wall_ms / 86_400_000, wall_ms % 86_400_000);
    // Days to a date in the proleptic Gregorian calendar, counted from 0000-03-01 so that leap days end a year
    // (H. Hinnant, chrono-compatible low-level date algorithms).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (second, milli) = (in_day_ms / 1_000, in_day_ms % 1_000);
    // By hand: it stands in every frame, and `write!` took as long as all the rest of one.
    let mut text = *b"\"0000-00-00T00:00:00.000Z\"";
    digits(&mut text[1..5], year);
    digits(&mut text[6..8], month);
    digits(&mut text[9..11], day);
    digits(&mut text[12..14], second / 3_600);
    digits(&mut text[15..17], second / 60 % 60);
    digits(&mut text[18..20], second % 60);
    digits(&mut text[21..24], milli);
    out.extend_from_slice(&text);
}

/// Fills `place` with the last decimal digits of `value`.
fn digits(place: &mut [u8], mut value: u64) {
    for digit in place.iter_mut().rev() {
        // Below 10, so nothing is cut off.
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// An event of a channel, before it is bytes.
#[derive(Debug, Clone, Copy)]
pub struct ChannelEvent<'a> {
    /// Its `type`.
    pub event: &'a str,
    /// JSON of its data.
    pub data: &'a [u8],
    /// When, Unix ms.
    pub time_ms: u64,
    /// Its `userId`.
    pub user: Option<&'a str>,
    /// Its channel.
    pub channel: &'a str,
    /// Its place, where the channel numbers.
    pub offset: Option<u64>,
    /// Its `requestId`.
    pub request: Option<&'a str>,
}

impl ChannelEvent<'_> {
    /// The whole frame's payload.
    #[must_use]
    pub fn to_json(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(160 + self.data.len());
        out.extend_from_slice(b"{\"type\":");
        string(&mut out, self.event);
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(self.data);
        out.extend_from_slice(b",\"timestamp\":");
        timestamp(&mut out, self.time_ms);
        if let Some(conversation) = conversation_of(self.channel) {
            out.extend_from_slice(b",\"conversationId\":");
            string(&mut out, conversation);
        }
        if let Some(user) = self.user {
            out.extend_from_slice(b",\"userId\":");
            string(&mut out, user);
        }
        out.extend_from_slice(b",\"channel\":");
        string(&mut out, self.channel);
        if let Some(offset) = self.offset {
            out.extend_from_slice(b",\"offset\":");
            number(&mut out, offset);
        }
        if let Some(request) = self.request {
            out.extend_from_slice(b",\"requestId\":");
            string(&mut out, request);
        }
        out.push(b'}');
        out
    }
}

/// The id in `conversation:{id}`.
#[must_use]
pub fn conversation_of(channel: &str) -> Option<&str> {
    channel.strip_prefix("conversation:")
}

/// A frame to one connection: `fill` writes the data.
#[must_use]
pub fn reply(kind: &str, id: Option<&[u8]>, wall_ms: u64, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(b"{\"type\":");
    string(&mut out, kind);
    out.extend_from_slice(b",\"data\":");
    fill(&mut out);
    out.extend_from_slice(b",\"timestamp\":");
    timestamp(&mut out, wall_ms);
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        out.extend_from_slice(id);
    }
    out.push(b'}');
    out
}

/// The facts of an `error`.
#[derive(PartialEq, Eq, Debug, Clone, Copy, Default)]
pub struct Fault<'a> {
    /// One of the protocol's codes.
    pub code: &'a str,
    /// For people.
    pub message: &'a str,
    /// The member of the command that is wrong.
    pub path: Option<&'a str>,
    /// The channel that it is about.
    pub channel: Option<&'a str>,
    /// When to try again.
    pub retry_after_ms: Option<u32>,
}

impl Fault<'_> {
    /// The `error` frame.
    #[must_use]
    pub fn to_json(self, id: Option<&[u8]>, wall_ms: u64) -> Vec<u8> {
        reply("error", id, wall_ms, |out| {
            out.extend_from_slice(b"{\"message\":");
            string(out, self.message);
            out.extend_from_slice(b",\"code\":");
            string(out, self.code);
            out.extend_from_slice(if is_retryable(self.code) {
                b",\"retryable\":true"
            } else {
                b",\"retryable\":false"
            });
            if let Some(path) = self.path {
                out.extend_from_slice(b",\"path\":");
                string(out, path);
            }
            if let Some(channel) = self.channel {
                out.extend_from_slice(b",\"channel\":");
                string(out, channel);
            }
            if let Some(ms) = self.retry_after_ms {
                out.extend_from_slice(b",\"retryAfterMs\":");
                number(out, u64::from(ms));
            }
            out.push(b'}');
        })
    }
}

/// Whether the same command may pass later.
#[must_use]
pub fn is_retryable(code: &str) -> bool {
    matches!(
        code,
        "rate_limited" | "upstream_failed" | "timeout" | "unavailable" | "overloaded" | "draining" | "internal"
    )
}

/// `{"offset":…,"epoch":…}`
pub fn position(out: &mut Vec<u8>, offset: u64, epoch: &str) {
    out.extend_from_slice(b"{\"offset\":");
    number(out, offset);
    out.extend_from_slice(b",\"epoch\":");
    string(out, epoch);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(ms: u64) -> String {
        let mut out = Vec::new();
        timestamp(&mut out, ms);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_beyond_the_year_9999_are_shown_as_its_end() {
        for wall_ms in [253_402_300_799_999, 253_402_300_800_000, 9_007_199_254_740_991_000, u64::MAX] {
            let mut out = Vec::new();
            timestamp(&mut out, wall_ms);
            assert_eq!(out, b"\"9999-12-31T23:59:59.999Z\"", "{wall_ms}");
        }
    }

    #[test]
    fn timestamps_are_those_of_javascript() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_415_400_123, "2026-11-23T06:30:00.123Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(stamp(ms), format!("\"{text}\""));
        }
    }

    #[test]
    fn an_event_has_its_members_in_the_protocols_order() {
        let event = ChannelEvent {
            event: "new_message",
            data: b"{\"a\":1}",
            time_ms: 0,
            user: Some("ann\""),
            channel: "conversation:42",
            offset: Some(7),
            request: Some("r-1"),
        };
        assert_eq!(
            String::from_utf8(event.to_json()).unwrap(),
            r#"{"type":"new_message","data":{"a":1},"timestamp":"1970-01-01T00:00:00.000Z","conversationId":"42","userId":"ann\"","channel":"conversation:42","offset":7,"requestId":"r-1"}"#
        );
    }
}
