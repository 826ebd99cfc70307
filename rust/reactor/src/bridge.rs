//! The way up: events from every shard and the log, taken by Python in batches.
//!
//! Shards and the log push whole batches; the descriptor is set once when the queue stops being empty and cleared
//! when it is empty again, so that a busy server makes few system calls for it. What is set and what is queued change
//! under one lock: a reader never sleeps on a queue that holds something. Nobody blocks: above `events_waiting_max`
//! events that come of clients' messages, the pressure hook is told and the shards leave bytes in the kernel until half
//! of them are gone. Others (open, close, outcomes) are never held back.

use crate::notify::Notify;
use realtime_hub::Event;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

type PressureHook = Box<dyn Fn(bool) + Send + Sync>;

/// The event queue and the descriptor that tells of it.
pub(crate) struct Bridge {
    queue: Mutex<Queue>,
    notify: Notify,
    events_waiting_max: usize,
    pressed: AtomicBool,
    pressure_hook: OnceLock<PressureHook>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    /// How many of them count at the high-water mark.
    counted: usize,
    /// Whether the descriptor is readable.
    armed: bool,
}

impl Bridge {
    pub(crate) fn new(events_waiting_max: usize) -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            notify: Notify::new()?,
            events_waiting_max: events_waiting_max.max(1),
            pressed: AtomicBool::new(false),
            pressure_hook: OnceLock::new(),
        })
    }

    /// What happens when the queue passes its high-water mark (`true`) and when half of it is gone (`false`). Runs
    /// under the queue's lock, so that it is always told in the right order; it must not come back here.
    pub(crate) fn on_pressure(&self, hook: PressureHook) {
        // A second hook would belong to a second engine on the same bridge, which does not exist.
        let _ = self.pressure_hook.set(hook);
    }

    pub(crate) fn fileno(&self) -> RawFd {
        self.notify.fileno()
    }

    /// Whether events wait above the high-water mark: nothing new is then accepted.
    pub(crate) fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// Moves a batch to the end of the queue; `events` is empty after.
    pub(crate) fn push(&self, events: &mut Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let counted = events.iter().filter(|event| event.counts()).count();
        let mut queue = self.lock();
        queue.events.extend(events.drain(..));
        queue.counted += counted;
        if !queue.armed {
            queue.armed = true;
            self.notify.set();
        }
        if queue.counted >= self.events_waiting_max && !self.is_pressed() {
            self.press(true);
        }
    }

    /// Takes up to `most` events, oldest first.
    pub(crate) fn drain(&self, most: usize) -> Vec<Event> {
        let mut queue = self.lock();
        let taken: Vec<Event> = if most >= queue.events.len() {
            std::mem::take(&mut queue.events).into()
        } else {
            queue.events.drain(..most).collect()
        };
        let counted = taken.iter().filter(|event| event.counts()).count();
        queue.counted -= counted;
        if queue.events.is_empty() && queue.armed {
            queue.armed = false;
            self.notify.clear();
        }
        if self.is_pressed() && queue.counted <= self.events_waiting_max / 2 {
            self.press(false);
        }
        taken
    }

    /// How many events wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Moves one event to the end of the queue.
    pub(crate) fn push_one(&self, event: Event) {
        self.push(&mut vec![event]);
    }

    /// Tells Python that the engine goes on, but not as it was told to.
    pub(crate) fn warn(&self, message: String) {
        self.push_one(Event::Warned { message: message.into() });
    }

    /// Tells Python that the engine cannot go on.
    pub(crate) fn fatal(&self, message: String) {
        self.push_one(Event::Fatal { message: message.into() });
    }

    fn press(&self, on: bool) {
        self.pressed.store(on, Ordering::Relaxed);
        if let Some(hook) = self.pressure_hook.get() {
            hook(on);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Every change under the lock is whole, so a panic of another thread leaves nothing half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use realtime_hub::ConnId;
    use std::sync::Arc;

    fn raw() -> Event {
        Event::Raw { conn: ConnId::new(0, 0, 1), text: true, payload: Box::default() }
    }

    fn drained() -> Event {
        Event::Drained { conn: ConnId::new(0, 0, 1) }
    }

    fn is_readable(bridge: &Bridge) -> bool {
        let mut poll = libc::pollfd { fd: bridge.fileno(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    fn pressures(bridge: &Bridge) -> Arc<Mutex<Vec<bool>>> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&told);
        bridge.on_pressure(Box::new(move |on| hook.lock().unwrap().push(on)));
        told
    }

    #[test]
    fn the_descriptor_is_readable_while_events_wait() {
        let bridge = Bridge::new(100).unwrap();
        assert!(!is_readable(&bridge));
        bridge.push(&mut vec![raw(), drained(), raw()]);
        assert!(is_readable(&bridge));
        assert_eq!(bridge.drain(2), [raw(), drained()]);
        assert!(is_readable(&bridge), "one event still waits");
        assert_eq!(bridge.drain(2), [raw()]);
        assert!(!is_readable(&bridge));
        assert_eq!(bridge.drain(2), []);
        bridge.push(&mut vec![drained()]);
        assert!(is_readable(&bridge));
    }

    #[test]
    fn pressure_comes_at_the_mark_and_goes_at_half_of_it() {
        let bridge = Bridge::new(4).unwrap();
        let told = pressures(&bridge);
        bridge.push(&mut vec![raw(), raw(), raw()]);
        assert!(told.lock().unwrap().is_empty());
        bridge.push(&mut vec![raw(), raw()]);
        assert_eq!(*told.lock().unwrap(), [true]);
        bridge.push(&mut vec![raw()]);
        bridge.drain(3);
        assert_eq!(*told.lock().unwrap(), [true], "three of six wait, half of the mark is two");
        bridge.drain(1);
        assert_eq!(*told.lock().unwrap(), [true, false]);
        bridge.drain(100);
        assert_eq!(*told.lock().unwrap(), [true, false]);
    }

    #[test]
    fn events_that_are_not_counted_make_no_pressure() {
        let bridge = Bridge::new(2).unwrap();
        let told = pressures(&bridge);
        bridge.push(&mut (0..1_000).map(|_| drained()).collect());
        assert!(told.lock().unwrap().is_empty());
        assert_eq!(bridge.drain(2_000).len(), 1_000);
    }
}
