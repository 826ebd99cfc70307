//! `Origins`: which pages may connect, by the rule of the shards, for the HTTP API.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use realtime_hub::origin::OriginRule;

/// The rule of `auth.origins`.
#[pyclass(frozen, module = "realtime._engine")]
pub(crate) struct Origins {
    rule: OriginRule,
}

#[pymethods]
impl Origins {
    #[new]
    fn new(entries: Option<Vec<String>>) -> PyResult<Self> {
        let rule = OriginRule::new(entries.as_deref()).map_err(PyValueError::new_err)?;
        Ok(Self { rule })
    }

    #[getter]
    fn listed(&self) -> Option<Vec<String>> {
        self.rule.listed()
    }

    fn allows(&self, origin: &str, host: Option<&str>, by_cookie: bool) -> bool {
        self.rule.allows(origin, host, by_cookie)
    }
}
