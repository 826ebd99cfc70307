//! `UwsEngine`: the engine on the thread of an event loop, over another library's sockets.

use crate::commands::Commands;
use crate::error;
use pyo3::prelude::*;
use realtime_reactor::{Callbacks, FUNCTIONS, Handle, UwsEngine as Reactor};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// One shard that the caller's thread drives, and the log's thread.
#[pyclass(extends = Commands, subclass, frozen, module = "realtime._engine")]
pub(crate) struct UwsEngine {
    reactor: Reactor,
    handle: Arc<Handle>,
}

#[pymethods]
impl UwsEngine {
    #[new]
    fn new(py: Python<'_>, options: &[u8]) -> PyResult<PyClassInitializer<Self>> {
        let reactor = error::caught(py, || Reactor::new(options))?;
        let reactor = reactor.map_err(|failed| error::start_error(py, &failed))?;
        let handle = Arc::clone(reactor.handle());
        let commands = Commands::new(Arc::clone(&handle));
        Ok(PyClassInitializer::from(commands).add_subclass(Self { reactor, handle }))
    }

    #[staticmethod]
    fn functions() -> Vec<&'static str> {
        FUNCTIONS.to_vec()
    }

    #[allow(clippy::needless_pass_by_value, reason = "a dict becomes a map of its own")]
    fn open(
        &self,
        py: Python<'_>,
        functions: HashMap<String, usize>,
        uv_loop: usize,
        us_loop: usize,
    ) -> PyResult<HashMap<&'static str, usize>> {
        // SAFETY: the contract in `_engine.pyi`, which the driver keeps.
        let start = || unsafe { self.reactor.start(|name| functions.get(name).copied(), uv_loop, us_loop) };
        let callbacks = error::caught(py, start)?.map_err(|failed| error::start_error(py, &failed))?;
        let Callbacks { upgrade, request, open, message, drain, ping_pong, close, context } = callbacks;
        Ok(HashMap::from([
            ("upgrade", upgrade),
            ("request", request),
            ("open", open),
            ("message", message),
            ("drain", drain),
            ("ping", ping_pong),
            ("pong", ping_pong),
            ("close", close),
            ("context", context),
        ]))
    }

    fn wake_fileno(&self) -> i32 {
        self.reactor.wake_fileno()
    }

    #[getter]
    fn epoch(&self) -> &str {
        self.reactor.epoch()
    }

    fn turn(&self, py: Python<'_>) -> PyResult<bool> {
        error::caught(py, || self.reactor.turn())
    }

    fn stop_reading(&self, py: Python<'_>) -> PyResult<()> {
        error::caught(py, || self.reactor.stop_reading())
    }

    fn flush_log(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<bool> {
        error::detached(py, || self.handle.flush_log(Duration::from_millis(timeout_ms)))
    }

    fn announce_drain(&self, py: Python<'_>, spread_ms: u64) -> PyResult<()> {
        error::caught(py, || self.reactor.announce_drain(spread_ms))
    }

    #[pyo3(signature = (code, reason, over_ms=0))]
    fn close_all(&self, py: Python<'_>, code: u16, reason: &str, over_ms: u64) -> PyResult<()> {
        error::caught(py, || self.reactor.close_all(code, reason, over_ms))
    }

    fn stop(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<()> {
        error::detached(py, || self.reactor.stop(Duration::from_millis(timeout_ms)))
    }

    fn let_go(&self, py: Python<'_>) -> PyResult<()> {
        error::caught(py, || self.reactor.let_go())
    }
}
