//! The upgrade: from the first bytes on a TCP connection to the 101 (RFC 6455 §4.2, RFC 9110, RFC 9112).
//!
//! [`parse_head`] finds the end of a request's head in a growing buffer and reads it with httparse; what cannot be
//! HTTP (a TLS hello, the preface of HTTP/2, noise) is refused from its first bytes, not at the deadline.
//! [`Request`] is the head, with what routing and authentication ask of it; [`Request::upgrade`] checks the rest last,
//! since a wrong path or token is answered before a wrong upgrade. Answers are whole byte strings.
//! Invariants: each byte is looked at a bounded number of times however small the reads are; line ends are CRLF and
//! nothing that two HTTP parsers could read differently passes (request smuggling): no body, no folded lines, no
//! space before a colon. Called by the reactor, which owns the deadline and the order of the checks.

mod query;
mod request;
mod response;

use crate::handshake::request::parse_request;

pub use query::{query_value, query_values};
pub use request::{Request, TwoAuthorizations, Upgrade};
pub use response::{HttpError, accept_key, error_response, switching_protocols};

/// Longest method that is waited for: the registered ones have at most 18 letters.
const METHOD_BYTES_MAX: usize = 20;

/// Limits of a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Request line and headers with their line ends, in bytes; over it 431, or 414 if the first line is too long.
    pub head_bytes_max: usize,
    /// Header lines; over it 431.
    pub headers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head_bytes_max: 16 * 1024, headers_max: 100 }
    }
}

/// What the bytes received so far are.
#[derive(Debug)]
pub enum Head<'a> {
    /// The beginning of a head; read more and call again.
    Partial,
    /// A whole head and its length in bytes; what follows in the buffer belongs to the frames.
    Request(Request<'a>, usize),
    /// Not a request that we read: answer and close.
    Bad(HttpError),
}

/// Looks for a whole head at the front of `bytes`, everything that was received on the connection.
///
/// `searched` is where the last look stopped: 0 at first, then left to this function, so that a head that comes in
/// thousands of reads is not searched from its beginning each time.
///
/// Cost: O(new bytes), and once O(head) when it is whole.
pub fn parse_head<'a>(bytes: &'a [u8], searched: &mut usize, limits: &Limits) -> Head<'a> {
    if let Err(error) = check_method(bytes) {
        return Head::Bad(error);
    }
    let window = &bytes[..bytes.len().min(limits.head_bytes_max)];
    let start = (*searched).min(window.len());
    let new_lines = window[start..].iter().enumerate();
    for line_end in new_lines.filter_map(|(i, &byte)| (byte == b'\n').then_some(start + i)) {
        // A bare LF ends a line for some parsers and not for others (RFC 9112 §2.2): refused.
        if line_end == 0 || window[line_end - 1] != b'\r' {
            return Head::Bad(HttpError::BAD_REQUEST);
        }
        let head = &bytes[..=line_end];
        if head.ends_with(b"\r\n\r\n") {
            return match parse_request(head, limits.headers_max) {
                Ok(request) => Head::Request(request, head.len()),
                Err(error) => Head::Bad(error),
            };
        }
        // The request line is judged when it is whole, so that a wrong one need not wait for the rest.
        let is_first_line = !head[..line_end].contains(&b'\n');
        if is_first_line && !is_request_line(head) {
            return Head::Bad(HttpError::BAD_REQUEST);
        }
    }
    *searched = window.len();
    if bytes.len() < limits.head_bytes_max {
        return Head::Partial;
    }
    Head::Bad(if window.contains(&b'\n') { HttpError::HEAD_TOO_LARGE } else { HttpError::URI_TOO_LONG })
}

/// Refuses bytes that begin no request line: anything but a token and a space (RFC 9112 §3).
fn check_method(bytes: &[u8]) -> Result<(), HttpError> {
    let front = &bytes[..bytes.len().min(METHOD_BYTES_MAX + 1)];
    let method_len = front.iter().position(|&byte| byte == b' ');
    let method = &front[..method_len.unwrap_or(front.len())];
    let is_token = method.iter().copied().all(is_token_byte);
    let is_begun = method_len.is_none() && method.len() <= METHOD_BYTES_MAX;
    let is_whole = method_len.is_some() && !method.is_empty();
    // HTTP/2 with prior knowledge begins like a request of the method PRI (RFC 9113 §3.4).
    if is_token && (is_begun || is_whole) && !bytes.starts_with(b"PRI ") { Ok(()) } else { Err(HttpError::BAD_REQUEST) }
}

/// Whether `line`, with its CRLF, is a request line of HTTP/1.x.
fn is_request_line(line: &[u8]) -> bool {
    matches!(httparse::Request::new(&mut []).parse(line), Ok(httparse::Status::Partial))
}

/// A byte of a token (RFC 9110 §5.6.2).
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
