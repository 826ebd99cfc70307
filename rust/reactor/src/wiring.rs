//! What every engine is made of, whatever moves its bytes: options that were checked, a log, and a hub that both it and
//! Python's end are tied to.

use crate::error::{StartCode, StartError};
use crate::handle::Handle;
use crate::log::{self, DiskRoom, LogPort, LogWorker, Ways};
use realtime_hub::{Hub, LogQueue, LogRequest, Options, Terms};
use realtime_log::Log;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

/// More than anybody has cores for; names have room for 256.
const SHARDS_MAX: usize = 64;

/// A hub, and the log that serves it once somebody runs it.
pub(crate) struct Wired {
    pub(crate) hub: Arc<Hub>,
    pub(crate) log: LogWorker,
    pub(crate) epoch: String,
}

/// Reads the options and lets a hub that is thrown away look at all of them, so that what is wrong is told before
/// anything is opened.
pub(crate) fn check_options(json: &[u8]) -> Result<Options, StartError> {
    struct NoLog;
    impl LogQueue for NoLog {
        fn push(&self, _: LogRequest) {}
    }
    let options = Options::from_json(json).map_err(StartError::options)?;
    if options.shards > SHARDS_MAX {
        return Err(StartError::options(format!(
            "engine options: shards={} exceeds {SHARDS_MAX}; use at most one for each core, or 0",
            options.shards
        )));
    }
    Hub::new(&options, 1, Box::new(NoLog), "check".into(), [0; 32]).map_err(StartError::options)?;
    Ok(options)
}

/// Opens the log and makes the hub; commands come to it only when it is set in `handle`.
pub(crate) fn wire(options: &Options, shards: usize, handle: &Handle) -> Result<Wired, StartError> {
    let mut log = match &options.data_dir {
        Some(dir) => Log::open(&realtime_log::Options::new(dir))?,
        None => Log::open_in_memory()?,
    };
    log.set_dedupe_s(options.dedupe_s);
    let epoch = log.epoch().to_owned();
    let queue = Box::new(LogPort { requests: Arc::clone(&handle.requests), reads: Arc::clone(&handle.reads) });
    let terms = Terms::new(log.terms().iter().map(|term| (term.number, term.epoch.clone())));
    let hub = Hub::new(options, shards, queue, terms, nonce()?).map_err(StartError::options)?;
    let bridge = Arc::clone(&handle.bridge);
    hub.set_ear(Box::new(move |event| bridge.push_one(event)));
    let room = DiskRoom::new(options.data_dir.as_deref().map(Path::new), options.free_bytes_min);
    let log = LogWorker::new(log, Arc::clone(&hub), Arc::clone(&handle.log_health), Arc::clone(&handle.reads), room);
    Ok(Wired { hub, log, epoch })
}

/// Starts the log's thread, and that which reads beside it where the log is on a disk.
pub(crate) fn spawn_log(log: LogWorker, handle: &Handle) -> Result<JoinHandle<()>, StartError> {
    let failed = |error: std::io::Error| StartError::io("cannot start a thread", &error);
    let (requests, bridge) = (Arc::clone(&handle.requests), Arc::clone(&handle.bridge));
    let clock = Arc::clone(&handle.clock);
    let reading = match log.log.reader()? {
        None => None,
        Some(reader) => {
            let ways = Ways {
                reads: Arc::clone(&handle.reads),
                requests: Arc::clone(&requests),
                hub: Arc::clone(&log.hub),
                bridge: Arc::clone(&bridge),
                clock: Arc::clone(&clock),
            };
            Some(log::spawn_reader(reader, ways).map_err(failed)?)
        }
    };
    log::spawn(log, reading, requests, bridge, clock).map_err(failed)
}

/// Passes the bridge's high-water mark on: the hub stops reading and wakes its shards when it is over; `eased` wakes
/// whoever else waits for that.
pub(crate) fn watch_pressure(handle: &Handle, hub: &Arc<Hub>, eased: impl Fn() + Send + Sync + 'static) {
    let hub = Arc::downgrade(hub);
    handle.bridge.on_pressure(Box::new(move |on| {
        let Some(hub) = hub.upgrade() else { return };
        hub.set_pressure(on);
        if !on {
            eased();
        }
    }));
}

/// From the system's random source and new with each start: nobody can guess the id of another session.
fn nonce() -> Result<[u8; 32], StartError> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce)
        .map_err(|error| StartError::new(StartCode::Io, format!("no random bytes from the system: {error}")))?;
    Ok(nonce)
}
