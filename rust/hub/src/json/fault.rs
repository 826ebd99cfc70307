//! What is wrong with a JSON text, where, and which command it was: asked only after a walk has failed.
//!
//! The walk itself keeps no path, since a text without a fault needs none. Both functions here go over the bytes once
//! more without recursion, so no nesting is too deep for them.

use super::{Kind, Span, Value, check, plain_end, text};
use std::fmt;

/// Bytes of a path; a longer one is cut.
const PATH_BYTES_MAX: usize = 256;

/// Tokens among which the `id` of a message that was not taken is looked for: a millionth bracket costs as much as the
/// first, and nobody writes the `id` behind them.
const ID_TOKENS_MAX: usize = 20_000;

/// Why a text is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not JSON (RFC 8259).
    Syntax,
    /// Containers are nested deeper than [`DEPTH_MAX`](super::DEPTH_MAX).
    Depth,
    /// An object has more than [`KEYS_MAX`](super::KEYS_MAX) members.
    Keys,
    /// An object has a key twice.
    Twice,
    /// The text has more values than the number given (`limits.message_values_max`).
    Values(usize),
    /// An integer lies beyond ±2^53.
    Integer,
    /// A number is not finite as a double.
    Number,
    /// A number is longer than any double needs.
    Digits,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax => f.write_str("not JSON"),
            Self::Depth => write!(f, "nested deeper than {} containers", super::DEPTH_MAX),
            Self::Keys => write!(f, "an object with more than {} members", super::KEYS_MAX),
            Self::Twice => f.write_str("a key that its object has already"),
            Self::Values(most) => write!(f, "more than {most} values (limits.message_values_max)"),
            Self::Integer => f.write_str("an integer beyond ±2^53, send it as a string"),
            Self::Number => f.write_str("a number beyond the range of a double, send it as a string"),
            Self::Digits => write!(f, "a number of more than {} bytes", super::NUMBER_BYTES_MAX),
        }
    }
}

/// A fault and the byte at which the walk met it. A client hears `Invalid message format` and the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong.
    pub fault: Fault,
    /// Bytes before it; they are well formed.
    pub at: usize,
}

impl Invalid {
    /// The member at fault, such as `data.metadata.a` or `[3].data`; None for the whole text, and where it is not JSON.
    #[must_use]
    pub fn path(&self, bytes: &[u8]) -> Option<String> {
        if self.fault == Fault::Syntax {
            return None;
        }
        let mut path = path_at(bytes, self.at);
        if matches!(self.fault, Fault::Depth | Fault::Values(_)) {
            // Dozens of places in arrays of arrays help nobody: the member that holds them is named, or the element.
            while path.ends_with(']')
                && let Some(place) = path.rfind('[')
                && place > 0
            {
                path.truncate(place);
            }
        }
        Some(path).filter(|path| !path.is_empty())
    }
}

/// A container that is open.
enum Open {
    Object { key: Option<Span>, wants_key: bool },
    Array { place: usize },
}

/// One step of a walk over well-formed JSON.
enum Token {
    String(Span),
    Punctuation(u8),
    /// A number or a word.
    Scalar(Span),
}

/// The next token from `at` on, and where it ends; None at the end, or in the middle of a string.
fn token(bytes: &[u8], mut at: usize) -> Option<(Token, usize)> {
    while matches!(bytes.get(at)?, b' ' | b'\t' | b'\n' | b'\r') {
        at += 1;
    }
    let start = at;
    match bytes[at] {
        b'"' => {
            at += 1;
            loop {
                match bytes.get(at)? {
                    b'"' => return Some((Token::String(Span { start, end: at + 1 }), at + 1)),
                    b'\\' => at += 2,
                    _ => at = plain_end(bytes, at + 1),
                }
            }
        }
        byte @ (b'{' | b'}' | b'[' | b']' | b',' | b':') => Some((Token::Punctuation(byte), at + 1)),
        _ => {
            let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
            at += bytes[at..].iter().take_while(|byte| is_part(byte)).count();
            (at > start).then_some((Token::Scalar(Span { start, end: at }), at))
        }
    }
}

/// The path of the value that is open at byte `end` of a text that is well formed up to there.
#[must_use]
pub fn path_at(bytes: &[u8], end: usize) -> String {
    let bytes = &bytes[..end.min(bytes.len())];
    let (mut open, mut at): (Vec<Open>, usize) = (Vec::new(), 0);
    while let Some((token, next)) = token(bytes, at) {
        at = next;
        match (token, open.last_mut()) {
            (Token::String(span), Some(Open::Object { key, wants_key })) if *wants_key => {
                (*key, *wants_key) = (Some(span), false);
            }
            (Token::Punctuation(b'{'), _) => open.push(Open::Object { key: None, wants_key: true }),
            (Token::Punctuation(b'['), _) => open.push(Open::Array { place: 0 }),
            (Token::Punctuation(b'}' | b']'), _) => drop(open.pop()),
            (Token::Punctuation(b','), Some(Open::Object { wants_key, .. })) => *wants_key = true,
            (Token::Punctuation(b','), Some(Open::Array { place })) => *place += 1,
            _ => {}
        }
    }
    let mut path = String::new();
    for container in &open {
        match container {
            Open::Object { key: Some(key), .. } => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(&text(bytes, *key, true));
            }
            Open::Object { key: None, .. } => {}
            Open::Array { place } => path.push_str(&format!("[{place}]")),
        }
        if path.len() > PATH_BYTES_MAX {
            let whole = (0..=PATH_BYTES_MAX).rev().find(|&at| path.is_char_boundary(at));
            path.truncate(whole.unwrap_or_default());
            path.push('…');
            break;
        }
    }
    path
}

/// The `id` of a message that was not taken, so that its sender knows which one it was: None where it has none that can
/// be read among its first 20,000 tokens, or more than one.
#[must_use]
pub fn id_of(bytes: &[u8]) -> Option<(Box<[u8]>, Value)> {
    let (mut depth, mut at, mut found): (usize, usize, Option<Span>) = (0, 0, None);
    let mut tokens = 0;
    // What was just read at the top: a key, and whether its colon followed.
    let (mut key, mut wants_key): (Option<Span>, bool) = (None, false);
    while let Some((token, next)) = token(bytes, at).filter(|_| tokens < ID_TOKENS_MAX) {
        at = next;
        tokens += 1;
        match token {
            Token::Punctuation(b'{' | b'[') => {
                depth += 1;
                (wants_key, key) = (depth == 1, None);
            }
            Token::Punctuation(b'}' | b']') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
            }
            Token::Punctuation(b',') if depth == 1 => (wants_key, key) = (true, None),
            Token::Punctuation(_) => {}
            Token::String(span) if depth == 1 && wants_key => (wants_key, key) = (false, Some(span)),
            Token::String(span) | Token::Scalar(span) if depth == 1 => {
                if key.take().is_some_and(|key| text(bytes, key, true) == "id") && found.replace(span).is_some() {
                    return None;
                }
            }
            Token::String(_) | Token::Scalar(_) => {}
        }
    }
    let mut id: Box<[u8]> = found?.of(bytes).into();
    let value = check(&mut id, 1).ok().filter(|value| matches!(value.kind, Kind::String { .. } | Kind::Integer))?;
    Some((id, value))
}
