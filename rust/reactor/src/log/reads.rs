//! Pages of the log: a queue in which readers take turns, and the thread that reads beside the writer.
//!
//! Each reader (a user, a connection of nobody, the process) has its own pages in their order, and the next page is that
//! of the next reader: whoever asks for many delays nobody by more than one page a turn. What the thread cannot read, or
//! had to read too often since it was changed meanwhile, goes to the writer's queue, where nothing comes between. So does
//! everything of a log in memory. For a moment the writer can have the thread stand still ([`LogReads::stand`]): then no
//! read transaction is open, and the write-ahead log can be emptied.

use crate::bridge::Bridge;
use crate::clock::Clock;
use crate::log::thread::LogRequests;
use crate::log::turns::Turns;
use crate::log::worker::hub_stored;
use crate::panics;
use realtime_hub::{Hub, LogFailure, LogRequest, PageRequest, Read, Reader as Who};
use realtime_log::Reader;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a page is read again before the writer reads it.
const READS_MAX: usize = 3;
/// How long the writer waits for the page that is being read.
const STAND_MAX: Duration = Duration::from_millis(50);

/// How many pages may wait, and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadBounds {
    /// Of one reader.
    pub(crate) reader_most: usize,
    /// The longest wait.
    pub(crate) patience: Duration,
}

/// Pages on their way to the reading thread.
pub(crate) struct LogReads {
    bounds: ReadBounds,
    state: Mutex<State>,
    arrived: Condvar,
    stood: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Turns<Who, (PageRequest, Instant)>,
    /// A page, or the write-ahead log, is being read.
    is_reading: bool,
    stands: bool,
    /// The write-ahead log is to be copied, or being copied.
    settles: bool,
    stopping: bool,
    /// There is a thread.
    serves: bool,
}

/// What the thread does next.
enum Work {
    Page(PageRequest, Instant),
    Settle,
}

impl LogReads {
    pub(crate) fn new(bounds: ReadBounds) -> Self {
        Self { bounds, state: Mutex::default(), arrived: Condvar::new(), stood: Condvar::new() }
    }

    /// Puts a page behind those of its reader; gives it back where too many of its reader's wait, or where nobody reads.
    pub(crate) fn push(&self, page: PageRequest) -> Result<(), (PageRequest, NotTaken)> {
        let mut state = self.lock();
        if !state.serves {
            return Err((page, NotTaken::Unserved));
        }
        if state.waiting.of(&page.reader) >= self.bounds.reader_most {
            return Err((page, NotTaken::Full));
        }
        state.waiting.push(page.reader.clone(), (page, Instant::now()));
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Whether a thread reads beside the writer.
    pub(crate) fn serves(&self) -> bool {
        self.lock().serves
    }

    /// Has the write-ahead log copied into the database; [`Self::is_settled`] says when that is done.
    pub(crate) fn settle(&self) {
        self.lock().settles = true;
        self.arrived.notify_one();
    }

    pub(crate) fn is_settled(&self) -> bool {
        !self.lock().settles
    }

    /// Does `work` while no page is being read; None where the one that is takes too long.
    pub(crate) fn stand<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let deadline = Instant::now() + STAND_MAX;
        let mut state = self.lock();
        state.stands = true;
        while state.is_reading {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.stood.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let may = !state.is_reading;
        drop(state);
        let done = may.then(work);
        self.lock().stands = false;
        self.arrived.notify_one();
        done
    }

    /// Serves what waits and then ends.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.arrived.notify_one();
    }

    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        loop {
            if !state.stands {
                if state.settles {
                    state.is_reading = true;
                    return Some(Work::Settle);
                }
                if let Some((page, since)) = state.waiting.pop() {
                    state.is_reading = true;
                    return Some(Work::Page(page, since));
                }
                if state.stopping {
                    state.serves = false;
                    return None;
                }
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, was_settling: bool) {
        let mut state = self.lock();
        state.is_reading = false;
        state.settles &= !was_settling;
        drop(state);
        self.stood.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a page was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Too many wait.
    Full,
    /// There is no thread: the writer reads.
    Unserved,
}

/// Where pages and what comes of them go.
pub(crate) struct Ways {
    pub(crate) reads: Arc<LogReads>,
    pub(crate) requests: Arc<LogRequests>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) bridge: Arc<Bridge>,
    pub(crate) clock: Arc<Clock>,
}

/// Starts the thread; it ends after [`LogReads::stop`]. A panic in it is fatal and told, as one of the writer's thread.
pub(crate) fn spawn(mut reader: Reader, ways: Ways) -> io::Result<JoinHandle<()>> {
    ways.reads.lock().serves = true;
    std::thread::Builder::new().name("realtime-read".into()).spawn(move || {
        let served = panics::caught(|| serve(&mut reader, &ways));
        drop(reader);
        ways.reads.lock().serves = false;
        ways.reads.done(true);
        if let Err(what) = served {
            ways.bridge
                .fatal(format!("the thread that reads the log failed: {what}; end the process and start it again"));
        }
    })
}

fn serve(reader: &mut Reader, ways: &Ways) {
    while let Some(work) = ways.reads.next() {
        match work {
            Work::Page(page, since) => {
                serve_page(reader, ways, page, since);
                ways.reads.done(false);
            }
            Work::Settle => {
                // What fails here the writer meets by itself, and tells.
                let _ = reader.settle();
                ways.reads.done(true);
            }
        }
    }
}

fn serve_page(reader: &mut Reader, ways: &Ways, mut page: PageRequest, since: Instant) {
    let emit = |event| ways.bridge.push_one(event);
    if since.elapsed() > ways.reads.bounds.patience {
        let late = LogFailure("it waited too long to be read".into());
        let again = ways.hub.page_read(page, Read::InOrder, Err(late), ways.clock.now(), emit);
        debug_assert!(again.is_none(), "what failed is not read again");
        return;
    }
    for _ in 0..READS_MAX {
        let changes = ways.hub.changes(&page.channel);
        let Ok(stored) = reader.page(page.channel.name(), page.after, page.head, page.limit, page.bytes_max) else {
            break;
        };
        let events = stored.into_iter().map(hub_stored).collect();
        match ways.hub.page_read(page, Read::Beside { changes }, Ok(events), ways.clock.now(), emit) {
            None => return,
            Some(again) => page = again,
        }
    }
    ways.requests.push(LogRequest::Page(page));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_has_its_moment_between_two_pages_and_not_during_one() {
        let reads = LogReads::new(ReadBounds { reader_most: 1, patience: Duration::from_secs(60) });
        assert_eq!(reads.stand(|| 7), Some(7));
        reads.settle();
        assert!(matches!(reads.next(), Some(Work::Settle)));
        assert_eq!((reads.stand(|| 7), reads.is_settled()), (None, false), "it does not wait for ever");
        reads.done(true);
        assert_eq!((reads.stand(|| 7), reads.is_settled()), (Some(7), true));
    }

    #[test]
    fn the_thread_stands_still_while_the_writer_has_its_moment() {
        let reads = Arc::new(LogReads::new(ReadBounds { reader_most: 1, patience: Duration::from_secs(60) }));
        let other = Arc::clone(&reads);
        let thread = std::thread::spawn(move || {
            let is_work = matches!(other.next(), Some(Work::Settle));
            other.done(true);
            is_work
        });
        let has_run = reads.stand(|| {
            reads.settle();
            std::thread::sleep(Duration::from_millis(20));
            reads.is_settled()
        });
        assert_eq!((has_run, thread.join().unwrap()), (Some(false), true));
    }
}
