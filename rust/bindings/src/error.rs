//! `EngineError` and the way of everything that fails to it.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use realtime_reactor::{StartCode, StartError};
use std::panic::{AssertUnwindSafe, catch_unwind};

create_exception!(
    realtime._engine,
    EngineError,
    PyException,
    "The engine could not start; `args[0]` is one line that says what to do, `code` names the kind."
);

/// The code of whatever has none of its own.
pub(crate) const CODE_IO: &str = StartCode::Io.name();

/// The exception for a start that failed.
pub(crate) fn start_error(py: Python<'_>, error: &StartError) -> PyErr {
    with_code(py, error.message.clone(), error.code.name())
}

/// The exception for a call whose arguments cannot be carried out.
pub(crate) fn options_error(py: Python<'_>, line: String) -> PyErr {
    with_code(py, line, StartCode::Options.name())
}

/// The exception for what has no code of its own.
pub(crate) fn io_error(py: Python<'_>, line: String) -> PyErr {
    with_code(py, line, CODE_IO)
}

/// Runs `work` and turns a panic into an exception that an `except Exception` sees.
pub(crate) fn caught<T>(py: Python<'_>, work: impl FnOnce() -> T) -> PyResult<T> {
    // What a panic left half done in the engine is the engine's to mend; nothing of it is used here.
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| with_code(py, "the engine panicked; its message is on stderr, end the process".into(), CODE_IO))
}

/// As [`caught`], without the GIL while `work` runs.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    let done = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    caught(py, || match done {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn with_code(py: Python<'_>, message: String, code: &'static str) -> PyErr {
    let error = EngineError::new_err(message);
    match error.value(py).setattr("code", code) {
        Ok(()) => error,
        Err(failed) => failed,
    }
}
