//! Connections to the server behind, over its Unix socket: kept for a while, taken in turn.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// How long an unused connection is kept: less than the server behind keeps one, so that none ends under a request.
const KEPT: Duration = Duration::from_secs(15);
/// Connections that are open whether somebody asks or not: where no descriptor is left for another one, they serve one
/// request after the other.
const SPARES: usize = 2;

/// The connections that nobody uses.
pub(crate) struct Upstream {
    path: PathBuf,
    unused: RefCell<Vec<(UnixStream, Instant)>>,
}

impl Upstream {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self { path, unused: RefCell::new(Vec::new()) }
    }

    /// A connection that is open.
    pub(crate) async fn take(&self) -> io::Result<UnixStream> {
        while let Some((stream, _)) = self.last() {
            // Nothing is to be read of one that waits for a request.
            if matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return Ok(stream);
            }
        }
        UnixStream::connect(&self.path).await
    }

    fn last(&self) -> Option<(UnixStream, Instant)> {
        self.unused.borrow_mut().pop()
    }

    /// Keeps one that is ready for another request.
    pub(crate) fn give_back(&self, stream: UnixStream, now: Instant) {
        self.unused.borrow_mut().push((stream, now));
    }

    /// Opens what is missing of the spare ones, then closes those that were unused for long.
    pub(crate) async fn sweep(&self, now: Instant) {
        let is_fresh = |since: &Instant| now.duration_since(*since) < KEPT;
        let mut fresh = self.unused.borrow().iter().filter(|(_, since)| is_fresh(since)).count();
        while fresh < SPARES {
            // Where it cannot be, those that are there stay: `take` looks whether they still stand.
            let Ok(stream) = UnixStream::connect(&self.path).await else { return };
            self.give_back(stream, now);
            fresh += 1;
        }
        self.unused.borrow_mut().retain(|(_, since)| is_fresh(since));
    }
}
