//! `realtime._engine`: the engine as Python sees it. No decisions are made here.
//!
//! `python/realtime/_engine.pyi` is the contract and tells every name in full; these files only turn Python's values
//! into commands and events into tuples. Calls that hand over a batch, wait or start and end threads detach from the
//! GIL. A panic below becomes an [`EngineError`](error::EngineError) here: none crosses into Python.

mod commands;
mod engine;
mod error;
mod events;
mod virtual_engine;

use pyo3::prelude::*;

#[pymodule]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    for (name, kind) in events::KINDS {
        module.add(name, kind)?;
    }
    let engine_error = py.get_type::<error::EngineError>();
    // So that the attribute is there on every instance, whoever makes it.
    engine_error.setattr("code", error::CODE_IO)?;
    module.add("EngineError", engine_error)?;
    module.add_class::<commands::Commands>()?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<virtual_engine::VirtualEngine>()
}
