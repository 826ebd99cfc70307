//! The listener, and who is overdue.

use crate::counters::add;
use crate::state::State;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// How often it is looked who is overdue.
const SWEEP: Duration = Duration::from_millis(250);

/// Takes connections for as long as it is polled.
pub(crate) async fn accept(state: &Rc<State>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                #[cfg(not(target_os = "linux"))]
                let _ = stream.set_nodelay(true);
                state.take(stream, peer, Vec::new());
            }
            Err(error) if is_exhausted(&error) => {
                add(&state.counters.accept_errors, 1);
                state.make_room().await;
            }
            // The peer went away between the handshake and here: the next one is not concerned.
            Err(_) => {}
        }
    }
}

/// Ends whoever is overdue, for as long as it is polled.
pub(crate) async fn sweep(state: &Rc<State>) {
    loop {
        let now = Instant::now();
        if state.table.borrow().len() > 0 {
            state.table.borrow_mut().sweep(now);
        }
        state.rates.sweep(now);
        state.upstream.sweep(now).await;
        tokio::time::sleep(SWEEP).await;
    }
}

/// No descriptor or no memory: trying again at once would only burn the processor.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
