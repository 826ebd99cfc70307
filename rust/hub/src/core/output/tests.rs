//! Many connections at once: what one turn holds.

use crate::compression::Window;
use crate::{Command, ConnId, Hub, LogQueue, LogRequest, Now, Options, Outcome, SendOp, ShardCore, Wire};
use std::sync::Arc;

struct NoLog;
impl LogQueue for NoLog {
    fn push(&self, _: LogRequest) {}
}

/// A kernel that takes so many bytes of each send, and the most that it was given in one batch.
struct Takes(usize, usize);
impl Wire for Takes {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        self.1 = self.1.max(batch.iter().map(|op| op.bytes.len()).sum());
        for op in batch {
            op.outcome = Outcome::Sent(op.bytes.len().min(self.0));
        }
    }
}

const NOW: Now = Now { mono_ms: 1_000, mono_us: 1_000_000, wall_ms: 1_000 };

fn shard_with(connections: usize) -> (Arc<Hub>, ShardCore, Vec<ConnId>) {
    let json = br#"{"endpoints": [{"path": "/ws", "mode": "json", "auth": "none"}], "limits": {"enabled": false, "outbox_hard_bytes": 33554432}}"#;
    let hub = Hub::new(&Options::from_json(json).unwrap(), 1, Box::new(NoLog), "e".into(), [0; 32]).unwrap();
    let mut shard = ShardCore::new(Arc::clone(&hub), 0);
    let conns = (0..connections).map(|_| shard.open([127, 0, 0, 1].into(), NOW)).collect::<Vec<_>>();
    for &conn in &conns {
        shard.admit_as(conn, 0, "u", None, false, NOW).unwrap();
    }
    (hub, shard, conns)
}

fn turn(hub: &Hub, shard: &mut ShardCore, frames: usize, bytes: usize, wire: &mut Takes) {
    for _ in 0..frames {
        hub.submit(vec![Command::SendAll { payload: vec![b'x'; bytes].into(), key: None }], NOW, &mut Vec::new());
    }
    shard.run_inbox(NOW);
    shard.flush(wire, NOW);
}

#[test]
fn the_turns_log_ends_even_where_every_turn_has_more_sends_than_its_budget() {
    let (hub, mut shard, _) = shard_with(1_400);
    let mut wire = Takes(usize::MAX, 0);
    for _ in 0..60 {
        turn(&hub, &mut shard, 200, 10, &mut wire);
        assert!(
            shard.outgoing.turn.frames.len() <= crate::core::turn::KEPT_FRAMES_MAX + 200,
            "{}",
            shard.outgoing.turn.frames.len()
        );
    }
}

#[test]
fn backlogs_that_get_room_together_are_not_all_copied_at_once() {
    let (hub, mut shard, conns) = shard_with(64);
    turn(&hub, &mut shard, 3, 1 << 20, &mut Takes(1, 0));
    for conn in conns {
        shard.writable(conn);
    }
    let mut wire = Takes(usize::MAX, 0);
    shard.flush(&mut wire, NOW);
    assert!(!shard.more_to_flush() && wire.1 < 2 * super::SCRATCH_BYTES_MAX, "{}", wire.1);
    assert_eq!(shard.hub.counters().outbox_bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// A kernel that takes everything and keeps whose it was.
#[derive(Default)]
struct Keeps(Vec<ConnId>, Vec<usize>);
impl Wire for Keeps {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        self.1.push(batch.len());
        for op in batch {
            self.0.push(op.conn);
            op.outcome = Outcome::Sent(op.bytes.len());
        }
    }
}

#[test]
fn ten_thousand_that_end_in_one_turn_leave_their_places_and_the_list_is_walked_once() {
    const CONNECTIONS: usize = 10_000;
    let (hub, mut shard, conns) = shard_with(CONNECTIONS);
    shard.flush(&mut Keeps::default(), NOW);
    shard.flush(&mut Keeps::default(), NOW);
    assert!(!shard.more_to_flush());
    hub.submit(vec![Command::SendAll { payload: b"x".as_slice().into(), key: None }], NOW, &mut Vec::new());
    shard.run_inbox(NOW);
    // Each has something queued and ends; half of the slots are taken again, by others who have their hello queued.
    for &conn in &conns {
        shard.closed(conn, NOW);
    }
    assert_eq!(shard.outgoing.turn.dirty.len(), CONNECTIONS, "an end takes nothing out of the list");
    let fresh: Vec<ConnId> = (0..CONNECTIONS / 2).map(|_| shard.open([127, 0, 0, 1].into(), NOW)).collect();
    for &conn in &fresh {
        shard.admit_as(conn, 0, "u", None, false, NOW).unwrap();
    }
    assert_eq!(shard.outgoing.turn.dirty.len(), CONNECTIONS * 3 / 2, "a place is not looked for either");
    let mut kernel = Keeps::default();
    while shard.more_to_flush() {
        shard.flush(&mut kernel, NOW);
    }
    let Keeps(mut sent, batches) = kernel;
    assert!(batches.len() <= CONNECTIONS * 3 / 2 / super::BATCH_MAX + 3, "{} batches", batches.len());
    let mut expected = fresh;
    sent.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sent, expected, "one send for each that is there, none for those who are gone");
}

/// Every other connection agreed to permessage-deflate, with windows of 15 bits.
fn mixed(shard: &mut ShardCore) {
    for slot in shard.connections.slots().step_by(2) {
        shard.connections[slot].set_window(Window::at(8));
    }
}

/// A kernel that takes everything, and where the bytes of each send of its last batch lay.
#[derive(Default)]
struct Places(Vec<(usize, usize)>);
impl Wire for Places {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        self.0 = batch.iter().map(|op| (op.bytes.as_ptr() as usize, op.bytes.len())).collect();
        for op in batch {
            op.outcome = Outcome::Sent(op.bytes.len());
        }
    }
}

fn compressions(hub: &Hub) -> u64 {
    hub.tallies().iter().map(|tally| tally.compressions.load(std::sync::atomic::Ordering::Relaxed)).sum()
}

#[test]
fn plain_and_deflated_members_among_each_other_cost_two_assemblies_and_one_compression_a_message() {
    let (hub, mut shard, _) = shard_with(40);
    shard.flush(&mut Takes(usize::MAX, 0), NOW);
    mixed(&mut shard);
    for frames in [1, 3] {
        let before = compressions(&hub);
        for _ in 0..frames {
            hub.submit(vec![Command::SendAll { payload: vec![b'x'; 700].into(), key: None }], NOW, &mut Vec::new());
        }
        shard.run_inbox(NOW);
        let mut wire = Places::default();
        shard.flush(&mut wire, NOW);
        assert_eq!(wire.0.len(), 40);
        wire.0.sort_unstable();
        wire.0.dedup();
        assert_eq!(wire.0.len(), 2, "{:?}", wire.0);
        assert_eq!(compressions(&hub) - before, frames);
    }
}

#[test]
fn shards_compress_a_message_once_together() {
    let json = br#"{"endpoints": [{"path": "/ws", "mode": "json", "auth": "none"}]}"#;
    let hub = Hub::new(&Options::from_json(json).unwrap(), 4, Box::new(NoLog), "e".into(), [0; 32]).unwrap();
    let mut shards: Vec<ShardCore> = (0..4).map(|shard| ShardCore::new(Arc::clone(&hub), shard)).collect();
    for shard in &mut shards {
        let conn = shard.open([127, 0, 0, 1].into(), NOW);
        shard.admit_as(conn, 0, "u", None, false, NOW).unwrap();
        shard.connections[0].set_window(Window::at(8));
    }
    hub.submit(vec![Command::SendAll { payload: vec![b'x'; 700].into(), key: None }], NOW, &mut Vec::new());
    std::thread::scope(|scope| {
        for shard in &mut shards {
            scope.spawn(move || {
                shard.run_inbox(NOW);
                shard.flush(&mut Takes(usize::MAX, 0), NOW);
            });
        }
    });
    assert_eq!(compressions(&hub), 1);
}

#[test]
fn who_reads_deflated_frames_slowly_is_charged_for_what_they_were_made_of() {
    let (hub, mut shard, conns) = shard_with(4);
    shard.flush(&mut Takes(usize::MAX, 0), NOW);
    shard.connections.slots().for_each(|slot| shard.connections[slot].set_window(Window::at(8)));
    turn(&hub, &mut shard, 2, 10_000, &mut Takes(1, 0));
    let waiting = shard.connections[0].backlog_bytes();
    let all = || shard.hub.counters().outbox_bytes.load(std::sync::atomic::Ordering::Relaxed) as usize;
    assert!(waiting < 2_000 && all() > 20_000, "{waiting} bytes wait, {} are held", all());
    let parts = shard
        .connections
        .slots()
        .map(|slot| &shard.connections[slot])
        .filter_map(|conn| conn.backlog.as_ref())
        .map(|backlog| backlog.part());
    assert!(all() - parts.sum::<usize>() < 20, "what all are charged is what is held, but for rounding");
    for conn in conns {
        shard.closed(conn, NOW);
    }
    assert_eq!(shard.hub.counters().outbox_bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn outboxes_weigh_what_waits_in_them_and_the_budget_each_form_once() {
    let (hub, mut shard, conns) = shard_with(40);
    shard.flush(&mut Takes(usize::MAX, 0), NOW);
    mixed(&mut shard);
    turn(&hub, &mut shard, 2, 10_000, &mut Takes(1, 0));
    let (deflated, plain) = (shard.connections[0].backlog_bytes(), shard.connections[1].backlog_bytes());
    assert!(plain > 20_000 && deflated < 2_000, "{plain} {deflated}");
    let all = || shard.hub.counters().outbox_bytes.load(std::sync::atomic::Ordering::Relaxed) as usize;
    // Two frames, each in two forms.
    let places = 2 * 40 * crate::outbox::PLACE_BYTES + 4 * crate::outbox::FRAME_BYTES;
    assert_eq!(all(), plain + deflated + 2 + places, "the byte that each first frame has sent is held with it");
    for conn in conns {
        shard.writable(conn);
    }
    while shard.connections.slots().map(|slot| &shard.connections[slot]).any(|conn| conn.backlog.is_some()) {
        shard.flush(&mut Takes(usize::MAX, 0), NOW);
    }
    assert_eq!(shard.hub.counters().outbox_bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
}
