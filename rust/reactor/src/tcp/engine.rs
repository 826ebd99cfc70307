//! The engine over real sockets: opens the log, binds, starts the threads, and ends all of it in order.
//!
//! Nothing is opened and no thread runs before [`Engine::start`], so a process may fork before it. Python starts and
//! stops it; between the two it is reached through its [`Handle`] alone. Threads: one acceptor, one for each shard,
//! one for the log. None of them ever takes the GIL.

use crate::clock::Clock;
use crate::descriptors;
use crate::error::StartError;
use crate::forks::Mark;
use crate::handle::Handle;
use crate::log::{LogRequests, far_deadline};
use crate::tcp::acceptor::{self, Admission, Door};
use crate::tcp::arrivals::Arrivals;
use crate::tcp::flush::{FlushKind, Flushes};
use crate::tcp::listener;
use crate::tcp::shard::{self, Shard, Shared};
use crate::wiring::{self, Wired, check_options};
use mio::{Poll, Waker};
use realtime_hub::{Hub, Options};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads beyond this bring nothing: the kernel's network stack is the limit before.
const SHARDS_AUTO_MAX: usize = 8;
/// How often the end of the connections is looked for while the engine stops.
const STOP_POLL: Duration = Duration::from_millis(2);

/// Listener, shard threads and the log thread.
pub struct Engine {
    options: Options,
    handle: Arc<Handle>,
    running: Mutex<Option<Running>>,
    facts: OnceLock<Facts>,
}

/// What is known from the start on, and stays known after the end.
struct Facts {
    port: u16,
    epoch: String,
}

/// The threads; dropping it ends them.
struct Running {
    shared: Arc<Shared>,
    requests: Arc<LogRequests>,
    door: Arc<Door>,
    /// The listener, bound, before anything is accepted.
    waiting: Option<Waiting>,
    acceptor: Option<JoinHandle<()>>,
    arrivals: Vec<Arc<Arrivals>>,
    shards: Vec<JoinHandle<()>>,
    log: Option<JoinHandle<()>>,
    marks: Vec<Mark>,
}

/// What the acceptor's thread will be made of.
struct Waiting {
    poll: Poll,
    listener: TcpListener,
    admission: Admission,
}

impl Engine {
    /// Checks the options (JSON, see [`Options`]).
    ///
    /// # Errors
    /// Code `options` with the key that is wrong, or `io` when the system gives no descriptor.
    pub fn new(options: &[u8]) -> Result<Self, StartError> {
        let options = check_options(options)?;
        let handle = Handle::new(&options.limits, Clock::system())
            .map_err(|error| StartError::io("cannot make the event descriptor", &error))?;
        Ok(Self { options, handle, running: Mutex::new(None), facts: OnceLock::new() })
    }

    /// Python's end.
    #[must_use]
    pub const fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// Opens the log, binds, starts the threads and takes connections.
    ///
    /// # Errors
    /// Every [`crate::StartCode`]; nothing runs then and nothing is held. Started a second time: `options`.
    pub fn start(&self) -> Result<(), StartError> {
        self.start_without_accepting()?;
        self.start_accepting().inspect_err(|_| self.stop(Duration::ZERO))
    }

    /// As [`Self::start`], but peers wait in the kernel's backlog until [`Self::start_accepting`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_without_accepting(&self) -> Result<(), StartError> {
        let mut running = self.lock();
        if self.handle.is_started() || self.handle.stopped.load(Ordering::Acquire) {
            return Err(StartError::options("this engine was started before; make a new one"));
        }
        let descriptors = descriptors::raise_limit()
            .map_err(|error| StartError::io("cannot read the limit of open descriptors", &error))?;
        let sockets_max =
            descriptors::sockets_max(self.options.limits.connections_max, descriptors, self.options.descriptors_kept);
        let flush = FlushKind::choose(self.options.flush)?;
        let wired = wiring::wire(&self.options, shard_count(self.options.shards), &self.handle)?;
        let listener = listener::bind(&self.options.host, self.options.port)?;
        let started = self
            .launch(wired, listener, sockets_max, flush)
            .inspect_err(|_| self.handle.stopped.store(true, Ordering::Release))?;
        *running = Some(started);
        Ok(())
    }

    fn launch(
        &self,
        wired: Wired,
        listener: TcpListener,
        sockets_max: usize,
        flush: FlushKind,
    ) -> Result<Running, StartError> {
        let handle = &self.handle;
        let shards = shard_count(self.options.shards);
        let port = listener.local_addr().map_err(|error| StartError::io("cannot read the port", &error))?.port();
        let Wired { hub, log, epoch } = wired;
        let no_thread = |error: std::io::Error| StartError::io("cannot start a thread", &error);
        let (accept_poll, door) = acceptor::open().map_err(no_thread)?;
        let flushes = Arc::new(Flushes::new(flush, shards));
        let shared = Arc::new(Shared {
            hub: Arc::clone(&hub),
            bridge: Arc::clone(&handle.bridge),
            clock: Arc::clone(&handle.clock),
            stopping: AtomicBool::new(false),
            flushes: Arc::clone(&flushes),
            passer: Arc::clone(&handle.passer),
        });
        let (polls, arrivals) = open_pollers(&hub, shards)?;
        let marks = polls.iter().chain([&accept_poll]).map(Mark::new).collect();
        let admission = Admission {
            shards: arrivals.clone(),
            sockets_max,
            bridge: Arc::clone(&handle.bridge),
            hub: Arc::clone(&hub),
            elsewhere: Arc::clone(&handle.elsewhere),
        };
        let mut running = Running {
            shared: Arc::clone(&shared),
            requests: Arc::clone(&handle.requests),
            door,
            waiting: Some(Waiting { poll: accept_poll, listener, admission }),
            acceptor: None,
            arrivals: arrivals.clone(),
            shards: Vec::new(),
            log: None,
            marks,
        };
        // From here on a failure ends what runs already: `Running` stops its threads when it is dropped.
        running.log = Some(wiring::spawn_log(log, handle)?);
        for (index, (poll, door)) in polls.into_iter().zip(arrivals).enumerate() {
            let shard = Shard::new(index, poll, door, Arc::clone(&shared));
            let thread = std::thread::Builder::new().name(format!("realtime-{index}"));
            running.shards.push(thread.spawn(move || shard::run(shard)).map_err(no_thread)?);
        }
        let door = Arc::clone(&running.door);
        wiring::watch_pressure(handle, &hub, move || door.wake());
        // Last: commands are taken from now on. Both are set once: `start` has looked.
        let _ = self.facts.set(Facts { port, epoch });
        let _ = handle.flushes.set(flushes);
        let _ = handle.hub.set(hub);
        Ok(running)
    }

    /// The port that it listens on; 0 before the start.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.facts.get().map_or(0, |facts| facts.port)
    }

    /// How sends reach the kernel now: `uring` or `send`, `mixed` where rings of some shards have failed; `none` before
    /// the start.
    #[must_use]
    pub fn flush(&self) -> &'static str {
        self.handle.flush()
    }

    /// The epoch of the log's current term; empty before the start.
    #[must_use]
    pub fn epoch(&self) -> &str {
        self.facts.get().map_or("", |facts| &facts.epoch)
    }

    /// Takes connections from now on; without effect where that was said before or the engine does not run.
    ///
    /// # Errors
    /// `io` when the system gives no thread.
    pub fn start_accepting(&self) -> Result<(), StartError> {
        let mut running = self.lock();
        let Some(running) = running.as_mut() else { return Ok(()) };
        let Some(Waiting { poll, listener, admission }) = running.waiting.take() else { return Ok(()) };
        let door = Arc::clone(&running.door);
        let thread = acceptor::spawn(poll, door, listener, admission);
        running.acceptor = Some(thread.map_err(|error| StartError::io("cannot start a thread", &error))?);
        Ok(())
    }

    /// Closes the listening socket; the port is free when this returns.
    pub fn stop_accepting(&self) {
        if let Some(running) = self.lock().as_mut() {
            running.stop_accepting();
        }
    }

    /// Reads nothing more from any connection, for good; what is queued still goes out.
    pub fn stop_reading(&self) {
        if let Some(hub) = self.handle.hub.get() {
            hub.stop_reading();
        }
    }

    /// Waits until everything handed to the log so far is committed, published and acknowledged.
    #[must_use]
    pub fn flush_log(&self, timeout: Duration) -> bool {
        self.handle.requests.flush(timeout)
    }

    /// Tells clients that the process ends and when to come back; see [`Hub::announce_drain`].
    pub fn announce_drain(&self, spread_ms: u64) {
        if let Some(hub) = self.handle.hub.get() {
            hub.announce_drain(spread_ms);
        }
    }

    /// Closes every connection; see [`Hub::close_all`].
    pub fn close_all(&self, code: u16, reason: &str, over_ms: u64) {
        if let Some(hub) = self.handle.hub.get() {
            hub.close_all(code, reason, over_ms);
        }
    }

    /// Waits up to `timeout` for the connections to end, then ends the threads and closes the log. Idempotent.
    pub fn stop(&self, timeout: Duration) {
        // Not under the lock while it waits: others may still ask.
        let Some(mut running) = self.lock().take() else {
            return;
        };
        running.stop_accepting();
        running.wait_for_connections(far_deadline(timeout));
        self.handle.stopped.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl Running {
    fn stop_accepting(&mut self) {
        // The acceptor's is the last.
        self.marks.truncate(self.arrivals.len());
        self.waiting = None;
        self.door.close();
        if let Some(thread) = self.acceptor.take() {
            join(thread);
        }
    }

    fn wait_for_connections(&self, deadline: Instant) {
        while self.arrivals.iter().any(|shard| shard.load() > 0) && Instant::now() < deadline {
            std::thread::sleep(STOP_POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Before the first poller is closed.
        self.marks.clear();
        self.stop_accepting();
        self.shared.stopping.store(true, Ordering::Release);
        for shard in &self.arrivals {
            shard.wake();
        }
        self.shards.drain(..).for_each(join);
        // After the shards: what they still asked of the log is stored.
        self.requests.stop();
        if let Some(thread) = self.log.take() {
            join(thread);
        }
    }
}

/// Threads catch their own panics and tell of them.
fn join(thread: JoinHandle<()>) {
    let _ = thread.join();
}

/// How many shards an engine has that is asked for so many; 0 leaves one core to Python.
#[must_use]
pub fn shard_count(asked: usize) -> usize {
    if asked > 0 {
        return asked;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.saturating_sub(1).clamp(1, SHARDS_AUTO_MAX)
}

fn open_pollers(hub: &Arc<Hub>, shards: usize) -> Result<(Vec<Poll>, Vec<Arc<Arrivals>>), StartError> {
    let no_poller = |error: std::io::Error| StartError::io("cannot make a poller", &error);
    let (mut polls, mut arrivals) = (Vec::new(), Vec::new());
    for index in 0..shards {
        let poll = Poll::new().map_err(no_poller)?;
        let waker = Arc::new(Waker::new(poll.registry(), shard::WAKE).map_err(no_poller)?);
        let door = Arc::new(Arrivals::new(waker));
        let woken = Arc::clone(&door);
        hub.inbox(index).set_waker(Box::new(move || woken.wake()));
        polls.push(poll);
        arrivals.push(door);
    }
    Ok((polls, arrivals))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StartCode;

    #[test]
    fn broken_options_are_told_before_anything_is_opened() {
        for (json, word) in [("{", "options"), (r#"{"prt": 1}"#, "prt"), (r#"{"shards": 65}"#, "shards=65")] {
            let error = Engine::new(json.as_bytes()).err().unwrap();
            assert_eq!(error.code, StartCode::Options);
            assert!(error.message.contains(word), "{error}");
        }
    }

    #[test]
    fn there_is_a_shard_for_each_core_but_pythons() {
        assert_eq!(shard_count(3), 3);
        assert!((1..=SHARDS_AUTO_MAX).contains(&shard_count(0)));
    }
}
