//! `VirtualEngine`: the engine over links that a test drives.

use crate::commands::{Commands, text};
use crate::error;
use crate::events;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use realtime_hub::ConnId;
use realtime_reactor::{Received, VirtualEngine as Reactor};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The engine without sockets, threads or a clock.
#[pyclass(extends = Commands, frozen, module = "realtime._engine")]
pub(crate) struct VirtualEngine {
    reactor: Mutex<Reactor>,
}

impl VirtualEngine {
    fn lock(&self) -> MutexGuard<'_, Reactor> {
        self.reactor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl VirtualEngine {
    #[new]
    fn new(py: Python<'_>, options: &[u8], wall_ms: u64) -> PyResult<PyClassInitializer<Self>> {
        let reactor = error::caught(py, || Reactor::new(options, wall_ms))?;
        let reactor = reactor.map_err(|failed| error::start_error(py, &failed))?;
        let commands = Commands::new(Arc::clone(reactor.handle()));
        let reactor = Mutex::new(reactor);
        Ok(PyClassInitializer::from(commands).add_subclass(Self { reactor }))
    }

    fn connect(&self, py: Python<'_>, path: &str, headers: Vec<(String, String)>) -> PyResult<usize> {
        error::caught(py, || self.lock().connect(path, &headers))
    }

    #[pyo3(signature = (endpoint, user, grants=None, first_version=false))]
    fn connect_as(
        &self,
        py: Python<'_>,
        endpoint: u16,
        user: &str,
        grants: Option<&[u8]>,
        first_version: bool,
    ) -> PyResult<usize> {
        error::caught(py, || self.lock().connect_as(endpoint, user, grants, first_version))?
            .map_err(PyValueError::new_err)
    }

    fn conn_of_link(&self, py: Python<'_>, link: usize) -> PyResult<Option<u64>> {
        error::caught(py, || self.lock().conn_of_link(link).map(ConnId::as_u64))
    }

    fn client_send(&self, py: Python<'_>, link: usize, payload: &Bound<'_, PyAny>) -> PyResult<()> {
        let (is_text, payload) = match payload.cast::<PyBytes>() {
            Ok(binary) => (false, binary.as_bytes()),
            Err(_) => (true, text(payload)?),
        };
        error::caught(py, || self.lock().client_send(link, is_text, payload))
    }

    #[pyo3(signature = (link, code, reason=""))]
    fn client_close(&self, py: Python<'_>, link: usize, code: u16, reason: &str) -> PyResult<()> {
        error::caught(py, || self.lock().client_close(link, code, reason))
    }

    fn client_drop(&self, py: Python<'_>, link: usize) -> PyResult<()> {
        error::caught(py, || self.lock().client_drop(link))
    }

    fn client_receive<'py>(&self, py: Python<'py>, link: usize) -> PyResult<Bound<'py, PyList>> {
        let received = error::caught(py, || self.lock().client_receive(link))?;
        let tuples = received.into_iter().map(|received| to_tuple(py, received)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, tuples)
    }

    fn client_reads(&self, py: Python<'_>, link: usize, bytes_per_s: Option<u64>) -> PyResult<()> {
        error::caught(py, || self.lock().client_reads(link, bytes_per_s))
    }

    fn announce_drain(&self, py: Python<'_>, spread_ms: u64) -> PyResult<()> {
        error::caught(py, || self.lock().announce_drain(spread_ms))
    }

    #[pyo3(signature = (code, reason, over_ms=0))]
    fn close_all(&self, py: Python<'_>, code: u16, reason: &str, over_ms: u64) -> PyResult<()> {
        error::caught(py, || self.lock().close_all(code, reason, over_ms))
    }

    fn advance(&self, py: Python<'_>, ms: u64) -> PyResult<()> {
        error::caught(py, || self.lock().advance(ms))
    }

    fn now_ms(&self, py: Python<'_>) -> PyResult<u64> {
        error::caught(py, || self.lock().now_ms())
    }

    fn step(&self, py: Python<'_>) -> PyResult<bool> {
        error::caught(py, || self.lock().step())
    }
}

fn to_tuple(py: Python<'_>, received: Received) -> PyResult<Bound<'_, PyTuple>> {
    match received {
        Received::Text(text) => ("text", text).into_pyobject(py),
        Received::Binary(payload) => ("binary", events::message(py, false, &payload)?).into_pyobject(py),
        Received::Close(code, reason) => ("close", (code, reason)).into_pyobject(py),
        Received::Http(status, body) => ("http", (status, body)).into_pyobject(py),
        Received::End => ("end", py.None()).into_pyobject(py),
    }
}
