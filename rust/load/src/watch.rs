//! How a run is followed while it goes on, and how it is told to end early.
//!
//! Every loop of the generator asks [`Watch::look`] once a turn; a few times a second that calls whoever watches with a [`Progress`], whose
//! answer is a [`Wish`]. Between those calls a look is one comparison. Without a watcher the answer is always to go on.

use serde_json::{Value, json};
use std::time::Duration;

/// What the watcher wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Go on as planned.
    #[default]
    GoOn,
    /// Send nothing more, let what is under way arrive, and report.
    Finish,
    /// End now, without a report.
    Abandon,
}

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// What is being done, in a word.
    pub phase: &'static str,
    /// Since the phase began.
    pub elapsed: Duration,
    /// Connections that are open.
    pub connections: usize,
    /// Messages sent since the phase began.
    pub messages: u64,
    /// Deliveries since the phase began.
    pub deliveries: u64,
    /// Median latency of the measured time so far.
    pub p50_ns: u64,
    /// 99th percentile of it.
    pub p99_ns: u64,
    /// What was lost, doubled, out of order or refused so far; a number that is overtaken counts as lost until it comes.
    pub faults: u64,
}

type Tell = Box<dyn FnMut(&Value) -> Wish + Send>;

/// The watcher and when to call it.
#[derive(Default)]
pub struct Watch {
    tell: Option<Tell>,
    interval_ns: u64,
    due_ns: u64,
    wish: Wish,
    before: (u64, u64, u64),
}

impl Watch {
    /// Call `tell` about every `interval` with what [`Progress`] holds as JSON, with `messages_per_s` and `deliveries_per_s` since the
    /// call before.
    pub fn new(interval: Duration, tell: impl FnMut(&Value) -> Wish + Send + 'static) -> Self {
        Self { tell: Some(Box::new(tell)), interval_ns: crate::clock::ns(interval), ..Self::default() }
    }

    /// What the watcher wants at `now_ns`; it is asked if its time has come, and told what `progress` makes then.
    pub fn look(&mut self, now_ns: u64, progress: impl FnOnce() -> Progress) -> Wish {
        let Some(tell) = &mut self.tell else {
            return Wish::GoOn;
        };
        // A wish to end is final.
        if now_ns >= self.due_ns && self.wish != Wish::Abandon {
            let progress = progress();
            let (before_ns, messages, deliveries) = self.before;
            let seconds = now_ns.saturating_sub(before_ns).max(1) as f64 / 1e9;
            // Counts begin anew with a phase.
            let since = |count: u64, before: u64| if count < before { count } else { count - before };
            let rate = |count: u64, before: u64| (since(count, before) as f64 / seconds).round();
            let wish = tell(&json!({
                "phase": progress.phase,
                "elapsed_s": progress.elapsed.as_secs_f64(),
                "connections": progress.connections,
                "messages": progress.messages,
                "deliveries": progress.deliveries,
                "messages_per_s": rate(progress.messages, messages),
                "deliveries_per_s": rate(progress.deliveries, deliveries),
                "p50_us": progress.p50_ns as f64 / 1e3,
                "p99_us": progress.p99_ns as f64 / 1e3,
                "faults": progress.faults,
            }));
            if wish != Wish::GoOn {
                self.wish = wish;
            }
            self.before = (now_ns, progress.messages, progress.deliveries);
            self.due_ns = now_ns + self.interval_ns;
        }
        self.wish
    }

    /// Whether the run was told to end early.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.wish != Wish::GoOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn the_watcher_is_told_at_its_interval_with_rates_since_the_last_time() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&told);
        let mut watch = Watch::new(Duration::from_millis(100), move |progress| {
            noted.lock().expect("nobody panics with the lock").push(progress["messages_per_s"].as_f64());
            Wish::GoOn
        });
        for (now_ms, messages) in [(1_000_u64, 0), (1_050, 70), (1_100, 100), (1_199, 150), (1_300, 300)] {
            let progress = || Progress { messages, ..Progress::default() };
            assert_eq!(watch.look(now_ms * 1_000_000, progress), Wish::GoOn);
        }
        assert_eq!(*told.lock().expect("as above"), [Some(0.0), Some(1_000.0), Some(1_000.0)]);
    }

    #[test]
    fn a_wish_to_end_is_final_and_nobody_watching_means_to_go_on() {
        let mut wishes = vec![Wish::GoOn, Wish::Abandon, Wish::GoOn, Wish::Finish].into_iter();
        let mut watch = Watch::new(Duration::ZERO, move |_| wishes.next_back().expect("not asked after the end"));
        let mut look = |now_ns| watch.look(now_ns, Progress::default);
        assert_eq!([look(1), look(2), look(3), look(4)], [Wish::Finish, Wish::Finish, Wish::Abandon, Wish::Abandon]);
        assert!(watch.stopped());
        assert_eq!(Watch::default().look(1, Progress::default), Wish::GoOn);
    }
}
