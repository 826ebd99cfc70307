//! What is done to a log without an engine, as the bindings call it: paths in, one line of error out.

use crate::error::StartError;
use realtime_log::{Copied, StoredPage};
use std::path::{Path, PathBuf};

/// Copies the log of a data directory into a new file; a server may run on it.
///
/// # Errors
/// One line that says what to do; nothing is left behind.
pub fn backup(data_dir: &Path, file: &Path) -> Result<Copied, StartError> {
    Ok(realtime_log::backup(data_dir, file)?)
}

/// Puts a backup in the place of a data directory's log; returns where the log of before is kept.
///
/// # Errors
/// One line that says what to do; the log is as it was.
pub fn restore(file: &Path, data_dir: &Path) -> Result<(Copied, Option<PathBuf>), StartError> {
    Ok(realtime_log::restore(file, data_dir)?)
}

/// Offset and data of a page of events above `after`, oldest first; `None` where there is no log. A server may run on it.
///
/// # Errors
/// One line that says why it cannot be read.
pub fn stored(data_dir: &Path, channel: &str, after: u64) -> Result<Option<StoredPage>, StartError> {
    Ok(realtime_log::stored(data_dir, channel, after)?)
}
