//! `LoopEngine`: the engine on the thread of an event loop, over another library's sockets.

use crate::commands::Commands;
use crate::error;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use realtime_hub::ConnId;
use realtime_reactor::{Handle, LoopEngine as Reactor, SocketTask};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is to be done with a socket: what, whose, and bytes.
type Task<'py> = (&'static str, u64, Bound<'py, PyBytes>);

/// One shard that the caller's thread drives, and the log's thread.
#[pyclass(extends = Commands, subclass, frozen, module = "realtime._engine")]
pub(crate) struct LoopEngine {
    reactor: Mutex<Reactor>,
    handle: Arc<Handle>,
    wake: i32,
}

impl LoopEngine {
    fn lock(&self) -> MutexGuard<'_, Reactor> {
        self.reactor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl LoopEngine {
    #[new]
    fn new(py: Python<'_>, options: &[u8]) -> PyResult<PyClassInitializer<Self>> {
        let reactor = error::caught(py, || Reactor::new(options))?;
        let reactor = reactor.map_err(|failed| error::start_error(py, &failed))?;
        let (handle, wake) = (Arc::clone(reactor.handle()), reactor.wake_fileno());
        let commands = Commands::new(Arc::clone(&handle));
        Ok(PyClassInitializer::from(commands).add_subclass(Self { reactor: Mutex::new(reactor), handle, wake }))
    }

    fn open(&self, py: Python<'_>, send: usize, buffered: usize) -> PyResult<()> {
        // SAFETY: the contract in `_engine.pyi`, which the driver keeps.
        error::caught(py, || unsafe { self.lock().start(send, buffered) })?
            .map_err(|failed| error::start_error(py, &failed))
    }

    fn wake_fileno(&self) -> i32 {
        self.wake
    }

    #[getter]
    fn epoch(&self) -> String {
        self.lock().epoch().to_owned()
    }

    fn request(&self, py: Python<'_>, peer: &str, head: &[u8]) -> PyResult<Option<u64>> {
        let peer: IpAddr = peer.parse().map_err(|_| PyValueError::new_err(format!("{peer:?} is no address")))?;
        error::caught(py, || self.lock().request(peer, head).map(ConnId::as_u64))
    }

    fn upgraded(&self, py: Python<'_>, conn: u64, address: usize) -> PyResult<()> {
        error::caught(py, || self.lock().upgraded(ConnId::from_u64(conn), address))
    }

    fn message(&self, py: Python<'_>, conn: u64, opcode: u8, payload: &[u8]) -> PyResult<bool> {
        error::caught(py, || self.lock().message(ConnId::from_u64(conn), opcode, payload))
    }

    fn writable(&self, py: Python<'_>, conn: u64) -> PyResult<()> {
        error::caught(py, || self.lock().writable(ConnId::from_u64(conn)))
    }

    #[pyo3(signature = (conn, payload=None))]
    fn closed(&self, py: Python<'_>, conn: u64, payload: Option<&[u8]>) -> PyResult<()> {
        error::caught(py, || self.lock().closed(ConnId::from_u64(conn), payload))
    }

    fn step<'py>(&self, py: Python<'py>) -> PyResult<(Vec<Task<'py>>, bool)> {
        let (tasks, more) = error::caught(py, || self.lock().step())?;
        let tasks = tasks.into_iter().map(|task| match task {
            SocketTask::Answer(conn, bytes) => ("answer", conn.as_u64(), PyBytes::new(py, &bytes)),
            SocketTask::End(conn, bytes) => ("end", conn.as_u64(), PyBytes::new(py, &bytes)),
            SocketTask::Close(conn) => ("close", conn.as_u64(), PyBytes::new(py, b"")),
        });
        Ok((tasks.collect(), more))
    }

    fn stop_reading(&self, py: Python<'_>) -> PyResult<()> {
        error::caught(py, || self.lock().stop_reading())
    }

    fn flush_log(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<bool> {
        error::detached(py, || self.handle.flush_log(Duration::from_millis(timeout_ms)))
    }

    fn announce_drain(&self, py: Python<'_>, spread_ms: u64) -> PyResult<()> {
        error::caught(py, || self.lock().announce_drain(spread_ms))
    }

    #[pyo3(signature = (code, reason, over_ms=0))]
    fn close_all(&self, py: Python<'_>, code: u16, reason: &str, over_ms: u64) -> PyResult<()> {
        error::caught(py, || self.lock().close_all(code, reason, over_ms))
    }

    fn stop(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<()> {
        error::detached(py, || {
            Reactor::wait_until(|| self.lock().is_empty(), Duration::from_millis(timeout_ms));
            self.lock().stop();
        })
    }
}
