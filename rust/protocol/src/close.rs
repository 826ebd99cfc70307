//! Close codes: one table for the whole project, and the body of the Close frame (RFC 6455 §5.5.1, §7.4).
//!
//! Codes below 3000 are the RFC's and IANA's; ours follow the rule that the range tells what to do: 4000–4499 come
//! back, 4500–4999 do not. [`TABLE`] is the only list: Python, TypeScript and the documentation are made from it or
//! checked against it. Called by the receiver of frames, by whoever closes a connection, and by metrics for names.

use std::fmt;

use crate::error::Violation;

/// Most bytes of a close reason: a control frame's 125 less the code's two.
pub const REASON_BYTES_MAX: usize = 123;

/// A close code (RFC 6455 §7.4); any `u16` can be held, [`CloseCode::is_valid_on_wire`] tells which may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(pub u16);

/// One row of [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The code.
    pub code: CloseCode,
    /// Lower case with underscores: the name in metrics, logs and the clients.
    pub name: &'static str,
    /// Whether a client should connect again by itself.
    pub may_come_back: bool,
    /// One line for people.
    pub meaning: &'static str,
}

/// Makes the constants and the table from the same rows, so that neither can miss one.
macro_rules! close_codes {
    ($($constant:ident = $code:literal, $name:literal, $may_come_back:literal, $meaning:literal;)*) => {
        impl CloseCode {
            $(#[doc = $meaning] pub const $constant: Self = Self($code);)*
        }

        /// Every code that has a name here, ascending.
        pub const TABLE: &[Entry] = &[
            $(Entry { code: CloseCode::$constant, name: $name, may_come_back: $may_come_back, meaning: $meaning },)*
        ];
    };
}

close_codes! {
    NORMAL = 1000, "normal", false, "Done; clients without a subprotocol also read it as: do not come back.";
    GOING_AWAY = 1001, "going_away", true, "The server stops or the page is left.";
    PROTOCOL_ERROR = 1002, "protocol_error", false, "The peer broke RFC 6455.";
    UNSUPPORTED_DATA = 1003, "unsupported_data", false, "A kind of message that this endpoint does not take.";
    NO_STATUS = 1005, "no_status", true, "A Close frame without a code; never on the wire.";
    ABNORMAL = 1006, "abnormal", true, "The connection ended without a Close frame; never on the wire.";
    INVALID_PAYLOAD = 1007, "invalid_payload", false, "Text that is not UTF-8.";
    POLICY_VIOLATION = 1008, "policy_violation", false, "Against the rules of this server.";
    MESSAGE_TOO_BIG = 1009, "message_too_big", false, "A message over the limit.";
    MANDATORY_EXTENSION = 1010, "mandatory_extension", false, "The client needs an extension that was not agreed.";
    INTERNAL_ERROR = 1011, "internal_error", true, "The server failed at it.";
    SERVICE_RESTART = 1012, "service_restart", true, "The server restarts.";
    TRY_AGAIN_LATER = 1013, "try_again_later", true, "The server has too much to do.";
    BAD_GATEWAY = 1014, "bad_gateway", true, "A server behind this one answered wrongly.";
    TLS_HANDSHAKE = 1015, "tls_handshake", true, "TLS failed; never on the wire.";
    SLOW_READER = 4000, "slow_reader", true, "The client read too slowly; it resumes from its position.";
    SILENT = 4001, "silent", true, "Two pings were not answered.";
    TOKEN_EXPIRED = 4002, "token_expired", true, "The token ended; come back with a new one.";
    RATE_LIMITED = 4003, "rate_limited", true, "Too many commands for too long.";
    BUSY = 4005, "busy", true, "Full or draining; the reason is the number of milliseconds to wait.";
    TOKEN_REVOKED = 4500, "token_revoked", false, "The token was revoked.";
    UNAUTHORIZED = 4501, "unauthorized", false, "No token, or one that is not valid.";
    FORBIDDEN = 4502, "forbidden", false, "Not allowed from this origin or for this user.";
    REMOVED = 4503, "removed", false, "Removed by the operator.";
    REPLACED = 4504, "replaced", false, "Another session took the place of this one.";
}

impl CloseCode {
    /// Whether the code may stand in a Close frame: 1000–1003, 1007–1014, 3000–4999 (RFC 6455 §7.4, IANA).
    pub const fn is_valid_on_wire(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }

    /// Whether a client should connect again by itself.
    ///
    /// For codes without a row: 4500–4999 no, every other yes, since an unknown end is taken for the network's fault.
    pub fn may_come_back(self) -> bool {
        match self.entry() {
            Some(entry) => entry.may_come_back,
            None => !matches!(self.0, 4500..=4999),
        }
    }

    /// The name in [`TABLE`], or `other`: a peer's choice of code must not make new labels in metrics.
    pub fn name(self) -> &'static str {
        self.entry().map_or("other", |entry| entry.name)
    }

    fn entry(self) -> Option<&'static Entry> {
        TABLE.iter().find(|entry| entry.code == self)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.name())
    }
}

/// Reads the payload of a Close frame: nothing, or a code and a reason in UTF-8 (RFC 6455 §5.5.1).
///
/// # Errors
/// 1002 for one byte alone and for a code that may not be sent, 1007 for a reason that is not UTF-8.
pub fn parse_close(payload: &[u8]) -> Result<(Option<CloseCode>, &str), Violation> {
    let (code, reason) = match payload {
        [] => return Ok((None, "")),
        [_] => return Err(Violation::protocol("close frame with half a code")),
        [high, low, reason @ ..] => (CloseCode(u16::from_be_bytes([*high, *low])), reason),
    };
    if !code.is_valid_on_wire() {
        return Err(Violation::protocol("close code that may not be sent"));
    }
    // Text in a Close frame is held to the same rule as a text message (RFC 6455 §8.1).
    let reason = std::str::from_utf8(reason).map_err(|_| Violation::not_utf8())?;
    Ok((Some(code), reason))
}

/// The payload of a Close frame; `reason` is cut at [`REASON_BYTES_MAX`] bytes, at the end of a character.
///
/// A code that may not stand on the wire (1005, 1006, 1015 and the unassigned) gives an empty payload, which is how
/// "no code" is said.
pub fn encode_close_payload(code: CloseCode, reason: &str) -> Vec<u8> {
    if !code.is_valid_on_wire() {
        return Vec::new();
    }
    let mut reason_len = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(reason_len) {
        reason_len -= 1;
    }
    let reason = &reason[..reason_len];
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.0.to_be_bytes());
    payload.extend_from_slice(reason.as_bytes());
    payload
}
