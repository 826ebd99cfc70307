//! The wire that every kernel has: one `send()` a connection.
//!
//! Never blocks and never raises SIGPIPE. A socket that has refused bytes is not tried again before the poller says
//! that it has room, so a slow reader costs no system call while it sleeps. A wire that hands a whole batch to the
//! kernel at once takes its place behind the same trait.

use crate::tcp::sockets::{BLOCKED, Sockets};
use realtime_hub::{ConnId, Outcome, SendOp, Wire};
use std::io;
use std::os::fd::RawFd;

#[cfg(not(target_vendor = "apple"))]
pub(crate) const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// No such flag there: Python ignores SIGPIPE for the whole process, as every server does.
#[cfg(target_vendor = "apple")]
pub(crate) const FLAGS: i32 = libc::MSG_DONTWAIT;

/// Sends for one flush.
pub(crate) struct SendLoop<'a> {
    pub(crate) sockets: &'a mut Sockets,
    /// Connections whose peer is gone: the shard ends them after the flush.
    pub(crate) gone: &'a mut Vec<ConnId>,
}

impl Wire for SendLoop<'_> {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        for op in batch {
            let Some(socket) = self.sockets.find(op.conn) else {
                op.outcome = Outcome::Gone;
                continue;
            };
            if socket.has(BLOCKED) {
                op.outcome = Outcome::Sent(0);
                continue;
            }
            match send(socket.fd(), op.bytes) {
                Ok(sent) => {
                    // The kernel tells of room only after it has refused something.
                    if sent < op.bytes.len() {
                        socket.set(BLOCKED);
                    }
                    op.outcome = Outcome::Sent(sent);
                }
                Err(_) => {
                    self.gone.push(op.conn);
                    op.outcome = Outcome::Gone;
                }
            }
        }
    }
}

/// Bytes that the kernel took, 0 when it has no room.
fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        // SAFETY: `bytes` is readable for its length; the descriptor is the socket's, which lives through the call.
        let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), FLAGS) };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(sent);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(0),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn op<'a>(conn: ConnId, bytes: &'a [u8]) -> SendOp<'a> {
        SendOp { conn, bytes, outcome: Outcome::Gone }
    }

    #[test]
    fn a_full_socket_takes_a_part_and_is_left_alone_until_it_has_room() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let conn = ConnId::new(0, 0, 0);
        let mut sockets = Sockets::default();
        sockets.put(conn, writer.into());
        let (large, mut gone) = (vec![7; 4 << 20], Vec::new());
        let mut wire = SendLoop { sockets: &mut sockets, gone: &mut gone };
        let mut batch = [op(conn, &large)];
        wire.send_batch(&mut batch);
        let Outcome::Sent(sent) = batch[0].outcome else { panic!("{:?}", batch[0].outcome) };
        assert!(0 < sent && sent < large.len());
        let mut taken = vec![0; sent];
        reader.read_exact(&mut taken).unwrap();
        wire.send_batch(&mut batch);
        assert_eq!(batch[0].outcome, Outcome::Sent(0), "the poller has said nothing yet");
        wire.sockets.find(conn).unwrap().clear(BLOCKED);
        wire.send_batch(&mut batch);
        assert!(matches!(batch[0].outcome, Outcome::Sent(1..)));
    }

    #[test]
    fn a_peer_that_is_gone_is_told_once_for_each_try() {
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let (conn, stranger) = (ConnId::new(0, 0, 0), ConnId::new(0, 9, 0));
        let mut sockets = Sockets::default();
        sockets.put(conn, writer.into());
        let mut gone = Vec::new();
        let mut batch = [op(conn, b"x"), op(stranger, b"x")];
        SendLoop { sockets: &mut sockets, gone: &mut gone }.send_batch(&mut batch);
        assert_eq!([batch[0].outcome, batch[1].outcome], [Outcome::Gone; 2]);
        assert_eq!(gone, [conn]);
    }
}
