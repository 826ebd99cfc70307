//! `json_fault` and `json_slices`: the rules of a message's JSON, for texts that come by other ways than a socket.
//!
//! Both copy the text and detach from the GIL, so that a thread of Python's can check a long one.

use pyo3::prelude::*;
use realtime_hub::json::{Fault, Invalid, Slice, check, path_at, slices};

type Told = (String, Option<String>);
type Slices = Vec<(usize, usize, usize)>;

/// Says what is wrong with a text, and where; None where a socket would take it.
#[pyfunction]
pub(crate) fn json_fault(py: Python<'_>, text: &[u8], values_max: usize) -> Option<Told> {
    py.detach(|| checked(text, |copy| check(copy, values_max))).err()
}

/// As `json_fault`, for texts that may be an array of many elements, which it gives in slices.
#[pyfunction]
pub(crate) fn json_slices(
    py: Python<'_>,
    text: &[u8],
    values_max: usize,
    slice_values: usize,
) -> (Option<Told>, Option<Slices>) {
    match py.detach(|| checked(text, |copy| slices(copy, values_max, slice_values))) {
        Ok(found) => (None, found.map(|all| all.iter().map(as_tuple).collect())),
        Err(told) => (Some(told), None),
    }
}

fn as_tuple(slice: &Slice) -> (usize, usize, usize) {
    (slice.span.start, slice.span.end, slice.count)
}

fn checked<T>(text: &[u8], check: impl FnOnce(&mut [u8]) -> Result<T, Invalid>) -> Result<T, Told> {
    if let Err(error) = std::str::from_utf8(text) {
        return Err((format!("not UTF-8 at byte {}", error.valid_up_to()), None));
    }
    let mut copy = text.to_vec();
    match check(&mut copy) {
        Err(invalid) if invalid.fault == Fault::Syntax => Err((format!("not JSON at byte {}", invalid.at), None)),
        Err(invalid) => Err((invalid.fault.to_string(), invalid.path(&copy))),
        // The check puts another character in the place of half a pair. Compared whole first: as a rule nothing differs.
        Ok(found) if copy == text => Ok(found),
        Ok(found) => match copy.iter().zip(text).position(|(left, right)| left != right) {
            Some(at) => {
                let path = Some(path_at(text, at)).filter(|path| !path.is_empty());
                Err(("half a surrogate pair".to_owned(), path))
            }
            None => Ok(found),
        },
    }
}
