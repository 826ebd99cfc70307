//! `load`: the load generator as a function.

use crate::error;
use pyo3::prelude::*;
use realtime_load::run::run;
use realtime_load::watch::{Watch, Wish};
use realtime_load::{failure::Failure, options};
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A few times a second: often enough for a line that people read.
const INTERVAL: Duration = Duration::from_millis(250);

/// Runs one load to its end without the GIL; `on_progress` gets it four times a second.
#[pyfunction]
pub(crate) fn load(
    py: Python<'_>,
    arguments: Vec<String>,
    tokens: Vec<String>,
    on_progress: Py<PyAny>,
) -> PyResult<String> {
    let mut options = options::parse(arguments.into_iter()).map_err(|line| error::options_error(py, line))?;
    if !tokens.is_empty() {
        options.tokens = tokens;
    }
    let raised = Arc::new(Mutex::new(None));
    let watch = {
        let raised = Arc::clone(&raised);
        Watch::new(INTERVAL, move |progress| {
            Python::attach(|py| tell(py, &on_progress, progress)).unwrap_or_else(|raising| {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(raising);
                Wish::Abandon
            })
        })
    };
    let ended = error::detached(py, || run(&options, watch))?;
    if let Some(raising) = raised.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(raising);
    }
    match ended {
        Ok(outcome) => Ok(outcome.report.json().to_string()),
        Err(Failure::Call(line)) => Err(error::options_error(py, line)),
        Err(other) => Err(error::io_error(py, other.to_string())),
    }
}

/// Whether `on_progress` wants to go on; signal handlers run first, so that what Ctrl-C sets is seen.
fn tell(py: Python<'_>, on_progress: &Py<PyAny>, progress: &Value) -> PyResult<Wish> {
    py.check_signals()?;
    let goes_on = on_progress.call1(py, (progress.to_string(),))?.is_truthy(py)?;
    Ok(if goes_on { Wish::GoOn } else { Wish::Finish })
}
