//! Erasure in slices: nothing reads what was erased from the commit on, and the file loses it bit by bit.

mod kit;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use kit::{Dir, again, all, child_dir, event};
use realtime_log::{Amends, Append, Keep, Log, Slice, backup, stored};

/// Amendments that are more than what goes at once.
const MANY: u64 = 400;

fn amending<'a>(offset: u64, data: &'a str, replacement: &'a str, erases: bool) -> Append<'a> {
    let replacement = Some(replacement.as_bytes());
    Append { event: "message_updated", amends: Some(Amends { offset, replacement, erases }), ..event("a", data) }
}

/// A message that was changed `MANY` times, `bytes` each time, an event of another channel, and the keys of all.
fn changed(log: &mut Log, bytes: usize) {
    let data = format!("\"{}secret\"", "p".repeat(bytes));
    log.append(&[event("a", &data), event("b", "\"other\"")]).unwrap();
    for n in 0..MANY {
        let key = format!("k{n}");
        log.append(&[Append { dedupe: Some(&key), ..amending(1, &data, &data, false) }]).unwrap();
    }
}

fn delete(log: &mut Log) -> realtime_log::Appended {
    log.append(&[amending(1, "\"deleted\"", "\"gone\"", true)]).unwrap().remove(0)
}

fn slices(log: &mut Log) -> Vec<Slice> {
    let mut done = Vec::new();
    while log.is_erasing() {
        done.push(log.erase().unwrap());
    }
    done
}

fn holds(dir: &Dir, word: &str) -> bool {
    let files = std::fs::read_dir(dir.path()).unwrap();
    let bytes: Vec<u8> = files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

/// Every way to read the channel gives the message as deleted and each change as the deletion.
fn nothing_is_read(log: &mut Log) {
    let events = all(log, "a");
    assert_eq!(&*events[0].data, b"\"gone\"");
    assert_eq!(events.len() as u64, MANY + 2);
    assert!(events[1..].iter().all(|stored| &*stored.data == b"\"deleted\""));
    let again = Append { dedupe: Some("k7"), ..amending(1, "\"x\"", "\"x\"", false) };
    let answer = log.append(&[again]).unwrap().remove(0);
    assert!(answer.duplicate);
    assert_eq!(&*answer.stored.unwrap().data, b"\"deleted\"");
}

#[test]
fn what_is_erased_is_never_read_again_while_it_is_overwritten_slice_by_slice() {
    let dir = Dir::new();
    let mut log = dir.open();
    changed(&mut log, 9_000);
    let deleted = delete(&mut log);
    assert_eq!((deleted.offset, deleted.erased_up_to, deleted.amended.len()), (MANY + 2, MANY + 1, 1));
    assert!(log.is_erasing() && holds(&dir, "secret"));
    nothing_is_read(&mut log);
    let told = stored(dir.path(), "a", 0).unwrap().unwrap();
    assert!(told[1..].iter().all(|(_, data)| **data == *b"\"deleted\""), "the command line reads it so, too");
    let first = log.erase().unwrap();
    assert!(first.events > 0 && first.events <= 256 && first.has_more, "a slice is not all: {first:?}");
    nothing_is_read(&mut log);
    let done = slices(&mut log);
    assert_eq!(done.iter().map(|slice| slice.events).sum::<usize>() + first.events, MANY as usize);
    nothing_is_read(&mut log);
    while !log.forget().unwrap() {}
    assert!(!holds(&dir, "secret") && holds(&dir, "other"));
    assert_eq!(log.erase().unwrap(), Slice { events: 0, has_more: false });
}

#[test]
fn as_much_as_goes_at_once_is_erased_at_once_and_one_more_in_slices() {
    for (edits, bytes, in_slices) in [(8, 10, false), (9, 10, true), (2, 131_000, false), (2, 132_000, true)] {
        let mut log = Log::open_in_memory().unwrap();
        let data = "x".repeat(bytes);
        log.append(&[event("a", "1")]).unwrap();
        log.append(&vec![amending(1, &data, "2", false); edits]).unwrap();
        let deleted = delete(&mut log);
        assert_eq!((deleted.erased_up_to > 0, log.is_erasing()), (in_slices, in_slices), "{edits} of {bytes} bytes");
        assert_eq!(deleted.amended.len(), if in_slices { 1 } else { 1 + edits });
        assert!(all(&mut log, "a")[1..].iter().all(|stored| &*stored.data == b"\"deleted\""));
    }
}

#[test]
fn an_erasure_that_kill_9_interrupts_is_finished_by_the_next_start() {
    const TEST: &str = "an_erasure_that_kill_9_interrupts_is_finished_by_the_next_start";
    if let Some(dir) = child_dir() {
        let mut log = Log::open(&realtime_log::Options::new(&dir)).unwrap();
        changed(&mut log, 9_000);
        delete(&mut log);
        log.erase().unwrap();
        std::io::stdout().write_all(b"\nerasing\n").unwrap();
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }
    let dir = Dir::new();
    let mut child = again(TEST, dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "erasing"));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut log = dir.open();
    assert!(log.is_erasing() && holds(&dir, "secret"));
    nothing_is_read(&mut log);
    slices(&mut log);
    while !log.forget().unwrap() {}
    assert!(!holds(&dir, "secret"));
    nothing_is_read(&mut log);
}

#[test]
fn a_second_deletion_takes_the_place_of_the_first_that_is_under_way() {
    let mut log = Log::open_in_memory().unwrap();
    changed(&mut log, 9_000);
    delete(&mut log);
    log.erase().unwrap();
    let again = log.append(&[amending(1, "\"again\"", "\"gone\"", true)]).unwrap().remove(0);
    assert_eq!(again.erased_up_to, MANY + 2, "the first deletion is one of those that had amended it");
    for _ in 0..2 {
        assert!(all(&mut log, "a")[1..].iter().all(|stored| &*stored.data == b"\"again\""));
        slices(&mut log);
    }
}

#[test]
fn erasures_take_turns_and_one_of_what_is_kept_no_longer_ends() {
    let mut log = Log::open_in_memory().unwrap();
    let data = "x".repeat(200_000);
    for channel in ["a", "b"] {
        let of = |append: Append<'static>| Append { channel, ..append };
        log.append(&[of(event("", "1"))]).unwrap();
        for _ in 0..20 {
            let edit = Amends { offset: 1, replacement: None, erases: false };
            log.append(&[Append { amends: Some(edit), ..event(channel, &data) }]).unwrap();
        }
        log.append(&[of(amending(1, "2", "3", true))]).unwrap();
    }
    let keep = |channel: &str| (channel == "a").then_some(Keep { since_ms: None, events: Some(1) });
    while log.tail("a").unwrap() < 21 {
        log.sweep(0, 0, keep).unwrap();
    }
    let first = log.erase().unwrap();
    assert_eq!(first, Slice { events: 0, has_more: true }, "there is nothing left of it");
    let rest = slices(&mut log);
    assert_eq!(rest.iter().map(|slice| slice.events).sum::<usize>(), 20);
}

#[test]
fn a_backup_made_meanwhile_holds_nothing_that_was_erased() {
    let dir = Dir::new();
    let mut log = dir.open();
    changed(&mut log, 2_000);
    delete(&mut log);
    let copies = Dir::new();
    let copied = backup(dir.path(), &copies.path().join("copy")).unwrap();
    assert_eq!(copied.events, MANY + 3);
    assert!(holds(&dir, "secret") && holds(&copies, "other") && !holds(&copies, "secret"));
    assert!(log.is_erasing(), "the log itself goes on as it was");
}
