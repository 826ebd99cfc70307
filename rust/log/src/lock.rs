//! One server for each data directory: a locked file in it, and on Linux a name beside it.
//!
//! The file's lock (`flock`) works for every process that sees the file, in other containers too. It goes with the
//! folder, so whoever removes and makes the folder again would get a second lock. The name, an abstract socket of
//! Linux, belongs to the path and not to what stands there. It is one within a mount namespace and below a root, since
//! elsewhere the same path is another folder. Both end with the process, however that ends: neither is ever stale.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use crate::error::Error;
use crate::open::open_private;

/// The file that a server holds locked.
pub const LOCK_NAME: &str = "lock";
/// How the name of the abstract socket begins that a server holds.
pub const LOCK_SOCKET: &str = "realtime-edge:";

/// Holds a data directory; dropping it gives the directory back.
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
    #[cfg(target_os = "linux")]
    _name: Option<std::os::unix::net::UnixDatagram>,
}

impl DirLock {
    /// Locks a directory that exists.
    pub(crate) fn take(dir: &Path) -> Result<Self, Error> {
        let unwritable = |source| Error::Unwritable { dir: dir.to_path_buf(), source };
        let file = open_private(OpenOptions::new().write(true), &dir.join(LOCK_NAME));
        let file = file.map_err(unwritable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { dir: dir.to_path_buf() }),
            Err(TryLockError::Error(source)) => return Err(unwritable(source)),
        }
        #[cfg(target_os = "linux")]
        let name = name::bind(dir).map_err(|name::Taken| Error::Locked { dir: dir.to_path_buf() })?;
        Ok(Self {
            _file: file,
            #[cfg(target_os = "linux")]
            _name: name,
        })
    }
}

#[cfg(target_os = "linux")]
mod name {
    use std::fs;
    use std::io::ErrorKind;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::path::Path;

    use super::LOCK_SOCKET;

    /// Another process has the name.
    pub(super) struct Taken;

    /// Takes the name of a directory; `None` where the system gives no such names: the lock file then stands alone.
    pub(super) fn bind(dir: &Path) -> Result<Option<UnixDatagram>, Taken> {
        let Ok(path) = fs::canonicalize(dir) else { return Ok(None) };
        let Ok(address) = SocketAddr::from_abstract_name(of(&path)) else { return Ok(None) };
        match UnixDatagram::bind_addr(&address) {
            Ok(socket) => Ok(Some(socket)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Err(Taken),
            Err(_) => Ok(None),
        }
    }

    /// The name of a canonical path: a digest, since names are short and paths are not.
    fn of(path: &Path) -> String {
        let place = |of: &str| fs::metadata(of).map_or((0, 0), |metadata| (metadata.dev(), metadata.ino()));
        let (namespace, root) = (place("/proc/self/ns/mnt"), place("/"));
        let words = [namespace.0, namespace.1, root.0, root.1];
        let prefix = words.iter().flat_map(|word| word.to_le_bytes());
        format!("{LOCK_SOCKET}{:032x}", fnv_1a(prefix.chain(path.as_os_str().as_bytes().iter().copied())))
    }

    /// FNV-1a of 128 bits: the same in every version of this program, which std's hashes are not.
    fn fnv_1a(bytes: impl Iterator<Item = u8>) -> u128 {
        const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        bytes.fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
    }

    #[cfg(test)]
    mod tests {
        use super::fnv_1a;

        #[test]
        fn the_digest_is_fnv_1a_of_128_bits() {
            assert_eq!(fnv_1a(b"".iter().copied()), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
            assert_eq!(fnv_1a(b"a".iter().copied()), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        }
    }
}
