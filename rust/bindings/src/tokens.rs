//! `TokenCheck`: the engine's rule of tokens, for Python's doors.

use crate::error;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use realtime_hub::Refusal;
use realtime_hub::TokenRule;
use realtime_hub::token::TokenCheck as Check;

create_exception!(
    realtime._engine,
    TokenRefused,
    PyException,
    "A token is refused: `args` is the reason, a sentence for people, and whether its key may still be fetched."
);

/// User, JSON of the grants, end in Unix ms, time of issue in Unix s, `jti`.
type Checked<'py> = (String, Option<Bound<'py, PyBytes>>, Option<u64>, Option<u64>, Option<String>);

/// Checks tokens.
#[pyclass(frozen, module = "realtime._engine")]
pub(crate) struct TokenCheck(Check);

#[pymethods]
impl TokenCheck {
    #[new]
    fn new(py: Python<'_>, rule: &[u8]) -> PyResult<Self> {
        let rule: Result<TokenRule, _> = serde_json::from_slice(rule);
        let check = rule.map_err(|error| format!("token: {error}")).and_then(|rule| Check::new(&rule));
        check.map(Self).map_err(|line| error::options_error(py, line))
    }

    fn check<'py>(&self, py: Python<'py>, token: &Bound<'py, PyString>, now_ms: u64) -> PyResult<Checked<'py>> {
        // Text that is not UTF-8 is no token.
        let token = token.to_str().map_err(|_| refused(Refusal::Malformed))?;
        let (identity, grants) = py.detach(|| self.0.check_with_grants(token, now_ms)).map_err(refused)?;
        let grants = grants.map(|json| PyBytes::new(py, json.as_bytes()));
        let token_id = identity.token_id.map(Into::into);
        Ok((identity.user.to_string(), grants, identity.expires_at_ms, identity.issued_at_s, token_id))
    }

    fn explain<'py>(
        &self,
        py: Python<'py>,
        token: &Bound<'py, PyString>,
        now_ms: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let token = token.to_string_lossy();
        let explanation = py.detach(|| serde_json::to_vec(&self.0.explain(&token, now_ms)));
        let json = explanation.map_err(|error| error::io_error(py, error.to_string()))?;
        Ok(PyBytes::new(py, &json))
    }

    #[staticmethod]
    fn reasons() -> Vec<(&'static str, &'static str)> {
        let of_name = |name| Refusal::ALL.iter().find(|reason| reason.name() == name).map(|reason| reason.sentence());
        Refusal::names().filter_map(|name| Some((name, of_name(name)?))).collect()
    }
}

fn refused(refusal: Refusal) -> PyErr {
    TokenRefused::new_err((refusal.name(), refusal.sentence(), refusal == Refusal::KeyNotFetched))
}
