//! What a forked child does about the engine that it has inherited.

use crate::commands::Commands;
use pyo3::prelude::*;
use std::path::PathBuf;

#[pyfunction]
#[pyo3(signature = (engine, ports, folder=None))]
#[allow(clippy::needless_pass_by_value, reason = "they are Python's arguments")]
pub(crate) fn close_inherited(engine: Py<Commands>, ports: Vec<u16>, folder: Option<PathBuf>) {
    // Never dropped: its end would wait for threads that the child does not have.
    std::mem::forget(engine);
    realtime_reactor::close_inherited(&ports, folder.as_deref());
}
