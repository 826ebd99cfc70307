//! Where panics stop: one connection's bytes, or a thread, never the process and never Python.
//!
//! The workspace is built with `panic = "unwind"`. What a panic left half done is given up by whoever catches it:
//! a shard closes the connection, a thread reports that the engine cannot go on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work` and turns a panic into its message.
///
/// # Errors
/// The panic's message, one line.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // Unwind safety is the caller's: it uses nothing of what `work` changed but to close it.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| message(payload.as_ref()))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("panic without a message").lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_in_one_line() {
        assert_eq!(caught(|| 7), Ok(7));
        assert_eq!(caught(|| panic!("a\nb")), Err::<(), _>("a b".into()));
        assert_eq!(caught(|| panic!("{}", 1)), Err::<(), _>("1".into()));
        assert_eq!(caught(|| std::panic::panic_any(7)), Err::<(), _>("panic without a message".into()));
    }
}
