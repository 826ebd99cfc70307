//! The receiver: however bytes are cut, the same items come out, or the same violation.

mod kit;

use kit::{MESSAGE_BYTES_MAX, Owned, Receiver, Sent, push_frame, receive_at, receive_cut, unhex};
use proptest::prelude::*;
use realtime_protocol::connection::{Inbound, Item, Role};
use realtime_protocol::frame::Opcode;

fn text(text: &str) -> Owned {
    Owned::Text(text.into())
}

#[test]
fn an_idle_connection_is_sixteen_bytes() {
    assert_eq!(size_of::<Inbound>(), 16);
    assert_eq!(Inbound::new(Role::Server).bytes_held(), 0);
}

/// Sequences short enough that every way of cutting them can be tried: frames to a client, and what they are.
fn short_sequences() -> Vec<(Vec<u8>, Vec<Owned>)> {
    vec![
        (unhex("8105 48656c6c6f 8900 8101 21"), vec![text("Hello"), Owned::Ping(vec![]), text("!")]),
        (unhex("0103 48656c 8a02 6869 8002 6c6f"), vec![Owned::Pong(b"hi".to_vec()), text("Hello")]),
        (unhex("0102 f09f 0001 98 8001 80 8200"), vec![text("😀"), Owned::Binary(vec![])]),
        (unhex("0100 0000 0000 8000 0200 8001 ff"), vec![text(""), Owned::Binary(vec![255])]),
        (unhex("827e 0003 010203 8802 03e8"), vec![Owned::Binary(vec![1, 2, 3]), Owned::Close(Some(1000), "".into())]),
        (unhex("817f 0000000000000001 61 8800"), vec![text("a"), Owned::Close(None, "".into())]),
    ]
}

#[test]
fn every_way_of_cutting_a_short_sequence_gives_the_same_items() {
    for (bytes, items) in short_sequences() {
        for cut_set in 0..1u32 << (bytes.len() - 1) {
            let cuts: Vec<usize> = (1..bytes.len()).filter(|i| cut_set >> (i - 1) & 1 == 1).collect();
            let outcome = receive_at(Role::Client, &bytes, &cuts, MESSAGE_BYTES_MAX);
            assert_eq!(outcome, (items.clone(), None), "{bytes:x?} cut at {cuts:?}");
        }
    }
}

#[test]
fn every_pair_of_cuts_in_masked_fragments_gives_the_same_items() {
    let mut bytes = Vec::new();
    let sequence = [
        Sent {
            item: text("κόσμε 😀 and more"),
            fragments: vec![1, 0, 7],
            between: vec![Owned::Ping(b"ping".to_vec())],
        },
        Sent { item: Owned::Binary(vec![7; 130]), fragments: vec![], between: vec![] },
        Sent { item: Owned::Close(Some(4005), "250".into()), fragments: vec![], between: vec![] },
    ];
    sequence.iter().for_each(|sent| sent.push(Role::Server, &mut bytes));
    let items: Vec<Owned> = sequence.iter().flat_map(Sent::expected).collect();
    for first in 0..bytes.len() {
        for second in first..bytes.len() {
            let outcome = receive_at(Role::Server, &bytes, &[first, second], MESSAGE_BYTES_MAX);
            assert_eq!(outcome, (items.clone(), None), "cut at {first} and {second}");
        }
    }
}

/// What a peer may not send, the limit for messages, and the code that answers it. To a server unless said.
fn violations() -> Vec<(&'static str, Role, &'static str, usize, u16)> {
    use Role::{Client, Server};
    vec![
        ("an unmasked frame of a client", Server, "8105 48656c6c6f", 100, 1002),
        ("an unmasked ping of a client", Server, "8900", 100, 1002),
        ("a masked frame of a server", Client, "8185 37fa213d 7f9f4d5158", 100, 1002),
        ("rsv1 that was not negotiated", Client, "c105 48656c6c6f", 100, 1002),
        ("rsv2", Client, "a105 48656c6c6f", 100, 1002),
        ("rsv3", Client, "9105 48656c6c6f", 100, 1002),
        ("rsv1 on a ping", Client, "c900", 100, 1002),
        ("rsv1 on a continuation", Client, "0101 61 c001 62", 100, 1002),
        ("reserved data opcode 3", Client, "8300", 100, 1002),
        ("reserved data opcode 7", Client, "8700", 100, 1002),
        ("reserved control opcode b", Client, "8b00", 100, 1002),
        ("reserved control opcode f", Client, "8f00", 100, 1002),
        ("a ping of 126 bytes", Client, "897e 007e", 100, 1002),
        ("a close with a 64-bit length", Client, "887f 0000000000000001 00", 100, 1002),
        ("a fragmented ping", Client, "0900", 100, 1002),
        ("a fragmented close", Client, "0802 03e8", 100, 1002),
        ("a continuation of nothing", Client, "8003 616263", 100, 1002),
        ("a fragment that continues nothing", Client, "0003 616263", 100, 1002),
        ("a continuation after a whole message", Client, "8101 61 8001 62", 100, 1002),
        ("a text inside an open text", Client, "0101 61 8101 62", 100, 1002),
        ("a binary inside an open text", Client, "0101 61 0201 62", 100, 1002),
        ("a 64-bit length with its top bit", Client, "827f 8000000000000000", usize::MAX, 1002),
        ("the longest 64-bit length", Client, "827f ffffffffffffffff", usize::MAX, 1002),
        ("a length over the limit", Client, "8265", 100, 1009),
        ("a 16-bit length over the limit", Client, "827e 0080", 100, 1009),
        ("a 64-bit length over the limit", Client, "827f 7fffffffffffffff", 100, 1009),
        ("a masked length over the limit, before its mask", Server, "82e5", 100, 1009),
        ("fragments over the limit together", Client, "0202 6161 8002 6161", 3, 1009),
        ("open fragments over the limit together", Client, "0202 6161 0001 61 0001 61", 3, 1009),
        ("text that is not utf-8", Client, "8102 c328", 100, 1007),
        ("text that ends inside a character", Client, "8102 e282", 100, 1007),
        ("a surrogate in text", Client, "8103 eda080", 100, 1007),
        ("an overlong character", Client, "8102 c0af", 100, 1007),
        ("a character beyond the last", Client, "8104 f4908080", 100, 1007),
        ("a fault over two fragments", Client, "0101 e2 8002 8228", 100, 1007),
        ("a message that ends inside a character", Client, "0102 6162 8001 c3", 100, 1007),
        ("a fault with a ping inside the character", Client, "0101 c3 8900 8001 28", 100, 1007),
        ("a close of one byte", Client, "8801 03", 100, 1002),
        ("close code 0", Client, "8802 0000", 100, 1002),
        ("close code 1005", Client, "8802 03ed", 100, 1002),
        ("close code 1015", Client, "8802 03f7", 100, 1002),
        ("close code 2999", Client, "8802 0bb7", 100, 1002),
        ("close code 5000", Client, "8802 1388", 100, 1002),
        ("a close reason that is not utf-8", Client, "8804 03e8 c328", 100, 1007),
        ("masked text that is not utf-8", Server, "8182 37fa213d f4d2", 100, 1007),
    ]
}

#[test]
fn every_violation_has_its_code_however_the_bytes_are_cut() {
    for (what, role, hex, message_bytes_max, code) in violations() {
        let bytes = unhex(hex);
        for cut_set in 0..1u32 << (bytes.len() - 1) {
            let cuts: Vec<usize> = (1..bytes.len()).filter(|i| cut_set >> (i - 1) & 1 == 1).collect();
            let (_, violation) = receive_at(role, &bytes, &cuts, message_bytes_max);
            assert_eq!(violation.map(|v| v.code.0), Some(code), "{what}, cut at {cuts:?}");
        }
    }
}

#[test]
fn a_violation_of_the_first_byte_does_not_wait_for_the_second() {
    for first in [0xC1, 0x83, 0x09, 0x80] {
        let (_, violation) = receive_cut(Role::Server, &[first], &[], 100);
        assert_eq!(violation.map(|v| v.code.0), Some(1002), "{first:x}");
    }
}

#[test]
fn text_is_refused_before_its_frame_is_whole() {
    // 200 bytes are announced, three came: the third cannot follow the second.
    let (_, violation) = receive_cut(Role::Client, &unhex("817e 00c8 61f490"), &[], 1000);
    assert_eq!(violation.map(|v| v.code.0), Some(1007));
    let (_, violation) = receive_cut(Role::Client, &unhex("817e 00c8 61f48f"), &[], 1000);
    assert_eq!(violation, None);
}

#[test]
fn what_comes_before_a_violation_is_still_received() {
    let (items, violation) = receive_cut(Role::Client, &unhex("8101 61 8902 6869 8300"), &[], 100);
    assert_eq!(items, [text("a"), Owned::Ping(b"hi".to_vec())]);
    assert_eq!(violation.map(|v| v.code.0), Some(1002));
}

#[test]
fn a_message_of_exactly_the_limit_passes_whole_and_in_fragments() {
    for hex in ["8203 616161", "0201 61 0001 61 8001 61", "0203 616161 8000"] {
        for sizes in [&[][..], &[1]] {
            let (items, violation) = receive_cut(Role::Client, &unhex(hex), sizes, 3);
            assert_eq!((items, violation), (vec![Owned::Binary(b"aaa".to_vec())], None), "{hex}");
        }
    }
}

#[test]
fn the_limit_for_messages_does_not_bind_control_frames() {
    let (items, violation) = receive_cut(Role::Client, &unhex("8905 48656c6c6f"), &[], 0);
    assert_eq!((items, violation), (vec![Owned::Ping(b"Hello".to_vec())], None));
}

#[test]
fn a_whole_frame_is_handed_out_where_it_lies() {
    let mut bytes = unhex("8185 37fa213d 7f9f4d5158");
    let payload_at = bytes[6..].as_ptr();
    let mut inbound = Inbound::new(Role::Server);
    let (consumed, item) = inbound.receive(&mut bytes, 100, None).expect("a valid frame");
    assert_eq!(consumed, 11);
    let Some(Item::Text(payload)) = item else {
        panic!("{item:?} is no text");
    };
    assert_eq!((payload.as_ptr(), &*payload), (payload_at, &b"Hello"[..]));
    assert_eq!(inbound.bytes_held(), 0);
}

#[test]
fn bytes_held_are_those_allocated_and_are_freed_after_the_message() {
    let mut receiver = Receiver::new(Role::Client, 1000);
    let own = empty_message();
    for (read, held) in [("01", 0), ("03", 0), ("6162", 64), ("63", 64), ("80", 64), ("05", 64), ("64656667", 64)] {
        receiver.feed(&unhex(read));
        assert_eq!(receiver.inbound.bytes_held(), own + held, "after {read}");
        assert!(receiver.inbound.is_unfinished());
    }
    receiver.feed(&unhex("68"));
    assert_eq!(receiver.items, [text("abcdefgh")]);
    assert_eq!(receiver.inbound.bytes_held(), own + 64, "the item may still be borrowed");
    assert!(!receiver.inbound.is_unfinished());
    receiver.inbound.release_finished();
    assert_eq!(receiver.inbound.bytes_held(), 0);
    receiver.feed(&unhex("8101 61"));
    assert_eq!(receiver.items.len(), 2);
}

/// What a message holds of which no payload has come.
fn empty_message() -> usize {
    let mut inbound = Inbound::new(Role::Client);
    inbound.receive(&mut [1, 0], 1000, None).expect("the beginning of a message");
    inbound.bytes_held()
}

#[test]
fn a_note_of_the_beginning_stays_through_fragments_and_control_frames_and_goes_with_the_message() {
    let mut receiver = Receiver::new(Role::Client, 1000);
    assert!(!receiver.inbound.note_begun(7), "nothing is unfinished");
    receiver.feed(&unhex("01"));
    assert_eq!((receiver.inbound.note_begun(7), receiver.inbound.begun()), (true, Some(7)));
    for read in ["01", "61", "89", "00", "0001", "62", "80", "01"] {
        receiver.feed(&unhex(read));
        assert_eq!((receiver.inbound.note_begun(9), receiver.inbound.begun()), (false, Some(7)), "after {read}");
    }
    // The next message begins in the read that ends the last one.
    receiver.feed(&unhex("63 81"));
    assert_eq!((receiver.inbound.begun(), receiver.inbound.note_begun(9)), (None, true));
    receiver.inbound.set_begun(11);
    assert_eq!(receiver.inbound.begun(), Some(11));
    receiver.feed(&unhex("01 64"));
    assert_eq!((receiver.inbound.begun(), receiver.items.len()), (None, 3));
}

#[test]
fn releasing_does_not_touch_a_message_that_is_unfinished() {
    let mut receiver = Receiver::new(Role::Client, 1000);
    for read in ["0101", "61", "89", "00", "0000", "8001", "62"] {
        receiver.feed(&unhex(read));
        receiver.inbound.release_finished();
    }
    assert_eq!(receiver.items, [Owned::Ping(vec![]), text("ab")]);
}

#[test]
fn an_open_message_without_a_byte_of_payload_is_unfinished() {
    let mut receiver = Receiver::new(Role::Client, 1000);
    receiver.feed(&unhex("0100"));
    assert_eq!(receiver.inbound.bytes_held(), empty_message());
    assert!(receiver.inbound.is_unfinished());
}

#[test]
fn an_announced_length_and_empty_fragments_hold_nothing() {
    let mut receiver = Receiver::new(Role::Client, MESSAGE_BYTES_MAX);
    receiver.feed(&unhex("827f 0000000001000000"));
    assert_eq!(receiver.inbound.bytes_held(), empty_message());
    let mut receiver = Receiver::new(Role::Client, MESSAGE_BYTES_MAX);
    receiver.feed(&unhex("0200"));
    receiver.feed(&[0, 0].repeat(1_000_000));
    assert_eq!(receiver.inbound.bytes_held(), empty_message());
    assert_eq!(receiver.violation, None);
}

#[test]
fn a_long_message_in_many_reads_arrives_whole() {
    let payload: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut bytes = Vec::new();
    push_frame(Role::Server, Opcode::Binary, true, &payload, &mut bytes);
    let (items, violation) = receive_cut(Role::Server, &bytes, &[1460], payload.len());
    assert_eq!(violation, None);
    assert!(items == [Owned::Binary(payload)]);
}

proptest! {
    #[test]
    fn any_messages_in_any_fragments_and_any_reads_give_the_same_items(
        role in kit::role(),
        sequence in prop::collection::vec(kit::sent(), 0..8),
        close in prop::option::of(kit::close()),
        sizes in kit::read_sizes(),
    ) {
        let mut sequence = sequence;
        sequence.extend(close.map(|item| Sent { item, fragments: vec![], between: vec![] }));
        let mut bytes = Vec::new();
        sequence.iter().for_each(|sent| sent.push(role, &mut bytes));
        let expected: Vec<Owned> = sequence.iter().flat_map(Sent::expected).collect();
        let (items, violation) = receive_cut(role, &bytes, &sizes, MESSAGE_BYTES_MAX);
        prop_assert_eq!(violation, None);
        prop_assert_eq!(items, expected);
    }

    #[test]
    fn noise_never_panics_nor_holds_more_than_came(
        role in kit::role(),
        reads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
        message_bytes_max in 0usize..2000,
    ) {
        let mut receiver = Receiver::new(role, message_bytes_max);
        let mut received = 0;
        for read in reads {
            receiver.feed(&read);
            received += read.len();
            let payload = receiver.inbound.bytes_held().saturating_sub(empty_message());
            prop_assert!(payload <= (2 * received).max(64));
            prop_assert!(payload <= message_bytes_max);
        }
    }
}
