//! The listening socket: bound so that what is wrong is told in one line.

use crate::error::{StartCode, StartError};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

/// Connections that the kernel completes while none is accepted; the system's own limit may be lower.
const BACKLOG: i32 = 4_096;

/// Binds `host` and `port` (0: the kernel chooses) and listens, without blocking.
///
/// # Errors
/// `port_in_use`, `address` for a name or address that is none of this machine's or not permitted, `io` for the rest.
pub(crate) fn bind(host: &str, port: u16) -> Result<TcpListener, StartError> {
    let address = resolve(host, port)?;
    let listener = listen(address).map_err(|error| bind_error(&error, host, port))?;
    Ok(listener.into())
}

fn resolve(host: &str, port: u16) -> Result<SocketAddr, StartError> {
    let unknown = |why: &str| {
        StartError::new(
            StartCode::Address,
            format!(
                "cannot listen on host {host:?}: {why}; use an address of this machine such as 127.0.0.1 or 0.0.0.0"
            ),
        )
    };
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(|error| unknown(&error.to_string()))?.collect();
    // A name such as localhost has an address in both families, and clients that try one alone try this one.
    let address = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    address.copied().ok_or_else(|| unknown("the name has no address"))
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it on Linux and the BSDs: one call instead of one a connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn bind_error(error: &io::Error, host: &str, port: u16) -> StartError {
    let (code, advice) = match error.kind() {
        io::ErrorKind::AddrInUse => (StartCode::PortInUse, "stop the program that uses it, or choose another port"),
        io::ErrorKind::AddrNotAvailable => {
            (StartCode::Address, "use an address of this machine such as 127.0.0.1 or 0.0.0.0")
        }
        io::ErrorKind::PermissionDenied => {
            (StartCode::Address, "choose a port above 1023 or give the process the right")
        }
        _ => (StartCode::Io, "check the limits of this process and machine"),
    };
    StartError::new(code, format!("cannot listen on {host}:{port}: {error}; {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_told_with_its_number() {
        let first = bind("127.0.0.1", 0).unwrap();
        let port = first.local_addr().unwrap().port();
        let error = bind("127.0.0.1", port).unwrap_err();
        assert_eq!(error.code, StartCode::PortInUse);
        assert!(error.message.contains(&format!("127.0.0.1:{port}")), "{error}");
        assert!(!error.message.contains('\n'));
    }

    #[test]
    fn an_address_of_another_machine_is_told_as_such() {
        for host in ["192.0.2.1", "no.such.host.invalid", ""] {
            let error = bind(host, 0).unwrap_err();
            assert_eq!(error.code, StartCode::Address, "{host:?}: {error}");
        }
    }

    #[test]
    fn a_name_of_both_families_is_listened_on_where_clients_try_first() {
        assert!(bind("localhost", 0).unwrap().local_addr().unwrap().is_ipv4());
    }

    #[test]
    fn both_families_are_listened_on() {
        assert!(bind("127.0.0.1", 0).is_ok());
        assert!(bind("::1", 0).is_ok());
    }
}
