//! Two processes: one that is killed while it appends, one that wants a directory that is taken.

mod kit;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use kit::{Dir, again, all, child_dir, event, offsets};
use realtime_log::{Append, Error, Log, Options};

const CHANNELS: [&str; 3] = ["a", "b", "c"];

#[test]
fn every_acknowledged_event_is_there_after_kill_9() {
    if let Some(dir) = child_dir() {
        append_for_ever(&dir);
    }
    let dir = Dir::new();
    let mut acknowledged: BTreeMap<(String, u64), String> = BTreeMap::new();
    for round in 0..6_u64 {
        let test = "every_acknowledged_event_is_there_after_kill_9";
        let mut child = again(test, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut lines = lines.lines().map(Result::unwrap);
        // From the first batches, and at some moment that differs each time.
        let first = lines.by_ref().find_map(|line| acknowledgement(&line)).expect("the child appends");
        std::thread::sleep(Duration::from_millis(30 + 37 * round));
        kill_9(&mut child);
        acknowledged.extend([first]);
        // A last line that was cut has no end mark and is not an acknowledgement.
        acknowledged.extend(lines.filter_map(|line| acknowledgement(&line)));

        let mut log = dir.open();
        for channel in CHANNELS {
            let stored = all(&mut log, channel);
            assert_eq!(offsets(&stored), (1..=log.head(channel).unwrap()).collect::<Vec<_>>());
            for ((_, offset), key) in acknowledged.range((channel.into(), 0)..=(channel.into(), u64::MAX)) {
                let event = &stored[*offset as usize - 1];
                assert_eq!(&*event.data, format!(r#"{{"number":{offset},"key":"{key}"}}"#).as_bytes());
            }
        }
    }
    assert!(acknowledged.len() > 100, "{} events were acknowledged", acknowledged.len());

    // Who lost the answer and asks again gets the first result.
    let mut log = dir.open();
    for ((channel, offset), key) in &acknowledged {
        let again = Append { dedupe: Some(key), ..event(channel, "{}") };
        let answer = &log.append(&[again]).unwrap()[0];
        assert_eq!((answer.offset, answer.duplicate), (*offset, true));
    }
}

/// The child: batches of 1 to 16 events, and after each a line `ack channel offset key .` per event.
fn append_for_ever(dir: &Path) -> ! {
    let mut log = Log::open(&Options::new(dir)).unwrap();
    let mut out = std::io::stdout();
    for batch_number in 0_u64.. {
        let keys: Vec<String> =
            (0..=batch_number % 16).map(|row| format!("{}-{batch_number}-{row}", std::process::id())).collect();
        let payloads: Vec<String> = keys.iter().map(|key| format!(r#"{{"key":"{key}"}}"#)).collect();
        let batch: Vec<Append<'_>> = keys
            .iter()
            .zip(&payloads)
            .enumerate()
            .map(|(row, (key, payload))| {
                let channel = CHANNELS[(batch_number as usize + row) % CHANNELS.len()];
                Append { dedupe: Some(key), number_field: true, ..event(channel, payload) }
            })
            .collect();
        let appended = log.append(&batch).unwrap();
        let mut lines = String::new();
        for (append, answer) in batch.iter().zip(appended) {
            lines += &format!("\nack {} {} {} .\n", append.channel, answer.offset, append.dedupe.unwrap());
        }
        out.write_all(lines.as_bytes()).unwrap();
    }
    unreachable!("the numbers do not end before the process does")
}

fn acknowledgement(line: &str) -> Option<((String, u64), String)> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["ack", channel, offset, key, "."] => Some(((channel.into(), offset.parse().ok()?), key.into())),
        _ => None,
    }
}

/// `Child::kill` sends SIGKILL: no destructor runs, nothing is flushed.
fn kill_9(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_second_process_is_refused_until_the_first_has_ended() {
    if let Some(dir) = child_dir() {
        let _log = Log::open(&Options::new(dir)).unwrap();
        std::io::stdout().write_all(b"\nopen\n").unwrap();
        std::io::stdin().read_line(&mut String::new()).unwrap();
        return;
    }
    let dir = Dir::new();
    let mut child = again("a_second_process_is_refused_until_the_first_has_ended", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "open"));
    let refused = dir.try_open();
    kill_9(&mut child);
    let error = refused.expect_err("the child holds the lock");
    assert!(matches!(&error, Error::Locked { dir: named } if named == dir.path()), "{error}");
    dir.open();
}
