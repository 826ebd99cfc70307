//! `backup`, `restore` and `stored`: what is done to a log without an engine.

use crate::error;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use std::path::PathBuf;

/// Channels, events and bytes of a copy.
type Counts = (u64, u64, u64);

/// Copies the log of a data directory into a new file.
#[pyfunction]
pub(crate) fn backup(py: Python<'_>, data_dir: PathBuf, file: PathBuf) -> PyResult<Counts> {
    let copied = error::detached(py, || realtime_reactor::backup(&data_dir, &file))?;
    let copied = copied.map_err(|failed| error::start_error(py, &failed))?;
    Ok((copied.channels, copied.events, copied.bytes))
}

/// Puts a backup in the place of a data directory's log.
#[pyfunction]
pub(crate) fn restore(py: Python<'_>, file: PathBuf, data_dir: PathBuf) -> PyResult<(Counts, Option<String>)> {
    let restored = error::detached(py, || realtime_reactor::restore(&file, &data_dir))?;
    let (copied, kept) = restored.map_err(|failed| error::start_error(py, &failed))?;
    let kept = kept.map(|path| path.to_string_lossy().into_owned());
    Ok(((copied.channels, copied.events, copied.bytes), kept))
}

/// Reads a page of what a channel of a data directory's log holds.
#[pyfunction]
pub(crate) fn stored<'py>(
    py: Python<'py>,
    data_dir: PathBuf,
    channel: &str,
    after: u64,
) -> PyResult<Option<Bound<'py, PyList>>> {
    let found = error::detached(py, || realtime_reactor::stored(&data_dir, channel, after))?;
    let found = found.map_err(|failed| error::start_error(py, &failed))?;
    found.map(|page| PyList::new(py, page.iter().map(|(offset, data)| (*offset, PyBytes::new(py, data))))).transpose()
}
