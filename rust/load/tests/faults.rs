//! A generator that cannot fail proves nothing: each promise that a server may break, broken once, must fail the run by its name.

mod server;

use serde_json::Value;
use server::Fault;
use std::process::{Command, Output};

/// Run the program against a server with `fault`.
fn load(fault: Fault, arguments: &[&str]) -> Output {
    let url = format!("ws://{}/ws", server::start(fault));
    Command::new(env!("CARGO_BIN_EXE_realtime-load"))
        .args(["--url", &url, "--warmup", "0", "--timeout", "2"])
        .args(arguments)
        .output()
        .expect("the program starts")
}

/// For a third of a second, three members in one channel and 100 messages a second.
fn run(workload: &str, fault: Fault, more: &[&str]) -> Output {
    let mut arguments = vec!["--workload", workload, "--connections", "3", "--channels", "1"];
    arguments.extend(["--rate", "100", "--seconds", "0.3"]);
    arguments.extend(more);
    load(fault, &arguments)
}

fn wrong(output: &Output) -> (Option<i32>, String) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    assert_eq!(json["ok"], output.status.success());
    (output.status.code(), json["wrong"].to_string())
}

#[test]
fn server_that_keeps_its_promises_passes() {
    for workload in ["w1", "send"] {
        let output = run(workload, Fault::None, &[]);
        assert_eq!(wrong(&output), (Some(0), "[]".to_owned()), "{workload}");
        let json: Value = serde_json::from_slice(&output.stdout).expect("checked above");
        assert_eq!(json["deliveries"], json["messages"].as_u64().expect("a count") * 3, "{workload}");
        assert!(json["latency_us"]["p99"].as_f64().expect("a time") > 0.0, "{workload}");
    }
}

#[test]
fn events_that_no_single_read_or_write_holds_are_put_together() {
    let three = ["--workload", "w1b", "--connections", "3", "--payload", "60000"];
    let output = load(Fault::None, &[&three[..], &["--seconds", "0.3"]].concat());
    assert_eq!(wrong(&output), (Some(0), "[]".to_owned()));
    let json: Value = serde_json::from_slice(&output.stdout).expect("checked above");
    // The first 16 leave before anybody knows what the server puts around the data.
    assert!(json["event_bytes"].as_f64().expect("a size") > 59_000.0);
}

#[test]
fn idle_connections_are_held_and_churned_ones_closed_cleanly() {
    for (workload, figure) in [("idle", "/memory/1/rss_bytes"), ("churn", "/cycles/1/rss_closed_bytes")] {
        let pid = std::process::id().to_string();
        let twenty = ["--workload", workload, "--connections", "20", "--cycles", "2", "--samples", "2"];
        let output = load(Fault::None, &[&twenty[..], &["--seconds", "0.1", "--pid", &pid]].concat());
        assert_eq!(wrong(&output), (Some(0), "[]".to_owned()), "{workload}");
        let json: Value = serde_json::from_slice(&output.stdout).expect("checked above");
        assert!(json.pointer(figure).is_some_and(Value::is_number), "{workload}: {json}");
    }
}

/// Run every case at once: nearly all of their time is waiting for what does not come.
fn fails_by_name(cases: &[(&str, Fault, &str)]) {
    std::thread::scope(|scope| {
        for (workload, fault, name) in cases {
            scope.spawn(move || {
                let (code, sentences) = wrong(&run(workload, *fault, &[]));
                assert_eq!(code, Some(1), "{fault:?} in {workload}");
                assert!(sentences.contains(name), "{fault:?} in {workload}: {sentences}");
            });
        }
    });
}

#[test]
fn broken_delivery_fails_by_its_name() {
    for workload in ["w1", "send"] {
        fails_by_name(&[
            (workload, Fault::Lose, "\"1 lost\""),
            (workload, Fault::Double, "\"1 doubled\""),
            (workload, Fault::Swap, "\"1 out of order\""),
            (workload, Fault::Misroute, "conversation:elsewhere"),
            (workload, Fault::Error, "on purpose"),
            (workload, Fault::Close, "closed by the server with 4000"),
        ]);
    }
}

#[test]
fn broken_pong_fails_by_its_name() {
    assert_eq!(wrong(&run("w3", Fault::None, &[])), (Some(0), "[]".to_owned()));
    fails_by_name(&[("w3", Fault::Lose, "\"1 lost\""), ("w3", Fault::Double, "\"1 doubled\"")]);
}

#[test]
fn compressed_deliveries_are_counted_as_others_are_and_compared_letter_by_letter() {
    let output = run("w5", Fault::None, &[]);
    assert_eq!(wrong(&output), (Some(0), "[]".to_owned()));
    let json: Value = serde_json::from_slice(&output.stdout).expect("checked above");
    assert_eq!(json["compressed_messages"], json["deliveries"]);
    assert!(json["event_bytes"].as_f64() > Some(700.0));
    assert!(json["received_bytes"].as_f64() < json["deliveries"].as_f64().map(|count| count * 600.0));
    fails_by_name(&[
        ("w5", Fault::Lose, "\"1 lost\""),
        ("w5", Fault::Double, "\"1 doubled\""),
        ("w5", Fault::Swap, "\"1 out of order\""),
        ("w5", Fault::Garble, "1 refused or misrouted"),
        ("w5", Fault::Unreadable, "no DEFLATE stream"),
    ]);
}

/// Everybody is cut once, with messages before, meanwhile and after.
#[test]
fn members_that_were_cut_see_everything_once_or_the_run_fails_by_name() {
    let few = ["--connections", "40", "--warmup", "0.2", "--rate", "2000", "--window", "2"];
    let output = run_w8(Fault::None, &few);
    assert_eq!(wrong(&output), (Some(0), "[]".to_owned()));
    let json: Value = serde_json::from_slice(&output.stdout).expect("checked above");
    assert_eq!(json["back_us"]["samples"], 40);
    assert!(json["replayed"].as_u64() > Some(0), "{json}");
    std::thread::scope(|scope| {
        let faults = [(Fault::Forget, " lost"), (Fault::Repeat, " doubled"), (Fault::NotRecovered, "40 not recovered")];
        for (fault, name) in faults {
            scope.spawn(move || {
                let (code, sentences) = wrong(&run_w8(fault, &few));
                assert_eq!(code, Some(1), "{fault:?}");
                assert!(sentences.contains(name), "{fault:?}: {sentences}");
            });
        }
    });
}

fn run_w8(fault: Fault, more: &[&str]) -> Output {
    let url = format!("ws://{}/ws", server::start(fault));
    Command::new(env!("CARGO_BIN_EXE_realtime-load"))
        .args(["--url", &url, "--workload", "w8", "--channels", "2", "--seconds", "0.2", "--timeout", "2"])
        .args(more)
        .output()
        .expect("the program starts")
}

#[test]
fn messages_of_a_handlers_type_are_published_as_others_are() {
    assert_eq!(wrong(&run("w2", Fault::None, &["--type", "say"])), (Some(0), "[]".to_owned()));
}

#[test]
fn broken_store_fails_by_its_name() {
    fails_by_name(&[
        ("send", Fault::NoAck, "1 unacknowledged"),
        ("send", Fault::WrongNumber, "1 numbers that disagree"),
        ("send", Fault::StoreTwice, "1 stored twice"),
    ]);
}

#[test]
fn message_that_comes_again_and_is_stored_again_fails_by_its_name() {
    // This server knows no clientMessageId; one that does is tested with --repeat-every in tests/integration.
    let (code, sentences) = wrong(&run("send", Fault::None, &["--repeat-every", "10"]));
    assert_eq!(code, Some(1));
    assert!(sentences.contains("stored twice"), "{sentences}");
}

#[test]
fn server_that_dies_has_its_own_code_and_what_it_acknowledged_is_on_record() {
    let record = std::env::temp_dir().join(format!("realtime-load-{}.csv", std::process::id()));
    let (code, sentences) = wrong(&run("send", Fault::Die, &["--record", record.to_str().expect("a plain path")]));
    assert_eq!(code, Some(3), "{sentences}");
    let lines = std::fs::read_to_string(&record).expect("the record was made");
    std::fs::remove_file(&record).expect("the record can be removed");
    // Three senders take turns: their acks may be read in another order than they were made.
    let mut numbers: Vec<&str> = lines.lines().map(|line| line.split(',').nth(1).expect("a number")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, ["1", "2", "3", "4"], "acknowledged before the fifth message");
    assert!(lines.lines().all(|line| line.starts_with("w-0,")), "{lines}");
}

#[test]
fn wrong_call_and_absent_server_have_their_own_code_and_no_figures() {
    for line in [&["--workload", "w9"][..], &["--workload", "w1", "--url", "ws://127.0.0.1:1/ws"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_realtime-load")).args(line).output().expect("the program starts");
        assert_eq!(output.status.code(), Some(2), "{line:?}");
        assert!(output.stdout.is_empty(), "{line:?}");
        assert!(!output.stderr.is_empty(), "{line:?}");
    }
}
