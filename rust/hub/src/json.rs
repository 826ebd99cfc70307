//! One walk over a client's JSON: checks all of it, remembers where the envelope's parts are.
//!
//! serde_json's recursion limit, number type and treatment of lone surrogates are not the protocol's, and the parts of
//! a message are needed as byte ranges that go on unparsed to Python or into another frame. So this walk is ours;
//! tests hold it against serde_json. Rules: depth ≤ 64, ≤ 1,024 keys an object, no key twice, integers within ±2^53,
//! finite numbers, at most `limits.message_values_max` values. A lone surrogate escape becomes `\ufffd` in place: both
//! are six bytes. The input is valid UTF-8. [`check`] and [`slices`] hold other texts to the same rules: bodies of HTTP
//! requests, answers of another API. docs/reference/protocol.md#json lists the rules for users.

mod fault;
mod slices;

pub use fault::{Fault, Invalid, id_of, path_at};
pub use slices::{Slice, slices};

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// Containers within one another, the envelope's own object included.
pub const DEPTH_MAX: usize = 64;
/// Members of one object.
pub const KEYS_MAX: usize = 1_024;
const INTEGER_MAX: u64 = 1 << 53;
/// Bytes of one number: what stands behind so many digits changes no double.
const NUMBER_BYTES_MAX: usize = 1_024;
/// Numbers that are longer, or not within these magnitudes, take Python up to 17 µs each, others less than 1.
const QUICK_NUMBER_BYTES_MAX: usize = 32;
const QUICK_NUMBERS: std::ops::Range<f64> = 1e-250..1e250;
/// What such a number counts as.
const SLOW_NUMBER_VALUES: usize = 100;
/// Up to here keys are compared one with another; beyond, through a hash set.
const KEYS_COMPARED_MAX: usize = 16;

/// A range of the message's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// The bytes it names.
    #[must_use]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start..self.end]
    }
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In quotes; the span holds the quotes too. `escaped`: at least one backslash.
    String {
        /// Whether it holds a backslash.
        escaped: bool,
    },
    /// Without fraction and exponent.
    Integer,
    /// With fraction or exponent.
    Float,
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `true` or `false`
    Bool,
    /// `null`
    Null,
}

/// A checked value and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub span: Span,
}

impl Value {
    /// Its text, where it is a string.
    #[must_use]
    pub fn text<'a>(&self, bytes: &'a [u8]) -> Option<Cow<'a, str>> {
        let Kind::String { escaped } = self.kind else { return None };
        Some(text(bytes, self.span, escaped))
    }

    /// Its value, where it is an integer that is not negative.
    #[must_use]
    pub fn count(&self, bytes: &[u8]) -> Option<u64> {
        match self.kind {
            Kind::Integer => std::str::from_utf8(self.span.of(bytes)).ok()?.parse().ok(),
            _ => None,
        }
    }
}

/// A member of an object.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    key: Span,
    key_escaped: bool,
    /// What it holds.
    pub value: Value,
}

/// Where the parts of `{"type", "data"?, "id"?}` are; a part that is `null` is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The value of `type`.
    pub kind: Option<Value>,
    /// The value of `id`.
    pub id: Option<Value>,
    /// The value of `data`.
    pub data: Option<Value>,
    /// How many values there are in all.
    pub values: u32,
}

/// Reused from message to message, so that a walk allocates nothing.
#[derive(Debug, Default)]
pub struct Scanner {
    keys: Vec<(Span, bool)>,
    members: Vec<Member>,
}

impl Scanner {
    /// Walks one message of at most `values_max` values; containers and what they hold count one each, keys nothing.
    ///
    /// # Errors
    /// [`Invalid`] for whatever the protocol does not take; the bytes may then be partly rewritten.
    pub fn scan(&mut self, bytes: &mut [u8], values_max: usize) -> Result<Envelope, Invalid> {
        self.keys.clear();
        self.members.clear();
        let mut walk = Walk::new(bytes, values_max, &mut self.keys, &mut self.members);
        let mut envelope = walk.envelope().map_err(|fault| Invalid { fault, at: walk.at })?;
        envelope.values = u32::try_from(values_max - walk.values_left).unwrap_or(u32::MAX);
        Ok(envelope)
    }

    /// The member of `data` with this key, in the message scanned last; `null` is an absent member.
    #[must_use]
    pub fn member(&self, bytes: &[u8], key: &str) -> Option<Value> {
        let found = self.members.iter().find(|member| *text(bytes, member.key, member.key_escaped) == *key);
        found.map(|member| member.value).filter(|value| value.kind != Kind::Null)
    }
}

/// The members of an object that was checked before, one level deep.
#[must_use]
pub fn members(bytes: &[u8], object: Span) -> Vec<(Cow<'_, str>, Value)> {
    let mut copy = object.of(bytes).to_vec();
    let mut keys = Vec::new();
    let mut unused = Vec::new();
    let mut found = Vec::new();
    let mut walk = Walk::new(&mut copy, usize::MAX, &mut keys, &mut unused);
    let outcome = walk.object(1, &mut |walk, key, escaped| {
        let mut value = walk.value(2)?;
        value.span.start += object.start;
        value.span.end += object.start;
        found.push((Span { start: key.start + object.start, end: key.end + object.start }, escaped, value));
        Ok(())
    });
    debug_assert!(outcome.is_ok(), "the object was checked before");
    found.into_iter().map(|(key, escaped, value)| (text(bytes, key, escaped), value)).collect()
}

/// Holds any JSON text to the rules of a message, of at most `values_max` values; nested containers count from 1.
///
/// # Errors
/// [`Invalid`] for whatever the protocol does not take; the bytes may then be partly rewritten.
pub fn check(bytes: &mut [u8], values_max: usize) -> Result<Value, Invalid> {
    let (mut keys, mut members) = (Vec::new(), Vec::new());
    let mut walk = Walk::new(bytes, values_max, &mut keys, &mut members);
    walk.space();
    let outcome = walk.value(1).and_then(|value| walk.end().map(|()| value));
    outcome.map_err(|fault| Invalid { fault, at: walk.at })
}

fn text(bytes: &[u8], quoted: Span, escaped: bool) -> Cow<'_, str> {
    if escaped {
        return Cow::Owned(serde_json::from_slice(quoted.of(bytes)).unwrap_or_default());
    }
    let inner = &bytes[quoted.start + 1..quoted.end - 1];
    Cow::Borrowed(std::str::from_utf8(inner).unwrap_or_default())
}

/// Where the characters of a string that mean nothing but themselves end: at a quote, a backslash or a control
/// character, or at the end of the bytes. Eight are looked at together, since most of what comes stands in strings.
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = ONES << 7;
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let eight = u64::from_le_bytes(*eight);
        // The top bit of a byte is set where it is below `n`; above the lowest such byte a borrow may set others, too.
        let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word & TOPS;
        let quote = u64::from(b'"') * ONES;
        let backslash = u64::from(b'\\') * ONES;
        let found = below(eight, 0x20) | below(eight ^ quote, 1) | below(eight ^ backslash, 1);
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|&&byte| byte >= 0x20 && byte != b'"' && byte != b'\\').count()
}

/// Hashes of an object's keys under a secret of its own: nobody can choose keys that collide, and no key is copied.
#[derive(Default)]
struct KeyHashes {
    state: RandomState,
    found: HashSet<u64, BuildHasherDefault<Hashed>>,
}

impl KeyHashes {
    /// Takes a key in; false where one with its hash is there already.
    fn insert(&mut self, key: &str) -> bool {
        self.found.insert(self.state.hash_one(key))
    }
}

/// Hashes what is a hash already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.is_empty(), "only hashes are hashed");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

struct Walk<'a> {
    bytes: &'a mut [u8],
    at: usize,
    values_max: usize,
    /// How many more values there may be.
    values_left: usize,
    /// Keys of the objects that are open now, innermost last.
    keys: &'a mut Vec<(Span, bool)>,
    members: &'a mut Vec<Member>,
}

type OnMember<'f, 'a> = dyn FnMut(&mut Walk<'a>, Span, bool) -> Result<(), Fault> + 'f;

impl<'a> Walk<'a> {
    fn new(
        bytes: &'a mut [u8],
        values_max: usize,
        keys: &'a mut Vec<(Span, bool)>,
        members: &'a mut Vec<Member>,
    ) -> Self {
        Self { bytes, at: 0, values_max, values_left: values_max, keys, members }
    }

    fn envelope(&mut self) -> Result<Envelope, Fault> {
        let mut envelope = Envelope::default();
        self.count_values(1)?;
        self.space();
        self.object(1, &mut |walk, key, escaped| {
            let name = text(walk.bytes, key, escaped);
            let (is_data, place) = match &*name {
                "type" => (false, Some(&mut envelope.kind)),
                "id" => (false, Some(&mut envelope.id)),
                "data" => (true, Some(&mut envelope.data)),
                _ => (false, None),
            };
            drop(name);
            let value = if is_data { walk.data_value()? } else { walk.value(2)? };
            if let Some(place) = place {
                *place = Some(value).filter(|value| value.kind != Kind::Null);
            }
            Ok(())
        })?;
        self.end()?;
        Ok(envelope)
    }

    /// Nothing but white space is left.
    fn end(&mut self) -> Result<(), Fault> {
        self.space();
        if self.at == self.bytes.len() { Ok(()) } else { Err(Fault::Syntax) }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: u8) -> Result<(), Fault> {
        if self.peek() == Some(wanted) {
            self.at += 1;
            return Ok(());
        }
        Err(Fault::Syntax)
    }

    /// Counts values; the first one of each before its first byte is read.
    fn count_values(&mut self, count: usize) -> Result<(), Fault> {
        self.values_left = self.values_left.checked_sub(count).ok_or(Fault::Values(self.values_max))?;
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value, Fault> {
        self.count_values(1)?;
        let start = self.at;
        let kind = match self.peek().ok_or(Fault::Syntax)? {
            b'"' => Kind::String { escaped: self.string()? },
            b'{' => {
                self.object(depth, &mut |walk, _, _| walk.value(depth + 1).map(drop))?;
                Kind::Object
            }
            b'[' => {
                self.array(depth)?;
                Kind::Array
            }
            b't' => self.literal(b"true", Kind::Bool)?,
            b'f' => self.literal(b"false", Kind::Bool)?,
            b'n' => self.literal(b"null", Kind::Null)?,
            _ => self.number()?,
        };
        Ok(Value { kind, span: Span { start, end: self.at } })
    }

    /// The value of `data`: its members are remembered, since the hub's own commands read them.
    fn data_value(&mut self) -> Result<Value, Fault> {
        if self.peek() != Some(b'{') {
            return self.value(2);
        }
        self.count_values(1)?;
        let start = self.at;
        self.object(2, &mut |walk, key, key_escaped| {
            let value = walk.value(3)?;
            walk.members.push(Member { key, key_escaped, value });
            Ok(())
        })?;
        Ok(Value { kind: Kind::Object, span: Span { start, end: self.at } })
    }

    fn object(&mut self, depth: usize, on_member: &mut OnMember<'_, 'a>) -> Result<(), Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::Depth);
        }
        self.take(b'{')?;
        let first_key = self.keys.len();
        let mut hashed = None;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let start = self.at;
            if self.peek() != Some(b'"') {
                return Err(Fault::Syntax);
            }
            let escaped = self.string()?;
            let key = Span { start, end: self.at };
            self.remember(first_key, key, escaped, &mut hashed)?;
            self.space();
            self.take(b':')?;
            self.space();
            on_member(self, key, escaped)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    self.keys.truncate(first_key);
                    return Ok(());
                }
                _ => return Err(Fault::Syntax),
            }
            self.space();
        }
    }

    /// Refuses a key that the open object has already, and the one beyond [`KEYS_MAX`].
    fn remember(
        &mut self,
        first_key: usize,
        key: Span,
        escaped: bool,
        hashed: &mut Option<KeyHashes>,
    ) -> Result<(), Fault> {
        let count = self.keys.len() - first_key;
        if count >= KEYS_MAX {
            return Err(Fault::Keys);
        }
        let may_stand_twice = count < KEYS_COMPARED_MAX || {
            let hashes = hashed.get_or_insert_with(|| {
                let mut hashes = KeyHashes::default();
                for &(known, known_escaped) in &self.keys[first_key..] {
                    hashes.insert(&text(self.bytes, known, known_escaped));
                }
                hashes
            });
            !hashes.insert(&text(self.bytes, key, escaped))
        };
        let stands_twice = may_stand_twice
            && self.keys[first_key..].iter().any(|&(known, known_escaped)| {
                if escaped || known_escaped {
                    text(self.bytes, key, escaped) == text(self.bytes, known, known_escaped)
                } else {
                    key.of(self.bytes) == known.of(self.bytes)
                }
            });
        if stands_twice {
            return Err(Fault::Twice);
        }
        self.keys.push((key, escaped));
        Ok(())
    }

    fn array(&mut self, depth: usize) -> Result<(), Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::Depth);
        }
        self.array_of(&mut |walk| walk.value(depth + 1).map(drop))
    }

    fn array_of(&mut self, on_element: &mut dyn FnMut(&mut Self) -> Result<(), Fault>) -> Result<(), Fault> {
        self.take(b'[')?;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            on_element(self)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(Fault::Syntax),
            }
            self.space();
        }
    }

    fn literal(&mut self, word: &[u8], kind: Kind) -> Result<Kind, Fault> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(kind);
        }
        Err(Fault::Syntax)
    }

    /// Steps over a string; true if it holds an escape.
    fn string(&mut self) -> Result<bool, Fault> {
        self.at += 1;
        let mut escaped = false;
        loop {
            match self.peek().ok_or(Fault::Syntax)? {
                b'"' => {
                    self.at += 1;
                    return Ok(escaped);
                }
                b'\\' => {
                    escaped = true;
                    self.escape()?;
                }
                0..=0x1F => return Err(Fault::Syntax),
                _ => self.at = plain_end(self.bytes, self.at + 1),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        match self.bytes.get(self.at + 1).ok_or(Fault::Syntax)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 2,
            b'u' => {
                let unit = self.code_unit(self.at).ok_or(Fault::Syntax)?;
                let paired = (0xD800..0xDC00).contains(&unit)
                    && self.code_unit(self.at + 6).is_some_and(|low| (0xDC00..0xE000).contains(&low));
                if paired {
                    self.at += 12;
                    return Ok(());
                }
                if (0xD800..0xE000).contains(&unit) {
                    self.bytes[self.at..self.at + 6].copy_from_slice(b"\\ufffd");
                }
                self.at += 6;
            }
            _ => return Err(Fault::Syntax),
        }
        Ok(())
    }

    /// The code unit of the `\uXXXX` at `at`.
    fn code_unit(&self, at: usize) -> Option<u32> {
        let escape = self.bytes.get(at..at + 6)?;
        if !escape.starts_with(b"\\u") || !escape[2..].iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        u32::from_str_radix(std::str::from_utf8(&escape[2..]).ok()?, 16).ok()
    }

    fn digits(&mut self) -> Result<usize, Fault> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(Fault::Syntax) } else { Ok(self.at - start) }
    }

    fn number(&mut self) -> Result<Kind, Fault> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let whole = self.at;
        if self.digits()? > 1 && self.bytes[whole] == b'0' {
            return Err(Fault::Syntax);
        }
        let integer_end = self.at;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let length = self.at - start;
        let digits = |range: std::ops::Range<usize>| std::str::from_utf8(&self.bytes[range]).map_err(|_| Fault::Syntax);
        if self.at == integer_end {
            let magnitude: u64 = digits(whole..integer_end)?.parse().map_err(|_| Fault::Integer)?;
            return if magnitude <= INTEGER_MAX { Ok(Kind::Integer) } else { Err(Fault::Integer) };
        }
        if length > NUMBER_BYTES_MAX {
            return Err(Fault::Digits);
        }
        let value: f64 = digits(start..self.at)?.parse().map_err(|_| Fault::Number)?;
        if !value.is_finite() {
            return Err(Fault::Number);
        }
        if length > QUICK_NUMBER_BYTES_MAX || !(value == 0.0 || QUICK_NUMBERS.contains(&value.abs())) {
            self.count_values(SLOW_NUMBER_VALUES - 1)?;
        }
        Ok(Kind::Float)
    }
}
