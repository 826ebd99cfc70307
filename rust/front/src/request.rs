//! A request's head: whether it may pass, and as what.
//!
//! What `parse_head` lets through is HTTP/1 by the letter; here is refused what leaves open whose request it is or
//! where it ends: no `Host` or two, a length beside chunks, two lengths. The head that is passed on is written anew.
//! Headers that `Connection` names stay: a client must not be able to take away what a proxy before us has added.

use crate::answers::Problem;
use crate::body::Framing;
use crate::options::{NUMBER_HEADER, Options, PEER_HEADER};
use realtime_protocol::handshake::Request;
use std::net::{IpAddr, SocketAddr};

/// Headers of one connection, not of the request (RFC 9110 §7.6.1), and those of the body's frame.
const OF_CONNECTION: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A request that may pass.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Request line and headers without those of the connection; the body's frame and the empty line are missing.
    pub(crate) head: Vec<u8>,
    pub(crate) body: Framing,
    /// Whose it is: the peer's own, or of whom a proxy of ours passes it on.
    pub(crate) client: IpAddr,
    /// Whether the client told a length or chunks, be it of nothing.
    pub(crate) has_length: bool,
    /// Whether the client waits for a 100 before it sends its body.
    pub(crate) expects: bool,
    pub(crate) is_head: bool,
    pub(crate) minor_version: u8,
    /// Whether the client wants to send another request behind this one.
    pub(crate) is_kept: bool,
    pub(crate) is_reserved: bool,
}

/// Checks a head that was parsed.
///
/// # Errors
/// The answer to one that does not pass.
pub(crate) fn check(request: &Request<'_>, peer: SocketAddr, options: &Options) -> Result<Checked, Problem> {
    check_host(request)?;
    let body = framing(request)?;
    let has = |name, entry| list(request, name).any(|other| other.eq_ignore_ascii_case(entry));
    let is_http_11 = request.minor_version == 1;
    let asks_for_more = if is_http_11 { !has("connection", "close") } else { has("connection", "keep-alive") };
    let of_peer = peer.ip().to_canonical();
    let client = options.proxies.client_of(of_peer, request.header_values("x-forwarded-for"));
    // What port a proxy's client has nobody says.
    let port = if client == of_peer { peer.port() } else { 0 };
    Ok(Checked {
        head: passed_on(request, SocketAddr::new(client, port)),
        client,
        has_length: ["content-length", "transfer-encoding"].iter().any(|name| values(request, name).next().is_some()),
        expects: is_http_11 && !body.is_whole() && has("expect", "100-continue"),
        body,
        is_head: request.method == "HEAD",
        minor_version: request.minor_version,
        is_kept: asks_for_more && options.keeps_connections,
        is_reserved: options.reserved.iter().any(|path| path == request.path),
    })
}

fn check_host(request: &Request<'_>) -> Result<(), Problem> {
    let mut hosts = values(request, "host");
    match (hosts.next(), hosts.next()) {
        (None, _) if request.minor_version == 0 => Ok(()),
        (None, _) => Err(Problem::malformed("the request has no Host header; send exactly one")),
        (Some(_), Some(_)) => Err(Problem::malformed("the request has more than one Host header; send exactly one")),
        (Some(host), None) if is_host(host) => Ok(()),
        _ => Err(Problem::malformed("the Host header is no host with an optional port")),
    }
}

/// A name or an address, and perhaps a port (RFC 3986 §3.2.2).
fn is_host(value: &[u8]) -> bool {
    let is_port = |port: &[u8]| port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    if let Some(rest) = value.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
        let is_address = end > 0 && rest[..end].iter().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(byte));
        let after = &rest[end + 1..];
        return is_address && (after.is_empty() || after.strip_prefix(b":").is_some_and(is_port));
    }
    let (name, port) = match value.iter().position(|byte| *byte == b':') {
        Some(at) => (&value[..at], &value[at + 1..]),
        None => (value, &b""[..]),
    };
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte);
    !name.is_empty() && name.iter().all(is_name) && is_port(port)
}

fn framing(request: &Request<'_>) -> Result<Framing, Problem> {
    let mut codings = values(request, "transfer-encoding");
    let mut lengths = values(request, "content-length");
    match (codings.next(), codings.next(), lengths.next(), lengths.next()) {
        (None, _, None, _) => Ok(Framing::Length(0)),
        (None, _, Some(length), None) => length_of(length).map(Framing::Length),
        (None, _, Some(_), Some(_)) => {
            Err(Problem::malformed("the request has more than one Content-Length; send one"))
        }
        (Some(_), _, Some(_), _) => {
            Err(Problem::malformed("the request has both Content-Length and Transfer-Encoding; send one of them"))
        }
        (Some(coding), None, None, _) if request.minor_version == 1 && coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(Framing::chunked())
        }
        _ => Err(Problem::malformed(
            "the Transfer-Encoding is not chunked alone, as HTTP/1.1 sends it; send chunked or a Content-Length",
        )),
    }
}

fn length_of(value: &[u8]) -> Result<u64, Problem> {
    let digits = (!value.is_empty() && value.iter().all(u8::is_ascii_digit)).then_some(value);
    let length = digits.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
    length.ok_or_else(|| Problem::malformed("the Content-Length is no number of bytes"))
}

/// The head for the server behind, up to where its frame and the empty line go.
fn passed_on(request: &Request<'_>, client: SocketAddr) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    head.extend_from_slice(request.method.as_bytes());
    head.push(b' ');
    head.extend_from_slice(request.path.as_bytes());
    if !request.query.is_empty() {
        head.push(b'?');
        head.extend_from_slice(request.query.as_bytes());
    }
    head.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in request.headers() {
        if OF_CONNECTION.iter().any(|other| other.eq_ignore_ascii_case(name)) || is_ours(name) {
            continue;
        }
        push(&mut head, name, value);
    }
    push(&mut head, PEER_HEADER, client.to_string().as_bytes());
    head
}

/// Whether a header would be read as ours by anybody: some programs take `_` for `-`.
fn is_ours(name: &str) -> bool {
    let is_read_as = |own: &str| {
        let same = |(byte, own): (u8, u8)| byte.eq_ignore_ascii_case(&own) || (byte == b'_' && own == b'-');
        name.len() == own.len() && name.bytes().zip(own.bytes()).all(same)
    };
    is_read_as(PEER_HEADER) || is_read_as(NUMBER_HEADER)
}

fn push(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

fn values<'a, 's>(request: &'s Request<'a>, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
    request.headers().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn list<'a, 's>(request: &'s Request<'a>, name: &'s str) -> impl Iterator<Item = &'a str> + 's {
    request.header_values(name).flat_map(|value| value.split(',')).map(str::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;
    use realtime_protocol::handshake::{Head, Limits, parse_head};

    fn options(keeps_connections: bool) -> Options {
        let options = serde_json::json!({
            "upstream": "/s", "head_bytes_max": 16384, "connections_max": 64, "requests_max": 16, "bytes_max": 1 << 26,
            "head_timeout_s": 10, "body_timeout_s": 10, "answer_timeout_s": 10, "keep_alive_s": 10, "wait_s": 10,
            "keeps_connections": keeps_connections, "proxies": ["10.9.0.0/16"], "address_requests_per_s": 0, "address_requests_burst": 0, "reserved": ["/health"],
        });
        Options::from_json(options.to_string().as_bytes()).unwrap()
    }

    fn checked_of(peer: &str, head: &str) -> Result<Checked, Problem> {
        let Head::Request(request, _) = parse_head(head.as_bytes(), &mut 0, &Limits::default()) else {
            panic!("no head: {head:?}")
        };
        check(&request, peer.parse().unwrap(), &options(true))
    }

    fn checked(head: &str) -> Result<Checked, Problem> {
        checked_of("10.0.0.7:1234", head)
    }

    fn with(headers: &str) -> Result<Checked, Problem> {
        checked(&format!("POST /a?b=c HTTP/1.1\r\nHost: x\r\n{headers}\r\n"))
    }

    fn refused(headers: &str) {
        assert_eq!(with(headers).map_err(|problem| problem.status).err(), Some(400), "{headers:?}");
    }

    #[test]
    fn a_request_without_a_host_or_with_two_is_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        ] {
            assert_eq!(checked(head).map_err(|problem| problem.status).err(), Some(400), "{head:?}");
        }
        for host in ["a", "a.example:8080", "[::1]", "[::1]:80", "10.0.0.1:1", "a_b"] {
            assert!(checked(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).is_ok(), "{host}");
        }
        assert!(checked("GET / HTTP/1.0\r\n\r\n").is_ok());
    }

    #[test]
    fn a_body_whose_end_is_open_is_refused() {
        refused("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n");
        refused("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n");
        refused("Content-Length: 1\r\nContent-Length: 1\r\n");
        refused("Content-Length: 1, 1\r\n");
        refused("Content-Length: +1\r\n");
        refused("Content-Length: 1e1\r\n");
        refused("Content-Length:\r\n");
        refused("Content-Length: 99999999999999999999\r\n");
        refused("Transfer-Encoding: gzip, chunked\r\n");
        refused("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n");
        let old = checked("POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(old.unwrap_err().status, 400);
    }

    #[test]
    fn a_connection_of_a_shared_port_has_one_request() {
        for (keeps_connections, is_kept) in [(true, true), (false, false)] {
            let head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
            let Head::Request(request, _) = parse_head(head, &mut 0, &Limits::default()) else { panic!("no head") };
            let peer = "10.0.0.7:1234".parse().unwrap();
            assert_eq!(check(&request, peer, &options(keeps_connections)).unwrap().is_kept, is_kept);
        }
    }

    #[test]
    fn a_request_is_its_peers_or_of_whom_a_listed_proxy_names() {
        let asked = "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6, 198.51.100.1\r\n\r\n";
        for (peer, client, told) in [
            ("10.0.0.7:1234", "10.0.0.7", "10.0.0.7:1234"),
            ("10.9.0.1:1234", "198.51.100.1", "198.51.100.1:0"),
            ("[::ffff:10.9.0.1]:1234", "198.51.100.1", "198.51.100.1:0"),
        ] {
            let request = checked_of(peer, asked).unwrap();
            assert_eq!(request.client.to_string(), client, "{peer}");
            let head = String::from_utf8(request.head).unwrap();
            assert!(head.ends_with(&format!("\r\nx-realtime-peer: {told}\r\n")), "{peer}: {head}");
        }
    }

    #[test]
    fn the_address_is_ours_to_tell_however_the_client_spells_it() {
        let spelled = "X-Realtime-Peer: 127.0.0.1:1\r\nx_realtime_peer: 127.0.0.1:1\r\nX-REALTIME_PEER: 127.0.0.1:1\r\nx-Realtime_Request: 7\r\n";
        let head = String::from_utf8(with(spelled).unwrap().head).unwrap();
        assert_eq!(head, "POST /a?b=c HTTP/1.1\r\nHost: x\r\nx-realtime-peer: 10.0.0.7:1234\r\n");
    }

    #[test]
    fn what_connection_names_is_passed_on_and_what_is_the_connections_is_not() {
        let named =
            "Connection: X-Forwarded-For, close\r\nX-Forwarded-For: 10.0.0.9\r\nUpgrade: h2c\r\nTE: trailers\r\n";
        let checked = with(named).unwrap();
        let head = String::from_utf8(checked.head).unwrap();
        assert_eq!(
            head,
            "POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.0.0.9\r\nx-realtime-peer: 10.0.0.7:1234\r\n"
        );
        assert!(!checked.is_kept);
    }

    #[test]
    fn what_a_head_says_is_known() {
        let head = checked("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert!(head.is_head && head.is_reserved && head.is_kept && head.body.is_whole());
        let sent = with("Content-Length: 5\r\nExpect: 100-Continue\r\n").unwrap();
        assert!(sent.expects && sent.body == Framing::Length(5) && !sent.is_reserved);
        assert!(!checked("GET / HTTP/1.0\r\n\r\n").unwrap().is_kept);
        assert!(checked("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap().is_kept);
    }
}
