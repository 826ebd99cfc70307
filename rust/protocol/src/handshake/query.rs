//! Values of a query string, as a browser's `URLSearchParams` writes and reads it.
//!
//! Tokens, tickets and resume tokens come this way, so a value that is badly escaped is no value: it is never passed
//! on half decoded, and never mended. A value without escapes is borrowed from the request, not copied.
//! Called by the reactor before the check of the token; [`query_values`] shows a name that comes twice.

use std::borrow::Cow;

/// The first value of `name`, decoded; `None` if it is missing, or if it is badly escaped or not UTF-8.
pub fn query_value<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    query_values(query, name).next()?
}

/// Every value of `name` in its order; an item is `None` where the value is badly escaped or not UTF-8.
pub fn query_values<'q, 'n>(query: &'q str, name: &'n str) -> impl Iterator<Item = Option<Cow<'q, str>>> + use<'q, 'n> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key)? == name).then(|| decode(value))
    })
}

/// Percent-decoding with `+` for a space (application/x-www-form-urlencoded). Borrows where nothing is escaped.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            _ => byte,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}
