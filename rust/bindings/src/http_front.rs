//! `HttpFront`: the HTTP port, before Python sees anything of its requests.

use crate::commands::Commands;
use crate::error;
use pyo3::prelude::*;
use realtime_front::{Front, Options};
use std::net::TcpListener;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

/// A thread that takes, limits and passes on HTTP connections.
#[pyclass(frozen, module = "realtime._engine")]
pub(crate) struct HttpFront {
    front: Arc<Front>,
}

#[pymethods]
impl HttpFront {
    #[new]
    #[pyo3(signature = (engine, options, listener=None))]
    fn new(py: Python<'_>, engine: PyRef<'_, Commands>, options: &[u8], listener: Option<RawFd>) -> PyResult<Self> {
        // SAFETY: the stub says that the descriptor is given away, open, and of nobody else.
        let listener = listener.map(|fd| TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        let is_adopting = listener.is_none();
        let options = Options::from_json(options).map_err(|line| error::options_error(py, line))?;
        let handle = Arc::clone(engine.handle());
        let sockets = Arc::clone(&handle);
        let start = || Front::start(listener, options, move || sockets.evict_one(), move |line| handle.fail(line));
        let front = error::caught(py, start)?
            .map_err(|failed| error::io_error(py, format!("cannot start the thread of the HTTP port: {failed}")))?;
        let front = Arc::new(front);
        if is_adopting {
            let adopting = Arc::downgrade(&front);
            let adopt = move |socket, begun| {
                if let Some(front) = adopting.upgrade() {
                    front.adopt(socket, begun);
                }
            };
            engine.handle().pass_on(adopt).map_err(|failed| error::start_error(py, &failed))?;
        }
        let elsewhere = Arc::downgrade(&front);
        engine.handle().make_room_elsewhere(move || {
            if let Some(front) = elsewhere.upgrade() {
                front.make_room();
            }
        });
        engine.attach(&front);
        Ok(Self { front })
    }

    fn begun(&self, number: u64) {
        self.front.begun(number);
    }

    fn stop(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<()> {
        error::detached(py, || self.front.stop(Duration::from_millis(timeout_ms)))
    }
}
