//! Names of channels and what grants cover, for the HTTP side and for apps: the functions that the shards go by.
//!
//! A `str` with half a surrogate pair is no name of anything.

use pyo3::prelude::*;
use pyo3::types::PyString;
use realtime_hub::channel_name;
use realtime_hub::pattern::Pattern;
use std::borrow::Cow;

#[pyfunction]
pub(crate) fn is_name(text: &Bound<'_, PyString>) -> bool {
    text.to_str().is_ok_and(channel_name::is_name)
}

#[pyfunction]
pub(crate) fn named(name: &Bound<'_, PyString>) -> Option<String> {
    channel_name::named(name.to_str().ok()?).map(Cow::into_owned)
}

#[pyfunction]
pub(crate) fn named_by_client(name: &Bound<'_, PyString>, user: &Bound<'_, PyString>) -> Option<String> {
    channel_name::named_by_client(name.to_str().ok()?, user.to_str().ok()?).map(Cow::into_owned)
}

#[pyfunction]
pub(crate) fn user_channel(user: &str) -> String {
    channel_name::user_channel(user)
}

#[pyfunction]
pub(crate) fn covers(pattern: &str, channel: &str, user: &str) -> bool {
    Pattern::new(pattern).is_ok_and(|pattern| pattern.covers(channel, user))
}
