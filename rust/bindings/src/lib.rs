//! `realtime._engine`: the engine as Python sees it. No decisions are made here.
//!
//! `python/realtime/_engine.pyi` is the contract and tells every name in full; these files only turn Python's values
//! into commands and events into tuples. Calls that hand over a batch, wait or start and end threads detach from the
//! GIL. A panic below becomes an [`EngineError`](error::EngineError) here: none crosses into Python.

mod backup;
mod commands;
mod engine;
mod error;
mod events;
mod forks;
mod frames;
mod http_front;
mod json;
mod load;
mod names;
mod origins;
mod tokens;
mod uws_engine;
mod virtual_engine;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

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
    module.add_class::<uws_engine::UwsEngine>()?;
    module.add_class::<virtual_engine::VirtualEngine>()?;
    module.add_class::<http_front::HttpFront>()?;
    module.add_class::<origins::Origins>()?;
    module.add_class::<tokens::TokenCheck>()?;
    module.add("TokenRefused", py.get_type::<tokens::TokenRefused>())?;
    module.add_class::<frames::FrameEncoder>()?;
    module.add_class::<frames::Frame>()?;
    module.add_class::<frames::Deflate>()?;
    module.add_function(wrap_pyfunction!(engine::flush_of, module)?)?;
    module.add_function(wrap_pyfunction!(engine::shard_count, module)?)?;
    module.add_function(wrap_pyfunction!(json::json_fault, module)?)?;
    module.add_function(wrap_pyfunction!(json::json_slices, module)?)?;
    module.add_function(wrap_pyfunction!(forks::close_inherited, module)?)?;
    module.add_function(wrap_pyfunction!(load::load, module)?)?;
    module.add_function(wrap_pyfunction!(backup::backup, module)?)?;
    module.add_function(wrap_pyfunction!(backup::restore, module)?)?;
    module.add_function(wrap_pyfunction!(backup::stored, module)?)?;
    module.add_function(wrap_pyfunction!(names::covers, module)?)?;
    module.add_function(wrap_pyfunction!(names::is_name, module)?)?;
    module.add_function(wrap_pyfunction!(names::named, module)?)?;
    module.add_function(wrap_pyfunction!(names::named_by_client, module)?)?;
    module.add_function(wrap_pyfunction!(names::user_channel, module)?)?;
    module.add("Event", event_type(py)?)?;
    // The stub lists the names.
    module.delattr("__all__")
}

/// `tuple[object, ...]`, so that the stub's name for an event can be imported.
fn event_type(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let object = py.get_type::<PyAny>();
    py.get_type::<PyTuple>().as_any().get_item((object, py.Ellipsis()))
}
