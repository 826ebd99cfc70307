//! The upgrade: heads whole, cut, wrong and hostile, and the exact answers.

mod kit;

use proptest::prelude::*;
use realtime_protocol::handshake::{
    Head, HttpError, Limits, Request, TwoAuthorizations, accept_key, error_response, parse_head, query_value,
    query_values, switching_protocols,
};

const GOOD: &[(&str, &str)] = &[
    ("Host", "localhost:3002"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
];

/// A head of the request line and `headers`.
fn head(line: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{line}\r\n{headers}\r\n").into_bytes()
}

/// The good headers with those of `changed` in place of their namesakes, or left out where the value is empty.
fn good_but(changed: &[(&'static str, &'static str)]) -> Vec<u8> {
    let kept = GOOD.iter().filter(|(name, _)| !changed.iter().any(|(other, _)| other == name));
    let added = changed.iter().filter(|(_, value)| !value.is_empty());
    let headers: Vec<_> = kept.chain(added).copied().collect();
    head("GET /ws?token=a HTTP/1.1", &headers)
}

fn parse(bytes: &[u8]) -> Result<Request<'_>, HttpError> {
    match parse_head(bytes, &mut 0, &Limits::default()) {
        Head::Request(request, len) => {
            assert_eq!(len, bytes.len());
            Ok(request)
        }
        Head::Bad(error) => Err(error),
        Head::Partial => panic!("a whole head is not partial"),
    }
}

/// The refusal of the bytes in one piece, from the head or from its upgrade.
fn refusal(bytes: &[u8]) -> Option<HttpError> {
    parse(bytes).and_then(|request| request.upgrade().map(|_| ())).err()
}

/// The refusal of the bytes when they come one by one, and how many were read until then.
fn refusal_byte_by_byte(bytes: &[u8]) -> Option<(HttpError, usize)> {
    let mut searched = 0;
    (1..=bytes.len()).find_map(|len| match parse_head(&bytes[..len], &mut searched, &Limits::default()) {
        Head::Partial | Head::Request(..) => None,
        Head::Bad(error) => Some((error, len)),
    })
}

#[test]
fn key_of_rfc_6455_1_3_is_answered_as_the_rfc_does() {
    assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn a_browser_is_upgraded() {
    let bytes = head(
        "GET /ws?token=eyJ.a-b_c.d HTTP/1.1",
        &[
            ("Host", "localhost:3002"),
            ("Connection", "keep-alive, Upgrade"),
            ("Pragma", "no-cache"),
            ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64)"),
            ("Upgrade", "websocket"),
            ("Origin", "http://localhost:3001"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "x3JJHMbDL1EzLkh9GBhXDw=="),
            ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
            ("Sec-WebSocket-Protocol", "realtime.v2, realtime.v1"),
            ("sec-websocket-protocol", "bearer.abc,"),
        ],
    );
    let request = parse(&bytes).expect("a whole head");
    assert_eq!((request.method, request.path), ("GET", "/ws"));
    assert_eq!(request.query, "token=eyJ.a-b_c.d");
    assert_eq!(request.minor_version, 1);
    assert_eq!(request.origin(), Some("http://localhost:3001"));
    assert_eq!(request.host(), Some("localhost:3002"));
    assert_eq!(request.header("PRAGMA"), Some("no-cache"));
    assert_eq!(request.header("cookie"), None);
    assert_eq!(request.bearer(), Ok(None));
    let protocols: Vec<_> = request.protocols().collect();
    assert_eq!(protocols, ["realtime.v2", "realtime.v1", "bearer.abc"]);
    let upgrade = request.upgrade().expect("a good upgrade");
    assert_eq!(upgrade.key, "x3JJHMbDL1EzLkh9GBhXDw==");
    assert_eq!(upgrade.accept(), "HSmrc0sMlYUkAGmm5OPpG2HaGWk=");
}

#[test]
fn every_prefix_of_a_head_is_partial_and_the_whole_is_found_with_what_follows() {
    let good = good_but(&[]);
    let with_frames = [&good[..], b"\x81\x80abcd\r\n\r\n"].concat();
    let mut searched = 0;
    for len in 0..=with_frames.len() {
        match parse_head(&with_frames[..len], &mut searched, &Limits::default()) {
            Head::Partial => assert!(len < good.len(), "{len} bytes"),
            Head::Request(request, head_len) => {
                assert!(len >= good.len());
                assert_eq!(head_len, good.len());
                assert!(request.upgrade().is_ok());
            }
            Head::Bad(error) => panic!("{error:?} after {len} bytes"),
        }
    }
}

#[test]
fn the_search_goes_on_where_it_stopped() {
    let good = good_but(&[]);
    let mut searched = 0;
    let partial = parse_head(&good[..50], &mut searched, &Limits::default());
    assert!(matches!(partial, Head::Partial));
    assert_eq!(searched, 50);
    // What was searched is not looked at again: the bare line end would be refused.
    let old_line_end = b"GET / HTTP/1.1\nHost: a";
    assert!(matches!(parse_head(old_line_end, &mut 15, &Limits::default()), Head::Partial));
    // The last line end came in two reads.
    searched = good.len() - 1;
    let whole = parse_head(&good, &mut searched, &Limits::default());
    assert!(matches!(whole, Head::Request(..)));
}

#[test]
fn what_is_not_http_is_refused_from_its_first_bytes() {
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (bytes, refused_after) in [
        (&tls_hello[..], 1),
        (http2, 4),
        (b"\r\n\r\n", 1),
        (b" GET / HTTP/1.1", 1),
        (b"\x81\x85\x37\xfa", 1),
        (b"{\"type\":\"ping\"}", 1),
        (b"[[[[[[[[", 1),
        (b"\0\0\0\0", 1),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAA", 21),
        (b"hello\r\n", 6),
        (b"GET /ws\r\nHost: a\r\n", 9),
        (b"GET /ws HTTP/2.0\r\n", 18),
        (b"GET /ws HTTP/1.1 \r\n", 19),
        (b"GET  /ws HTTP/1.1\r\n", 19),
        (b"GET /ws HTTP/1.1\nHost: a\n\n", 17),
        (b"SSH-2.0-OpenSSH_9.6\r\n", 20),
    ] {
        let refused = refusal_byte_by_byte(bytes);
        assert_eq!(refused, Some((HttpError::BAD_REQUEST, refused_after)), "{bytes:?}");
        let whole = parse_head(bytes, &mut 0, &Limits::default());
        assert!(matches!(whole, Head::Bad(HttpError::BAD_REQUEST)), "{bytes:?}");
    }
}

#[test]
fn heads_that_two_parsers_could_read_differently_are_bad_requests() {
    for bytes in [
        &b"GET /ws HTTP/1.1\r\nHost : a\r\n\r\n"[..],
        b"GET /ws HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\nUpgrade: websocket\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\rUpgrade: websocket\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\0b\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n: a\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET /ws#part HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET ws HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /w\x01s HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(refusal(bytes), Some(HttpError::BAD_REQUEST), "{bytes:?}");
    }
}

#[test]
fn an_upgrade_that_lacks_doubles_or_bends_something_failed() {
    for changed in [
        &[("Host", "")][..],
        &[("Host", "a"), ("host", "b")],
        &[("Upgrade", "")],
        &[("Upgrade", "h2c")],
        &[("Connection", "")],
        &[("Connection", "keep-alive")],
        &[("Connection", "Upgraded")],
        &[("Sec-WebSocket-Version", "")],
        &[("Sec-WebSocket-Version", "13"), ("sec-websocket-version", "8")],
        &[("Sec-WebSocket-Key", "")],
        &[("Sec-WebSocket-Key", "short==")],
        &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=")],
        &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQAA")],
        &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25j Q==")],
        &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZSBhbmQgbW9yZQ==")],
        &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")],
        &[("Content-Length", "5")],
        &[("Content-Length", "0"), ("content-length", "0")],
        &[("Content-Length", "0"), ("content-length", "5")],
        &[("Content-Length", "+0")],
        &[("Transfer-Encoding", "chunked")],
        &[("Transfer-Encoding", "identity"), ("Content-Length", "0")],
    ] {
        assert_eq!(refusal(&good_but(changed)), Some(HttpError::UPGRADE_FAILED), "{changed:?}");
    }
    for line in ["POST /ws HTTP/1.1", "HEAD /ws HTTP/1.1", "get /ws HTTP/1.1", "GET /ws HTTP/1.0"] {
        assert_eq!(refusal(&head(line, GOOD)), Some(HttpError::UPGRADE_FAILED), "{line}");
    }
    let plain = head("GET /ws HTTP/1.1", &[("Host", "localhost")]);
    assert_eq!(refusal(&plain), Some(HttpError::UPGRADE_FAILED));
}

#[test]
fn an_upgrade_written_in_other_ways_passes() {
    for changed in [
        &[("Upgrade", "WebSocket")][..],
        &[("Upgrade", "h2c, websocket")],
        &[("Connection", "upgrade")],
        &[("Connection", "keep-alive,UPGRADE ,")],
        &[("Connection", "close"), ("connection", "Upgrade")],
        &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZR==")],
        &[("Sec-WebSocket-Version", "   13  ")],
        &[("Content-Length", "0")],
        &[("X-Latin", "caf\u{e9}")],
    ] {
        assert_eq!(refusal(&good_but(changed)), None, "{changed:?}");
    }
}

#[test]
fn another_version_of_the_protocol_is_told_which_one_is_spoken() {
    for version in ["8", "0", "14", "013", "13, 8"] {
        let mut headers = GOOD.to_vec();
        headers[4].1 = version;
        let refused = refusal(&head("GET /ws HTTP/1.1", &headers));
        assert_eq!(refused, Some(HttpError::UPGRADE_REQUIRED), "{version}");
    }
    let answer = String::from_utf8(HttpError::UPGRADE_REQUIRED.response(&[])).expect("ASCII");
    assert!(answer.starts_with("HTTP/1.1 426 Upgrade Required\r\n"));
    assert!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n"));
}

#[test]
fn too_long_a_first_line_is_414_and_too_long_a_head_431() {
    let limits = Limits::default();
    let long_line = format!("GET /{}", "a".repeat(limits.head_bytes_max));
    let long_header = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(limits.head_bytes_max));
    for (bytes, error) in [(long_line, HttpError::URI_TOO_LONG), (long_header, HttpError::HEAD_TOO_LARGE)] {
        let bytes = bytes.as_bytes();
        let just_below = parse_head(&bytes[..limits.head_bytes_max - 1], &mut 0, &limits);
        assert!(matches!(just_below, Head::Partial));
        let refused = refusal_byte_by_byte(bytes);
        assert_eq!(refused, Some((error, limits.head_bytes_max)));
        // A head that is whole, but too long, in one read.
        let whole = [bytes, b" HTTP/1.1\r\n\r\n"].concat();
        assert_eq!(refusal(&whole), Some(error));
    }
}

#[test]
fn a_head_of_exactly_the_limit_passes_with_frames_behind_it() {
    let mut bytes = good_but(&[]);
    let limits = Limits { head_bytes_max: bytes.len(), headers_max: 5 };
    bytes.extend_from_slice(&[0x81; 1000]);
    let whole = parse_head(&bytes, &mut 0, &limits);
    assert!(matches!(whole, Head::Request(_, len) if len == limits.head_bytes_max));
    let limits = Limits { head_bytes_max: limits.head_bytes_max - 1, ..limits };
    let refused = parse_head(&bytes, &mut 0, &limits);
    assert!(matches!(refused, Head::Bad(HttpError::HEAD_TOO_LARGE)));
}

#[test]
fn too_many_headers_are_431() {
    let headers = vec![("X", "1"); 101];
    assert!(parse(&head("GET / HTTP/1.1", &headers[..100])).is_ok());
    let refused = parse(&head("GET / HTTP/1.1", &headers)).map(|_| ());
    assert_eq!(refused, Err(HttpError::HEAD_TOO_LARGE));
}

#[test]
fn target_is_a_path_and_a_query_or_a_whole_address() {
    for (target, path, query) in [
        ("/", "/", ""),
        ("/ws", "/ws", ""),
        ("/ws?", "/ws", ""),
        ("/ws?a=b?c", "/ws", "a=b?c"),
        ("/yjs/doc%201?token=x", "/yjs/doc%201", "token=x"),
        ("//ws", "//ws", ""),
        ("http://localhost:3002/ws?a=b", "/ws", "a=b"),
        ("WS://localhost", "/", ""),
        ("ws://localhost?a=/b", "/", "a=/b"),
    ] {
        let bytes = head(&format!("GET {target} HTTP/1.1"), &[]);
        let request = parse(&bytes).expect("a whole head");
        assert_eq!((request.path, request.query), (path, query), "{target}");
    }
}

#[test]
fn bearer_is_the_token_of_its_scheme_alone() {
    for (value, token) in [
        ("Bearer abc.def", Some("abc.def")),
        ("bearer   abc", Some("abc")),
        ("BEARER abc", Some("abc")),
        ("Bearer", None),
        ("Bearer  ", None),
        ("Basic dXNlcjpw", None),
        ("Bearerabc", None),
    ] {
        let bytes = head("GET / HTTP/1.1", &[("authorization", value)]);
        let request = parse(&bytes).expect("a whole head");
        assert_eq!(request.bearer(), Ok(token), "{value}");
    }
    for second in ["Bearer abc", "bearer def", "Basic dXNlcjpw", ""] {
        let bytes = head("GET / HTTP/1.1", &[("authorization", "Bearer abc"), ("Authorization", second)]);
        assert_eq!(parse(&bytes).expect("a whole head").bearer(), Err(TwoAuthorizations), "{second}");
    }
}

#[test]
fn answers_are_these_bytes() {
    assert_eq!(
        String::from_utf8_lossy(&switching_protocols("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", None, None)),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
    let chosen = switching_protocols("x", Some("realtime.v1"), None);
    assert!(chosen.ends_with(b"\r\nSec-WebSocket-Protocol: realtime.v1\r\n\r\n"));
    assert_eq!(
        String::from_utf8_lossy(&HttpError::NOT_FOUND.response(&[])),
        "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 28\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\nWebSocket endpoint not found"
    );
    assert_eq!(
        String::from_utf8_lossy(&HttpError::UNAVAILABLE.response(&[("Retry-After", "5")])),
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: 19\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
         Connection: close\r\nRetry-After: 5\r\n\r\nService Unavailable"
    );
}

#[test]
fn bodies_are_those_that_clients_rely_on() {
    for (error, status, body) in [
        (HttpError::BAD_REQUEST, 400, "Bad Request"),
        (HttpError::UPGRADE_FAILED, 400, "Upgrade failed"),
        (HttpError::UNAUTHORIZED, 401, "Unauthorized"),
        (HttpError::FORBIDDEN, 403, "Forbidden"),
        (HttpError::NOT_FOUND, 404, "WebSocket endpoint not found"),
    ] {
        assert_eq!((error.status, error.body), (status, body));
        let answer = String::from_utf8(error.response(&[])).expect("ASCII");
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    }
}

#[test]
fn no_value_can_end_its_line_in_an_answer() {
    for subprotocol in ["a\r\nSet-Cookie: b", "a b", "a,b", ""] {
        let answer = switching_protocols("x", Some(subprotocol), None);
        assert_eq!(answer, switching_protocols("x", None, None), "{subprotocol}");
    }
    let answer = error_response(429, "", &[("Retry-After", "1\r\nSet-Cookie: b")]);
    assert!(!String::from_utf8_lossy(&answer).contains("Cookie"));
}

#[test]
fn query_values_are_decoded_as_browsers_encode_them() {
    for (query, value) in [
        ("token=abc", Some("abc")),
        ("a=1&token=abc&b=2", Some("abc")),
        ("token=first&token=second", Some("first")),
        ("token=a%2Bb%3d", Some("a+b=")),
        ("token=a+b", Some("a b")),
        ("token=%F0%9F%98%80", Some("😀")),
        ("tok%65n=abc", Some("abc")),
        ("token=a=b", Some("a=b")),
        ("token=", Some("")),
        ("token", Some("")),
        ("%zz=1&token=abc", Some("abc")),
        ("token=%", None),
        ("token=%4", None),
        ("token=%zz", None),
        ("token=%+1", None),
        ("token=%ff", None),
        ("Token=abc", None),
        ("xtoken=abc", None),
        ("", None),
    ] {
        assert_eq!(query_value(query, "token").as_deref(), value, "{query}");
    }
}

#[test]
fn every_value_of_a_doubled_name_can_be_seen() {
    let values: Vec<_> = query_values("token=a&x=1&token=%zz&token=b", "token").collect();
    assert_eq!(values, [Some("a".into()), None, Some("b".into())]);
}

/// Bytes of heads, whole and broken: a good head in which some bytes were changed.
fn bent_head() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    changes.prop_map(|changes| {
        let mut bytes = good_but(&[]);
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn a_head_gives_the_same_answer_in_any_reads(bytes in bent_head(), sizes in kit::read_sizes()) {
        let whole = match parse_head(&bytes, &mut 0, &Limits::default()) {
            Head::Request(request, len) => Some(request.upgrade().map(|u| (u.key.to_owned(), len))),
            Head::Bad(error) => Some(Err(error)),
            Head::Partial => None,
        };
        let (mut searched, mut len, mut cut) = (0, 0, None);
        for size in sizes.iter().chain([&bytes.len()]).cycle() {
            if cut.is_some() || len == bytes.len() {
                break;
            }
            len = (len + size.max(&1)).min(bytes.len());
            cut = match parse_head(&bytes[..len], &mut searched, &Limits::default()) {
                Head::Request(request, len) => Some(request.upgrade().map(|u| (u.key.to_owned(), len))),
                Head::Bad(error) => Some(Err(error)),
                Head::Partial => None,
            };
        }
        prop_assert_eq!(cut, whole);
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), query in ".{0,60}") {
        let _ = parse_head(&bytes, &mut 0, &Limits::default());
        let _ = query_value(&query, "token");
        let request_like = [b"GET /", &bytes[..], b" HTTP/1.1\r\n", &bytes[..], b"\r\n\r\n"].concat();
        let _ = parse_head(&request_like, &mut 0, &Limits::default());
    }
}
