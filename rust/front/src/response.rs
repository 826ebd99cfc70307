//! The head of an answer from the server behind, and the head that the client gets of it.

use crate::body::Framing;
use crate::options::KNOWN_HEADER;
use std::io;

/// Header lines of an answer.
const HEADERS_MAX: usize = 128;
/// A body that the server behind reads with the head. Where its application refuses a longer one unread, it closes the
/// connection behind its answer, and does not say so.
pub(crate) const SHORT_BODY: usize = 4 * 1024;
/// Bytes of its head.
pub(crate) const HEAD_BYTES_MAX: usize = 256 * 1024;

/// What the client is and wants, as far as its answer depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) minor_version: u8,
    pub(crate) is_head: bool,
    pub(crate) is_kept: bool,
    /// Whether its body is longer than [`SHORT_BODY`].
    pub(crate) has_long_body: bool,
}

/// An answer whose head is whole.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What the client gets.
    pub(crate) head: Vec<u8>,
    /// How the server behind ends the body.
    pub(crate) body: Framing,
    /// Whether the client gets it in chunks.
    pub(crate) is_chunked: bool,
    /// Whether another request may follow on the client's connection.
    pub(crate) is_kept: bool,
    /// Whether another request may follow on the connection to the server behind.
    pub(crate) is_reusable: bool,
    /// Whether the server behind knew the caller.
    pub(crate) is_known: bool,
    /// Whether it is a stream of events, which has no end.
    pub(crate) is_event_stream: bool,
}

/// Reads the head at the front of `bytes`; with its length, or None while it is not whole. Interim answers are left
/// out by their length alone: `Ok(Some((None, len)))`.
///
/// # Errors
/// The server behind has not written HTTP.
pub(crate) fn parse(bytes: &[u8], client: Client) -> io::Result<Option<(Option<Answer>, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let len = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let status = parsed.code.unwrap_or(0);
    if (100..200).contains(&status) && status != 101 {
        return Ok(Some((None, len)));
    }
    Ok(Some((Some(answer(&parsed, status, client)), len)))
}

fn answer(parsed: &httparse::Response<'_, '_>, status: u16, client: Client) -> Answer {
    let value =
        |name: &str| parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|h| h.value);
    let has_body = !client.is_head && !matches!(status, 204 | 304);
    let is_in_chunks = value("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
    let length = value("content-length").and_then(|value| str::from_utf8(value).ok()?.trim().parse().ok());
    let body = match (has_body, is_in_chunks, length) {
        (false, ..) => Framing::Length(0),
        (true, true, _) => Framing::chunked(),
        (true, false, Some(length)) => Framing::Length(length),
        (true, false, None) => Framing::Close,
    };
    let has_length = matches!(body, Framing::Length(_));
    let is_chunked = !has_length && client.minor_version == 1;
    let is_kept = client.is_kept && (has_length || is_chunked);
    let is_read = !client.has_long_body || (200..300).contains(&status);
    let is_reusable = is_read
        && body != Framing::Close
        && !value("connection").is_some_and(|connection| connection.eq_ignore_ascii_case(b"close"));
    let media_type = value("content-type").unwrap_or_default();
    let is_event_stream = media_type.get(..17).is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/event-stream"));
    Answer {
        head: written(parsed, status, is_chunked, is_kept, client),
        body,
        is_chunked,
        is_kept,
        is_reusable,
        is_known: value(KNOWN_HEADER).is_some(),
        is_event_stream,
    }
}

fn written(
    parsed: &httparse::Response<'_, '_>,
    status: u16,
    is_chunked: bool,
    is_kept: bool,
    client: Client,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    head.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n", parsed.reason.unwrap_or("")).as_bytes());
    for header in parsed.headers.iter() {
        let is_of_connection =
            ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", KNOWN_HEADER]
                .iter()
                .any(|name| name.eq_ignore_ascii_case(header.name));
        let is_told_otherwise = is_chunked && header.name.eq_ignore_ascii_case("content-length");
        if !is_of_connection && !is_told_otherwise {
            head.extend_from_slice(header.name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(header.value);
            head.extend_from_slice(b"\r\n");
        }
    }
    if is_chunked {
        head.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    if !is_kept {
        head.extend_from_slice(b"connection: close\r\n");
    } else if client.minor_version == 0 {
        head.extend_from_slice(b"connection: keep-alive\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Client = Client { minor_version: 1, is_head: false, is_kept: true, has_long_body: false };

    fn read(bytes: &str, client: Client) -> Answer {
        parse(bytes.as_bytes(), client).unwrap().unwrap().0.unwrap()
    }

    fn head(answer: &Answer) -> &str {
        str::from_utf8(&answer.head).unwrap()
    }

    #[test]
    fn a_length_stays_a_length() {
        let answer = read("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nserver: x\r\n\r\nhello", CLIENT);
        assert_eq!(head(&answer), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nserver: x\r\n\r\n");
        assert!(answer.body == Framing::Length(5) && answer.is_kept && answer.is_reusable);
    }

    #[test]
    fn chunks_are_chunks_for_http_1_1_and_end_with_the_connection_for_http_1_0() {
        let bytes = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        let new = read(bytes, CLIENT);
        assert_eq!(head(&new), "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        assert!(new.is_kept && !new.is_reusable);
        let old = read(bytes, Client { minor_version: 0, ..CLIENT });
        assert_eq!(head(&old), "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        assert!(!old.is_kept && !old.is_chunked);
    }

    #[test]
    fn an_answer_to_head_has_no_body_whatever_length_it_tells() {
        let answer = read("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Client { is_head: true, ..CLIENT });
        assert!(answer.body.is_whole() && head(&answer).contains("content-length: 5"));
        assert!(read("HTTP/1.1 204 No Content\r\n\r\n", CLIENT).body.is_whole());
    }

    #[test]
    fn a_connection_is_not_used_again_where_a_long_body_may_be_unread() {
        let long = Client { has_long_body: true, ..CLIENT };
        for (status, client, is_reusable) in
            [("429 x", CLIENT, true), ("429 x", long, false), ("500 x", long, false), ("201 x", long, true)]
        {
            let answer = read(&format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"), client);
            assert_eq!(answer.is_reusable, is_reusable, "{status}");
            assert!(answer.is_kept);
        }
    }

    #[test]
    fn interim_answers_are_left_out_and_half_a_head_is_waited_for() {
        assert!(matches!(parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP", CLIENT), Ok(Some((None, 25)))));
        assert!(matches!(parse(b"HTTP/1.1 200 O", CLIENT), Ok(None)));
        assert!(parse(b"nonsense", CLIENT).is_err());
        assert!(parse(format!("HTTP/1.1 200 OK\r\na: {}", "x".repeat(HEAD_BYTES_MAX)).as_bytes(), CLIENT).is_err());
    }

    #[test]
    fn a_stream_of_events_is_known_by_its_type() {
        let stream = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n";
        assert!(read(stream, CLIENT).is_event_stream);
        assert!(!read("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n", CLIENT).is_event_stream);
    }
}
