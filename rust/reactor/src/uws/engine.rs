//! The engine on the thread of an event loop: one shard over sockets of uWebSockets, and the log on its own thread.
//!
//! Whoever drives it has loaded the library and made its loop; the engine runs that loop, so that no Python runs for a
//! message or a receiver. A turn runs the library's loop until nothing more comes, then everything that came of it in
//! one flush, as a shard's thread does over its own sockets.

use crate::clock::Clock;
use crate::descriptors;
use crate::error::StartError;
use crate::handle::Handle;
use crate::log::far_deadline;
use crate::notify::Notify;
use crate::panics;
use crate::uws::callbacks::{Callbacks, Context, Heard};
use crate::uws::library::{Library, Pointer, RUN_NOWAIT};
use crate::uws::shard::UwsShard;
use crate::uws::sockets::UwsSockets;
use crate::wiring::{self, Wired, check_options};
use realtime_hub::{Hub, Options};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a turn looks for more before it sends.
const LOOKS_MAX: usize = 4;
/// How often a turn sends before the event loop has its turn.
const ROUNDS_MAX: usize = 2;
const STOP_POLL: Duration = Duration::from_millis(2);

/// One shard on the caller's thread, and the log on its own.
pub struct UwsEngine {
    options: Options,
    handle: Arc<Handle>,
    wake: Arc<Notify>,
    running: OnceLock<Running>,
}

struct Running {
    library: Library,
    uv_loop: usize,
    heard: Arc<Heard>,
    hub: Arc<Hub>,
    shard: Arc<Mutex<UwsShard>>,
    epoch: String,
    log: Mutex<Option<JoinHandle<()>>>,
    has_failed: AtomicBool,
}

impl UwsEngine {
    /// Checks the options (JSON, see [`Options`]); `host`, `port` and `shards` mean nothing here.
    ///
    /// # Errors
    /// As [`crate::Engine::new`].
    pub fn new(options: &[u8]) -> Result<Self, StartError> {
        let options = check_options(options)?;
        let no_descriptor = |error: std::io::Error| StartError::io("cannot make the event descriptor", &error);
        let handle = Handle::new(&options.limits, Clock::system()).map_err(no_descriptor)?;
        let wake = Arc::new(Notify::new().map_err(no_descriptor)?);
        Ok(Self { options, handle, wake, running: OnceLock::new() })
    }

    /// Python's end.
    #[must_use]
    pub const fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// A descriptor that is readable when [`Self::turn`] has something to do that the library does not know of.
    #[must_use]
    pub fn wake_fileno(&self) -> RawFd {
        self.wake.fileno()
    }

    /// Opens the log and returns what the library has to call.
    ///
    /// # Safety
    /// `address_of` has the functions of [`crate::FUNCTIONS`], of one library that stays loaded; `uv_loop` is a loop
    /// of libuv and `us_loop` the library's upon it, of the thread that will call [`Self::turn`].
    ///
    /// # Errors
    /// As [`crate::Engine::start`], less those of the port.
    pub unsafe fn start(
        &self,
        address_of: impl Fn(&str) -> Option<usize>,
        uv_loop: usize,
        us_loop: usize,
    ) -> Result<Callbacks, StartError> {
        if self.handle.is_started() {
            return Err(StartError::options("this engine was started before; make a new one"));
        }
        // SAFETY: the caller's word.
        let library = unsafe { Library::at(address_of) }?;
        let descriptors = descriptors::raise_limit()
            .map_err(|error| StartError::io("cannot read the limit of open descriptors", &error))?;
        let sockets_max =
            descriptors::sockets_max(self.options.limits.connections_max, descriptors, self.options.descriptors_kept);
        let Wired { hub, log, epoch } = wiring::wire(&self.options, 1, &self.handle)?;
        let wake = Arc::clone(&self.wake);
        hub.inbox(0).set_waker(Box::new(move || wake.set()));
        wiring::watch_pressure(&self.handle, &hub, || {});
        let log = Mutex::new(Some(wiring::spawn_log(log, &self.handle)?));
        let heard = Arc::new(Heard::default());
        let sockets = UwsSockets::new(library, us_loop, Arc::clone(&heard));
        let (bridge, clock) = (Arc::clone(&self.handle.bridge), Arc::clone(&self.handle.clock));
        let shard = UwsShard::new(Arc::clone(&hub), bridge, clock, Arc::clone(&heard), sockets);
        let shard = Arc::new(Mutex::new(shard));
        let context = Context::new(library, Arc::clone(&heard), Arc::clone(&shard), sockets_max);
        let _ = self.handle.hub.set(Arc::clone(&hub));
        let _ = self.running.set(Running {
            library,
            uv_loop,
            heard,
            hub,
            shard,
            epoch,
            log,
            has_failed: AtomicBool::new(false),
        });
        Ok(Callbacks::of(context))
    }

    /// The epoch of the log's current term; empty before the start.
    #[must_use]
    pub fn epoch(&self) -> &str {
        self.running.get().map_or("", |running| &running.epoch)
    }

    /// Hears the library and runs what can run now; true if there is more at once. On the loop's thread. A panic that is
    /// no one connection's ends the engine, and Python is told.
    pub fn turn(&self) -> bool {
        self.wake.clear();
        let Some(running) = self.running.get() else { return false };
        if running.has_failed.load(Ordering::Relaxed) {
            return false;
        }
        panics::caught(|| self.run(running)).and_then(|turned| turned).unwrap_or_else(|what| {
            running.has_failed.store(true, Ordering::Relaxed);
            self.handle.bridge.fatal(format!("the shard failed: {what}; end the process and start it again"));
            false
        })
    }

    fn run(&self, running: &Running) -> Result<bool, String> {
        let mut more = true;
        for _ in 0..ROUNDS_MAX {
            running.shard().begin();
            // Also where nothing comes: libuv takes note of what changed only as it runs.
            let heard = running.hear();
            if let Some(what) = running.heard.take_fault() {
                return Err(what);
            }
            if (!more && !heard) || self.handle.stopped.load(Ordering::Acquire) {
                return Ok(false);
            }
            more = running.shard().step();
        }
        Ok(true)
    }

    /// Reads nothing more from any connection, for good; see [`Hub::stop_reading`].
    pub fn stop_reading(&self) {
        if let Some(running) = self.running.get() {
            running.hub.stop_reading();
        }
    }

    /// Tells clients that the process ends; see [`Hub::announce_drain`].
    pub fn announce_drain(&self, spread_ms: u64) {
        if let Some(running) = self.running.get() {
            running.hub.announce_drain(spread_ms);
        }
    }

    /// Closes every connection; see [`Hub::close_all`].
    pub fn close_all(&self, code: u16, reason: &str, over_ms: u64) {
        if let Some(running) = self.running.get() {
            running.hub.close_all(code, reason, over_ms);
        }
    }

    /// Waits up to `timeout` for the connections to end, then ends the log's thread; from another thread than the
    /// loop's. Idempotent.
    pub fn stop(&self, timeout: Duration) {
        let Some(running) = self.running.get() else { return };
        let deadline = far_deadline(timeout);
        while !running.shard().is_empty() && Instant::now() < deadline {
            std::thread::sleep(STOP_POLL);
        }
        self.handle.stopped.store(true, Ordering::Release);
        self.handle.requests.stop();
        let log = running.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = log {
            let _ = thread.join();
        }
    }

    /// Closes the sockets that are left when the engine has stopped; on the loop's thread.
    pub fn let_go(&self) {
        if let Some(running) = self.running.get() {
            running.shard().close_all();
            running.hear();
        }
    }
}

impl Drop for UwsEngine {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl Running {
    fn shard(&self) -> MutexGuard<'_, UwsShard> {
        self.shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the library's loop until nothing more comes, a few times at most; true if anything came. What comes late
    /// leaves in the same sends: a look costs one system call, a send to every member that could have been shared
    /// costs many.
    fn hear(&self) -> bool {
        for look in 0..LOOKS_MAX {
            // SAFETY: the loop is the one of the start, and nobody holds the shard.
            unsafe { (self.library.run_loop)(self.uv_loop as Pointer, RUN_NOWAIT) };
            if !self.heard.take_any() {
                return look > 0;
            }
        }
        true
    }
}
