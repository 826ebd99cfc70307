//! What is agreed on from the headers: offers and answers as they are written on the wire.

use proptest::prelude::*;
use realtime_protocol::extensions::{Deflate, InvalidAnswer};

/// The answer to the offers, or `None` where they are declined.
fn answer(offers: &[&str]) -> Option<String> {
    Deflate::negotiate(offers.iter().copied()).map(|deflate| deflate.response())
}

const PLAIN: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

#[test]
fn offers_that_can_be_kept_are_answered_with_what_was_asked() {
    for (offers, rest) in [
        (&["permessage-deflate"][..], ""),
        (&["permessage-deflate; client_max_window_bits"], ""),
        (&["permessage-deflate; client_max_window_bits=15"], "; client_max_window_bits=15"),
        (&["permessage-deflate;client_max_window_bits=8"], "; client_max_window_bits=8"),
        (&["permessage-deflate; server_max_window_bits=8"], "; server_max_window_bits=8"),
        (&["permessage-deflate; server_max_window_bits=15"], "; server_max_window_bits=15"),
        (&["permessage-deflate; server_max_window_bits=\"10\""], "; server_max_window_bits=10"),
        (&["permessage-deflate; server_max_window_bits=\"1\\0\""], "; server_max_window_bits=10"),
        (&["permessage-deflate; server_no_context_takeover; client_no_context_takeover"], ""),
        (
            &["\t permessage-deflate ;\tserver_max_window_bits = 9 ; client_max_window_bits =\"12\" "],
            "; server_max_window_bits=9; client_max_window_bits=12",
        ),
        (&["x-webkit-deflate-frame, permessage-deflate"], ""),
        (
            &["foo; a=\"b, permessage-deflate; c\", permessage-deflate; server_max_window_bits=11"],
            "; server_max_window_bits=11",
        ),
        (&["foo", "bar; x=1", "permessage-deflate"], ""),
        (&[", ,permessage-deflate,"], ""),
        // The first that can be kept, in the client's order.
        (&["permessage-deflate; server_max_window_bits=9, permessage-deflate"], "; server_max_window_bits=9"),
        (&["permessage-deflate; server_max_window_bits=16, permessage-deflate"], ""),
        (
            &["permessage-deflate; unknown", "permessage-deflate; client_max_window_bits=10"],
            "; client_max_window_bits=10",
        ),
        (
            &["permessage-deflate; =, permessage-deflate", "permessage-deflate; server_max_window_bits=14"],
            "; server_max_window_bits=14",
        ),
    ] {
        assert_eq!(answer(offers), Some(format!("{PLAIN}{rest}")), "{offers:?}");
    }
}

#[test]
fn offers_that_cannot_be_kept_are_declined() {
    for offers in [
        &[][..],
        &[""],
        &["permessage-bzip2"],
        &["Permessage-Deflate"],
        &["permessage-deflate; unknown"],
        &["permessage-deflate; unknown=1"],
        &["permessage-deflate; Server_Max_Window_Bits=10"],
        &["permessage-deflate; server_no_context_takeover=1"],
        &["permessage-deflate; server_no_context_takeover=\"true\""],
        &["permessage-deflate; client_no_context_takeover=0"],
        &["permessage-deflate; server_no_context_takeover; server_no_context_takeover"],
        &["permessage-deflate; client_no_context_takeover; client_no_context_takeover"],
        &["permessage-deflate; server_max_window_bits=10; server_max_window_bits=10"],
        &["permessage-deflate; client_max_window_bits; client_max_window_bits"],
        &["permessage-deflate; client_max_window_bits; client_max_window_bits=10"],
        &["permessage-deflate; server_max_window_bits"],
        &["permessage-deflate; server_max_window_bits=7"],
        &["permessage-deflate; server_max_window_bits=16"],
        &["permessage-deflate; server_max_window_bits=256"],
        &["permessage-deflate; server_max_window_bits=08"],
        &["permessage-deflate; server_max_window_bits=+9"],
        &["permessage-deflate; server_max_window_bits=-9"],
        &["permessage-deflate; server_max_window_bits=9.0"],
        &["permessage-deflate; client_max_window_bits=7"],
        &["permessage-deflate; client_max_window_bits=16"],
        &["permessage-deflate; client_max_window_bits=0x9"],
        // No lists of extensions.
        &["permessage-deflate; server_max_window_bits="],
        &["permessage-deflate; server_max_window_bits=\"\""],
        &["permessage-deflate; server_max_window_bits=\"10"],
        &["permessage-deflate; server_max_window_bits=\" 10\""],
        &["permessage-deflate; server_max_window_bits=\"10\\"],
        &["permessage-deflate;"],
        &["permessage-deflate; ; client_max_window_bits"],
        &["permessage-deflate client_max_window_bits"],
        &["permessage-deflate=1"],
        &["\"permessage-deflate\""],
        &["; permessage-deflate"],
    ] {
        assert_eq!(answer(offers), None, "{offers:?}");
    }
}

#[test]
fn a_client_takes_what_it_offered_and_nothing_else() {
    let plain = Some(Deflate::default());
    let window = Some(Deflate { server_max_window_bits: Some(9), client_max_window_bits: None });
    for (answer, agreed) in [
        (&[][..], Ok(None)),
        (&[""], Ok(None)),
        (&[Deflate::OFFER], Ok(plain)),
        (&["permessage-deflate; server_no_context_takeover"], Ok(plain)),
        (&["permessage-deflate; server_no_context_takeover; server_max_window_bits=9"], Ok(window)),
        (&["permessage-deflate"], Err(InvalidAnswer)),
        (&["permessage-deflate; client_no_context_takeover"], Err(InvalidAnswer)),
        (&["permessage-deflate; server_no_context_takeover; client_max_window_bits=9"], Err(InvalidAnswer)),
        (&["permessage-deflate; server_no_context_takeover; server_max_window_bits"], Err(InvalidAnswer)),
        (&["permessage-deflate; server_no_context_takeover, permessage-deflate"], Err(InvalidAnswer)),
        (&["permessage-deflate; server_no_context_takeover", "foo"], Err(InvalidAnswer)),
        (&["foo"], Err(InvalidAnswer)),
        (&["foo bar"], Err(InvalidAnswer)),
    ] {
        assert_eq!(Deflate::from_answer(answer.iter().copied()), agreed, "{answer:?}");
    }
    let kept = Deflate::negotiate([Deflate::OFFER]).expect("our own offer");
    assert_eq!(Deflate::from_answer([&*kept.response()]), Ok(plain));
}

#[test]
fn a_smaller_window_is_kept_by_the_length_of_what_is_deflated() {
    for (bits, longest) in [(8, 256), (9, 512), (12, 4096)] {
        let deflate = Deflate { server_max_window_bits: Some(bits), client_max_window_bits: None };
        assert!(deflate.may_deflate(longest), "{bits}");
        assert!(!deflate.may_deflate(longest + 1), "{bits}");
    }
    for bits in [None, Some(13), Some(15)] {
        let deflate = Deflate { server_max_window_bits: bits, client_max_window_bits: Some(8) };
        assert!(deflate.may_deflate(usize::MAX));
    }
}

/// Offers that are nearly right, and any text.
fn nearly_an_offer() -> impl Strategy<Value = String> {
    let pieces = vec![
        "permessage-deflate",
        "server_max_window_bits",
        "client_max_window_bits",
        "server_no_context_takeover",
        "client_no_context_takeover",
        "=",
        ";",
        ",",
        "\"",
        "\\",
        " ",
        "\t",
        "8",
        "15",
        "16",
        "0",
        "é",
        "😀",
        "x",
    ];
    let pieces = prop_oneof![20 => prop::sample::select(pieces).prop_map(String::from), 1 => any::<String>()];
    prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_offers_are_declined_or_answered_with_what_was_offered(
        offers in prop::collection::vec(nearly_an_offer(), 0..3),
    ) {
        let Some(agreed) = Deflate::negotiate(offers.iter().map(String::as_str)) else {
            return Ok(());
        };
        let offered = offers.concat();
        for (name, bits) in [
            ("server_max_window_bits", agreed.server_max_window_bits),
            ("client_max_window_bits", agreed.client_max_window_bits),
        ] {
            prop_assert_eq!(agreed.response().contains(name), bits.is_some());
            prop_assert!(bits.is_none_or(|bits| (8..=15).contains(&bits) && offered.contains(name)));
        }
        // Its own answer, offered, is agreed to as it stands.
        prop_assert_eq!(Deflate::negotiate([&*agreed.response()]), Some(agreed));
    }
}
