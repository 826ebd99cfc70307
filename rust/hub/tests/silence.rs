//! Silence is the client's alone: it counts while the server reads, and not while the server stood still.

mod world;

use realtime_hub::{Admitted, Command};
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use world::{Got, Store, World, admitted, options};

fn limited(limits: &Value) -> World {
    let mut options = options();
    options["limits"] = limits.clone();
    options["limits"]["enabled"] = json!(false);
    World::with(&options, 1, Store::default())
}

fn pong(world: &mut World, client: usize) {
    let mut bytes = Vec::new();
    encode_masked_frame(Opcode::Pong, true, b"", [1; 4], &mut bytes);
    world.raw_bytes(client, &bytes);
}

/// The process is stopped for so long, or the machine suspended, and then the next tick comes.
fn stop(world: &mut World, ms: u64) {
    world.now.mono_ms += ms;
    world.now.mono_us += ms * 1_000;
    world.now.wall_ms += ms;
    world.shards[0].tick(world.now);
    world.run();
}

/// The wall clock alone is set.
fn set_clock(world: &mut World, by_ms: i64) {
    world.now.wall_ms = world.now.wall_ms.checked_add_signed(by_ms).unwrap();
}

fn is_closed(got: &[Got], code: u16) -> bool {
    matches!(got, [Got::Close(Some(found), _), ..] if *found == code)
}

#[test]
fn a_stop_of_the_process_is_nobodys_silence() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.advance(20_000);
    stop(&mut world, 300_000);
    assert_eq!(world.take(ann), []);
    world.advance(4_500);
    assert_eq!(world.take(ann), []);
    world.advance(250);
    assert_eq!(world.take(ann), [Got::Ping]);
    // Just before its time is over: the answer may wait to be read.
    world.advance(24_250);
    stop(&mut world, 100_000);
    world.advance(750);
    assert_eq!(world.take(ann), []);
    pong(&mut world, ann);
    world.advance(24_750);
    assert_eq!(world.take(ann), []);
    world.advance(500);
    assert_eq!(world.take(ann), [Got::Ping]);
}

#[test]
fn whoever_is_gone_is_closed_though_the_process_stops_now_and_then() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let mut got = Vec::new();
    for _ in 0..10 {
        world.advance(10_000);
        stop(&mut world, 60_000);
        got.extend(world.take(ann));
    }
    assert_eq!(got[..2], [Got::Ping, Got::Ping]);
    assert!(is_closed(&got[2..], 4001), "{got:?}");
}

#[test]
fn each_ping_has_a_whole_interval_from_its_sending() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.advance(24_250);
    // A turn that is long, but no stop: the ping is late, and what comes after it is too.
    stop(&mut world, 1_000);
    assert_eq!(world.take(ann), [Got::Ping]);
    for left in [[Got::Ping].to_vec(), Vec::new()] {
        world.advance(24_000);
        stop(&mut world, 750);
        assert_eq!(world.take(ann), []);
        world.advance(250);
        let got = world.take(ann);
        assert!(got == left || (left.is_empty() && is_closed(&got, 4001)), "{got:?}");
    }
}

#[test]
fn the_idle_time_does_not_count_a_stop_either() {
    let mut world = limited(&json!({"heartbeats": false, "idle_timeout_s": 60}));
    let ann = world.connect(0, "ann");
    world.advance(50_000);
    stop(&mut world, 300_000);
    world.advance(9_000);
    assert_eq!(world.take(ann), []);
    world.advance(1_500);
    assert!(is_closed(&world.take(ann), 4001));
}

#[test]
fn a_handshake_goes_on_after_a_stop() {
    let mut world = World::new(1);
    let ann = world.socket(0);
    world.advance(250);
    stop(&mut world, 100_000);
    assert_eq!(world.take(ann), []);
    world.advance(9_000);
    assert_eq!(world.take(ann), []);
    world.advance(1_000);
    assert!(matches!(&world.take(ann)[..], [Got::Http(head), ..] if head.starts_with("HTTP/1.1 408")));
}

#[test]
fn typing_ends_on_time_over_a_stop() {
    let mut world = World::new(1);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.ask(bob, "{\"type\":\"subscribe\",\"data\":{\"channel\":\"conversation:1\"}}");
    world.ask(ann, "{\"type\":\"typing_start\",\"data\":{\"conversationId\":\"1\"}}");
    world.advance(250);
    world.take(bob);
    stop(&mut world, 60_000);
    assert_eq!(world.take_json(bob)[0]["data"]["isTyping"], false);
}

#[test]
fn a_connection_that_waits_for_its_commands_is_not_silent() {
    for limits in [json!({}), json!({"heartbeats": false, "idle_timeout_s": 25})] {
        let mut world = limited(&limits);
        let ann = world.connect(0, "ann");
        world.take_events();
        for n in 0..70 {
            world.send(ann, &json!({"type": "send_message", "data": {}, "id": n}));
        }
        world.run();
        let conn = world.clients[ann].conn;
        assert!(!world.shards[0].pause_unless_readable(conn));
        world.advance(400_000);
        assert_eq!(world.take(ann), [], "{limits}");
        world.submit(Command::Done { conn, count: 64 });
        world.run();
        assert!(world.shards[0].pause_unless_readable(conn));
        // Reading goes on, and silence begins.
        world.advance(24_500);
        assert_eq!(world.take(ann), [], "{limits}");
        world.advance(1_000);
        let got = world.take(ann);
        assert!(got == [Got::Ping] || is_closed(&got, 4001), "{limits}: {got:?}");
    }
}

#[test]
fn a_connection_that_would_not_be_read_is_not_silent_though_nothing_comes() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.take_events();
    for n in 0..64 {
        world.send(ann, &json!({"type": "send_message", "data": {}, "id": n}));
    }
    world.run();
    world.advance(400_000);
    assert_eq!(world.take(ann), []);
    let conn = world.clients[ann].conn;
    world.submit(Command::Done { conn, count: 64 });
    world.run();
    world.advance(24_500);
    assert_eq!(world.take(ann), []);
    world.advance(51_000);
    let got = world.take(ann);
    assert_eq!(got[..2], [Got::Ping, Got::Ping]);
    assert!(is_closed(&got[2..], 4001), "{got:?}");
}

#[test]
fn a_ping_before_a_pause_has_its_interval_behind_it() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let conn = world.clients[ann].conn;
    world.take_events();
    world.advance(74_000);
    assert_eq!(world.take(ann), [Got::Ping, Got::Ping]);
    world.hub.set_pressure(true);
    // What arrives now (the pong, say) stays in the kernel.
    assert!(!world.shards[0].pause_unless_readable(conn));
    world.advance(60_000);
    world.hub.set_pressure(false);
    world.run();
    world.advance(1_000);
    assert_eq!(world.take(ann), []);
    pong(&mut world, ann);
    world.advance(24_000);
    assert_eq!(world.take(ann), []);
}

#[test]
fn a_client_that_is_not_read_because_it_takes_nothing_ends_at_the_idle_time() {
    let mut world = limited(&json!({"outbox_soft_bytes": 1_000, "idle_timeout_s": 100}));
    let ann = world.connect(0, "ann");
    let conn = world.clients[ann].conn;
    world.ask(ann, "{\"type\":\"subscribe\",\"data\":{\"channel\":\"news:1\"}}");
    world.limit(ann, Some(100));
    for n in 0..50 {
        world.publish("news:1", "e", &json!({"n": n, "text": "x".repeat(50)}));
    }
    world.run();
    assert!(!world.shards[0].pause_unless_readable(conn));
    world.advance(99_000);
    assert_eq!(world.take(ann), []);
    world.receive(ann);
    world.run();
    world.take(ann);
    assert!(!world.shards[0].pause_unless_readable(conn));
    world.advance(80_000);
    assert_eq!(world.take(ann), [], "what it took was a sign of life");
    world.advance(60_000);
    world.limit(ann, None);
    world.shards[0].writable(conn);
    world.run();
    assert!(matches!(world.take_events().last(), Some(realtime_hub::Event::Close { code: 4000, .. })));
}

fn expiring(world: &mut World, in_ms: u64) -> usize {
    let client = world.offer_at("/hook", 0, "ann", "");
    world.run();
    let conn = world.clients[client].conn;
    let expires_at_ms = Some(world.now.wall_ms + in_ms);
    world.submit(Command::Accept { conn, who: Admitted { expires_at_ms, ..admitted("ann") } });
    world.run();
    assert_eq!(world.take_json(client).len(), 1);
    world.advance(250);
    client
}

#[test]
fn a_token_that_expired_while_the_machine_slept_ends_with_the_next_tick() {
    let mut world = World::new(1);
    let ann = expiring(&mut world, 120_000);
    set_clock(&mut world, 7_200_000);
    world.advance(250);
    assert!(is_closed(&world.take(ann), 4002));
}

#[test]
fn expiry_follows_a_wall_clock_that_is_set() {
    let mut world = World::new(1);
    let ann = expiring(&mut world, 3_600_000);
    // Forward: told at once, since it is nearer than the notice.
    set_clock(&mut world, 3_590_000);
    world.advance(250);
    assert_eq!(world.take_json(ann)[0]["type"], "token_expiring");
    // Back: it goes on for as long as the clock says.
    set_clock(&mut world, -60_000);
    for _ in 0..3 {
        world.advance(20_000);
        pong(&mut world, ann);
    }
    assert_eq!(world.take(ann), []);
    world.advance(10_000);
    assert!(is_closed(&world.take(ann), 4002));
}
