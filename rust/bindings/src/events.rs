//! Events as the tuples that `_engine.pyi` documents.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};
use realtime_hub::Event;

const OPEN: u8 = 0;
const CLOSE: u8 = 1;
const MESSAGE: u8 = 2;
const RAW: u8 = 3;
const UPGRADE: u8 = 4;
const AUTHORIZE: u8 = 5;
const DEFERRED: u8 = 6;
const DRAINED: u8 = 7;
const PUBLISHED: u8 = 8;
const HISTORY: u8 = 9;
const FATAL: u8 = 10;
const CARRIED: u8 = 11;
const REFRESH: u8 = 12;
const RENEWED: u8 = 13;
const HEARD: u8 = 14;
const MEMBERS: u8 = 15;
const WARNED: u8 = 16;
const REFUSED: u8 = 17;

/// The kinds by their names; Python keeps one object for each such small number.
pub(crate) const KINDS: [(&str, u8); 18] = [
    ("OPEN", OPEN),
    ("CLOSE", CLOSE),
    ("MESSAGE", MESSAGE),
    ("RAW", RAW),
    ("UPGRADE", UPGRADE),
    ("AUTHORIZE", AUTHORIZE),
    ("DEFERRED", DEFERRED),
    ("DRAINED", DRAINED),
    ("PUBLISHED", PUBLISHED),
    ("HISTORY", HISTORY),
    ("FATAL", FATAL),
    ("CARRIED", CARRIED),
    ("REFRESH", REFRESH),
    ("RENEWED", RENEWED),
    ("HEARD", HEARD),
    ("MEMBERS", MEMBERS),
    ("WARNED", WARNED),
    ("REFUSED", REFUSED),
];

/// A list of tuples, in order.
pub(crate) fn to_list(py: Python<'_>, events: Vec<Event>) -> PyResult<Bound<'_, PyList>> {
    let tuples = events.into_iter().map(|event| to_tuple(py, event)).collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, tuples)
}

fn to_tuple(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyTuple>> {
    match event {
        Event::Open {
            conn,
            user,
            endpoint,
            first_version,
            peer,
            token,
            expires_at_ms,
            token_id,
            issued_at_s,
            subprotocol,
        } => {
            let (token, token_id, subprotocol) = (token.as_deref(), token_id.as_deref(), subprotocol.as_deref());
            let (conn, user, peer) = (conn.as_u64(), &*user, &*peer);
            (OPEN, conn, user, endpoint, first_version, peer, token, expires_at_ms, token_id, issued_at_s, subprotocol)
                .into_pyobject(py)
        }
        Event::Close { conn, code, channels, open_ms } => {
            let channels = PyList::new(py, channels.iter().map(|channel| &**channel))?;
            (CLOSE, conn.as_u64(), code, channels, open_ms).into_pyobject(py)
        }
        Event::Message { conn, route, id, data, received_ms } => {
            (MESSAGE, conn.as_u64(), route, json(py, id), json(py, data), received_ms).into_pyobject(py)
        }
        Event::Raw { conn, text, payload } => {
            let payload = message(py, text, &payload)?;
            (RAW, conn.as_u64(), payload).into_pyobject(py)
        }
        Event::Upgrade { conn, endpoint, path, query, headers, peer } => {
            let headers = PyList::new(py, headers.iter().map(|(name, value)| (&**name, &**value)))?;
            (UPGRADE, conn.as_u64(), endpoint, &*path, &*query, headers, &*peer).into_pyobject(py)
        }
        Event::Authorize { conn, rule, channel, right, id, raw } => {
            let (id, raw) = (json(py, id), PyBytes::new(py, &raw));
            (AUTHORIZE, conn.as_u64(), rule, &*channel, right, id, raw).into_pyobject(py)
        }
        Event::Deferred { conn, raw } => (DEFERRED, conn.as_u64(), PyBytes::new(py, &raw)).into_pyobject(py),
        Event::Carried { conn, goes_on } => (CARRIED, conn.as_u64(), goes_on).into_pyobject(py),
        Event::Refresh { conn, id, token } => (REFRESH, conn.as_u64(), json(py, id), &*token).into_pyobject(py),
        Event::Renewed { conn, expires_at_ms, token, token_id, issued_at_s } => {
            let (token, token_id) = (token.as_deref(), token_id.as_deref());
            (RENEWED, conn.as_u64(), expires_at_ms, token, token_id, issued_at_s).into_pyobject(py)
        }
        Event::Drained { conn } => (DRAINED, conn.as_u64()).into_pyobject(py),
        Event::Published { ticket, outcome: Ok(published) } => {
            let stored = PyBytes::new(py, &published.data);
            let error = None::<&str>;
            (PUBLISHED, ticket, published.offset, published.duplicate, Some(stored), error).into_pyobject(py)
        }
        Event::Published { ticket, outcome: Err(code) } => {
            (PUBLISHED, ticket, 0u64, false, None::<Bound<'_, PyBytes>>, code).into_pyobject(py)
        }
        Event::History { ticket, outcome: Ok(page) } => {
            let events = PyList::new(py, page.events.iter().map(|event| PyBytes::new(py, event)))?;
            (HISTORY, ticket, events, page.offset, &*page.epoch, None::<&str>).into_pyobject(py)
        }
        Event::History { ticket, outcome: Err(code) } => {
            (HISTORY, ticket, PyList::empty(py), 0u64, "", code).into_pyobject(py)
        }
        Event::Heard { channel, frame } => (HEARD, &*channel, PyBytes::new(py, &frame)).into_pyobject(py),
        Event::Members { ticket, conns, total, parts } => {
            let conns = PyList::new(py, conns.iter().map(|conn| conn.as_u64()))?;
            (MEMBERS, ticket, conns, total, parts).into_pyobject(py)
        }
        Event::Refused { conn, endpoint, peer, reason } => {
            (REFUSED, conn.as_u64(), endpoint, &*peer, reason).into_pyobject(py)
        }
        Event::Warned { message } => (WARNED, &*message).into_pyobject(py),
        Event::Fatal { message } => (FATAL, &*message).into_pyobject(py),
    }
}

fn json(py: Python<'_>, raw: Option<Box<[u8]>>) -> Option<Bound<'_, PyBytes>> {
    raw.map(|raw| PyBytes::new(py, &raw))
}

/// Text as `str`, anything else as `bytes`.
pub(crate) fn message<'py>(py: Python<'py>, is_text: bool, payload: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if is_text {
        // The engine has checked the text; only what tests make by hand could need the replacement.
        PyString::new(py, &String::from_utf8_lossy(payload)).into_bound_py_any(py)
    } else {
        PyBytes::new(py, payload).into_bound_py_any(py)
    }
}
