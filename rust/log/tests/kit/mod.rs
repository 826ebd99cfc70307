//! What the tests of the log share: a directory that goes away, short ways to append and read, and the test binary
//! started a second time as another process.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use realtime_log::{Append, Appended, Error, Log, Options, Stored};

/// Where the second process works; its presence tells a test that it is that process.
pub(crate) const CHILD_DIR: &str = "REALTIME_LOG_TEST_DIR";

/// A new directory under the system's temporary one, removed at the end.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("realtime-log-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir(&path).expect("the temporary directory is writable");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.0.join("realtime.sqlite3")
    }

    pub(crate) fn open(&self) -> Log {
        self.try_open().expect("the log opens")
    }

    pub(crate) fn try_open(&self) -> Result<Log, Error> {
        Log::open(&Options { data_dir: self.0.clone(), busy_timeout_ms: 100 })
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An event as most tests want it; the rest by struct update.
pub(crate) const fn event<'a>(channel: &'a str, data: &'a str) -> Append<'a> {
    Append {
        channel,
        event: "new_message",
        data: data.as_bytes(),
        number_field: false,
        user: Some("alice"),
        dedupe: None,
        request: None,
        amends: None,
        time_ms: 1_700_000_000_000,
    }
}

/// Appends `events` events to a channel in one batch.
pub(crate) fn fill(log: &mut Log, channel: &str, events: usize) -> Vec<Appended> {
    log.append(&vec![event(channel, r#"{"content":"hi"}"#); events]).expect("the batch is stored")
}

/// Every event of a channel.
pub(crate) fn all(log: &mut Log, channel: &str) -> Vec<Stored> {
    log.page(channel, 0, usize::MAX, usize::MAX).expect("the channel is readable").events
}

pub(crate) fn offsets(events: &[Stored]) -> Vec<u64> {
    events.iter().map(|stored| stored.offset).collect()
}

/// This test binary once more, running `test` alone with [`CHILD_DIR`] set.
pub(crate) fn again(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test knows its binary"));
    command.args([test, "--exact", "--nocapture"]).env(CHILD_DIR, dir);
    command
}

pub(crate) fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD_DIR).map(PathBuf::from)
}
