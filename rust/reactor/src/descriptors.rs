//! How many descriptors this process may hold: one a connection, and a few more.
//!
//! Called once, before the listener is bound. The soft limit is often 1,024 for no reason of today; raising it to the
//! hard one needs no right.

use std::io;

/// Sockets beyond `connections_max` whose request is still read, to be refused in words.
const REFUSED_AT_ONCE: usize = 64;

/// Raises the soft limit of open descriptors to the hard one and returns what may be open then.
pub(crate) fn raise_limit() -> io::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for one `rlimit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
        // Some systems have a lower ceiling than the hard limit they report; the old soft limit then stays.
        // SAFETY: `raised` is a valid `rlimit`, only read.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
            limit = raised;
        }
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// Sockets that may be held: what was asked for, and a few more so that who is too many hears it as the protocol says
/// (which takes reading the request), within what the descriptors allow: `kept` are for the log, the listener, pollers,
/// Python's own files and the HTTP port.
pub(crate) fn sockets_max(asked: usize, descriptors: usize, kept: usize) -> usize {
    let room = descriptors.saturating_sub(kept).max(1);
    if asked == 0 { room } else { asked.saturating_add(REFUSED_AT_ONCE).min(room) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_the_process_itself() {
        for (asked, descriptors, sockets) in [(0, 1_024, 960), (100, 1_024, 164), (5_000, 1_024, 960), (0, 10, 1)] {
            assert_eq!(sockets_max(asked, descriptors, 64), sockets);
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one_or_stays() {
        let first = raise_limit().unwrap();
        assert!(first > 0);
        assert_eq!(raise_limit().unwrap(), first);
    }
}
