//! Which extension is agreed on: `Sec-WebSocket-Extensions` (RFC 6455 §9.1) for permessage-deflate (RFC 7692 §5, §7.1).
//!
//! This end takes every message as a DEFLATE stream of its own, so that one compressed frame serves every receiver and
//! one decompressor every sender: no agreement is made without `server_no_context_takeover` and
//! `client_no_context_takeover`, which a server may answer unasked (§7.1.1). A smaller window of the other end is kept
//! by the length of what is sent deflated ([`Deflate::may_deflate`]) and not by the compressor. An offer that is not
//! understood is declined and the next one looked at (§7.1.3). Called for the upgrade, by either end.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use crate::deflate;
use crate::handshake::is_token_byte;

/// Name of the only extension there is.
const PERMESSAGE_DEFLATE: &str = "permessage-deflate";

/// The window where nothing smaller is agreed on, as bits: 32 KiB (RFC 7692 §7.1.2).
const WINDOW_BITS_MAX: u8 = 15;

/// An agreement on permessage-deflate, without context takeover on either side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deflate {
    /// Window of what the server sends, 8 to 15 bits, if the client asked for one; else it is 15.
    pub server_max_window_bits: Option<u8>,
    /// Window of what the client sends, 8 to 15 bits, if the client named one; else it is 15.
    pub client_max_window_bits: Option<u8>,
}

impl Deflate {
    /// What a client of this crate offers: its decompressor keeps nothing from one message to the next.
    pub const OFFER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    /// The first offer that can be kept, out of the values of all `Sec-WebSocket-Extensions` headers of a request.
    ///
    /// `None` when there is none: the connection then goes without the extension. Unknown and doubled parameters,
    /// windows outside 8 to 15 and values where none may be are each the end of one offer; what cannot be parsed is
    /// the end of its header.
    pub fn negotiate<'a>(offers: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let terms = offers.into_iter().flat_map(Extensions::new).find_map(|extension| extension.ok().flatten())?;
        Some(Self {
            server_max_window_bits: terms.server_max_window_bits,
            client_max_window_bits: terms.client_max_window_bits.flatten(),
        })
    }

    /// The value of `Sec-WebSocket-Extensions` that answers the offer.
    pub fn response(&self) -> String {
        let mut response = Self::OFFER.to_owned();
        let windows = [("server", self.server_max_window_bits), ("client", self.client_max_window_bits)];
        for (end, bits) in windows {
            if let Some(bits) = bits {
                // Writing to a String cannot fail.
                let _ = write!(response, "; {end}_max_window_bits={bits}");
            }
        }
        response
    }

    /// What a server's answer to [`Self::OFFER`] agreed on, out of the values of its `Sec-WebSocket-Extensions`
    /// headers; `None` if it takes no extension.
    ///
    /// # Errors
    /// [`InvalidAnswer`] for whatever was not offered, and for an answer without `server_no_context_takeover`: the
    /// client must then fail the connection (RFC 6455 §4.1, RFC 7692 §5.1).
    pub fn from_answer<'a>(answer: impl IntoIterator<Item = &'a str>) -> Result<Option<Self>, InvalidAnswer> {
        let mut extensions = answer.into_iter().flat_map(Extensions::new);
        let Some(extension) = extensions.next() else {
            return Ok(None);
        };
        match (extension, extensions.next()) {
            (Ok(Some(terms)), None) if terms.server_no_context_takeover && terms.client_max_window_bits.is_none() => {
                let server_max_window_bits = terms.server_max_window_bits;
                Ok(Some(Self { server_max_window_bits, client_max_window_bits: None }))
            }
            _ => Err(InvalidAnswer),
        }
    }

    /// Window of what the server sends, 8 to 15 bits.
    pub fn server_window_bits(&self) -> u8 {
        self.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX)
    }

    /// Whether the server may send a message of `payload_len` bytes deflated.
    pub fn may_deflate(&self, payload_len: usize) -> bool {
        deflate::serves_window(self.server_window_bits(), payload_len)
    }
}

/// A server's answer that agrees on something that was not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidAnswer;

impl fmt::Display for InvalidAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server answered an extension or a parameter that was not offered")
    }
}

impl std::error::Error for InvalidAnswer {}

/// Parameters of one `permessage-deflate` (RFC 7692 §7.1).
#[derive(Clone, Copy, Debug, Default)]
struct Terms {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// Its value may be left out: the client then only says that it understands the parameter (§7.1.2.2).
    client_max_window_bits: Option<Option<u8>>,
}

impl Terms {
    /// Takes a parameter; `None` if it is unknown, doubled or has a wrong value.
    fn add(&mut self, name: &str, value: Option<&str>) -> Option<()> {
        match (name, value) {
            ("server_no_context_takeover", None) if !self.server_no_context_takeover => {
                self.server_no_context_takeover = true;
            }
            ("client_no_context_takeover", None) if !self.client_no_context_takeover => {
                self.client_no_context_takeover = true;
            }
            ("server_max_window_bits", Some(bits)) if self.server_max_window_bits.is_none() => {
                self.server_max_window_bits = Some(window_bits(bits)?);
            }
            ("client_max_window_bits", bits) if self.client_max_window_bits.is_none() => {
                self.client_max_window_bits = Some(match bits {
                    Some(bits) => Some(window_bits(bits)?),
                    None => None,
                });
            }
            _ => return None,
        }
        Some(())
    }
}

/// 8 to 15 in decimal without leading zeroes (RFC 7692 §7.1.2).
fn window_bits(value: &str) -> Option<u8> {
    let bits = value.parse().ok().filter(|bits| (8..=WINDOW_BITS_MAX).contains(bits))?;
    let is_plain = value.bytes().all(|byte| byte.is_ascii_digit()) && !value.starts_with('0');
    is_plain.then_some(bits)
}

/// One header's list: for each extension its terms, or `None` if it is another one or its terms are wrong; an error,
/// and nothing more, where the list cannot be parsed.
struct Extensions<'a> {
    rest: &'a str,
}

/// The header is no list of extensions (RFC 6455 §9.1).
struct Malformed;

impl<'a> Extensions<'a> {
    const fn new(value: &'a str) -> Self {
        Self { rest: value }
    }

    fn extension(&mut self) -> Result<Option<Terms>, Malformed> {
        let name = self.token()?;
        let mut terms = (name == PERMESSAGE_DEFLATE).then(Terms::default);
        while self.eat(';') {
            let name = self.token()?;
            let value = if self.eat('=') { Some(self.value()?) } else { None };
            terms = terms.and_then(|mut terms| terms.add(name, value.as_deref()).map(|()| terms));
        }
        if self.rest.is_empty() || self.rest.starts_with(',') { Ok(terms) } else { Err(Malformed) }
    }

    fn token(&mut self) -> Result<&'a str, Malformed> {
        self.skip_space();
        let len = self.rest.bytes().position(|byte| !is_token_byte(byte)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(len);
        self.rest = rest;
        self.skip_space();
        if token.is_empty() { Err(Malformed) } else { Ok(token) }
    }

    /// A token or a quoted string, whose content is for the extension to judge: here only tokens are right values.
    fn value(&mut self) -> Result<Cow<'a, str>, Malformed> {
        if !self.eat('"') {
            return self.token().map(Cow::Borrowed);
        }
        let mut value = String::new();
        let mut chars = self.rest.chars();
        loop {
            match chars.next() {
                Some('"') => break,
                Some('\\') => value.extend(chars.next()),
                Some(char) => value.push(char),
                None => return Err(Malformed),
            }
        }
        self.rest = chars.as_str();
        self.skip_space();
        Ok(Cow::Owned(value))
    }

    /// Whether `mark` comes next, which is then taken with the spaces around it.
    fn eat(&mut self, mark: char) -> bool {
        self.skip_space();
        let Some(rest) = self.rest.strip_prefix(mark) else {
            return false;
        };
        self.rest = rest;
        if mark != '"' {
            self.skip_space();
        }
        true
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }
}

impl Iterator for Extensions<'_> {
    type Item = Result<Option<Terms>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        // A list may have empty entries (RFC 9110 §5.6.1).
        while self.eat(',') {}
        if self.rest.is_empty() {
            return None;
        }
        let extension = self.extension();
        if extension.is_err() {
            self.rest = "";
        }
        Some(extension)
    }
}
