//! The wire that costs one system call for many sends: a batch of the flush is one submission to io_uring.
//!
//! Every send carries `MSG_DONTWAIT`, so the kernel answers it while it takes the submission: it never keeps a buffer
//! and never waits for a socket. All answers of a batch are taken before `send_batch` returns; buffers are therefore
//! plain borrows. Containers often forbid these calls (seccomp), and old kernels do otherwise: [`SendRing::open`] tries
//! it all on a full socket pair, and whoever is refused takes the [send loop](crate::tcp::send_loop).

use crate::tcp::send_loop::{FLAGS, SendLoop};
use crate::tcp::sockets::{BLOCKED, Sockets};
use io_uring::{IoUring, opcode, types};
use realtime_hub::{ConnId, Outcome, SendOp, Wire};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Sends of one submission, a power of two; the hub's batches are as large.
const ENTRIES: u32 = 1_024;
/// Fewer sends than this go one by one: a submission costs as much as two system calls.
const BATCH_MIN: usize = 3;
/// How often the kernel may say that it is short of something, without an answer in between, before the ring is given up.
const IDLE_MAX: u32 = 10_000;

/// A shard's ring.
pub(crate) struct SendRing {
    ring: IoUring,
    /// The sends of the batch under way: their places in it and their sockets.
    tried: Vec<(u16, types::Fd)>,
    /// What became of each of them.
    results: Vec<i32>,
}

impl SendRing {
    /// Makes a ring on the thread that will use it, and tries it.
    ///
    /// # Errors
    /// The kernel's, or `Unsupported` where it answers otherwise than is needed.
    pub(crate) fn open() -> io::Result<Self> {
        let tuned = IoUring::builder().setup_single_issuer().setup_coop_taskrun().setup_submit_all().build(ENTRIES);
        let ring = tuned.or_else(|_| IoUring::new(ENTRIES))?;
        let mut this = Self { ring, tried: Vec::new(), results: Vec::new() };
        this.probe()?;
        Ok(this)
    }

    /// A socket with room takes bytes whole, then in part; a full one answers at once that it would block.
    fn probe(&mut self) -> io::Result<()> {
        let (writer, _reader) = UnixStream::pair()?;
        let large = vec![0; 1 << 20];
        let wanted = |results: &[i32]| {
            matches!(results, [small, part, full]
                if *small == 1 && *part > 0 && (*part as usize) < large.len() && *full == -libc::EAGAIN)
        };
        let fd = types::Fd(writer.as_raw_fd());
        let sends = [&large[..1], &large, &large].map(|bytes| (fd, bytes));
        let mut results = [0; 3];
        self.submit(sends.iter().map(|(fd, bytes)| (*fd, *bytes)), &mut results)?;
        if wanted(&results) {
            return Ok(());
        }
        let message = format!("sends through io_uring were answered {results:?}");
        Err(io::Error::new(io::ErrorKind::Unsupported, message))
    }

    /// Submits at most [`ENTRIES`] sends and waits for all answers: bytes taken, or an errno below zero.
    fn submit<'b>(
        &mut self,
        sends: impl Iterator<Item = (types::Fd, &'b [u8])>,
        results: &mut [i32],
    ) -> io::Result<()> {
        let (submitter, mut submission, mut completion) = self.ring.split();
        let mut count = 0;
        for (place, (fd, bytes)) in sends.enumerate() {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let entry = opcode::Send::new(fd, bytes.as_ptr(), len).flags(FLAGS).build().user_data(place as u64);
            // SAFETY: the borrow of the bytes outlives this call, which returns only when every answer is there; the
            // descriptor is open for as long.
            unsafe { submission.push(&entry) }
                .map_err(|_| io::Error::other("more sends than the ring has room for"))?;
            count += 1;
        }
        submission.sync();
        let (mut answered, mut idle) = (0, 0);
        while answered < count {
            let before = answered;
            match submitter.submit_and_wait(count - answered) {
                Err(error) if !is_passing(&error) || idle > IDLE_MAX => {
                    // What was not submitted never is: the ring is dropped. What was is answered already, since no
                    // send waits; if that were not so, the kernel would still read from our buffers.
                    submission.sync();
                    completion.sync();
                    if count > submission.len() + answered + completion.len() {
                        // Never seen. To go on would free bytes that the kernel may still send to somebody.
                        std::process::abort();
                    }
                    return Err(error);
                }
                _ => {}
            }
            completion.sync();
            for entry in &mut completion {
                results[entry.user_data() as usize] = entry.result();
                answered += 1;
            }
            idle = if answered > before { 0 } else { idle + 1 };
            submission.sync();
        }
        Ok(())
    }
}

/// Signals, and a kernel that is short of memory for a moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// Sends for one flush through a ring.
pub(crate) struct RingSends<'a> {
    pub(crate) ring: &'a mut SendRing,
    pub(crate) sockets: &'a mut Sockets,
    /// As of the send loop.
    pub(crate) gone: &'a mut Vec<ConnId>,
    /// Set where the ring has failed: the shard goes on with the send loop.
    pub(crate) failure: &'a mut Option<io::Error>,
}

impl Wire for RingSends<'_> {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        for part in batch.chunks_mut(ENTRIES as usize) {
            if part.len() < BATCH_MIN || self.failure.is_some() {
                self.one_by_one(part);
                continue;
            }
            let (mut tried, mut results) =
                (std::mem::take(&mut self.ring.tried), std::mem::take(&mut self.ring.results));
            tried.clear();
            for (place, op) in part.iter_mut().enumerate() {
                match self.sockets.find(op.conn) {
                    None => op.outcome = Outcome::Gone,
                    Some(socket) if socket.has(BLOCKED) => op.outcome = Outcome::Sent(0),
                    Some(socket) => tried.push((place as u16, types::Fd(socket.fd()))),
                }
            }
            results.clear();
            results.resize(tried.len(), 0);
            let sends = tried.iter().map(|(place, fd)| (*fd, part[*place as usize].bytes));
            match self.ring.submit(sends, &mut results) {
                Ok(()) => {
                    for ((place, _), result) in tried.iter().zip(&results) {
                        self.settle(&mut part[*place as usize], *result);
                    }
                }
                Err(error) => {
                    *self.failure = Some(error);
                    // Nobody knows which of them were taken, so none may be sent again.
                    for (place, _) in &tried {
                        self.end(&mut part[*place as usize]);
                    }
                }
            }
            (self.ring.tried, self.ring.results) = (tried, results);
        }
    }
}

impl RingSends<'_> {
    fn one_by_one(&mut self, part: &mut [SendOp<'_>]) {
        SendLoop { sockets: self.sockets, gone: self.gone }.send_batch(part);
    }

    fn settle(&mut self, op: &mut SendOp<'_>, result: i32) {
        match result {
            0.. => {
                let sent = result as usize;
                if sent < op.bytes.len()
                    && let Some(socket) = self.sockets.find(op.conn)
                {
                    socket.set(BLOCKED);
                }
                op.outcome = Outcome::Sent(sent);
            }
            _ if result == -libc::EAGAIN => self.settle_blocked(op),
            _ if result == -libc::EINTR => self.one_by_one(std::slice::from_mut(op)),
            _ => self.end(op),
        }
    }

    fn settle_blocked(&mut self, op: &mut SendOp<'_>) {
        if let Some(socket) = self.sockets.find(op.conn) {
            socket.set(BLOCKED);
        }
        op.outcome = Outcome::Sent(0);
    }

    fn end(&mut self, op: &mut SendOp<'_>) {
        self.gone.push(op.conn);
        op.outcome = Outcome::Gone;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const STRANGER: ConnId = ConnId::new(0, 9, 4_000);

    /// A ring, so many socket pairs, and what the wire is lent.
    struct World {
        ring: SendRing,
        sockets: Sockets,
        readers: Vec<UnixStream>,
        gone: Vec<ConnId>,
        failure: Option<io::Error>,
    }

    impl World {
        /// None where the kernel allows no ring: the loop serves there, and has tests of its own.
        fn new(pairs: u32) -> Option<Self> {
            let ring = SendRing::open().ok()?;
            let (mut sockets, mut readers) = (Sockets::default(), Vec::new());
            for slot in 0..pairs {
                let (reader, writer) = UnixStream::pair().unwrap();
                sockets.put(ConnId::new(0, 0, slot), writer.into());
                readers.push(reader);
            }
            Some(Self { ring, sockets, readers, gone: Vec::new(), failure: None })
        }

        fn send(&mut self, parts: &[(ConnId, &[u8])]) -> Vec<Outcome> {
            let mut batch: Vec<_> =
                parts.iter().map(|(conn, bytes)| SendOp { conn: *conn, bytes, outcome: Outcome::Gone }).collect();
            let Self { ring, sockets, gone, failure, .. } = self;
            RingSends { ring, sockets, gone, failure }.send_batch(&mut batch);
            assert!(self.failure.is_none(), "{:?}", self.failure);
            batch.iter().map(|op| op.outcome).collect()
        }
    }

    fn conn(slot: u32) -> ConnId {
        ConnId::new(0, 0, slot)
    }

    #[test]
    fn a_batch_larger_than_the_ring_reaches_every_socket_once() {
        let Some(mut world) = World::new(2_500) else { return };
        let texts: Vec<String> = (0..2_500).map(|slot| format!("to {slot}")).collect();
        let parts: Vec<_> = texts.iter().zip(0..).map(|(text, slot)| (conn(slot), text.as_bytes())).collect();
        let outcomes = world.send(&parts);
        for ((reader, text), outcome) in world.readers.iter_mut().zip(&texts).zip(outcomes) {
            assert_eq!(outcome, Outcome::Sent(text.len()));
            reader.set_nonblocking(true).unwrap();
            let mut got = [0; 64];
            let count = reader.read(&mut got).unwrap();
            assert_eq!(&got[..count], text.as_bytes());
            assert_eq!(reader.read(&mut got).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn each_entry_of_a_batch_has_an_outcome_of_its_own() {
        let Some(mut world) = World::new(4) else { return };
        drop(world.readers.pop());
        let large = vec![7; 4 << 20];
        let parts: [(ConnId, &[u8]); 5] =
            [(conn(0), b"whole"), (conn(1), &large), (conn(2), b"whole"), (conn(3), b"x"), (STRANGER, b"x")];
        let outcomes = world.send(&parts);
        assert_eq!([outcomes[0], outcomes[2]], [Outcome::Sent(5); 2]);
        assert!(matches!(outcomes[1], Outcome::Sent(sent) if 0 < sent && sent < large.len()), "{:?}", outcomes[1]);
        assert_eq!(outcomes[3..], [Outcome::Gone; 2]);
        assert_eq!(world.gone, [conn(3)]);
    }

    #[test]
    fn a_full_socket_is_left_alone_until_the_poller_says_that_it_has_room() {
        let Some(mut world) = World::new(3) else { return };
        let large = vec![7; 4 << 20];
        let parts: [(ConnId, &[u8]); 3] = [(conn(0), &large), (conn(1), b"a"), (conn(2), b"b")];
        let Outcome::Sent(sent) = world.send(&parts)[0] else { panic!("the reader is there") };
        world.readers[0].read_exact(&mut vec![0; sent]).unwrap();
        assert_eq!(world.send(&parts)[0], Outcome::Sent(0), "the poller has said nothing yet");
        world.sockets.find(conn(0)).unwrap().clear(BLOCKED);
        assert!(matches!(world.send(&parts)[0], Outcome::Sent(1..)));
        // And one that is found full by the kernel itself.
        world.sockets.find(conn(0)).unwrap().clear(BLOCKED);
        while world.send(&parts)[0] != Outcome::Sent(0) {
            world.sockets.find(conn(0)).unwrap().clear(BLOCKED);
        }
        assert!(world.sockets.find(conn(0)).unwrap().has(BLOCKED));
    }

    #[test]
    fn bytes_that_are_cut_anywhere_arrive_in_their_order() {
        let Some(mut world) = World::new(3) else { return };
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut sent, mut got) = ([0; 3], vec![Vec::new(); 3]);
        let mut step = 1;
        while sent.iter().any(|count| *count < bytes.len()) {
            let parts: Vec<_> = (0..3).map(|slot| (conn(slot), &bytes[sent[slot as usize]..])).collect();
            let parts: Vec<_> = parts.into_iter().filter(|(_, rest)| !rest.is_empty()).collect();
            let slots: Vec<usize> = parts.iter().map(|(conn, _)| conn.slot()).collect();
            for (slot, outcome) in slots.into_iter().zip(world.send(&parts)) {
                let Outcome::Sent(count) = outcome else { panic!("nobody left") };
                sent[slot] += count;
                let mut taken = vec![0; (step * 7_919) % 300_000 + 1];
                step += 1;
                world.readers[slot].set_nonblocking(true).unwrap();
                if let Ok(count) = world.readers[slot].read(&mut taken) {
                    got[slot].extend_from_slice(&taken[..count]);
                }
                world.sockets.find(conn(slot as u32)).unwrap().clear(BLOCKED);
            }
        }
        for (reader, mut got) in world.readers.iter_mut().zip(got) {
            let mut rest = vec![0; bytes.len() - got.len()];
            reader.set_nonblocking(false).unwrap();
            reader.read_exact(&mut rest).unwrap();
            got.extend_from_slice(&rest);
            assert!(got == bytes, "bytes were lost, doubled or swapped");
        }
    }
}
