//! Commands on their way down: buffered in the order of the calls, handed over by `submit`.
//!
//! Buffering takes a lock that is never held over anything but a push, so it needs no detaching. A second lock keeps
//! batches of several threads in order on their way into the hub. Before the engine has started `submit` leaves the
//! buffer as it is, so that what is queued early is not lost.

use crate::error;
use crate::events;
use pyo3::exceptions::{PyTypeError, PyUnicodeDecodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};
use realtime_front::Front;
use realtime_hub::{Admitted, Amendment, Command, ConnId, Credit, Publish, Rejection, Reply, latest_key};
use realtime_reactor::Handle;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What Python tells the engine.
#[pyclass(subclass, frozen, module = "realtime._engine")]
pub(crate) struct Commands {
    handle: Arc<Handle>,
    buffer: Mutex<Buffer>,
    submitting: Mutex<()>,
    /// The HTTP port of this engine's server, where it has one.
    front: OnceLock<Arc<Front>>,
}

#[derive(Default)]
struct Buffer {
    commands: Vec<Command>,
    /// Tickets given before the buffer was last handed over.
    tickets_before: u64,
    /// Where in `commands` the ticket `tickets_before + i` stands.
    ticketed: Vec<usize>,
}

impl Buffer {
    fn next_ticket(&mut self) -> u64 {
        self.ticketed.push(self.commands.len());
        self.tickets_before + self.ticketed.len() as u64 - 1
    }

    /// The publish behind a ticket while it is still here.
    fn publish(&mut self, ticket: u64) -> Option<&mut Publish> {
        let index = usize::try_from(ticket.checked_sub(self.tickets_before)?).ok()?;
        match self.commands.get_mut(*self.ticketed.get(index)?) {
            Some(Command::Publish(publish)) => Some(publish),
            _ => None,
        }
    }

    fn take(&mut self) -> Vec<Command> {
        self.tickets_before += self.ticketed.len() as u64;
        self.ticketed.clear();
        std::mem::take(&mut self.commands)
    }
}

impl Commands {
    pub(crate) const fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// Tells what the HTTP port counts beside what the engine does; the first one's, if there are several.
    pub(crate) fn attach(&self, front: &Arc<Front>) {
        let _ = self.front.set(Arc::clone(front));
    }

    pub(crate) fn new(handle: Arc<Handle>) -> Self {
        Self { handle, buffer: Mutex::default(), submitting: Mutex::default(), front: OnceLock::new() }
    }

    fn push(&self, command: Command) {
        self.buffer().commands.push(command);
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        // Every change under the lock is whole.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Commands {
    #[pyo3(signature = (conn, user, grants=None, expires_at_ms=None, issued_at_s=None, token_id=None))]
    fn accept(
        &self,
        conn: u64,
        user: &str,
        grants: Option<&[u8]>,
        expires_at_ms: Option<u64>,
        issued_at_s: Option<u64>,
        token_id: Option<&str>,
    ) {
        let who = admitted(user, grants, expires_at_ms, issued_at_s, token_id);
        self.push(Command::Accept { conn: ConnId::from_u64(conn), who });
    }

    #[pyo3(signature = (conn, id, user, grants=None, expires_at_ms=None, issued_at_s=None, token_id=None))]
    #[allow(clippy::too_many_arguments, reason = "they are Python's keywords")]
    fn renew(
        &self,
        conn: u64,
        id: Option<&[u8]>,
        user: &str,
        grants: Option<&[u8]>,
        expires_at_ms: Option<u64>,
        issued_at_s: Option<u64>,
        token_id: Option<&str>,
    ) {
        let who = admitted(user, grants, expires_at_ms, issued_at_s, token_id);
        self.push(Command::Renew { conn: ConnId::from_u64(conn), id: id.map(Into::into), who });
    }

    #[pyo3(signature = (user=None, token_id=None, before_s=None, close=true))]
    fn revoke(&self, user: Option<&str>, token_id: Option<&str>, before_s: Option<u64>, close: bool) -> PyResult<()> {
        if user.is_none() && token_id.is_none() || user == Some("") || token_id == Some("") {
            return Err(PyValueError::new_err("revoke takes a user, the id of a token, or both"));
        }
        let (user, token_id) = (user.map(Into::into), token_id.map(Into::into));
        self.push(Command::Revoke { user, token_id, before_s, close });
        Ok(())
    }

    fn set_identity(&self, py: Python<'_>, json: &[u8]) -> PyResult<()> {
        error::detached(py, || self.handle.set_identity(json))?.map_err(|failed| error::start_error(py, &failed))
    }

    #[pyo3(signature = (conn, status, body, close=None, wait_ms=None))]
    fn reject(&self, conn: u64, status: u16, body: &str, close: Option<u16>, wait_ms: Option<u64>) {
        let how = Rejection { status, body: body.into(), close, wait_ms };
        self.push(Command::Reject { conn: ConnId::from_u64(conn), how });
    }

    #[pyo3(signature = (conn, payload, done=0))]
    fn send_text(&self, conn: u64, payload: &Bound<'_, PyAny>, done: u16) -> PyResult<()> {
        let payload = text(payload)?.into();
        self.push(Command::Send { conn: ConnId::from_u64(conn), text: true, payload, done });
        Ok(())
    }

    #[pyo3(signature = (conn, payload, done=0))]
    fn send_binary(&self, conn: u64, payload: &[u8], done: u16) {
        let payload = payload.into();
        self.push(Command::Send { conn: ConnId::from_u64(conn), text: false, payload, done });
    }

    #[pyo3(signature = (conns, payload, key=None))]
    fn send_many(&self, conns: Vec<u64>, payload: &Bound<'_, PyBytes>, key: Key<'_>) -> PyResult<()> {
        let payload = text(payload)?.into();
        let conns = conns.into_iter().map(ConnId::from_u64).collect();
        self.push(Command::SendMany { conns, payload, key: latest(key) });
        Ok(())
    }

    #[pyo3(signature = (payload, key=None))]
    fn send_all(&self, payload: &Bound<'_, PyBytes>, key: Key<'_>) -> PyResult<()> {
        let payload = text(payload)?.into();
        self.push(Command::SendAll { payload, key: latest(key) });
        Ok(())
    }

    #[pyo3(signature = (users))]
    fn presence_mode(&self, users: Option<Vec<String>>) {
        let users = users.map(|users| users.into_iter().map(Into::into).collect());
        self.push(Command::PresenceMode { users });
    }

    fn presence_change(&self, user: &str, is_online: bool) {
        self.push(Command::PresenceChange { user: user.into(), is_online });
    }

    #[pyo3(signature = (conn, code, reason=""))]
    fn close(&self, conn: u64, code: u16, reason: &str) {
        self.push(Command::Close { conn: ConnId::from_u64(conn), code, reason: reason.into() });
    }

    fn grant(&self, conn: u64, channel: &str, rights: Vec<String>, raw: &[u8]) {
        let rights = rights.into_iter().map(Into::into).collect();
        let (conn, raw) = (ConnId::from_u64(conn), raw.into());
        self.push(Command::Grant { conn, channel: channel.into(), rights, raw });
    }

    fn resume(&self, conn: u64, raw: &[u8]) {
        self.push(Command::Resume { conn: ConnId::from_u64(conn), raw: raw.into() });
    }

    fn subscribe(&self, conn: u64, channel: &str) {
        self.push(Command::Subscribe { conn: ConnId::from_u64(conn), channel: channel.into() });
    }

    fn unsubscribe(&self, conn: u64, channel: &str, code: &str, retryable: bool) {
        let (conn, code) = (ConnId::from_u64(conn), code.into());
        self.push(Command::Unsubscribe { conn, channel: channel.into(), code, retryable });
    }

    #[pyo3(signature = (channel, event, data, user=None, key=None, dedupe=None, number=false, notify=false, request=None,
        amends=None, replacement=None, erases=false))]
    #[allow(clippy::too_many_arguments, reason = "they are Python's keywords")]
    fn publish(
        &self,
        channel: &str,
        event: &str,
        data: &Bound<'_, PyBytes>,
        user: Option<&str>,
        key: Option<&str>,
        dedupe: Option<&str>,
        number: bool,
        notify: bool,
        request: Option<&str>,
        amends: Option<u64>,
        replacement: Option<&Bound<'_, PyBytes>>,
        erases: bool,
    ) -> PyResult<u64> {
        let data = text(data)?.into();
        let replacement = replacement.map(|data| text(data).map(Into::into)).transpose()?;
        let mut buffer = self.buffer();
        let ticket = buffer.next_ticket();
        buffer.commands.push(Command::Publish(Publish {
            ticket,
            channel: channel.into(),
            event: event.into(),
            data,
            user: user.map(Into::into),
            key: key.map(Into::into),
            dedupe: dedupe.map(Into::into),
            number,
            request: request.map(Into::into),
            amends: amends.map(|offset| Amendment { offset, replacement, erases }),
            notify,
            reply: None,
        }));
        Ok(ticket)
    }

    #[pyo3(signature = (ticket, conn, id, failure=None))]
    fn reply_with(&self, ticket: u64, conn: u64, id: Option<&[u8]>, failure: Option<&str>) -> bool {
        let mut buffer = self.buffer();
        let Some(publish) = buffer.publish(ticket) else {
            return false;
        };
        publish.notify = false;
        let (conn, id, failure) = (ConnId::from_u64(conn), id.map(Into::into), failure.map(Into::into));
        publish.reply = Some(Reply { conn, id, failure, credit: Some(Credit::Python(1)) });
        true
    }

    fn want(&self, ticket: u64) -> bool {
        let mut buffer = self.buffer();
        let publish = buffer.publish(ticket);
        publish.map(|publish| publish.notify = true).is_some()
    }

    #[pyo3(signature = (channels, payload, key=None))]
    fn publish_union(&self, channels: Vec<String>, payload: &Bound<'_, PyBytes>, key: Key<'_>) -> PyResult<()> {
        let payload = text(payload)?.into();
        let channels = channels.into_iter().map(Into::into).collect();
        self.push(Command::PublishUnion { channels, payload, key: latest(key) });
        Ok(())
    }

    #[pyo3(signature = (channel, after, limit, epoch=None, user=None))]
    fn history(&self, channel: &str, after: Option<u64>, limit: usize, epoch: Option<&str>, user: Option<&str>) -> u64 {
        let mut buffer = self.buffer();
        let ticket = buffer.next_ticket();
        buffer.commands.push(Command::History {
            ticket,
            channel: channel.into(),
            after,
            epoch: epoch.map(Into::into),
            limit,
            user: user.map(Into::into),
        });
        ticket
    }

    fn members_of(&self, channel: &str) -> u64 {
        let mut buffer = self.buffer();
        let ticket = buffer.next_ticket();
        buffer.commands.push(Command::Members { ticket, channel: channel.into() });
        ticket
    }

    #[pyo3(signature = (conn, n=1))]
    fn done(&self, conn: u64, n: u16) {
        self.push(Command::Done { conn: ConnId::from_u64(conn), count: n });
    }

    fn submit(&self, py: Python<'_>) -> PyResult<()> {
        error::detached(py, || {
            let _in_order = self.submitting.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.handle.is_started() {
                return;
            }
            let commands = self.buffer().take();
            if !commands.is_empty() {
                self.handle.submit(commands);
            }
        })
    }

    fn drain<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Bound<'py, PyList>> {
        let taken = error::caught(py, || self.handle.drain(most))?;
        events::to_list(py, taken)
    }

    fn fileno(&self) -> i32 {
        self.handle.fileno()
    }

    #[pyo3(signature = (user, peer, commands=1, page_bytes=0))]
    fn charge(
        &self,
        py: Python<'_>,
        user: &str,
        peer: &str,
        commands: u32,
        page_bytes: usize,
    ) -> PyResult<Option<u32>> {
        error::caught(py, || self.handle.charge(user, peer.parse().ok(), commands, page_bytes).err())
    }

    fn settle(&self, py: Python<'_>, user: &str, peer: &str, reserved: usize, page_bytes: usize) -> PyResult<()> {
        error::caught(py, || self.handle.settle(user, peer.parse().ok(), reserved, page_bytes))
    }

    fn session_id(&self, py: Python<'_>, conn: u64) -> PyResult<String> {
        error::caught(py, || self.handle.session_id(ConnId::from_u64(conn)))
    }

    fn conn_of(&self, py: Python<'_>, session_id: &str) -> PyResult<Option<u64>> {
        error::caught(py, || self.handle.conn_of(session_id).map(ConnId::as_u64))
    }

    fn members(&self, py: Python<'_>, channel: &str) -> PyResult<usize> {
        error::caught(py, || self.handle.members(channel))
    }

    fn backlog(&self, py: Python<'_>, conn: u64) -> PyResult<usize> {
        error::caught(py, || self.handle.backlog(ConnId::from_u64(conn)))
    }

    fn overloaded(&self, py: Python<'_>) -> PyResult<bool> {
        error::caught(py, || self.handle.overloaded())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        error::caught(py, || {
            let engine = self.handle.stats_json();
            let http = self.front.get().map_or_else(Front::no_stats_json, |front| front.stats_json());
            let members = engine.strip_suffix('}').unwrap_or("{");
            PyBytes::new(py, format!("{members},{http}}}").as_bytes())
        })
    }
}

/// An event's type and its key.
type Key<'a> = Option<(&'a str, &'a str)>;

fn latest(key: Key<'_>) -> Option<Arc<str>> {
    key.map(|(event, key)| latest_key(event, key))
}

fn admitted(
    user: &str,
    grants: Option<&[u8]>,
    expires_at_ms: Option<u64>,
    issued_at_s: Option<u64>,
    token_id: Option<&str>,
) -> Admitted {
    let (grants, token_id) = (grants.map(Into::into), token_id.map(Into::into));
    Admitted { user: user.into(), grants, expires_at_ms, issued_at_s, token_id }
}

/// The bytes of a text message: a `str`, or `bytes` that are UTF-8. What is not would end every receiver with 1007.
pub(crate) fn text<'a>(payload: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    if let Ok(text) = payload.cast::<PyString>() {
        return Ok(text.to_str()?.as_bytes());
    }
    let bytes = payload.cast::<PyBytes>().map_err(|_| PyTypeError::new_err("payload must be str or bytes"))?.as_bytes();
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(PyUnicodeDecodeError::new_err_from_utf8(payload.py(), bytes, error)),
    }
}
