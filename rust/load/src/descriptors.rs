//! How many sockets this process may hold: the soft limit of descriptors is often 1,024 for no reason of today, and raising it to the hard
//! one needs no right. Called by `run` before the first connection.

use crate::failure::Failure;
use std::io;

/// Kept back for the poller, files and whatever the process had open before.
const RESERVED: usize = 64;

/// Make room for `connections` sockets.
///
/// # Errors
/// [`Failure::Call`] where the hard limit has no room for them.
pub fn make_room(connections: usize) -> Result<(), Failure> {
    let limit = raise().map_err(|error| Failure::Call(format!("limit of open descriptors: {error}")))?;
    let room = limit.saturating_sub(RESERVED);
    if connections > room {
        return Err(Failure::Call(format!(
            "--connections {connections}: this process may hold {room}, the hard limit of descriptors being {limit}; \
             ask for fewer or raise it (ulimit -Hn)"
        )));
    }
    Ok(())
}

/// Raise the soft limit to the hard one; returns what may be open then.
fn raise() -> io::Result<usize> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_connections_than_descriptors_are_refused_with_the_limit() {
        assert_eq!(make_room(1), Ok(()));
        let refused = make_room(usize::MAX).expect_err("nobody has that many").to_string();
        assert!(refused.contains("hard limit"), "{refused}");
    }
}
