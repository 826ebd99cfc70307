//! A request's head: what routing and authentication read of it, and the check of the upgrade itself.
//!
//! Everything borrows from the buffer of the connection. Values that must stand alone (Host, Sec-WebSocket-Key, …)
//! are refused when they come twice, since proxies differ in which one they take. The head was parsed by httparse,
//! so names are tokens and values hold no control bytes: no value can carry a line end into an answer.

use std::str;

use super::HttpError;
use super::response::accept_key;

/// Characters of `Sec-WebSocket-Key` before its `==`: 16 bytes in base64.
const KEY_CHARS: usize = 22;

/// The head of a request.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method as it came, e.g. `GET`.
    pub method: &'a str,
    /// The path, without the query, not decoded; `/` if the target has none.
    pub path: &'a str,
    /// What follows the first `?`, not decoded; empty if there is none. It may hold a token: keep it out of logs.
    pub query: &'a str,
    /// Minor version of HTTP/1: 0 or 1.
    pub minor_version: u8,
    headers: Vec<httparse::Header<'a>>,
}

/// An upgrade that passed every check of RFC 6455 §4.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// `Sec-WebSocket-Key` as it came: 16 bytes in base64.
    pub key: &'a str,
}

impl Upgrade<'_> {
    /// The value of `Sec-WebSocket-Accept` that answers this key.
    pub fn accept(&self) -> String {
        accept_key(self.key)
    }
}

/// Reads a head that ends with an empty line.
pub(super) fn parse_request(head: &[u8], headers_max: usize) -> Result<Request<'_>, HttpError> {
    // The request line and the empty line are not headers.
    let lines = head.iter().filter(|&&byte| byte == b'\n').count() - 2;
    if lines > headers_max {
        return Err(HttpError::HEAD_TOO_LARGE);
    }
    let mut headers = vec![httparse::EMPTY_HEADER; lines];
    let mut parsed = httparse::Request::new(&mut headers);
    if !matches!(parsed.parse(head), Ok(httparse::Status::Complete(len)) if len == head.len()) {
        return Err(HttpError::BAD_REQUEST);
    }
    let (Some(method), Some(target), Some(minor_version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HttpError::BAD_REQUEST);
    };
    let (path, query) = split_target(target).ok_or(HttpError::BAD_REQUEST)?;
    Ok(Request { method, path, query, minor_version, headers })
}

/// Path and query of an origin-form target (`/ws?token=…`) or an absolute one, which servers must take too
/// (RFC 9112 §3.2.2). `None` for others (`*`, `host:port`) and for a fragment, which RFC 6455 §3 forbids.
fn split_target(target: &str) -> Option<(&str, &str)> {
    if target.contains('#') {
        return None;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path.starts_with('/') {
        return Some((path, query));
    }
    let (scheme, rest) = path.split_once("://")?;
    if !["http", "https", "ws", "wss"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return None;
    }
    let path = rest.find('/').map_or("/", |at| &rest[at..]);
    Some((path, query))
}

/// The request has more than one `Authorization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TwoAuthorizations;

/// `Bearer`, spaces, the token.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_matches([' ', '\t']);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

impl<'a> Request<'a> {
    /// All headers in the order they came: names as written, values without the spaces around them.
    pub fn headers(&self) -> impl DoubleEndedIterator<Item = (&'a str, &'a [u8])> + '_ {
        self.headers.iter().map(|header| (header.name, header.value.trim_ascii()))
    }

    /// Values of every header `name`, whatever its case; values that are not UTF-8 are left out.
    pub fn header_values<'s>(&'s self, name: &'s str) -> impl DoubleEndedIterator<Item = &'a str> + 's {
        self.headers()
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .filter_map(|(_, value)| str::from_utf8(value).ok())
    }

    /// The first value of header `name`, whatever its case; `None` if it is missing or not UTF-8.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .and_then(|(_, value)| str::from_utf8(value).ok())
    }

    /// The page that the request comes from (RFC 6454); `null` is a value like any other.
    pub fn origin(&self) -> Option<&'a str> {
        self.header("origin")
    }

    /// `Host`, with the port if it has one.
    pub fn host(&self) -> Option<&'a str> {
        self.header("host")
    }

    /// The token of `Authorization: Bearer <token>` (RFC 6750 §2.1); `None` for other schemes and an empty token.
    ///
    /// # Errors
    /// [`TwoAuthorizations`] where the header stands more than once (RFC 9110 §5.3): programs differ in which they take.
    pub fn bearer(&self) -> Result<Option<&'a str>, TwoAuthorizations> {
        let mut found = self.headers().filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        let first = found.next();
        if found.next().is_some() {
            return Err(TwoAuthorizations);
        }
        Ok(first.and_then(|(_, value)| bearer(str::from_utf8(value).ok()?)))
    }

    /// Subprotocols that the client offers, in its order (RFC 6455 §4.1), from all `Sec-WebSocket-Protocol` headers.
    pub fn protocols(&self) -> impl DoubleEndedIterator<Item = &'a str> + '_ {
        self.list("sec-websocket-protocol")
    }

    /// Values of all `Sec-WebSocket-Extensions` headers, for [`Deflate::negotiate`](crate::extensions::Deflate::negotiate).
    pub fn extensions(&self) -> impl DoubleEndedIterator<Item = &'a str> + '_ {
        self.header_values("sec-websocket-extensions")
    }

    /// Checks the upgrade (RFC 6455 §4.2.1), after path, admission, token and origin were found good.
    ///
    /// # Errors
    /// 426 when `Sec-WebSocket-Version` is another one than 13; else 400 `Upgrade failed` for whatever is missing,
    /// doubled or malformed, and for a body: HTTP/1.1 `GET`, one `Host`, `Connection: Upgrade`, `Upgrade: websocket`,
    /// one key of 16 bytes.
    pub fn upgrade(&self) -> Result<Upgrade<'a>, HttpError> {
        let is_offered = self.method == "GET"
            && self.minor_version == 1
            && self.single("host").is_some_and(|host| !host.is_empty())
            && !self.has_body()
            && self.list_has("connection", "upgrade")
            && self.list_has("upgrade", "websocket");
        if !is_offered {
            return Err(HttpError::UPGRADE_FAILED);
        }
        match self.single("sec-websocket-version") {
            Some("13") => {}
            Some(_) => return Err(HttpError::UPGRADE_REQUIRED),
            None => return Err(HttpError::UPGRADE_FAILED),
        }
        match self.single("sec-websocket-key") {
            Some(key) if is_key(key) => Ok(Upgrade { key }),
            _ => Err(HttpError::UPGRADE_FAILED),
        }
    }

    /// Whether the head announces a body, or could be read so by someone: any Transfer-Encoding, a Content-Length
    /// other than one `0`. Frames that a proxy takes for a body, or the reverse, are how requests are smuggled.
    fn has_body(&self) -> bool {
        let is_named = |name: &str| self.headers().any(|(n, _)| n.eq_ignore_ascii_case(name));
        is_named("transfer-encoding") || (is_named("content-length") && self.single("content-length") != Some("0"))
    }

    /// The value of a header that comes exactly once.
    fn single(&self, name: &str) -> Option<&'a str> {
        let mut named = self.headers().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        match (named.next(), named.next()) {
            (Some((_, value)), None) => str::from_utf8(value).ok(),
            _ => None,
        }
    }

    /// Entries of a comma-separated header, over all its lines (RFC 9110 §5.6.1), without empty ones.
    fn list<'s>(&'s self, name: &'s str) -> impl DoubleEndedIterator<Item = &'a str> + 's {
        self.header_values(name)
            .flat_map(|value| value.split(','))
            .map(str::trim_ascii)
            .filter(|entry| !entry.is_empty())
    }

    fn list_has(&self, name: &str, entry: &str) -> bool {
        self.list(name).any(|other| other.eq_ignore_ascii_case(entry))
    }
}

/// Whether `key` is 16 bytes in base64. Its last character may have loose bits: some clients make keys of random
/// characters, and the key is only hashed.
fn is_key(key: &str) -> bool {
    key.strip_suffix("==").is_some_and(|chars| {
        chars.len() == KEY_CHARS
            && chars.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
    })
}
