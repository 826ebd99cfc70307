//! Every interleaving of one shard and those who hand something over to it, by loom.
//!
//! Loom runs the closure once for each order of the atomics and locks in it, and for each value that the memory model
//! lets a read see. A shard that waits for ever is a deadlock, which it reports.

use super::{Flag, Wake};
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex, Notify};
use loom::thread;

impl Flag for AtomicBool {
    fn swap(&self, raised: bool) -> bool {
        Self::swap(self, raised, Ordering::SeqCst)
    }
}

/// An inbox as the hub has it, with a poller that only its waker ends.
struct Inbox {
    queue: Mutex<Vec<u8>>,
    wake: Wake<AtomicBool>,
    poller: Notify,
    wakes: AtomicUsize,
}

impl Inbox {
    fn new() -> Arc<Self> {
        let wake = Wake { asleep: AtomicBool::new(false) };
        Arc::new(Self { queue: Mutex::default(), wake, poller: Notify::new(), wakes: AtomicUsize::new(0) })
    }

    fn push(&self, message: u8) {
        self.queue.lock().unwrap().push(message);
        if self.wake.is_to_be_woken() {
            self.wakes.fetch_add(1, Ordering::Relaxed);
            self.poller.notify();
        }
    }

    /// Turns until so many messages were taken; returns them and how often the shard has asked whether it may sleep.
    fn turns(&self, count: usize) -> (Vec<u8>, usize) {
        let (mut taken, mut asked) = (Vec::new(), 0);
        while taken.len() < count {
            asked += 1;
            if self.wake.may_sleep(|| self.queue.lock().unwrap().is_empty()) {
                self.poller.wait();
            }
            self.wake.woke();
            taken.append(&mut self.queue.lock().unwrap());
        }
        (taken, asked)
    }
}

/// `pushers` threads hand over `each` messages; the test's own thread is the shard. At most so many times a thread that
/// could go on has to stop for another; None looks at everything.
fn explore(pushers: u8, each: u8, preemptions_max: Option<usize>) {
    let mut search = loom::model::Builder::new();
    search.preemption_bound = preemptions_max;
    search.check(move || {
        let inbox = Inbox::new();
        let pushing: Vec<_> = (0..pushers)
            .map(|pusher| {
                let inbox = Arc::clone(&inbox);
                thread::spawn(move || (0..each).for_each(|n| inbox.push(pusher * 10 + n)))
            })
            .collect();
        let (taken, asked) = inbox.turns(usize::from(pushers * each));
        pushing.into_iter().for_each(|thread| thread.join().unwrap());
        for pusher in 0..pushers {
            let own = taken.iter().copied().filter(|message| message / 10 == pusher);
            assert!(own.eq((0..each).map(|n| pusher * 10 + n)), "each once and in order");
        }
        let wakes = inbox.wakes.load(Ordering::Relaxed);
        assert!(wakes <= asked, "{wakes} wakes, and it has been about to sleep {asked} times");
    });
}

#[test]
fn one_who_hands_over_two_messages_leaves_none_behind() {
    explore(1, 2, None);
}

#[test]
fn two_who_hand_over_at_once_leave_none_behind() {
    // All of it takes minutes; it was run so once.
    explore(2, 1, Some(2));
}

/// Whether some order lets the shard decide to sleep on a message of which nobody will wake it. It looks with
/// `look`, which is given the flag and the look into the queue.
fn can_sleep_on_a_message(look: fn(&Wake<AtomicBool>, &dyn Fn() -> bool) -> bool) -> bool {
    let found = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = std::sync::Arc::clone(&found);
    loom::model(move || {
        let inbox = Inbox::new();
        let pushing = Arc::clone(&inbox);
        let pusher = thread::spawn(move || pushing.push(1));
        let sleeps = look(&inbox.wake, &|| inbox.queue.lock().unwrap().is_empty());
        pusher.join().unwrap();
        if sleeps && inbox.wakes.load(Ordering::Relaxed) == 0 {
            told.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    });
    found.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn the_search_finds_the_fault_of_looking_first() {
    assert!(can_sleep_on_a_message(|wake, is_empty| is_empty() && wake.may_sleep(|| true)));
    assert!(!can_sleep_on_a_message(|wake, is_empty| wake.may_sleep(is_empty)));
}
