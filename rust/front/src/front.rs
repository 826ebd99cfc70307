//! The front as others hold it: started, given connections, asked, stopped.

use crate::accept;
use crate::counters::Counters;
use crate::options::Options;
use crate::state::State;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// Connections on their way here from another listener; beyond, they are closed.
const ADOPTIONS_MAX: usize = 1_024;
/// How often the end of the connections is looked for while the front stops.
const STOP_POLL: Duration = Duration::from_millis(2);

enum Order {
    Adopt(std::net::TcpStream, SocketAddr, Vec<u8>),
    Begun(u64),
    MakeRoom,
    Stop(Duration),
}

/// A thread that serves the HTTP port.
pub struct Front {
    counters: Arc<Counters>,
    orders: mpsc::Sender<Order>,
    thread: Mutex<Option<JoinHandle<()>>>,
    process: u32,
}

impl Front {
    /// Starts the thread.
    ///
    /// # Arguments
    /// `listener`: where connections come from; None where all are given by [`Self::adopt`]. `make_room` is asked where
    /// the system has no descriptor left and no connection here may go: it has a socket of another part of the process
    /// end, or says that there is none. `on_fatal` is told in one line why the thread has ended by itself.
    ///
    /// # Errors
    /// The system gives no thread or no descriptor.
    pub fn start(
        listener: Option<TcpListener>,
        options: Options,
        make_room: impl Fn() -> bool + Send + 'static,
        on_fatal: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<Self> {
        let counters = Arc::<Counters>::default();
        let (orders, received) = mpsc::channel(ADOPTIONS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let shared = Arc::clone(&counters);
        let thread = std::thread::Builder::new().name("realtime-http".into()).spawn(move || {
            let served = catch_unwind(AssertUnwindSafe(|| {
                LocalSet::new().block_on(&runtime, serve(listener, State::new(options, shared, make_room), received))
            }));
            let why = match served {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it panicked".into(),
            };
            on_fatal(format!("the thread of the HTTP port failed: {why}; end the process and start it again"));
        })?;
        Ok(Self { counters, orders, thread: Mutex::new(Some(thread)), process: std::process::id() })
    }

    /// Serves a connection that was accepted elsewhere; `begun` is what was read of it. Closed where the front has
    /// stopped or is behind.
    pub fn adopt(&self, socket: OwnedFd, begun: Vec<u8>) {
        let socket = std::net::TcpStream::from(socket);
        // One whose client is gone already has no address.
        if let Ok(peer) = socket.peer_addr() {
            let _ = self.orders.try_send(Order::Adopt(socket, peer, begun));
        }
    }

    /// The server behind has begun a request, by the number in its head. Never blocks.
    pub fn begun(&self, number: u64) {
        // Lost only where the thread is far behind; the request's end stands for it then.
        let _ = self.orders.try_send(Order::Begun(number));
    }

    /// Has a connection end that asks for nothing, where another part of the process needs its descriptor. Never blocks.
    pub fn make_room(&self) {
        // Where the thread is far behind, who needs it asks again.
        let _ = self.orders.try_send(Order::MakeRoom);
    }

    /// Takes no more connections, gives requests under way their time, and ends. Idempotent.
    pub fn stop(&self, timeout: Duration) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A forked child has no thread to wait for.
        let Some(thread) = thread.filter(|_| self.process == std::process::id()) else { return };
        // Full only of connections, which the thread takes at once; or it has ended.
        let _ = self.orders.blocking_send(Order::Stop(timeout));
        let _ = thread.join();
    }

    /// What was counted, as members of a JSON object.
    #[must_use]
    pub fn stats_json(&self) -> String {
        self.counters.to_json()
    }

    /// As [`Self::stats_json`] where there is no front.
    #[must_use]
    pub fn no_stats_json() -> String {
        Counters::default().to_json()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

async fn serve(listener: Option<TcpListener>, state: State, mut orders: mpsc::Receiver<Order>) -> io::Result<()> {
    let listener = listener.map(tokio::net::TcpListener::from_std).transpose()?;
    let state = Rc::new(state);
    let accepting = async {
        match &listener {
            Some(listener) => accept::accept(&state, listener).await,
            None => std::future::pending().await,
        }
    };
    let timeout = tokio::select! {
        timeout = obey(&state, &mut orders) => timeout,
        () = accepting => Duration::ZERO,
        () = accept::sweep(&state) => Duration::ZERO,
    };
    drop(listener);
    state.is_stopping.set(true);
    state.table.borrow_mut().end_all(false);
    let until = Instant::now() + timeout;
    let _ = tokio::time::timeout_at(until.into(), async {
        tokio::select! {
            () = gone(&state) => {}
            () = accept::sweep(&state) => {}
        }
    })
    .await;
    state.table.borrow_mut().end_all(true);
    // Tasks that have been told close their sockets in their next turn.
    tokio::task::yield_now().await;
    Ok(())
}

async fn obey(state: &Rc<State>, orders: &mut mpsc::Receiver<Order>) -> Duration {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Stop(timeout) => return timeout,
            Order::Begun(number) => {
                state.slots.begun(number);
                state.reserve.begun(number);
            }
            Order::MakeRoom => {
                state.table.borrow_mut().give_up_one(Instant::now());
            }
            Order::Adopt(socket, peer, begun) => {
                let stream = socket.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(socket));
                // Fails where the system is out of memory for one more; the client comes back.
                if let Ok(stream) = stream {
                    state.take(stream, peer, begun);
                }
            }
        }
    }
    Duration::ZERO
}

async fn gone(state: &State) {
    while state.table.borrow().len() > 0 {
        tokio::time::sleep(STOP_POLL).await;
    }
}
