//! Finding members in JSON that a server wrote, without parsing it: the generator must not be the bottleneck.
//!
//! A search is for the exact bytes `"name":`, which no string value can hold unescaped, so a hit is a member of some object of the event;
//! names are chosen so that only one object has them. Servers here write JSON without spaces, as `JSON.stringify` does; one that does
//! not would show as deliveries that nobody understood, which fails the run instead of being ignored.

/// Position after `needle` in `text`.
#[must_use]
pub fn after(text: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut at = 0;
    while let Some(step) = text[at..].iter().position(|byte| *byte == first) {
        at += step;
        if text[at..].starts_with(needle) {
            return Some(at + needle.len());
        }
        at += 1;
    }
    None
}

/// The unsigned integer at the start of `text` and the bytes it takes; `None` without a digit or beyond 64 bits.
#[must_use]
pub fn integer(text: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    let mut used = 0;
    while let Some(digit @ b'0'..=b'9') = text.get(used) {
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
        used += 1;
    }
    (used > 0).then_some((value, used))
}

/// The integer value of the first member written as `key`, for example `"number":`.
#[must_use]
pub fn member_integer(text: &[u8], key: &[u8]) -> Option<u64> {
    let at = after(text, key)?;
    integer(&text[at..]).map(|(value, _)| value)
}

/// The bytes of the first string member written as `key`, for example `"channel":"`, up to its closing quote.
/// Values with escapes come back escaped and may be cut at one: nothing the generator looks for has any.
#[must_use]
pub fn member_text<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let rest = &text[after(text, key)?..];
    rest.iter().position(|byte| *byte == b'"').map(|end| &rest[..end])
}

/// The `type` of an event: it is the first member in every server here, and is looked for otherwise.
#[must_use]
pub fn event_type(text: &[u8]) -> &[u8] {
    member_text(text, b"\"type\":\"").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_as_serde_json_reads_them() {
        let text = br#"{"type":"new_message","data":{"id":"m1","number":42,"content":"\"number\":7"},"channel":"conversation:w-0","offset":42}"#;
        let oracle: serde_json::Value = serde_json::from_slice(text).expect("the sample is JSON");
        assert_eq!(event_type(text), b"new_message");
        assert_eq!(member_integer(text, b"\"number\":"), oracle["data"]["number"].as_u64());
        assert_eq!(member_integer(text, b"\"offset\":"), oracle["offset"].as_u64());
        assert_eq!(member_text(text, b"\"channel\":\""), Some(&b"conversation:w-0"[..]));
        assert_eq!(member_integer(text, b"\"absent\":"), None);
    }

    #[test]
    fn needle_is_found_after_a_false_start() {
        assert_eq!(after(b"\"\"s\":5", b"\"s\":"), Some(5));
        assert_eq!(after(b"\"s\"", b"\"s\":"), None);
    }

    #[test]
    fn integers_beyond_64_bits_and_words_are_not_numbers() {
        assert_eq!(integer(b"18446744073709551615,"), Some((u64::MAX, 20)));
        assert_eq!(integer(b"18446744073709551616"), None);
        assert_eq!(integer(b"x"), None);
        assert_eq!(integer(b"-1"), None);
    }
}
