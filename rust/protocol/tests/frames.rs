//! Frames against their bytes: one table is read in both directions.

mod kit;

use kit::{MASK, MESSAGE_BYTES_MAX, Owned, receive_cut, unhex};
use proptest::prelude::*;
use realtime_protocol::connection::Role;
use realtime_protocol::frame::{Opcode, encode_frame, encode_header, encode_masked_frame, header_len};

/// Item, its frame from a server, its frame from a client with the mask of RFC 6455 §5.7.
fn table() -> Vec<(Owned, &'static str, &'static str)> {
    vec![
        (Owned::Text(String::new()), "8100", "8180 37fa213d"),
        (Owned::Text("Hello".into()), "8105 48656c6c6f", "8185 37fa213d 7f9f4d5158"),
        (Owned::Text("é€😀".into()), "8109 c3a9 e282ac f09f9880", "8189 37fa213d f453c3bf9b0abea5b7"),
        (Owned::Binary(vec![0, 255]), "8202 00ff", "8282 37fa213d 3705"),
        (Owned::Ping(b"Hello".to_vec()), "8905 48656c6c6f", "8985 37fa213d 7f9f4d5158"),
        (Owned::Ping(Vec::new()), "8900", "8980 37fa213d"),
        (Owned::Pong(b"Hello".to_vec()), "8a05 48656c6c6f", "8a85 37fa213d 7f9f4d5158"),
        (Owned::Close(None, String::new()), "8800", "8880 37fa213d"),
        (Owned::Close(Some(1000), String::new()), "8802 03e8", "8882 37fa213d 3412"),
        (Owned::Close(Some(4000), "slow".into()), "8806 0fa0 736c6f77", "8886 37fa213d 385a5251588d"),
    ]
}

#[test]
fn every_item_of_the_table_is_written_as_its_bytes() {
    for (item, server, client) in table() {
        assert_eq!(encode_frame(item.opcode(), &item.payload()), unhex(server), "{item:?}");
        let mut masked = Vec::new();
        encode_masked_frame(item.opcode(), true, &item.payload(), MASK, &mut masked);
        assert_eq!(masked, unhex(client), "{item:?}");
    }
}

#[test]
fn every_frame_of_the_table_is_read_as_its_item() {
    for (item, server, client) in table() {
        for (role, bytes) in [(Role::Client, server), (Role::Server, client)] {
            for sizes in [&[][..], &[1], &[2], &[3, 1]] {
                let (items, violation) = receive_cut(role, &unhex(bytes), sizes, MESSAGE_BYTES_MAX);
                assert_eq!((items, violation), (vec![item.clone()], None), "{role:?} {sizes:?}");
            }
        }
    }
}

#[test]
fn header_has_the_shortest_form_of_its_length() {
    for (payload_len, header) in [
        (0, "8100"),
        (1, "8101"),
        (125, "817d"),
        (126, "817e007e"),
        (0xFFFF, "817effff"),
        (0x1_0000, "817f0000000000010000"),
        (u64::MAX >> 1, "817f7fffffffffffffff"),
    ] {
        let mut out = [0; 10];
        let len = encode_header(Opcode::Text, true, false, payload_len, &mut out);
        assert_eq!(out[..len], unhex(header), "{payload_len}");
        assert_eq!(len, header_len(payload_len));
    }
}

#[test]
fn first_byte_holds_fin_rsv1_and_opcode() {
    for (opcode, fin, rsv1, first) in [
        (Opcode::Continuation, false, false, 0x00),
        (Opcode::Continuation, true, false, 0x80),
        (Opcode::Text, false, false, 0x01),
        (Opcode::Text, true, true, 0xC1),
        (Opcode::Binary, true, false, 0x82),
        (Opcode::Close, true, false, 0x88),
        (Opcode::Ping, true, false, 0x89),
        (Opcode::Pong, true, false, 0x8A),
    ] {
        let mut out = [0; 10];
        assert_eq!(encode_header(opcode, fin, rsv1, 0, &mut out), 2);
        assert_eq!(out[0], first, "{opcode:?}");
        assert_eq!(Opcode::from_nibble(first & 0x0F), Some(opcode));
    }
}

#[test]
fn ten_opcodes_are_reserved() {
    for nibble in (0x3..=0x7).chain(0xB..=0xF) {
        assert_eq!(Opcode::from_nibble(nibble), None, "{nibble:x}");
    }
}

#[test]
fn a_masked_frame_is_appended_to_what_is_there() {
    let mut out = b"before".to_vec();
    encode_masked_frame(Opcode::Text, false, b"Hel", MASK, &mut out);
    assert_eq!(out, [b"before".to_vec(), unhex("0183 37fa213d 7f9f4d")].concat());
}

proptest! {
    #[test]
    fn what_one_end_writes_the_other_reads(item in prop_oneof![kit::item(), kit::close()], mask: [u8; 4]) {
        let expected = (vec![item.clone()], None);
        let from_server = encode_frame(item.opcode(), &item.payload());
        prop_assert_eq!(from_server.len(), header_len(item.payload().len() as u64) + item.payload().len());
        prop_assert_eq!(receive_cut(Role::Client, &from_server, &[], MESSAGE_BYTES_MAX), expected.clone());
        let mut from_client = Vec::new();
        encode_masked_frame(item.opcode(), true, &item.payload(), mask, &mut from_client);
        prop_assert_eq!(receive_cut(Role::Server, &from_client, &[], MESSAGE_BYTES_MAX), expected);
    }
}
