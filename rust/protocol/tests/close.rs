//! Close codes and the body of the Close frame.

mod kit;

use kit::unhex;
use realtime_protocol::close::{CloseCode, TABLE, encode_close_payload, parse_close};

#[test]
fn only_codes_of_the_rfc_of_iana_and_of_applications_may_be_sent() {
    let allowed = |code| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    for code in 0..=u16::MAX {
        assert_eq!(CloseCode(code).is_valid_on_wire(), allowed(code), "{code}");
    }
}

#[test]
fn table_is_ascending_and_names_are_unique() {
    assert!(TABLE.windows(2).all(|pair| pair[0].code < pair[1].code));
    for entry in TABLE {
        let same_name = TABLE.iter().filter(|other| other.name == entry.name);
        assert_eq!(same_name.count(), 1, "{}", entry.name);
        assert_eq!(entry.code.name(), entry.name);
        assert_eq!(entry.code.may_come_back(), entry.may_come_back);
    }
}

#[test]
fn the_range_of_our_codes_tells_whether_to_come_back() {
    for (code, name, may_come_back) in [
        (4000, "slow_reader", true),
        (4001, "silent", true),
        (4002, "token_expired", true),
        (4003, "rate_limited", true),
        (4005, "busy", true),
        (4500, "token_revoked", false),
        (4501, "unauthorized", false),
        (4502, "forbidden", false),
        (4503, "removed", false),
        (4504, "replaced", false),
    ] {
        assert_eq!(CloseCode(code).name(), name);
        assert_eq!(CloseCode(code).may_come_back(), may_come_back, "{code}");
    }
    for entry in TABLE.iter().filter(|entry| entry.code.0 >= 4000) {
        assert_eq!(entry.may_come_back, entry.code.0 < 4500, "{}", entry.code);
    }
    assert!(CloseCode(4444).may_come_back());
    assert!(!CloseCode(4999).may_come_back());
    assert!(CloseCode(3008).may_come_back());
    assert_eq!(CloseCode(4444).name(), "other");
}

#[test]
fn close_body_is_nothing_or_a_code_and_a_reason() {
    assert_eq!(parse_close(b""), Ok((None, "")));
    assert_eq!(parse_close(&unhex("03e8")), Ok((Some(CloseCode::NORMAL), "")));
    assert_eq!(parse_close(&unhex("03e9 c3a9")), Ok((Some(CloseCode::GOING_AWAY), "é")));
    assert_eq!(parse_close(&unhex("0fa0 736c6f77")), Ok((Some(CloseCode::SLOW_READER), "slow")));
}

#[test]
fn half_a_code_and_codes_that_may_not_be_sent_are_1002() {
    let refused = |payload: &[u8]| parse_close(payload).map(|_| ()).map_err(|violation| violation.code);
    assert_eq!(refused(&[3]), Err(CloseCode::PROTOCOL_ERROR));
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
        assert_eq!(refused(&code.to_be_bytes()), Err(CloseCode::PROTOCOL_ERROR), "{code}");
    }
}

#[test]
fn a_reason_that_is_not_utf8_is_1007() {
    let payload = unhex("03e8 cebae1bdb9cf83cebcceb5eda080656469746564");
    let refused = parse_close(&payload);
    assert_eq!(refused.map_err(|violation| violation.code), Err(CloseCode::INVALID_PAYLOAD));
}

#[test]
fn a_long_reason_is_cut_at_123_bytes_and_between_characters() {
    let payload = encode_close_payload(CloseCode::NORMAL, &"x".repeat(200));
    assert_eq!(payload.len(), 125);
    // 61 of two bytes are 122; the 62nd would end at 124.
    let payload = encode_close_payload(CloseCode::NORMAL, &"é".repeat(62));
    assert_eq!(parse_close(&payload), Ok((Some(CloseCode::NORMAL), &*"é".repeat(61))));
    let payload = encode_close_payload(CloseCode::NORMAL, &"😀".repeat(31));
    assert_eq!(parse_close(&payload), Ok((Some(CloseCode::NORMAL), &*"😀".repeat(30))));
}

#[test]
fn a_code_that_may_not_be_sent_is_written_as_no_code() {
    for code in [CloseCode::NO_STATUS, CloseCode::ABNORMAL, CloseCode::TLS_HANDSHAKE] {
        assert_eq!(encode_close_payload(code, "reason"), b"");
    }
}
