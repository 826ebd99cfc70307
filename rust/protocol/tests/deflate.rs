//! Compressed messages: the bytes of RFC 7692, what is refused, and the same text back whoever compressed it.
//!
//! The oracle is miniz_oxide, which shares no code with the codec of the crate.

mod kit;

use kit::{Owned, Sent, receive_deflated, unhex};
use miniz_oxide::deflate::core::{CompressorOxide, TDEFLFlush, compress, create_comp_flags_from_zip_params};
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use proptest::prelude::*;
use realtime_protocol::connection::Role;
use realtime_protocol::deflate::{Deflater, Inflater, is_worth_sending};
use realtime_protocol::frame::{Opcode, encode_deflated_frame};

const LIMIT: usize = 1 << 20;

fn deflate(level: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Deflater::new(level).deflate(payload, &mut out);
    out
}

fn inflate(payload: &[u8], message_bytes_max: usize) -> Result<Vec<u8>, u16> {
    let inflated = Inflater::new().inflate(payload, message_bytes_max).map(|message| message.to_vec());
    inflated.map_err(|violation| violation.code.0)
}

/// A message's payload as another sender makes it, in `pieces` flushes; `strategy` as zlib numbers them.
fn oracle_deflate(level: i32, strategy: i32, pieces: &[&[u8]]) -> Vec<u8> {
    let mut stream = CompressorOxide::new(create_comp_flags_from_zip_params(level, -15, strategy));
    let mut out = Vec::new();
    for piece in pieces {
        let mut made = vec![0; 2 * piece.len() + 64];
        let (_, taken, len) = compress(&mut stream, piece, &mut made, TDEFLFlush::Sync);
        assert_eq!(taken, piece.len());
        out.extend_from_slice(&made[..len]);
    }
    assert!(out.ends_with(&[0, 0, 255, 255]), "a flush");
    out.truncate(out.len() - 4);
    out
}

fn oracle_inflate(payload: &[u8]) -> Vec<u8> {
    // RFC 7692 §7.2.2, and a final block so that the oracle sees an end.
    let stream = [payload, &[0, 0, 255, 255], &[1, 0, 0, 255, 255]].concat();
    decompress_to_vec_with_limit(&stream, 1 << 24).expect("a DEFLATE stream")
}

/// What a client that sent `frames` is told, or the messages that came out.
fn received(hex: &str, message_bytes_max: usize) -> (Vec<Owned>, Option<u16>) {
    let bytes = unhex(hex);
    let receive = |sizes: &[usize]| {
        let (items, violation) = receive_deflated(Role::Client, &bytes, sizes, message_bytes_max);
        (items, violation.map(|violation| violation.code.0))
    };
    let whole = receive(&[]);
    for size in 1..bytes.len() {
        assert_eq!(receive(&[size]), whole, "{hex} in reads of {size}");
    }
    whole
}

#[test]
fn what_is_sent_deflated_saves_a_tenth() {
    assert!(is_worth_sending(899, 1_000));
    assert!(!is_worth_sending(900, 1_000));
    assert!(!is_worth_sending(0, 0));
}

#[test]
fn the_messages_of_rfc_7692_are_read() {
    let hello = [Owned::Text("Hello".into())];
    for (what, hex) in [
        ("§7.2.3.1, one frame", "c107 f248cdc9c90700"),
        ("§7.2.3.1, two frames", "4103 f248cd 8004 c9c90700"),
        ("§7.2.3.1, with a ping between", "4103 f248cd 8900 8004 c9c90700"),
        ("§7.2.3.3, a block without compression", "c10b 00 0500 faff 48656c6c6f 00"),
        ("§7.2.3.4, a final block", "c108 f348cdc9c9070000"),
        ("a final block without the byte behind it", "c107 f348cdc9c90700"),
        ("§7.2.3.5, two blocks", "c10d f24805 00 0000ffff cac9c90700"),
        ("not compressed, though it was agreed on", "8105 48656c6c6f"),
        ("the second half empty", "4107 f248cdc9c90700 8000"),
    ] {
        let (items, violation) = received(hex, 100);
        let items: Vec<Owned> = items.into_iter().filter(|item| *item != Owned::Ping(vec![])).collect();
        assert_eq!((&items[..], violation), (&hello[..], None), "{what}");
    }
}

#[test]
fn an_empty_message_is_read_in_every_form() {
    for hex in ["c101 00", "c100", "c102 0300", "4100 8001 00", "4100 8000", "c106 0000 00ff ff00"] {
        assert_eq!(received(hex, 6), (vec![Owned::Text("".into())], None), "{hex}");
    }
    assert_eq!(deflate(6, b""), [0]);
}

#[test]
fn a_message_that_counts_on_the_one_before_is_refused() {
    // RFC 7692 §7.2.3.2: the second Hello refers to the first, which the server's answer forbade.
    let (items, violation) = received("c107 f248cdc9c90700 c105 f200110000", 100);
    assert_eq!((items, violation), (vec![Owned::Text("Hello".into())], Some(1007)));
}

#[test]
fn the_bit_is_refused_on_what_begins_no_message() {
    for (what, hex) in [
        ("a continuation", "4103 f248cd c004 c9c90700"),
        ("a continuation of a plain message", "0101 61 c001 62"),
        ("a ping", "c900"),
        ("a close", "c800"),
        ("rsv2 beside it", "e107 f248cdc9c90700"),
        ("a reserved opcode", "c300"),
    ] {
        assert_eq!(received(hex, 100).1, Some(1002), "{what}");
    }
}

#[test]
fn what_is_no_whole_stream_is_refused() {
    for (what, hex) in [
        ("a reserved kind of block", "c103 060000"),
        ("lengths that contradict each other", "c106 00 0500 0000 00"),
        ("a block without its end", "c105 f248cdc9c9"),
        ("a stored block without its end", "c108 00 0500 faff 48656c"),
        ("a stored block short of as much as the flush's end", "c107 00 0600 f9ff 4865"),
        ("a flush that was not cut off", "c10b f248cdc9c90700 0000ffff"),
        ("a reference to before the message", "c104 02130000"),
        ("noise behind a final block", "c10a f348cdc9c90700 ffffff"),
        ("only noise", "c104 ffffffff"),
    ] {
        assert_eq!(received(hex, 100), (vec![], Some(1007)), "{what}");
    }
}

#[test]
fn inflated_text_must_be_utf8() {
    let bad = deflate(6, b"abc\xff");
    let receive = |opcode| receive_deflated(Role::Client, &encode_deflated_frame(opcode, &bad), &[], 100);
    assert_eq!(receive(Opcode::Text).1.map(|violation| violation.code.0), Some(1007));
    assert_eq!(receive(Opcode::Binary), (vec![Owned::Binary(b"abc\xff".to_vec())], None));
}

#[test]
fn the_limit_binds_what_a_message_inflates_to() {
    for len in [0, 1, 99, 16_383, 16_384, 16_385, 70_000, 300_000] {
        let message = vec![b'a'; len];
        let payload = deflate(6, &message);
        assert_eq!(inflate(&payload, len), Ok(message), "{len}");
        if len > 0 {
            assert_eq!(inflate(&payload, len - 1), Err(1009), "{len}");
        }
    }
}

#[test]
fn a_bomb_ends_at_the_limit_and_takes_no_more_memory_than_it() {
    // A thousand times as long when inflated: a gibibyte out of a megabyte.
    let zeroes = vec![0; 1 << 20];
    let mut pieces = Vec::new();
    let mut stream = CompressorOxide::new(create_comp_flags_from_zip_params(9, -15, 0));
    while pieces.len() < 1 << 20 {
        let mut made = vec![0; 1 << 16];
        let (_, _, len) = compress(&mut stream, &zeroes, &mut made, TDEFLFlush::Sync);
        pieces.extend_from_slice(&made[..len]);
    }
    let mut inflater = Inflater::new();
    assert_eq!(inflater.inflate(&pieces, 64 << 10).map_err(|violation| violation.code.0), Err(1009));
    assert!(inflater.bytes_held() <= (64 << 10) + 1, "{inflater:?}");
    assert_eq!(
        inflater.inflate(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], 5).map(|it| it.to_vec()),
        Ok(b"Hello".to_vec())
    );
}

#[test]
fn final_blocks_are_bounded() {
    // An empty final block of fixed codes is two bytes.
    let blocks = |count: usize| [unhex("0300").repeat(count), unhex("f248cdc9c90700")].concat();
    assert_eq!(inflate(&blocks(64), 100), Ok(b"Hello".to_vec()));
    assert_eq!(inflate(&blocks(65), 100), Err(1007));
    assert_eq!(inflate(&blocks(1_000_000), 100), Err(1007));
}

#[test]
fn the_window_is_kept_over_a_final_block() {
    // Hello in a final block, then a reference to it (the second message of RFC 7692 §7.2.3.2).
    assert_eq!(inflate(&unhex("f348cdc9c90700 f200110000"), 100), Ok(b"HelloHello".to_vec()));
}

#[test]
fn a_long_message_gives_its_memory_back() {
    let message = vec![7; LIMIT];
    let payload = deflate(1, &message);
    let mut inflater = Inflater::new();
    assert!(inflater.inflate(&payload, LIMIT).expect("a stream") == message);
    assert!(inflater.bytes_held() >= LIMIT);
    inflater.release();
    assert_eq!(inflater.bytes_held(), 0);
}

/// Bytes of all kinds: text that repeats, noise, runs, and lengths around those of the buffers.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..700),
        1 => prop::collection::vec(any::<u8>(), 16_300..16_500),
        1 => prop::collection::vec(any::<u8>(), 65_500..66_000),
    ];
    let words =
        prop::collection::vec(prop::sample::select(vec!["{\"type\":", "\"new_message\"", "é", "😀", "a", ","]), 0..600)
            .prop_map(|words| words.concat().into_bytes());
    let runs = prop::collection::vec((any::<u8>(), 1usize..20_000), 0..8)
        .prop_map(|runs| runs.into_iter().flat_map(|(byte, len)| vec![byte; len]).collect());
    prop_oneof![4 => words, 3 => noise, 2 => runs]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_message_comes_back_from_every_level_and_from_the_oracle(
        payloads in prop::collection::vec(payload(), 1..4),
        level in 1u8..=9,
    ) {
        let mut deflater = Deflater::new(level);
        let mut inflater = Inflater::new();
        for payload in &payloads {
            let mut out = b"before".to_vec();
            deflater.deflate(payload, &mut out);
            let deflated = out.strip_prefix(b"before").expect("deflate appends");
            prop_assert!(deflated.len() <= payload.len() + payload.len() / 8 + 60);
            let message = inflater.inflate(deflated, payload.len()).expect("our own stream");
            prop_assert!(message == payload);
            prop_assert!(oracle_inflate(deflated) == *payload);
            // No state is left of the message before.
            prop_assert!(deflate(level, payload) == deflated);
        }
    }

    #[test]
    fn compressed_messages_in_any_fragments_and_any_reads_give_the_same_items(
        role in kit::role(),
        sequence in prop::collection::vec((kit::sent(), prop::option::of(1u8..=9)), 0..8),
        sizes in kit::read_sizes(),
    ) {
        let mut bytes = Vec::new();
        for (sent, level) in &sequence {
            match level {
                Some(level) => sent.push_deflated(role, *level, &mut bytes),
                None => sent.push(role, &mut bytes),
            }
        }
        let expected: Vec<Owned> = sequence.iter().flat_map(|(sent, _)| Sent::expected(sent)).collect();
        let (items, violation) = receive_deflated(role, &bytes, &sizes, 1 << 24);
        prop_assert_eq!(violation, None);
        prop_assert_eq!(items, expected);
    }

    #[test]
    fn what_another_sender_compressed_is_read(
        payload in payload(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        level in 0i32..=9,
        strategy in prop::sample::select(vec![0, 2, 3, 4]),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut start = 0;
        for end in cuts.into_iter().chain([payload.len()]) {
            pieces.push(&payload[start..end]);
            start = end;
        }
        let deflated = oracle_deflate(level, strategy, &pieces);
        prop_assert!(inflate(&deflated, payload.len()) == Ok(payload));
    }

    #[test]
    fn a_payload_that_was_cut_off_or_changed_never_panics_nor_passes_the_limit(
        payload in payload(),
        kept in any::<prop::sample::Index>(),
        fault in (any::<prop::sample::Index>(), any::<u8>()),
        message_bytes_max in 0usize..100_000,
    ) {
        let mut deflated = deflate(6, &payload);
        let place = fault.0.index(deflated.len());
        deflated[place] ^= fault.1;
        deflated.truncate(kept.index(deflated.len() + 1));
        let mut inflater = Inflater::new();
        match inflater.inflate(&deflated, message_bytes_max) {
            Ok(message) => prop_assert!(message.len() <= message_bytes_max),
            Err(violation) => prop_assert!([1007, 1009].contains(&violation.code.0)),
        }
        prop_assert!(inflater.bytes_held() <= (message_bytes_max + 1).max(16 << 10));
    }
}
