//! What all connections share, on the front's one thread.

use crate::connection;
use crate::counters::{Counters, add};
use crate::options::Options;
use crate::rates::Rates;
use crate::slots::{RESERVED, Slots};
use crate::table::Table;
use crate::upstream::Upstream;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// How long nothing is accepted after the system refused a socket and nobody could go for it.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one that was ended gets to close its socket.
const MOMENT: Duration = Duration::from_millis(1);
/// Bytes a second that a body or an answer has to move at, once its first time is over.
pub(crate) const PACE: u64 = 4 * 1024;
/// Bytes of one read.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// How long each wait may last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) head: Duration,
    pub(crate) body: Duration,
    pub(crate) answer: Duration,
    pub(crate) wait: Duration,
}

/// Everything but the listener.
pub(crate) struct State {
    pub(crate) table: RefCell<Table>,
    pub(crate) slots: Rc<Slots>,
    /// Those of the reserved paths.
    pub(crate) reserve: Rc<Slots>,
    pub(crate) rates: Rates,
    pub(crate) upstream: Upstream,
    pub(crate) counters: Arc<Counters>,
    pub(crate) times: Times,
    pub(crate) options: Options,
    pub(crate) is_stopping: Cell<bool>,
    /// Connections that are closed but for what they still send.
    pub(crate) lingering: Cell<u64>,
    /// For reads of all connections: what a read has brought is copied before anything else happens.
    pub(crate) scratch: RefCell<Box<[u8]>>,
    /// Has a socket of another part of the process end.
    elsewhere: Box<dyn Fn() -> bool>,
}

impl State {
    pub(crate) fn new(options: Options, counters: Arc<Counters>, elsewhere: impl Fn() -> bool + 'static) -> Self {
        let duration = |seconds: f64| Duration::from_secs_f64(seconds);
        let keep_alive = duration(options.keep_alive_s);
        Self {
            table: RefCell::new(Table::new(
                options.connections_max,
                options.bytes_max,
                keep_alive,
                Arc::clone(&counters),
            )),
            slots: Slots::new(options.requests_max, 0, Arc::clone(&counters)),
            reserve: Slots::new(RESERVED, u64::MAX / 2, Arc::clone(&counters)),
            rates: Rates::new(options.address_requests_per_s, options.address_requests_burst),
            upstream: Upstream::new(options.upstream.clone()),
            counters,
            times: Times {
                head: duration(options.head_timeout_s),
                body: duration(options.body_timeout_s),
                answer: duration(options.answer_timeout_s),
                wait: duration(options.wait_s),
            },
            options,
            is_stopping: Cell::new(false),
            lingering: Cell::new(0),
            scratch: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
            elsewhere: Box::new(elsewhere),
        }
    }

    /// The system has no descriptor left: has a connection end that asks for nothing, here or elsewhere, and waits for
    /// its end; longer where there is none, as trying again at once would only burn the processor.
    pub(crate) async fn make_room(&self) {
        let has_room = self.table.borrow_mut().give_up_one(Instant::now()) || (self.elsewhere)();
        tokio::time::sleep(if has_room { MOMENT } else { PAUSE }).await;
    }

    /// Takes a connection in, for which another one may have to go; `begun` is what was read of it already.
    pub(crate) fn take(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, begun: Vec<u8>) {
        add(&self.counters.accepted, 1);
        let now = Instant::now();
        let opened = {
            let mut table = self.table.borrow_mut();
            let has_room = !table.is_full() || table.make_room();
            (has_room && !self.is_stopping.get()).then(|| table.open(peer.ip(), now + self.times.head, now))
        };
        match opened {
            Some((id, fate)) => {
                tokio::task::spawn_local(connection::serve(Rc::clone(self), stream, peer, begun, id, fate));
            }
            None => connection::turn_away(self, &stream),
        }
    }
}
