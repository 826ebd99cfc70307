//! The command line: `--name value` pairs, each at most once except `--pid`; defaults by workload.
//!
//! Written by hand because it is a table of ten names. Every error says the option, the value and what is allowed.

use crate::drive::Pace;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// How to call the program.
pub const USAGE: &str = "\
usage: realtime-load --url ws://HOST:PORT/PATH --workload w1|w1b|w2|send|idle|churn [options]
  --token T | --tokens-file FILE   one token for all, or one a line, used round-robin
  --connections N                  default 1000; idle and churn 10000
  --channels C                     default 1 (w1, w1b), 100 (w2, send), 0 (idle: no subscriptions)
  --closed K                       messages under way per channel: default 1 (w1), 16 (w1b), 4 (w2, send)
  --rate R                         open loop instead: R messages a second in all
  --seconds S --warmup S           measured time 5, before it 1; idle: time to hold the connections
  --payload BYTES                  size of a delivered event, default 131; send: of the content, default 60
  --pid PID                        process of the server, for CPU and memory; may be repeated
  --cycles N                       churn: default 10
  --window N --timeout S           handshakes under way at a time (64); limit for opening and for lost messages (30)
  --prefix P                       channels are P0, P1, ...; default conversation:w-
  --repeat-every N                 send: every Nth message twice, as after a lost ack; default 0, none
  --record FILE                    send: append conversationId,number,clientMessageId of each acknowledged message
exit: 0 well, 1 something lost, doubled, out of order or refused, 2 wrong call or no start, 3 the server went away
";

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Publish and deliver (w1, w1b, w2).
    FanOut,
    /// `send_message`, stored and acknowledged.
    Send,
    /// Open and hold.
    Idle,
    /// Open and close in cycles.
    Churn,
}

/// A checked command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The workload's name as given.
    pub workload: String,
    /// What it runs.
    pub kind: Kind,
    /// The server.
    pub address: SocketAddr,
    /// Host and port as given.
    pub host: String,
    /// Path of the endpoint.
    pub path: String,
    /// Tokens, maybe none.
    pub tokens: Vec<String>,
    /// Connections.
    pub connections: usize,
    /// Channels.
    pub channels: usize,
    /// Closed or open loop.
    pub pace: Pace,
    /// Measured time.
    pub measured: Duration,
    /// Time before it.
    pub warmup: Duration,
    /// Size of an event or content.
    pub payload: usize,
    /// The server's processes.
    pub pids: Vec<u32>,
    /// Cycles of churn.
    pub cycles: usize,
    /// Handshakes at a time.
    pub window: usize,
    /// Limit for opening, and for silence with messages under way.
    pub timeout: Duration,
    /// How the channels' names begin.
    pub prefix: String,
    /// Every so many messages one is sent a second time; 0 for none.
    pub repeat_every: u64,
    /// Where acknowledged messages are recorded.
    pub record: Option<String>,
}

/// The pairs of a command line.
struct Pairs(Vec<(String, String)>);

impl Pairs {
    fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.remove(index).1)
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str, default: T) -> Result<T, String> {
        self.take(name)
            .map_or(Ok(default), |value| value.parse().map_err(|_| format!("{name} {value}: must be a number")))
    }

    fn seconds(&mut self, name: &str, default: f64) -> Result<Duration, String> {
        let value = self.number(name, default)?;
        Duration::try_from_secs_f64(value).map_err(|_| format!("{name} {value}: must be 0 or more seconds"))
    }
}

/// Check a command line (without the program's name).
///
/// # Errors
/// A sentence for the first thing that is wrong.
pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut pairs = pairs(arguments)?;
    let workload = pairs.take("--workload").ok_or("--workload is missing: w1, w1b, w2, send, idle or churn")?;
    let (kind, connections, channels, in_flight, payload) = match workload.as_str() {
        "w1" => (Kind::FanOut, 1_000, 1, 1, 131),
        "w1b" => (Kind::FanOut, 1_000, 1, 16, 131),
        "w2" => (Kind::FanOut, 1_000, 100, 4, 131),
        "send" => (Kind::Send, 1_000, 100, 4, 60),
        "idle" => (Kind::Idle, 10_000, 0, 1, 0),
        "churn" => (Kind::Churn, 10_000, 0, 1, 0),
        other => {
            return Err(format!("--workload {other}: must be w1, w1b, w2, send, idle or churn"));
        }
    };
    let url = pairs.take("--url").ok_or("--url is missing: ws://127.0.0.1:3002/ws")?;
    let (host, path, address) = parse_url(&url)?;
    let closed = pairs.number("--closed", in_flight)?;
    let rate = pairs.number("--rate", 0.0)?;
    let options = Options {
        kind,
        address,
        host,
        path,
        tokens: tokens(&mut pairs)?,
        connections: pairs.number("--connections", connections)?,
        channels: pairs.number("--channels", channels)?,
        pace: if rate > 0.0 { Pace::Open(rate) } else { Pace::Closed(closed) },
        measured: pairs.seconds("--seconds", 5.0)?,
        warmup: pairs.seconds("--warmup", 1.0)?,
        payload: pairs.number("--payload", payload)?,
        pids: pids(&mut pairs)?,
        cycles: pairs.number("--cycles", 10)?,
        window: pairs.number("--window", 64)?,
        timeout: pairs.seconds("--timeout", 30.0)?,
        prefix: pairs.take("--prefix").unwrap_or_else(|| "conversation:w-".to_owned()),
        repeat_every: pairs.number("--repeat-every", 0)?,
        record: pairs.take("--record"),
        workload,
    };
    if let Some((name, _)) = pairs.0.first() {
        return Err(format!("{name}: unknown, or given twice"));
    }
    check(&options)?;
    Ok(options)
}

fn pairs(mut arguments: impl Iterator<Item = String>) -> Result<Pairs, String> {
    let mut pairs = Vec::new();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name}: a value must follow"))?;
        pairs.push((name, value));
    }
    Ok(Pairs(pairs))
}

fn check(options: &Options) -> Result<(), String> {
    let Options { connections, channels, window, .. } = *options;
    if connections == 0 || connections > 19_000 {
        return Err(format!("--connections {connections}: must be 1 to 19000, what one process may hold open"));
    }
    let subscribes = matches!(options.kind, Kind::FanOut | Kind::Send);
    if channels > connections || (subscribes && channels == 0) {
        return Err(format!("--channels {channels}: must be 1 to --connections {connections}, a publisher for each"));
    }
    if options.kind == Kind::Send && !options.prefix.starts_with("conversation:") {
        return Err(format!(
            "--prefix {}: messages are stored in conversations; it must begin with conversation:",
            options.prefix
        ));
    }
    if window == 0 || options.pace == Pace::Closed(0) {
        return Err("--window and --closed must be 1 or more".to_owned());
    }
    Ok(())
}

fn parse_url(url: &str) -> Result<(String, String, SocketAddr), String> {
    let rest = url.strip_prefix("ws://").ok_or_else(|| format!("--url {url}: must begin with ws://"))?;
    let (host, path) =
        rest.split_once('/').map_or_else(|| (rest, "/".to_owned()), |(host, path)| (host, format!("/{path}")));
    let address = host.to_socket_addrs().ok().and_then(|mut all| all.next());
    let address = address.ok_or_else(|| format!("--url {url}: {host} must be a known host with a port"))?;
    Ok((host.to_owned(), path, address))
}

fn tokens(pairs: &mut Pairs) -> Result<Vec<String>, String> {
    let Some(file) = pairs.take("--tokens-file") else {
        return Ok(pairs.take("--token").into_iter().collect());
    };
    let text = std::fs::read_to_string(&file).map_err(|error| format!("--tokens-file {file}: {error}"))?;
    let tokens: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if tokens.is_empty() { Err(format!("--tokens-file {file}: has no token")) } else { Ok(tokens) }
}

fn pids(pairs: &mut Pairs) -> Result<Vec<u32>, String> {
    let mut pids = Vec::new();
    while let Some(value) = pairs.take("--pid") {
        pids.push(value.parse().map_err(|_| format!("--pid {value}: must be a process id"))?);
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn workload_brings_its_defaults_and_a_rate_opens_the_loop() {
        let w2 = parsed("--workload w2 --url ws://127.0.0.1:9/ws").expect("a good line");
        assert_eq!((w2.connections, w2.channels, w2.pace, w2.payload), (1_000, 100, Pace::Closed(4), 131));
        assert_eq!((w2.path.as_str(), w2.host.as_str()), ("/ws", "127.0.0.1:9"));
        let w6 = parsed("--workload w2 --url ws://127.0.0.1:9/ws --rate 30000 --pid 1 --pid 2").expect("a good line");
        assert_eq!((w6.pace, w6.pids), (Pace::Open(30_000.0), vec![1, 2]));
    }

    #[test]
    fn wrong_lines_name_the_option() {
        for (line, word) in [
            ("--url ws://127.0.0.1:9/ws", "--workload"),
            ("--workload w9 --url ws://127.0.0.1:9/ws", "w9"),
            ("--workload w1 --url http://127.0.0.1:9/ws", "ws://"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --speed 3", "--speed"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --seconds -1", "--seconds"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --connections 20000", "19000"),
            ("--workload w2 --url ws://127.0.0.1:9/ws --connections 10 --channels 11", "--channels"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --closed 0", "--closed"),
            ("--workload send --url ws://127.0.0.1:9/ws --prefix bench:", "--prefix"),
            ("--workload w1 --url", "--url"),
        ] {
            let error = parsed(line).expect_err(line);
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
