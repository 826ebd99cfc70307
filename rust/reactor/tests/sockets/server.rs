//! An engine on a free port, with this test in Python's place.

use realtime_hub::{Command, ConnId, Event};
use realtime_reactor::Engine;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) struct Server {
    pub(crate) engine: Engine,
    /// Events that were drained and not asked for yet.
    events: Mutex<Vec<Event>>,
}

/// Options with `overrides` in place of their members; every channel `room:*` and `log:*` is open to all.
pub(crate) fn options(shards: usize, overrides: &Value) -> Vec<u8> {
    let rights = ["subscribe", "publish", "presence", "history"];
    let mut options = json!({
        "host": "127.0.0.1", "port": 0, "shards": shards,
        "limits": {"enabled": false},
        "endpoints": [
            {"path": "/ws", "mode": "json", "auth": "none"},
            {"path": "/raw", "mode": "raw", "auth": "none"},
        ],
        "policies": [{"pattern": "log:*", "durable": true}],
        "open_grants": [{"pattern": "room:*", "rights": rights}, {"pattern": "log:*", "rights": rights}],
    });
    for (name, value) in overrides.as_object().unwrap() {
        options[name] = value.clone();
    }
    options.to_string().into_bytes()
}

impl Server {
    pub(crate) fn start(shards: usize, overrides: &Value) -> Self {
        let engine = Engine::new(&options(shards, overrides)).unwrap();
        engine.start().unwrap();
        Self { engine, events: Mutex::default() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.engine.port()
    }

    pub(crate) fn submit(&self, command: Command) {
        self.engine.handle().submit(vec![command]);
    }

    pub(crate) fn stat(&self, name: &str) -> u64 {
        let stats: Value = serde_json::from_str(&self.engine.handle().stats_json()).unwrap();
        stats[name].as_u64().unwrap()
    }

    /// Waits for the first event that `pick` takes; the others stay for later.
    pub(crate) fn wait_for<T>(&self, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let mut events = self.events.lock().unwrap();
        let mut picked = None;
        eventually("an event", || {
            events.extend(self.engine.handle().drain(usize::MAX));
            let found = events.iter().position(|event| {
                picked = pick(event);
                picked.is_some()
            });
            found.map(|at| events.remove(at)).is_some()
        });
        picked.unwrap()
    }

    pub(crate) fn opened(&self) -> ConnId {
        self.wait_for(|event| match event {
            Event::Open { conn, .. } => Some(*conn),
            _ => None,
        })
    }

    /// Answers raw messages with themselves and hands deferred commands back, until it is dropped.
    pub(crate) fn answering(self: &Arc<Self>) -> Answering {
        let (server, stop) = (Arc::clone(self), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let events = server.engine.handle().drain(512);
                if events.is_empty() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let answers = events.into_iter().filter_map(answer).collect();
                server.engine.handle().submit(answers);
            }
        });
        Answering { stop, thread: Some(thread) }
    }
}

fn answer(event: Event) -> Option<Command> {
    match event {
        Event::Raw { conn, text, payload } => Some(Command::Send { conn, text, payload, done: 1 }),
        Event::Deferred { conn, raw } => Some(Command::Resume { conn, raw }),
        _ => None,
    }
}

pub(crate) struct Answering {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Waits until `is_so`, at most 20 s.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "no {what} within 20 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}
