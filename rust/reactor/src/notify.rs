//! A descriptor that another event loop waits on: readable from [`Notify::set`] to [`Notify::clear`].
//!
//! An eventfd on Linux, a pipe elsewhere. Both calls are cheap system calls and never block; [`Bridge`](crate::bridge)
//! makes them only when the state changes.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A level that can be waited for.
#[derive(Debug)]
pub(crate) struct Notify {
    read: OwnedFd,
    /// Linux writes to the descriptor that is read.
    #[cfg(not(target_os = "linux"))]
    write: OwnedFd,
}

impl Notify {
    #[cfg(target_os = "linux")]
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and is nobody else's.
        let read = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { read })
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
        for fd in [&read, &write] {
            // SAFETY: the descriptor is open and takes an int flag.
            if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { read, write })
    }

    /// What to wait on.
    pub(crate) fn fileno(&self) -> RawFd {
        self.read.as_raw_fd()
    }

    pub(crate) fn set(&self) {
        #[cfg(target_os = "linux")]
        let fd = self.read.as_raw_fd();
        #[cfg(not(target_os = "linux"))]
        let fd = self.write.as_raw_fd();
        let one = 1u64.to_ne_bytes();
        // A full counter or pipe is readable already, so the result does not matter.
        // SAFETY: eight readable bytes; an eventfd takes exactly eight.
        unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
    }

    pub(crate) fn clear(&self) {
        let mut bytes = [0u8; 64];
        // An eventfd gives eight bytes once; a pipe holds eight for each `set`, and one is all that `Bridge` leaves.
        // SAFETY: `bytes` is writable for its length.
        while unsafe { libc::read(self.fileno(), bytes.as_mut_ptr().cast(), bytes.len()) } == bytes.len() as isize {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(notify: &Notify) -> bool {
        let mut poll = libc::pollfd { fd: notify.fileno(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    #[test]
    fn it_is_readable_from_set_to_clear() {
        let notify = Notify::new().unwrap();
        assert!(!is_readable(&notify));
        notify.set();
        notify.set();
        assert!(is_readable(&notify));
        notify.clear();
        assert!(!is_readable(&notify));
        notify.clear();
        notify.set();
        assert!(is_readable(&notify));
    }
}
