//! `Engine`: the engine over real sockets.

use crate::commands::Commands;
use crate::error;
use pyo3::prelude::*;
use realtime_reactor::Engine as Reactor;
use std::sync::Arc;
use std::time::Duration;

/// Listener, shard threads and the log thread.
#[pyclass(extends = Commands, frozen, module = "realtime._engine")]
pub(crate) struct Engine {
    reactor: Reactor,
}

#[pymethods]
impl Engine {
    #[new]
    fn new(py: Python<'_>, options: &[u8]) -> PyResult<PyClassInitializer<Self>> {
        let reactor = error::caught(py, || Reactor::new(options))?;
        let reactor = reactor.map_err(|failed| error::start_error(py, &failed))?;
        let commands = Commands::new(Arc::clone(reactor.handle()));
        Ok(PyClassInitializer::from(commands).add_subclass(Self { reactor }))
    }

    #[pyo3(signature = (accepting=true))]
    fn start(&self, py: Python<'_>, accepting: bool) -> PyResult<()> {
        let start = || if accepting { self.reactor.start() } else { self.reactor.start_without_accepting() };
        error::detached(py, start)?.map_err(|failed| error::start_error(py, &failed))
    }

    fn start_accepting(&self, py: Python<'_>) -> PyResult<()> {
        error::detached(py, || self.reactor.start_accepting())?.map_err(|failed| error::start_error(py, &failed))
    }

    #[getter]
    fn port(&self) -> u16 {
        self.reactor.port()
    }

    #[getter]
    fn epoch(&self) -> &str {
        self.reactor.epoch()
    }

    #[getter]
    fn flush(&self) -> &'static str {
        self.reactor.flush()
    }

    fn stop_accepting(&self, py: Python<'_>) -> PyResult<()> {
        error::detached(py, || self.reactor.stop_accepting())
    }

    fn stop_reading(&self, py: Python<'_>) -> PyResult<()> {
        error::detached(py, || self.reactor.stop_reading())
    }

    fn flush_log(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<bool> {
        error::detached(py, || self.reactor.flush_log(Duration::from_millis(timeout_ms)))
    }

    fn announce_drain(&self, py: Python<'_>, spread_ms: u64) -> PyResult<()> {
        error::detached(py, || self.reactor.announce_drain(spread_ms))
    }

    #[pyo3(signature = (code, reason, over_ms=0))]
    fn close_all(&self, py: Python<'_>, code: u16, reason: &str, over_ms: u64) -> PyResult<()> {
        error::detached(py, || self.reactor.close_all(code, reason, over_ms))
    }

    fn stop(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<()> {
        error::detached(py, || self.reactor.stop(Duration::from_millis(timeout_ms)))
    }
}

/// How many shards an engine has that is asked for so many; 0 is as many as suit this machine.
#[pyfunction]
pub(crate) fn shard_count(asked: usize) -> usize {
    realtime_reactor::shard_count(asked)
}

/// What the sends of an engine that is asked for this would go through on this machine.
#[pyfunction]
pub(crate) fn flush_of(py: Python<'_>, asked: &str) -> PyResult<&'static str> {
    error::detached(py, || realtime_reactor::flush_of(asked))?.map_err(|failed| error::start_error(py, &failed))
}
