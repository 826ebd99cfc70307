//! What a forked child closes of the engine: its copies of sockets, rings, pollers and of the log's files.
//!
//! A child that keeps them would hold the port, the log's lock and every peer's connection beyond the parent's end.
//! Only `close` is called: the parent's sockets, registrations and locks stay as they are, since a lock (`flock`) and a
//! socket end with the last copy. Structures of other threads are not looked at, as a fork may have caught them half
//! changed: sockets are found by their local address, files by their path, rings by their kind (the event loop's is
//! one, and no ring serves two processes), and pollers are marked when they are opened.
//! Event descriptors are left: what may still write to them must not meet another file under their number.

use realtime_log::{DATABASE_NAME, LOCK_NAME, LOCK_SOCKET};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

const MARKS_MAX: usize = 512;
const FREE: RawFd = -1;
/// How the folder of the socket behind the HTTP port begins; Python's `api.listener` makes it.
const HTTP_FOLDER: &[u8] = b"/realtime-http-";

static MARKED: [AtomicI32; MARKS_MAX] = [const { AtomicI32::new(FREE) }; MARKS_MAX];

/// Marks a poller as the engine's; drop it before the descriptor is closed.
#[derive(Debug)]
pub(crate) struct Mark {
    place: Option<usize>,
}

impl Mark {
    /// Beyond [`MARKS_MAX`] nothing is marked, and a child keeps a copy.
    pub(crate) fn new(descriptor: &impl AsRawFd) -> Self {
        let fd = descriptor.as_raw_fd();
        let take = |slot: &AtomicI32| slot.compare_exchange(FREE, fd, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        Self { place: MARKED.iter().position(take) }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            MARKED[place].store(FREE, Ordering::Relaxed);
        }
    }
}

/// Closes, in a child that was just forked, every copy of what engines of the parent hold.
///
/// # Arguments
/// `ports`: where they listen; `folder`: the canonical data directory, if there is one.
pub fn close_inherited(ports: &[u16], folder: Option<&Path>) {
    let listed = fs::read_dir("/proc/self/fd").or_else(|_| fs::read_dir("/dev/fd"));
    let names = listed.into_iter().flatten().filter_map(Result::ok);
    // All of them before the first is closed; the list's own descriptor is among them and closed already.
    let open: Vec<RawFd> = names.filter_map(|name| name.file_name().to_str()?.parse().ok()).collect();
    for fd in open {
        if is_of_engine(fd, ports, folder) {
            // SAFETY: the child's copy of a descriptor that only threads of the parent use.
            unsafe { libc::close(fd) };
        }
    }
}

fn is_of_engine(fd: RawFd, ports: &[u16], folder: Option<&Path>) -> bool {
    // SAFETY: all zeros is a valid `stat`.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: `stat` is a valid place for one.
    if unsafe { libc::fstat(fd, &raw mut stat) } != 0 {
        return false;
    }
    if stat.st_mode & libc::S_IFMT == libc::S_IFSOCK {
        return is_of_engines_socket(fd, ports);
    }
    let Ok(target) = fs::read_link(format!("/proc/self/fd/{fd}")) else { return false };
    let is_marked = || MARKED.iter().any(|mark| mark.load(Ordering::Relaxed) == fd);
    match target.as_os_str().as_encoded_bytes() {
        b"anon_inode:[io_uring]" => return true,
        b"anon_inode:[eventpoll]" => return is_marked(),
        _ => {}
    }
    folder.is_some_and(|folder| target.parent() == Some(folder)) && target.file_name().is_some_and(is_of_log)
}

/// Whether a file of the data directory is the log's: an author may keep others there. The system marks names of files
/// that were removed.
fn is_of_log(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    name == LOCK_NAME.as_bytes() || name.starts_with(DATABASE_NAME.as_bytes())
}

fn is_of_engines_socket(fd: RawFd, ports: &[u16]) -> bool {
    let Ok((address, len)) = local_address(fd) else { return false };
    let port = match i32::from(address.ss_family) {
        // SAFETY: the kernel wrote an address of the family that it names, for which there is room.
        libc::AF_INET => unsafe { (*(&raw const address).cast::<libc::sockaddr_in>()).sin_port },
        // SAFETY: as above.
        libc::AF_INET6 => unsafe { (*(&raw const address).cast::<libc::sockaddr_in6>()).sin6_port },
        libc::AF_UNIX => {
            let path = mem::offset_of!(libc::sockaddr_un, sun_path);
            // SAFETY: `len` bytes of the address are initialised.
            let bytes = unsafe { std::slice::from_raw_parts((&raw const address).cast::<u8>(), len) };
            let name = bytes.get(path..).unwrap_or_default();
            return is_of_http(name) || is_of_http(&peer_path(fd)) || is_lock(name);
        }
        _ => return false,
    };
    ports.contains(&u16::from_be(port)) && is_stream(fd)
}

/// The name of an abstract socket stands behind a zero byte.
fn is_lock(name: &[u8]) -> bool {
    name.strip_prefix(b"\0").is_some_and(|name| name.starts_with(LOCK_SOCKET.as_bytes()))
}

/// Whether a path is that of the socket between the HTTP port and the server behind it.
fn is_of_http(path: &[u8]) -> bool {
    path.windows(HTTP_FOLDER.len()).any(|part| part == HTTP_FOLDER)
}

/// Where the other end of a Unix socket listens; empty where it has no path.
fn peer_path(fd: RawFd) -> Vec<u8> {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    let mut len = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` has room for `len` bytes.
    if unsafe { libc::getpeername(fd, (&raw mut address).cast(), &raw mut len) } != 0 {
        return Vec::new();
    }
    address.sun_path.iter().map(|byte| *byte as u8).collect()
}

fn local_address(fd: RawFd) -> io::Result<(libc::sockaddr_storage, usize)> {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` has room for `len` bytes.
    if unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((address, (len as usize).min(mem::size_of_val(&address))))
}

fn is_stream(fd: RawFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut len = mem::size_of_val(&kind) as libc::socklen_t;
    // SAFETY: `kind` has room for the option's int.
    let read = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut len) };
    read == 0 && kind == libc::SOCK_STREAM
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn a_socket_is_the_engines_by_its_local_port_and_a_poller_by_its_mark() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let other = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        let is_ours = |fd: &dyn AsRawFd| is_of_engine(fd.as_raw_fd(), &[port], None);
        assert!(is_ours(&listener) && is_ours(&accepted));
        assert!(!is_ours(&client) && !is_ours(&other));

        let poll = mio::Poll::new().unwrap();
        let mark = Mark::new(&poll);
        assert!(is_ours(&poll));
        drop(mark);
        assert!(!is_ours(&poll));
    }

    #[test]
    fn both_ends_of_the_way_behind_the_http_port_are_its_own_by_their_path() {
        use std::os::unix::net::{UnixListener, UnixStream};

        let folder = std::env::temp_dir().join(format!("realtime-http-test-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let listener = UnixListener::bind(folder.join("s")).unwrap();
        let front = UnixStream::connect(folder.join("s")).unwrap();
        let (behind, _) = listener.accept().unwrap();
        let (other, _end) = UnixStream::pair().unwrap();
        let is_ours = |fd: &dyn AsRawFd| is_of_engine(fd.as_raw_fd(), &[], None);
        assert!(is_ours(&listener) && is_ours(&front) && is_ours(&behind));
        assert!(!is_ours(&other));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_is_the_logs_by_its_path_and_a_lock_by_its_name() {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::{SocketAddr, UnixDatagram};

        let folder = std::env::temp_dir().join(format!("realtime-forks-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let folder = folder.canonicalize().unwrap();
        let file = fs::File::create(folder.join("lock")).unwrap();
        let authors = fs::File::create(folder.join("notes")).unwrap();
        assert!(is_of_engine(file.as_raw_fd(), &[], Some(&folder)));
        assert!(!is_of_engine(authors.as_raw_fd(), &[], Some(&folder)));
        assert!(!is_of_engine(file.as_raw_fd(), &[], Some(&folder.join("other"))));
        fs::remove_dir_all(&folder).unwrap();
        assert!(is_of_engine(file.as_raw_fd(), &[], Some(&folder)));

        let named = |name: String| UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        let (lock, other) = (
            named(format!("realtime-edge:test-{}", std::process::id())),
            named(format!("other-{}", std::process::id())),
        );
        assert!(is_of_engine(lock.as_raw_fd(), &[], None));
        assert!(!is_of_engine(other.as_raw_fd(), &[], None));
    }
}
