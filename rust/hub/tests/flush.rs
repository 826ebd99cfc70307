//! The flush against a kernel that cuts anywhere: parts of any size, no room at any time, peers that are gone.
//!
//! The model is one line a connection: what was queued, in order. Whatever the kernel does, its stream is exactly that;
//! of a peer that is gone it is a beginning; of one that was closed in force it is whole frames and the Close. What
//! happens to one connection is never seen in another's stream, though many share the same bytes.

use proptest::prelude::*;
use realtime_hub::{
    Command, ConnId, Hub, LogQueue, LogRequest, Now, Options, Outcome, Release, SendOp, ShardCore, Wire,
};
use realtime_protocol::close::{CloseCode, encode_close_payload};
use realtime_protocol::frame::{Opcode, encode_frame};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const NOW: Now = Now { mono_ms: 1_000, mono_us: 1_000_000, wall_ms: 1_795_415_400_000 };
const CONNECTIONS: usize = 6;
const CLOSE: (u16, &str) = (4_403, "because");

struct NoLog;
impl LogQueue for NoLog {
    fn push(&self, _: LogRequest) {}
}

/// What the kernel makes of one send.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Whole,
    /// So many thousandths of it, rounded down.
    Part(usize),
    /// All but so many bytes.
    AllBut(usize),
    NoRoom,
    Gone,
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![
        8 => Just(Cut::Whole),
        4 => (0_usize..1_000).prop_map(Cut::Part),
        4 => (1_usize..12).prop_map(Cut::AllBut),
        2 => Just(Cut::NoRoom),
        1 => Just(Cut::Gone),
    ]
}

/// The sockets of a shard, as the kernel has them.
#[derive(Default)]
struct Kernel {
    streams: HashMap<ConnId, Vec<u8>>,
    /// Has refused bytes, and has not said since that there is room.
    full: BTreeSet<ConnId>,
    gone: BTreeSet<ConnId>,
    /// What becomes of the next sends, over and over.
    cuts: Vec<Cut>,
    next: usize,
    sends: usize,
}

impl Kernel {
    fn cut(&mut self) -> Cut {
        self.next += 1;
        self.cuts.get(self.next % self.cuts.len().max(1)).copied().unwrap_or(Cut::Whole)
    }
}

impl Wire for Kernel {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        let conns: BTreeSet<ConnId> = batch.iter().map(|op| op.conn).collect();
        assert_eq!(conns.len(), batch.len(), "one send a connection and batch");
        for op in batch {
            self.sends += 1;
            assert!(!op.bytes.is_empty() && !self.full.contains(&op.conn) && !self.gone.contains(&op.conn));
            let len = op.bytes.len();
            let taken = match self.cut() {
                Cut::Whole => len,
                Cut::Part(part) => len * part / 1_000,
                Cut::AllBut(bytes) => len.saturating_sub(bytes),
                Cut::NoRoom => 0,
                Cut::Gone => {
                    self.gone.insert(op.conn);
                    op.outcome = Outcome::Gone;
                    continue;
                }
            };
            if taken < len {
                self.full.insert(op.conn);
            }
            self.streams.entry(op.conn).or_default().extend_from_slice(&op.bytes[..taken]);
            op.outcome = Outcome::Sent(taken);
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// One frame to one connection.
    Send(usize, usize),
    /// So many small ones to one connection.
    Burst(usize, usize),
    /// One frame to some: they share it, and the bytes of whole lists where these are the same.
    Many(Vec<usize>, usize),
    All(usize),
    Flush,
    /// The kernel has room for one connection again.
    Room(usize),
    Close(usize),
    /// Another connection takes the place of one that has ended.
    Open(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (conn, size) =
        (0..CONNECTIONS, prop_oneof![60 => 0_usize..300, 3 => 60_000_usize..80_000, 1 => Just(1_200_000)]);
    prop_oneof![
        4 => (conn.clone(), size.clone()).prop_map(|(conn, size)| Op::Send(conn, size)),
        1 => (conn.clone(), 30_usize..80).prop_map(|(conn, count)| Op::Burst(conn, count)),
        4 => (prop::collection::vec(conn.clone(), 0..CONNECTIONS), size.clone())
            .prop_map(|(conns, size)| Op::Many(conns, size)),
        4 => size.prop_map(Op::All),
        6 => Just(Op::Flush),
        5 => conn.clone().prop_map(Op::Room),
        1 => conn.clone().prop_map(Op::Close),
        1 => conn.prop_map(Op::Open),
    ]
}

/// One connection as the model has it.
struct Peer {
    conn: ConnId,
    /// Every frame that was queued for it.
    queued: Vec<Vec<u8>>,
    is_closed: bool,
}

struct World {
    hub: Arc<Hub>,
    shard: ShardCore,
    kernel: Kernel,
    peers: Vec<Peer>,
    /// Those whose place was taken.
    past: Vec<Peer>,
    frames: u32,
}

impl World {
    fn new(cuts: Vec<Cut>) -> Self {
        // Nothing is dropped here for want of room: what limits do is another test's question.
        let json = br#"{"endpoints": [{"path": "/ws", "mode": "json", "auth": "none"}],
            "limits": {"enabled": false, "outbox_hard_bytes": 1073741824, "outboxes_bytes_max": 1073741824}}"#;
        let hub = Hub::new(&Options::from_json(json).unwrap(), 1, Box::new(NoLog), "e".into(), [0; 32]).unwrap();
        let shard = ShardCore::new(Arc::clone(&hub), 0);
        let mut world = Self { hub, shard, kernel: Kernel::default(), peers: Vec::new(), past: Vec::new(), frames: 0 };
        for _ in 0..CONNECTIONS {
            let peer = world.open();
            world.peers.push(peer);
        }
        world.flush();
        // What they are greeted with is not the question.
        world.kernel.streams.clear();
        world.kernel.cuts = cuts;
        world
    }

    fn open(&mut self) -> Peer {
        let conn = self.shard.open([127, 0, 0, 1].into(), NOW);
        self.shard.admit_as(conn, 0, "u", None, false, NOW).unwrap();
        Peer { conn, queued: Vec::new(), is_closed: false }
    }

    fn flush(&mut self) {
        self.shard.run_inbox(NOW);
        self.shard.flush(&mut self.kernel, NOW);
        let mut releases = Vec::new();
        self.shard.take_releases(&mut releases);
        for release in releases {
            let Release::Close(conn) = release else { panic!("{release:?}") };
            assert!(self.kernel.gone.contains(&conn), "nobody else ends");
        }
        self.shard.take_events(&mut Vec::new());
        self.shard.take_unpaused(&mut Vec::new());
    }

    fn payload(&mut self, size: usize) -> Box<[u8]> {
        self.frames += 1;
        let mut payload = format!("frame {} ", self.frames).into_bytes();
        payload.resize(payload.len() + size, b'a' + (self.frames % 26) as u8);
        payload.into()
    }

    fn submit(&mut self, command: Command) {
        self.hub.submit(vec![command], NOW, &mut Vec::new());
    }

    /// Notes a frame for those who still get one.
    fn note(&mut self, peers: &[usize], payload: &[u8]) {
        for &peer in peers {
            let peer = &mut self.peers[peer];
            if !peer.is_closed && !self.kernel.gone.contains(&peer.conn) {
                peer.queued.push(encode_frame(Opcode::Text, payload));
            }
        }
    }

    fn send(&mut self, peer: usize, size: usize) {
        let payload = self.payload(size);
        self.note(&[peer], &payload);
        self.submit(Command::Send { conn: self.peers[peer].conn, text: true, payload, done: 0 });
    }

    fn room(&mut self, conn: ConnId) {
        if self.kernel.full.remove(&conn) {
            self.shard.writable(conn);
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Send(peer, size) => self.send(*peer, *size),
            Op::Burst(peer, count) => (0..*count).for_each(|_| self.send(*peer, 5)),
            Op::Many(peers, size) => {
                let peers: Vec<usize> = peers.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
                let payload = self.payload(*size);
                self.note(&peers, &payload);
                let conns = peers.iter().map(|&peer| self.peers[peer].conn).collect();
                self.submit(Command::SendMany { conns, payload, key: None });
            }
            Op::All(size) => {
                let payload = self.payload(*size);
                self.note(&(0..CONNECTIONS).collect::<Vec<_>>(), &payload);
                self.submit(Command::SendAll { payload, key: None });
            }
            Op::Flush => self.flush(),
            Op::Room(peer) => self.room(self.peers[*peer].conn),
            Op::Close(peer) => {
                let conn = self.peers[*peer].conn;
                self.submit(Command::Close { conn, code: CLOSE.0, reason: CLOSE.1.into() });
                self.peers[*peer].is_closed = true;
            }
            Op::Open(peer) => self.reopen(*peer),
        }
    }

    /// Takes the place of a connection that has ended, greeted by a kernel that has room.
    fn reopen(&mut self, peer: usize) {
        if !self.kernel.gone.contains(&self.peers[peer].conn) {
            return;
        }
        // First what was meant for those who were there before.
        self.flush();
        let fresh = self.open();
        let cuts = std::mem::take(&mut self.kernel.cuts);
        self.flush();
        self.kernel.cuts = cuts;
        self.kernel.streams.remove(&fresh.conn);
        self.past.push(std::mem::replace(&mut self.peers[peer], fresh));
    }

    /// Lets the kernel take everything, and looks at every stream.
    fn settle_and_check(&mut self) {
        self.kernel.cuts.clear();
        loop {
            for conn in self.kernel.full.clone() {
                self.room(conn);
            }
            self.flush();
            if self.kernel.full.is_empty() && !self.shard.more_to_flush() {
                break;
            }
        }
        for peer in self.peers.iter().chain(&self.past) {
            let stream = self.kernel.streams.get(&peer.conn).map_or(&[][..], Vec::as_slice);
            let queued = peer.queued.concat();
            if self.kernel.gone.contains(&peer.conn) {
                // Where it was closed, too, part of our Close may have gone out.
                assert!(peer.is_closed || queued.starts_with(stream), "a beginning of what was queued");
            } else if peer.is_closed {
                let close = encode_frame(Opcode::Close, &encode_close_payload(CloseCode(CLOSE.0), CLOSE.1));
                let before = stream.strip_suffix(&close[..]).expect("our Close is the last");
                let mut end = 0;
                let ends = peer.queued.iter().map(|frame| {
                    end += frame.len();
                    end
                });
                let is_whole = before.is_empty() || ends.into_iter().any(|end| end == before.len());
                assert!(is_whole && queued.starts_with(before), "whole frames before our Close");
            } else {
                assert!(stream == queued, "{} bytes of {}", stream.len(), queued.len());
            }
        }
        let counters = self.hub.counters();
        assert_eq!(counters.outbox_bytes.load(Ordering::Relaxed), 0, "nothing waits, nothing is counted");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_stream_is_what_was_queued_however_the_kernel_cuts_it(
        ops in prop::collection::vec(op(), 1..60),
        cuts in prop::collection::vec(cut(), 1..40),
    ) {
        let mut world = World::new(cuts);
        for op in &ops {
            world.apply(op);
        }
        world.settle_and_check();
    }
}

#[test]
fn every_place_to_cut_a_list_gives_the_same_stream() {
    let whole: usize = 3 * (2 + "frame 1 ".len() + 7);
    for taken in 0..=whole {
        let mut world = World::new(Vec::new());
        for _ in 0..3 {
            world.apply(&Op::All(7));
        }
        // Two of those who share the list are cut; the others are not.
        let left = whole - taken;
        world.kernel.cuts = vec![Cut::Whole, Cut::AllBut(left), Cut::Whole, Cut::AllBut(left), Cut::Whole, Cut::Whole];
        world.apply(&Op::Flush);
        let full = if left == 0 { 0 } else { 2 };
        assert_eq!(world.kernel.full.len(), full);
        world.apply(&Op::All(3));
        world.apply(&Op::Flush);
        world.settle_and_check();
    }
}

/// Where the bytes of each send lie.
#[derive(Default)]
struct Places(HashMap<ConnId, *const u8>);

impl Wire for Places {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        for op in batch {
            self.0.insert(op.conn, op.bytes.as_ptr());
            op.outcome = Outcome::Sent(op.bytes.len());
        }
    }
}

#[test]
fn the_same_list_is_assembled_once_for_all_who_have_it() {
    let mut world = World::new(Vec::new());
    world.send(4, 10);
    for _ in 0..5 {
        world.apply(&Op::All(20));
    }
    world.shard.run_inbox(NOW);
    let mut places = Places::default();
    world.shard.flush(&mut places, NOW);
    let place = |peer: usize| places.0[&world.peers[peer].conn];
    // The one with a list of its own stands first; those behind it have one list.
    assert!([1, 2, 3, 5].iter().all(|&peer| place(peer) == place(0)));
    assert_ne!(place(4), place(0));
}
