//! The log's thread and the queue in front of it.
//!
//! Shards and Python only push; the thread takes everything that waits, serves it in order and pushes the outcomes
//! to the bridge once a commit. It never takes the GIL, so a busy Python does not slow a commit and a slow disk does
//! not stop anybody. A panic in it is fatal and told: a log that nobody serves would keep every sender waiting.

use crate::bridge::Bridge;
use crate::clock::Clock;
use crate::log::reads::{LogReads, NotTaken};
use crate::log::worker::LogWorker;
use crate::panics;
use realtime_hub::{LogQueue, LogRequest, PageRequest};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Requests on their way to the log, oldest first.
#[derive(Default)]
pub(crate) struct LogRequests {
    state: Mutex<State>,
    arrived: Condvar,
    answered: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<LogRequest>,
    /// Requests ever pushed and ever answered: a flush waits for the second to reach the first.
    pushed: u64,
    answered: u64,
    stopping: bool,
    /// Nobody serves any more.
    ended: bool,
}

impl LogRequests {
    /// Takes everything that waits, without waiting for it.
    pub(crate) fn take(&self) -> VecDeque<LogRequest> {
        std::mem::take(&mut self.lock().waiting)
    }

    /// Says that so many requests are answered.
    pub(crate) fn answered(&self, count: usize) {
        let mut state = self.lock();
        state.answered += count as u64;
        self.answered.notify_all();
    }

    /// Waits until everything pushed before this call is answered; false when `timeout` passes first, or when
    /// nobody serves the queue any more.
    pub(crate) fn flush(&self, timeout: Duration) -> bool {
        let deadline = far_deadline(timeout);
        let mut state = self.lock();
        let pushed = state.pushed;
        while state.answered < pushed {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return false;
            }
            let waited = self.answered.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Serves what waits and then ends.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.arrived.notify_all();
    }

    /// Waits for requests, for at most `patience`; None when the end was asked for and nothing waits.
    fn wait(&self, patience: Duration) -> Option<VecDeque<LogRequest>> {
        let mut state = self.lock();
        let deadline = far_deadline(patience);
        while state.waiting.is_empty() {
            if state.stopping {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.arrived.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(std::mem::take(&mut state.waiting))
    }

    fn end(&self) {
        self.lock().ended = true;
        self.answered.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hub's end of the queue.
pub(crate) struct LogPort {
    pub(crate) requests: Arc<LogRequests>,
    pub(crate) reads: Arc<LogReads>,
}

impl LogQueue for LogPort {
    fn push(&self, request: LogRequest) {
        self.requests.push(request);
    }

    fn read(&self, page: PageRequest) -> Result<(), PageRequest> {
        match self.reads.push(page) {
            Ok(()) => Ok(()),
            Err((page, NotTaken::Full)) => Err(page),
            Err((page, NotTaken::Unserved)) => {
                self.requests.push(LogRequest::Page(page));
                Ok(())
            }
        }
    }
}

impl LogRequests {
    /// Puts one request at the end of the queue.
    pub(crate) fn push(&self, request: LogRequest) {
        let mut state = self.lock();
        let is_first = state.waiting.is_empty();
        state.waiting.push_back(request);
        state.pushed += 1;
        drop(state);
        if is_first {
            self.arrived.notify_one();
        }
    }
}

/// The moment `timeout` from now; one beyond what the clock can name is as good as never.
pub(crate) fn far_deadline(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or(now + YEAR)
}

/// Starts the thread; it ends after [`LogRequests::stop`], and the log is closed with it. `reading` is the thread that
/// reads beside it, which ends before.
pub(crate) fn spawn(
    mut worker: LogWorker,
    reading: Option<JoinHandle<()>>,
    requests: Arc<LogRequests>,
    bridge: Arc<Bridge>,
    clock: Arc<Clock>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("realtime-log".into()).spawn(move || {
        let served = panics::caught(|| serve(&mut worker, &requests, &bridge, &clock));
        worker.reads.stop();
        if let Some(thread) = reading {
            // It catches its own panics and tells of them.
            let _ = thread.join();
        }
        worker.end_wal();
        // The file and the directory's lock are given back before anybody hears of the end.
        drop(worker);
        requests.end();
        if let Err(what) = served {
            bridge.fatal(format!("log thread failed: {what}; end the process and start it again"));
        }
    })
}

fn serve(worker: &mut LogWorker, requests: &LogRequests, bridge: &Bridge, clock: &Clock) {
    let mut events = Vec::new();
    while let Some(mut waiting) = requests.wait(worker.chore_in(clock.now())) {
        let is_idle = waiting.is_empty();
        while !waiting.is_empty() {
            let count = worker.serve_next(&mut waiting, || clock.now(), &mut events);
            // Outcomes are with Python before a flush says that everything is done.
            bridge.push(&mut events);
            requests.answered(count);
        }
        worker.do_chore(|| clock.now(), is_idle, &mut events);
        bridge.push(&mut events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_of_nothing_is_done_at_once() {
        assert!(LogRequests::default().flush(Duration::ZERO));
    }

    #[test]
    fn a_queue_that_nobody_serves_ends_a_flush() {
        let requests = LogRequests::default();
        requests.lock().pushed = 1;
        assert!(!requests.flush(Duration::from_millis(5)));
        requests.end();
        assert!(!requests.flush(Duration::from_secs(60)));
        requests.answered(1);
        assert!(requests.flush(Duration::ZERO));
    }
}
