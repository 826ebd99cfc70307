//! The command line: `--name value` pairs, each at most once except `--pid`; defaults by workload.
//!
//! `realtime bench` passes its own options on under the same names, so that an error says the one that was typed.
//! Written by hand because it is a table of names. Every error says the option, the value and what is allowed.

use crate::dialect::Dialect;
use crate::drive::Pace;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// How to call the program.
pub const USAGE: &str = "\
usage: realtime-load --url ws://HOST:PORT/PATH --workload w1|w1b|w2|w3|w5|w6|w8|send|idle|churn [options]
  --token T | --tokens-file FILE   one token for all, or one a line, used round-robin
  --connections N                  default 1000; w3 200; w8, idle and churn 10000
  --channels C                     default 1 (w1, w1b, w5), 100 (w2, w6, w8, send), 0 (w3, idle: no subscriptions)
  --members M                      of each channel, in place of one of the two above
  --in-flight K                    messages under way per channel: default 1 (w1, w3, w5), 16 (w1b), 4 (w2, send)
  --rate R                         open loop instead: R messages a second in all; default 30000 (w6), 500 (w8), else 0: closed loop
  --duration S --warmup S          measured time 5, before it 1; idle: time to hold the connections; --seconds is the same
  --payload BYTES                  size of a delivered event, default 131, w5 730; send, w8: of the content, 60
  --compress                       permessage-deflate is offered and must be agreed to; text in place of filling; w5 does it
  --dialect D                      what the server speaks: realtime (default), socketio, centrifuge
  --type T                         of the messages that publish, default publish; a handler's that publishes the same
  --pid PID                        process of the server, for CPU and memory; may be repeated
  --samples N                      idle: looks at the server's memory while they are held, default 4, the end included
  --cycles N                       churn: default 10
  --window N --timeout S           handshakes under way at a time (64); limit for opening and for lost messages (30)
  --prefix P                       channels are P0, P1, ...; default conversation:w-
  --repeat-every N                 send: every Nth message twice, as after a lost ack; default 0, none
  --record FILE                    send: append conversationId,number,clientMessageId of each acknowledged message
exit: 0 well, 1 something lost, doubled, out of order or refused, 2 wrong call or nobody there, 3 the server went away
";

const WORKLOADS: &str = "w1, w1b, w2, w3, w5, w6, w8, send, idle or churn";

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Publish and deliver (w1, w1b, w2, w5, w6).
    FanOut,
    /// `ping` and `pong` (w3).
    Pings,
    /// `send_message`, stored and acknowledged.
    Send,
    /// Cut everybody, and count what they miss (w8).
    Recover,
    /// Open and hold.
    Idle,
    /// Open and close in cycles.
    Churn,
}

/// What a workload brings where the command line says nothing.
struct Defaults {
    kind: Kind,
    connections: usize,
    channels: usize,
    in_flight: u32,
    rate: f64,
    payload: usize,
    compress: bool,
}

impl Defaults {
    const fn of(kind: Kind, connections: usize, channels: usize, in_flight: u32) -> Self {
        Self { kind, connections, channels, in_flight, rate: 0.0, payload: 131, compress: false }
    }

    fn named(workload: &str) -> Option<Self> {
        Some(match workload {
            "w1" => Self::of(Kind::FanOut, 1_000, 1, 1),
            "w1b" => Self::of(Kind::FanOut, 1_000, 1, 16),
            "w2" => Self::of(Kind::FanOut, 1_000, 100, 4),
            "w3" => Self::of(Kind::Pings, 200, 0, 1),
            "w5" => Self { payload: 730, compress: true, ..Self::of(Kind::FanOut, 1_000, 1, 1) },
            "w6" => Self { rate: 30_000.0, ..Self::of(Kind::FanOut, 1_000, 100, 4) },
            "send" => Self { payload: 60, ..Self::of(Kind::Send, 1_000, 100, 4) },
            "w8" => Self { rate: 500.0, payload: 60, ..Self::of(Kind::Recover, 10_000, 100, 1) },
            "idle" => Self::of(Kind::Idle, 10_000, 0, 1),
            "churn" => Self::of(Kind::Churn, 10_000, 0, 1),
            _ => return None,
        })
    }
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
    /// Whether permessage-deflate is offered, and required.
    pub compress: bool,
    /// What the server speaks.
    pub dialect: Dialect,
    /// Type of the messages that publish.
    pub message_type: String,
    /// The server's processes.
    pub pids: Vec<u32>,
    /// Looks at the memory while connections are held.
    pub samples: u32,
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

impl Options {
    /// Connections that are open at a time: where everybody is cut, the publishers are others.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.connections + if self.kind == Kind::Recover { self.channels } else { 0 }
    }
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
        self.take(name).map_or_else(|| Ok(Duration::from_secs_f64(default)), |value| seconds(name, &value))
    }
}

/// The longest time that can be asked for: a run of a month is a mistake.
const SECONDS_MAX: f64 = 30.0 * 86_400.0;

fn seconds(name: &str, value: &str) -> Result<Duration, String> {
    let number = value.parse().map_err(|_| format!("{name} {value}: must be a number of seconds"))?;
    if !(0.0..=SECONDS_MAX).contains(&number) {
        return Err(format!("{name} {value}: must be 0 to {SECONDS_MAX} seconds"));
    }
    Ok(Duration::from_secs_f64(number))
}

/// How many connections there are, and channels over them: any two of `--connections`, `--channels` and `--members` give the third.
fn shape(pairs: &mut Pairs, defaults: &Defaults) -> Result<(usize, usize), String> {
    let (connections, channels) = (pairs.take("--connections"), pairs.take("--channels"));
    let number = |name: &str, value: Option<String>, default: usize| {
        value.map_or(Ok(default), |value| value.parse().map_err(|_| format!("{name} {value}: must be a number")))
    };
    let (all_given, channels_given) = (connections.is_some(), channels.is_some());
    let connections = number("--connections", connections, defaults.connections)?;
    // Fewer connections than channels by default are one member a channel.
    let fallback = if channels_given { defaults.channels } else { defaults.channels.min(connections) };
    let channels = number("--channels", channels, fallback)?;
    let Some(members) = pairs.take("--members") else {
        return Ok((connections, channels));
    };
    let members: usize = number("--members", Some(members), 1)?;
    if members == 0 || defaults.channels == 0 {
        return Err(format!("--members {members}: must be 1 or more, of a workload with channels"));
    }
    if all_given && channels_given {
        return Err(format!("--members {members}: follows from --connections {connections} and --channels {channels}"));
    }
    if all_given {
        return Ok((connections, connections / members));
    }
    let product = channels.checked_mul(members);
    Ok((product.ok_or_else(|| format!("--members {members}: too many for {channels} channels"))?, channels))
}

fn pace(pairs: &mut Pairs, defaults: &Defaults) -> Result<Pace, String> {
    let in_flight = pairs.number("--in-flight", defaults.in_flight)?;
    let rate = pairs.number("--rate", defaults.rate)?;
    if !(0.0..=RATE_MAX).contains(&rate) {
        return Err(format!("--rate {rate}: must be 0 (a closed loop) to {RATE_MAX} messages a second"));
    }
    Ok(if rate > 0.0 { Pace::Open(rate) } else { Pace::Closed(in_flight) })
}

/// Beyond what one thread can send by far.
const RATE_MAX: f64 = 1e7;
/// What the messages of the workloads hold at most; a publication may be 1 MiB with what is around it.
const PAYLOAD_MAX: usize = 1_000_000;

/// Check a command line (without the program's name).
///
/// # Errors
/// A sentence for the first thing that is wrong.
pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut pairs = pairs(arguments)?;
    let workload = pairs.take("--workload").ok_or_else(|| format!("--workload is missing: {WORKLOADS}"))?;
    let defaults = Defaults::named(&workload).ok_or_else(|| format!("--workload {workload}: must be {WORKLOADS}"))?;
    let url = pairs.take("--url").ok_or("--url is missing: ws://127.0.0.1:3002/ws")?;
    let (host, path, address) = parse_url(&url)?;
    let (connections, channels) = shape(&mut pairs, &defaults)?;
    let options = Options {
        kind: defaults.kind,
        address,
        host,
        path,
        tokens: tokens(&mut pairs)?,
        connections,
        channels,
        pace: pace(&mut pairs, &defaults)?,
        measured: match pairs.take("--seconds") {
            Some(value) => seconds("--seconds", &value)?,
            None => pairs.seconds("--duration", 5.0)?,
        },
        warmup: pairs.seconds("--warmup", 1.0)?,
        payload: pairs.number("--payload", defaults.payload)?,
        compress: pairs.take("--compress").is_some() || defaults.compress,
        dialect: dialect(&mut pairs)?,
        message_type: pairs.take("--type").unwrap_or_else(|| "publish".to_owned()),
        pids: pids(&mut pairs)?,
        samples: pairs.number("--samples", 4)?,
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

fn dialect(pairs: &mut Pairs) -> Result<Dialect, String> {
    let Some(name) = pairs.take("--dialect") else { return Ok(Dialect::default()) };
    Dialect::named(&name).ok_or_else(|| format!("--dialect {name}: must be realtime, socketio or centrifuge"))
}

fn pairs(mut arguments: impl Iterator<Item = String>) -> Result<Pairs, String> {
    let mut pairs = Vec::new();
    while let Some(name) = arguments.next() {
        if name == "--compress" {
            pairs.push((name, String::new()));
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name}: a value must follow"))?;
        pairs.push((name, value));
    }
    Ok(Pairs(pairs))
}

fn check(options: &Options) -> Result<(), String> {
    let Options { connections, channels, window, payload, .. } = *options;
    if connections == 0 {
        return Err("--connections 0: must be 1 or more".to_owned());
    }
    let subscribes = matches!(options.kind, Kind::FanOut | Kind::Send | Kind::Recover);
    if channels > connections || (subscribes && channels == 0) {
        return Err(format!("--channels {channels}: must be 1 to --connections {connections}, a publisher for each"));
    }
    for (name, value) in [("--prefix", &options.prefix), ("--type", &options.message_type)] {
        // They are written into JSON as they are; no channel or type has any other character.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:@-".contains(&byte);
        if value.is_empty() || value.len() > 100 || !value.bytes().all(plain) {
            return Err(format!("{name} {value:?}: must be 1 to 100 of the characters A-Z a-z 0-9 _ . : @ -"));
        }
    }
    if matches!(options.kind, Kind::Send | Kind::Recover) && !options.prefix.starts_with("conversation:") {
        return Err(format!(
            "--prefix {}: messages are stored in conversations; it must begin with conversation:",
            options.prefix
        ));
    }
    if payload > PAYLOAD_MAX {
        return Err(format!("--payload {payload}: must be at most {PAYLOAD_MAX} bytes"));
    }
    if window == 0 || options.pace == Pace::Closed(0) {
        return Err("--window and --in-flight must be 1 or more".to_owned());
    }
    Ok(())
}

fn parse_url(url: &str) -> Result<(String, String, SocketAddr), String> {
    let rest = url.strip_prefix("ws://").ok_or_else(|| {
        let advice =
            if url.starts_with("wss://") { "; TLS is not spoken here, aim at the server behind the proxy" } else { "" };
        format!("--url {url}: must begin with ws://{advice}")
    })?;
    if rest.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#') {
        return Err(format!("--url {url:?}: must have no spaces, control characters or fragment"));
    }
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = (&rest[..at], &rest[at..]);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    // A server on this machine is more often on 127.0.0.1 than on ::1, and "localhost" is both.
    let resolve = |host: &str| {
        let all: Vec<SocketAddr> = host.to_socket_addrs().ok()?.collect();
        all.iter().find(|address| address.is_ipv4()).or_else(|| all.first()).copied()
    };
    let address = resolve(host).or_else(|| resolve(&format!("{host}:80")));
    let address = address.ok_or_else(|| format!("--url {url}: {host:?} is not a known host with a port"))?;
    Ok((host.to_owned(), path, address))
}

fn tokens(pairs: &mut Pairs) -> Result<Vec<String>, String> {
    let Some(file) = pairs.take("--tokens-file") else {
        let token = pairs.take("--token");
        if token.as_ref().is_some_and(|token| token.is_empty() || token.bytes().any(|byte| !byte.is_ascii_graphic())) {
            return Err("--token: is empty or has characters that no token has".to_owned());
        }
        return Ok(token.into_iter().collect());
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
        let w6 = parsed("--workload w6 --url ws://localhost/ws?a=b --seconds 2").expect("a good line");
        assert_eq!((w6.pace, w6.path.as_str(), w6.address.port()), (Pace::Open(30_000.0), "/ws?a=b", 80));
        assert_eq!(w6.measured, Duration::from_secs(2));
    }

    #[test]
    fn compression_is_asked_for_by_a_word_without_a_value() {
        let given =
            |line: &str| parsed(&format!("--url ws://127.0.0.1:9/ws {line}")).map(|it| (it.compress, it.payload));
        assert_eq!(given("--workload w1"), Ok((false, 131)));
        assert_eq!(given("--compress --workload w1"), Ok((true, 131)));
        assert_eq!(given("--workload w5"), Ok((true, 730)));
        assert!(given("--workload w5 --compress yes").is_err());
    }

    #[test]
    fn any_two_of_connections_channels_and_members_give_the_third() {
        for (line, expected) in [
            ("", (1_000, 100)),
            ("--connections 50", (50, 50)),
            ("--connections 500 --members 50", (500, 10)),
            ("--channels 7 --members 3", (21, 7)),
            ("--members 3", (300, 100)),
            ("--connections 50 --channels 5", (50, 5)),
        ] {
            let options = parsed(&format!("--workload w2 --url ws://127.0.0.1:9/ws {line}")).expect(line);
            assert_eq!((options.connections, options.channels), expected, "{line}");
        }
    }

    #[test]
    fn wrong_lines_name_the_option() {
        for (line, word) in [
            ("--url ws://127.0.0.1:9/ws", "--workload"),
            ("--workload w9 --url ws://127.0.0.1:9/ws", "w9"),
            ("--workload w1 --url http://127.0.0.1:9/ws", "ws://"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --speed 3", "--speed"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --seconds -1", "--seconds"),
            ("--workload w1 --url wss://127.0.0.1:9/ws", "TLS"),
            ("--workload w1 --url ws://nowhere.invalid:1/ws", "nowhere.invalid"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --seconds nan", "--seconds"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --rate nan", "--rate"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --rate -1", "--rate"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --connections 0", "--connections 0"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --connections many", "--connections many"),
            ("--workload w2 --url ws://127.0.0.1:9/ws --connections 9 --channels 3 --members 3", "--members"),
            ("--workload w3 --url ws://127.0.0.1:9/ws --members 3", "--members"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --payload 1000001", "--payload"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --type a\"b", "--type"),
            ("--workload w2 --url ws://127.0.0.1:9/ws --connections 10 --channels 11", "--channels"),
            ("--workload w1 --url ws://127.0.0.1:9/ws --in-flight 0", "--in-flight"),
            ("--workload send --url ws://127.0.0.1:9/ws --prefix bench:", "--prefix"),
            ("--workload w1 --url", "--url"),
        ] {
            let error = parsed(line).expect_err(line);
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
