//! The front between real clients and a server that stands for the one that calls Python.

use realtime_front::{Front, Options};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
static SERVERS: AtomicU64 = AtomicU64::new(0);

/// A front, and the requests that came through it.
struct World {
    front: Front,
    port: u16,
    folder: PathBuf,
    requests: Receiver<Asked>,
}

/// A request as the server behind sees it, to be answered.
struct Asked {
    head: String,
    body: Vec<u8>,
    stream: UnixStream,
    done: Sender<()>,
}

impl Asked {
    fn answer(mut self, bytes: &[u8]) {
        // The client may be gone; then so is this stream.
        let _ = self.stream.write_all(bytes);
        let _ = self.done.send(());
    }

    fn ok(self, body: &str) {
        self.answer(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.front.stop(Duration::ZERO);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Reads requests off one connection, one after the other.
fn serve(stream: UnixStream, asked: &Sender<Asked>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if reader.read_exact(&mut body).is_err() {
            body.clear();
        }
        if head.contains("transfer-encoding: chunked") {
            let mut last = String::new();
            while last != "0\r\n" {
                last.clear();
                if reader.read_line(&mut last).unwrap_or(0) == 0 {
                    return;
                }
                body.extend_from_slice(last.as_bytes());
            }
            let _ = reader.read_line(&mut last);
        }
        let (done, is_done) = channel();
        let Ok(stream) = stream.try_clone() else { return };
        if asked.send(Asked { head, body, stream, done }).is_err() || is_done.recv().is_err() {
            return;
        }
    }
}

fn world(changes: &str) -> World {
    let number = SERVERS.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("realtime-front-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("s");
    let behind = UnixListener::bind(&path).unwrap();
    let (asked, requests) = channel();
    std::thread::spawn(move || {
        for stream in behind.incoming().map_while(Result::ok) {
            let asked = asked.clone();
            std::thread::spawn(move || serve(stream, &asked));
        }
    });
    let mut options = serde_json::json!({
        "upstream": path, "head_bytes_max": 16384, "connections_max": 64, "requests_max": 16, "bytes_max": 1 << 26,
        "head_timeout_s": 10, "body_timeout_s": 10, "answer_timeout_s": 10, "keep_alive_s": 10, "wait_s": 10,
        "proxies": [], "keeps_connections": true, "address_requests_per_s": 0, "address_requests_burst": 0, "reserved": ["/health"],
    });
    let changes: serde_json::Value = serde_json::from_str(changes).unwrap();
    for (name, value) in changes.as_object().unwrap() {
        options[name] = value.clone();
    }
    let options = Options::from_json(options.to_string().as_bytes()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let front = Front::start(Some(listener), options, || false, |why| panic!("{why}")).unwrap();
    World { front, port, folder, requests }
}

impl World {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        stream
    }

    fn asked(&self) -> Asked {
        self.requests.recv_timeout(PATIENCE).expect("no request came through")
    }

    fn figure(&self, name: &str) -> u64 {
        let stats: serde_json::Value = serde_json::from_str(&format!("{{{}}}", self.front.stats_json())).unwrap();
        name.split('.').fold(&stats["http"], |value, part| &value[part]).as_u64().unwrap()
    }

    fn wait_for(&self, name: &str, most: u64) {
        let until = Instant::now() + PATIENCE;
        while self.figure(name) != most {
            assert!(Instant::now() < until, "{name} is {} and not {most}", self.figure(name));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Everything until the end of the stream; empty for a reset.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes()
}

#[test]
fn a_request_goes_through_with_the_clients_address_and_its_answer_comes_back() {
    let world = world("{}");
    let mut client =
        world.send(b"POST /a HTTP/1.1\r\nHost: x\r\nX-Realtime-Peer: 1.2.3.4:5\r\nContent-Length: 2\r\n\r\nhi");
    let asked = world.asked();
    let port = client.local_addr().unwrap().port();
    assert_eq!(
        asked.head,
        format!(
            "POST /a HTTP/1.1\r\nHost: x\r\nx-realtime-peer: 127.0.0.1:{port}\r\nx-realtime-request: 0\r\ncontent-length: 2\r\n\r\n"
        )
    );
    assert_eq!(asked.body, b"hi");
    asked.ok("one");
    client.write_all(&get("/b")).unwrap();
    let asked = world.asked();
    assert!(asked.head.starts_with("GET /b HTTP/1.1\r\n") && !asked.head.contains("content-length"), "{}", asked.head);
    asked.ok("two");
    let told = rest(&mut client);
    assert!(told.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\noneHTTP/1.1 200 OK"), "{told}");
    assert!(told.ends_with("connection: close\r\n\r\ntwo"), "{told}");
}

#[test]
fn a_client_that_has_closed_its_side_gets_its_whole_answer() {
    let world = world("{}");
    let mut client = world.send(&get("/"));
    client.shutdown(Shutdown::Write).unwrap();
    let asked = world.asked();
    asked.ok(&"x".repeat(500_000));
    assert!(rest(&mut client).ends_with(&"x".repeat(500_000)));
}

#[test]
fn a_stream_of_events_ends_with_its_client_and_one_that_is_gone_ends_its_request() {
    let world = world("{}");
    let client = world.send(&get("/events"));
    let mut asked = world.asked();
    asked
        .stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    drop(client);
    asked.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(asked.stream.read(&mut [0]).unwrap(), 0, "the server behind hears of it");
    world.wait_for("connections", 0);
}

#[test]
fn for_one_connection_more_the_longest_idle_one_goes() {
    let world = world(r#"{"connections_max": 4}"#);
    let mut idle: Vec<TcpStream> = Vec::new();
    for number in 1..=4 {
        idle.push(world.connect());
        world.wait_for("accepted", number);
    }
    assert_eq!(world.figure("ended.crowded"), 0, "at the limit");
    let mut client = world.send(&get("/"));
    world.asked().ok("here");
    assert!(rest(&mut client).ends_with("here"));
    assert_eq!(world.figure("ended.crowded"), 1);
    assert_eq!(rest(&mut idle[0]), "");
    idle[3].write_all(&get("/")).unwrap();
    world.asked().ok("still");
    assert!(rest(&mut idle[3]).ends_with("still"));
}

#[test]
fn a_head_and_a_body_that_do_not_come_are_answered_in_time_and_a_silent_connection_is_closed() {
    let world = world(r#"{"head_timeout_s": 0.1, "body_timeout_s": 0.1}"#);
    let mut silent = world.connect();
    let mut head = world.send(b"GET / HTTP/1.1\r\nHost:");
    let mut body = world.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel");
    assert_eq!(rest(&mut silent), "");
    assert!(rest(&mut head).starts_with("HTTP/1.1 408 "));
    assert!(rest(&mut body).starts_with("HTTP/1.1 408 "));
    assert_eq!((world.figure("ended.idle"), world.figure("ended.head_timeout")), (1, 1));
    assert_eq!(world.figure("ended.body_timeout"), 1);
}

#[test]
fn a_request_too_many_waits_and_is_refused_but_the_reserved_path_is_answered() {
    let world = world(r#"{"requests_max": 1, "wait_s": 0.2}"#);
    let mut first = world.send(&get("/slow"));
    let slow = world.asked();
    let mut refused = world.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut health = world.send(&get("/health"));
    let asked = world.asked();
    assert!(asked.head.starts_with("GET /health "));
    asked.ok("well");
    assert!(rest(&mut health).ends_with("well"));
    world.wait_for("refused.503", 1);
    slow.ok("at last");
    assert!(rest(&mut first).ends_with("at last"));
    // The connection of the refused one is as good as before.
    refused.write_all(&get("/again")).unwrap();
    world.asked().ok("served");
    let told = rest(&mut refused);
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("retry-after: 1\r\n"), "{told}");
    assert!(told.ends_with("served"), "{told}");
}

#[test]
fn a_newcomers_body_takes_the_place_of_the_oldest_of_the_address_with_the_most() {
    let world = world(r#"{"requests_max": 16, "proxies": ["127.0.0.1"]}"#);
    let post = |address: &str, body: &str| {
        let length = body.len().max(1 << 21);
        let head = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        world.send(head.as_bytes())
    };
    let mut slow = Vec::new();
    for address in ["10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2"] {
        slow.push(post(address, "x"));
        world.wait_for("in_flight", slow.len() as u64);
    }
    let whole = "y".repeat(1 << 21);
    let mut newcomer = post("10.0.0.3", &whole);
    let told = rest(&mut slow[0]);
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("the place of this body"), "{told}");
    assert_eq!(world.figure("ended.gave_way"), 1);
    let asked = std::iter::repeat_with(|| world.asked()).find(|asked| asked.body.len() == whole.len()).unwrap();
    asked.ok("served");
    assert!(rest(&mut newcomer).ends_with("served"));
}

#[test]
fn chunks_of_a_byte_come_through_as_one_body() {
    let world = world("{}");
    let mut sent = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    sent.extend_from_slice(&b"1\r\nx\r\n".repeat(50_000));
    sent.extend_from_slice(b"0\r\n\r\n");
    let mut client = world.send(&sent);
    let asked = world.asked();
    assert!(asked.head.ends_with("content-length: 50000\r\n\r\n"), "{}", asked.head);
    assert_eq!(asked.body, b"x".repeat(50_000));
    asked.ok("");
    assert!(rest(&mut client).starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_long_body_is_passed_on_while_it_comes() {
    let world = world("{}");
    let body = "0123456789".repeat(300_000);
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut client = world.send(head.as_bytes());
    let sender = client.try_clone().unwrap();
    let sent = body.clone();
    std::thread::spawn(move || {
        let mut sender = sender;
        sender.write_all(sent.as_bytes())
    });
    let asked = world.asked();
    assert!(asked.body == body.as_bytes());
    asked.ok("all");
    assert!(rest(&mut client).ends_with("all"));
}

#[test]
fn a_body_that_pauses_is_passed_on_so_that_its_request_is_under_way() {
    let world = world("{}");
    let mut client = world.send(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nab");
    world.wait_for("in_flight", 1);
    client.write_all(b"cd").unwrap();
    let asked = world.asked();
    assert_eq!(asked.body, b"abcd");
    asked.ok("whole");
    assert!(rest(&mut client).ends_with("whole"));
}

#[test]
fn a_client_that_does_not_take_its_answer_is_closed_and_holds_no_place() {
    let world = world(r#"{"requests_max": 1, "answer_timeout_s": 0.3}"#);
    let client = world.send(&get("/large"));
    let asked = world.asked();
    let large = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 32 << 20);
    let mut stream = asked.stream.try_clone().unwrap();
    // As much as nobody has room for: what is beyond stays with the server behind until the client is closed.
    let writer = std::thread::spawn(move || {
        let _ = stream.write_all(large.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; 32 << 20]));
    });
    world.wait_for("ended.answer_timeout", 1);
    writer.join().unwrap();
    drop(asked);
    let mut other = world.send(&get("/"));
    world.asked().ok("next");
    assert!(rest(&mut other).ends_with("next"));
    drop(client);
}

#[test]
fn above_the_limit_of_bytes_the_one_who_holds_most_is_closed() {
    let world = world(r#"{"bytes_max": 300000, "requests_max": 4}"#);
    let head = |length: usize| format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    // The one place for bodies under way is taken: the others are held.
    let _first = world.send(head(9).as_bytes());
    world.wait_for("in_flight", 1);
    let mut large = world.send(head(900_000).as_bytes());
    large.write_all(&vec![b'x'; 200_000]).unwrap();
    let mut small = world.send(head(90_001).as_bytes());
    small.write_all(&vec![b'x'; 90_000]).unwrap();
    let until = Instant::now() + PATIENCE;
    while world.figure("bytes.http_bodies") != 290_000 {
        assert!(Instant::now() < until, "{}", world.figure("bytes.http_bodies"));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(world.figure("ended.bytes"), 0, "below the limit");
    let _ = large.write_all(&vec![b'x'; 100_000]);
    world.wait_for("ended.bytes", 1);
    small.write_all(b"x").unwrap();
    world.asked().ok("kept");
    let mut got = [0; 15];
    small.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"HTTP/1.1 200 OK");
}

#[test]
fn what_two_programs_could_read_differently_never_gets_through() {
    let world = world("{}");
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
    ] {
        let mut client = world.send(head.as_bytes());
        assert!(rest(&mut client).starts_with("HTTP/1.1 400 "), "{head:?}");
    }
    assert!(world.requests.try_recv().is_err());
    assert_eq!(world.figure("refused.400"), 10);
}

#[test]
fn a_server_behind_that_ends_without_an_answer_is_told_as_a_failure() {
    let world = world("{}");
    let mut client = world.send(&get("/"));
    let asked = world.asked();
    asked.stream.shutdown(Shutdown::Both).unwrap();
    assert!(rest(&mut client).starts_with("HTTP/1.1 500 "));
    let mut client = world.send(&get("/"));
    let mut asked = world.asked();
    asked.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").unwrap();
    asked.stream.shutdown(Shutdown::Both).unwrap();
    let told = rest(&mut client);
    assert!(told.ends_with("half"), "half an answer is cut off: {told}");
}

#[test]
fn a_stop_lets_requests_under_way_end_and_takes_no_others() {
    let world = world("{}");
    let mut idle = world.connect();
    let mut client = world.send(&get("/"));
    let asked = world.asked();
    std::thread::scope(|scope| {
        scope.spawn(|| world.front.stop(PATIENCE));
        assert_eq!(rest(&mut idle), "");
        asked.ok("the last");
        assert!(rest(&mut client).ends_with("the last"));
    });
    assert!(TcpStream::connect(("127.0.0.1", world.port)).is_err());
}

#[test]
fn an_adopted_connection_is_served_from_the_bytes_that_were_read_of_it() {
    let world = world("{}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    world.front.adopt(accepted.into(), b"GET /adopted HTTP/1.1\r\nHo".to_vec());
    client.write_all(b"st: x\r\nConnection: close\r\n\r\n").unwrap();
    let asked = world.asked();
    assert!(asked.head.starts_with("GET /adopted HTTP/1.1\r\nHost: x\r\n"));
    asked.ok("taken");
    assert!(rest(&mut client).ends_with("taken"));
}

#[test]
fn an_address_over_its_rate_waits_then_is_refused_and_may_still_ask_for_the_reserved_path() {
    let world = world(r#"{"address_requests_per_s": 1, "address_requests_burst": 2, "wait_s": 0.2}"#);
    let mut client = world.send(&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2));
    world.asked().ok("one");
    world.asked().ok("two");
    let mut health = world.send(&get("/health"));
    world.asked().ok("well");
    assert!(rest(&mut health).ends_with("well"));
    client.write_all(&get("/third")).unwrap();
    let told = rest(&mut client);
    assert!(told.contains("twoHTTP/1.1 429 Too Many Requests\r\n"), "{told}");
    assert!(told.contains("retry-after: 1\r\n") && told.contains("\"code\":\"rate_limited\""), "{told}");
    assert!(world.requests.try_recv().is_err(), "the server behind hears nothing of it");
    assert_eq!(world.figure("refused.429"), 1);
}

#[test]
fn a_request_over_the_rate_whose_time_is_near_is_answered() {
    let world = world(r#"{"address_requests_per_s": 20, "address_requests_burst": 1}"#);
    let mut client = world.send(&[b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &get("/last")[..]].concat());
    world.asked().ok("one");
    world.asked().ok("two");
    assert!(rest(&mut client).ends_with("two"));
    assert_eq!(world.figure("refused.429"), 0);
}

#[test]
fn a_request_whose_caller_is_known_costs_its_address_nothing() {
    let world = world(r#"{"address_requests_per_s": 1, "address_requests_burst": 1, "wait_s": 0}"#);
    let mut client = world.connect();
    for _ in 0..20 {
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        world.asked().answer(b"HTTP/1.1 200 OK\r\nx-realtime-known: 1\r\ncontent-length: 5\r\n\r\nknown");
        let mut got = [0; 43];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, *b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nknown", "no client sees the header");
    }
    client.write_all(&get("/")).unwrap();
    world.asked().ok("unknown");
    assert!(rest(&mut client).ends_with("unknown"));
    assert!(rest(&mut world.send(&get("/"))).starts_with("HTTP/1.1 429 "));
}

#[test]
fn a_connection_between_two_requests_is_closed_after_its_time() {
    let world = world(r#"{"keep_alive_s": 0.3}"#);
    let mut client = world.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    world.asked().ok("one");
    assert!(rest(&mut client).ends_with("one"));
    assert_eq!(world.figure("ended.idle"), 1);
    // A silent one has the time of a head, which is longer here.
    let _silent = world.connect();
    world.wait_for("accepted", 2);
    let mut other = world.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    world.asked().ok("two");
    assert!(rest(&mut other).ends_with("two"));
    assert_eq!((world.figure("ended.idle"), world.figure("connections")), (2, 1));
}

#[test]
fn a_body_in_chunks_that_falls_silent_where_there_is_no_place_has_an_end() {
    let world = world(r#"{"requests_max": 16, "body_timeout_s": 0.3}"#);
    // Eight that the server behind has not begun: nothing more is passed on.
    let _unbegun: Vec<TcpStream> = (0..8).map(|_| world.send(&get("/"))).collect();
    world.wait_for("in_flight", 8);
    let mut silent = world.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n");
    assert!(rest(&mut silent).starts_with("HTTP/1.1 408 "));
    assert_eq!((world.figure("in_flight"), world.figure("ended.body_timeout")), (8, 1));
}
