//! `json_fault`: the rules of a message's JSON, for texts that come by other ways than a socket.

use pyo3::prelude::*;
use realtime_hub::json::{Fault, check, path_at};

/// Says what is wrong with a text, and where; None where a socket would take it.
#[pyfunction]
pub(crate) fn json_fault(text: &[u8]) -> Option<(String, Option<String>)> {
    if let Err(error) = std::str::from_utf8(text) {
        return Some((format!("not UTF-8 at byte {}", error.valid_up_to()), None));
    }
    let mut copy = text.to_vec();
    match check(&mut copy) {
        Err(invalid) if invalid.fault == Fault::Syntax => Some((format!("not JSON at byte {}", invalid.at), None)),
        Err(invalid) => Some((invalid.fault.to_string(), invalid.path(&copy))),
        // The check puts another character in the place of half a pair. Compared whole first: as a rule nothing differs.
        Ok(_) if copy == text => None,
        Ok(_) => copy.iter().zip(text).position(|(left, right)| left != right).map(|at| {
            let path = Some(path_at(text, at)).filter(|path| !path.is_empty());
            ("half a surrogate pair".to_owned(), path)
        }),
    }
}
