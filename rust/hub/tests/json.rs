//! The scanner against serde_json: what both take means the same, what the protocol refuses is refused.

use proptest::prelude::*;
use realtime_hub::json::{Fault, Kind, Scanner, Slice, Span, check, id_of, members, slices};
use serde_json::Value;

fn scan(text: &str) -> Option<(Option<String>, Option<String>, Option<String>)> {
    let mut bytes = text.as_bytes().to_vec();
    let mut scanner = Scanner::default();
    let envelope = scanner.scan(&mut bytes, usize::MAX).ok()?;
    let part = |value: Option<realtime_hub::json::Value>| {
        value.map(|value| String::from_utf8(value.span.of(&bytes).to_vec()).unwrap())
    };
    Some((part(envelope.kind), part(envelope.id), part(envelope.data)))
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-(1_i64 << 53)..=(1_i64 << 53)).prop_map(Value::from),
        (-1_000_000_i32..1_000_000).prop_map(|n| Value::from(f64::from(n) + 0.125)),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..24)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_that_serde_writes_is_found_whole(data in json(), id in any::<u32>(), kind in "[a-z_]{1,20}", pretty: bool) {
        let message = serde_json::json!({"type": kind, "id": id, "data": data, "more": [1, {"a": null}]});
        let text = if pretty { serde_json::to_string_pretty(&message) } else { serde_json::to_string(&message) }.unwrap();
        let (found_kind, found_id, found_data) = scan(&text).expect("valid");
        prop_assert_eq!(serde_json::from_str::<String>(&found_kind.unwrap()).unwrap(), kind);
        prop_assert_eq!(found_id.unwrap(), id.to_string());
        prop_assert_eq!(found_data.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap()), data);
    }

    #[test]
    fn what_is_cut_or_changed_is_taken_only_where_serde_takes_it(data in json(), at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        let text = serde_json::json!({"type": "x", "data": data}).to_string();
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte };
        if let Ok(text) = String::from_utf8(bytes)
            && scan(&text).is_some()
        {
            prop_assert!(serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
        }
    }

    #[test]
    fn any_text_is_survived(text in ".{0,200}") {
        let _ = scan(&text);
    }

    #[test]
    fn members_of_an_object_are_those_that_serde_sees(map in prop::collection::btree_map(".{0,6}", json(), 0..24)) {
        let data = Value::Object(map.clone().into_iter().collect());
        let mut bytes = serde_json::json!({"type": "x", "data": data}).to_string().into_bytes();
        let mut scanner = Scanner::default();
        let envelope = scanner.scan(&mut bytes, usize::MAX).unwrap();
        let found = members(&bytes, envelope.data.unwrap().span);
        prop_assert_eq!(found.len(), map.len());
        for (key, value) in found {
            prop_assert_eq!(&serde_json::from_slice::<Value>(value.span.of(&bytes)).unwrap(), &map[&*key]);
            // A member that is null is absent for whoever asks by name.
            prop_assert_eq!(scanner.member(&bytes, &key), Some(value).filter(|value| value.kind != Kind::Null));
        }
    }
}

#[test]
fn limits_are_where_the_protocol_says() {
    let nested = |depth: usize| format!("{{\"data\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    let keys = |count: usize| {
        let all: Vec<String> = (0..count).map(|n| format!("\"k{n}\":0")).collect();
        format!("{{\"data\":{{{}}}}}", all.join(","))
    };
    for (text, taken) in [
        (nested(64), true),
        (nested(65), false),
        (nested(5_000_000), false),
        (keys(1_024), true),
        (keys(1_025), false),
        ("{\"data\":9007199254740992}".into(), true),
        ("{\"data\":-9007199254740992}".into(), true),
        ("{\"data\":9007199254740993}".into(), false),
        ("{\"data\":1e308}".into(), true),
        ("{\"data\":1e309}".into(), false),
        ("{\"data\":-0}".into(), true),
        (format!("{{\"data\":0.{}}}", "1".repeat(1_022)), true),
        (format!("{{\"data\":0.{}}}", "1".repeat(1_023)), false),
        (format!("{{\"data\":{}}}", "9".repeat(5_000)), false),
        ("{\"data\":-}".into(), false),
        ("{\"data\":\"\\x\"}".into(), false),
        ("{\"a\":1,\"a\":2}".into(), false),
        ("{\"\\u0061\":1,\"a\":2}".into(), false),
        ("\u{feff}{}".into(), false),
    ] {
        assert_eq!(scan(&text).is_some(), taken, "{text:.60}");
    }
}

#[test]
fn kinds_are_told_apart() {
    let mut bytes = br#"{"data":{"s":"x","e":"\n","i":-7,"f":1.5,"x":1e3,"b":true,"n":null,"o":{},"a":[]}}"#.to_vec();
    let mut scanner = Scanner::default();
    scanner.scan(&mut bytes, usize::MAX).unwrap();
    for (key, kind) in [
        ("s", Kind::String { escaped: false }),
        ("e", Kind::String { escaped: true }),
        ("i", Kind::Integer),
        ("f", Kind::Float),
        ("x", Kind::Float),
        ("b", Kind::Bool),
        ("o", Kind::Object),
        ("a", Kind::Array),
    ] {
        assert_eq!(scanner.member(&bytes, key).unwrap().kind, kind, "{key}");
    }
    assert_eq!(scanner.member(&bytes, "s").unwrap().count(&bytes), None);
    assert_eq!(scanner.member(&bytes, "n"), None);
}

#[test]
fn a_part_that_is_null_is_absent() {
    assert_eq!(scan(r#"{"type":null,"id":null,"data":null}"#), scan("{}"));
}

#[test]
fn values_are_counted_up_to_the_limit_whatever_holds_them() {
    let bracket_list = |count: usize| format!("{{\"data\":[{}]}}", vec!["[]"; count].join(","));
    let objects = |count: usize| format!("{{\"data\":{{\"a\":[{}]}}}}", vec!["{\"b\":0}"; count].join(","));
    // The message and the list count, too; an object in the list counts with what it holds.
    for (text, values_max, taken) in [
        (bracket_list(98), 100, true),
        (bracket_list(99), 100, false),
        (objects(20), 43, true),
        (objects(20), 42, false),
        ("{}".to_owned(), 1, true),
        ("{\"data\":{}}".to_owned(), 1, false),
        ("{\"data\":0}".to_owned(), 2, true),
    ] {
        let mut bytes = text.into_bytes();
        let outcome = Scanner::default().scan(&mut bytes, values_max);
        assert_eq!(outcome.err().map(|invalid| invalid.fault), (!taken).then_some(Fault::Values(values_max)));
        assert_eq!(check(&mut bytes, values_max).is_ok(), taken);
    }
    // Numbers that take a reader long count for more.
    for (number, values) in [
        ("0.12345678901234567890123456789", 1),
        ("1e249", 1),
        ("0e300", 1),
        ("0.123456789012345678901234567890123", 100),
        ("1e251", 100),
        ("-5e-324", 100),
    ] {
        for (values_max, taken) in [(values, true), (values - 1, false)] {
            assert_eq!(check(&mut number.as_bytes().to_vec(), values_max).is_ok(), taken, "{number} {values_max}");
        }
    }
    let mut bytes = bracket_list(100).into_bytes();
    let invalid = check(&mut bytes, 100).unwrap_err();
    assert_eq!(invalid.path(&bytes).as_deref(), Some("data"));
    assert_eq!(invalid.fault.to_string(), "more than 100 values (limits.message_values_max)");
}

#[test]
fn an_array_is_cut_into_slices_and_each_element_counts_by_itself() {
    let found = |text: &str, values_max, slice_values| slices(&mut text.as_bytes().to_vec(), values_max, slice_values);
    let slice = |start, end, count| Slice { span: Span { start, end }, count };
    assert_eq!(found(" [ 1 , [2,3] ,4,5 ] ", 3, 2), Ok(Some(vec![slice(3, 12, 2), slice(14, 17, 2)])));
    assert_eq!(found("[[1,2],[3,4],5]", 3, 1), Ok(Some(vec![slice(1, 6, 1), slice(7, 12, 1), slice(13, 14, 1)])));
    assert_eq!(found("[]", 1, 1), Ok(Some(vec![])));
    let long = format!("[\"{}\",1]", "x".repeat(256 << 10));
    assert_eq!(found(&long, 1, 9).unwrap().unwrap().len(), 2);
    assert_eq!(found("{\"a\":[1,2]}", 4, 1), Ok(None));
    for (text, fault, path) in [
        ("[[1,2],[3,4,5]]", Fault::Values(3), Some("[1]")),
        ("{\"a\":[1,2]}", Fault::Values(3), Some("a")),
        ("[1,2", Fault::Syntax, None),
        ("[1]]", Fault::Syntax, None),
        ("[0,{\"a\":1e999}]", Fault::Number, Some("[1].a")),
        (&format!("[{}{}]", "[".repeat(64), "]".repeat(64)), Fault::Depth, Some("[0]")),
    ] {
        let invalid = found(text, if text.len() > 100 { 100 } else { 3 }, 1).unwrap_err();
        assert_eq!((invalid.fault, invalid.path(text.as_bytes()).as_deref()), (fault, path), "{text:.60}");
    }
    assert!(found(&format!("[{}{}]", "[".repeat(63), "]".repeat(63)), 100, 1).is_ok());
}

#[test]
fn a_fault_names_its_kind_and_the_member() {
    let nested = format!("{{\"a\":{{\"b7\":{}{}}}}}", "[".repeat(63), "]".repeat(63));
    let keys: Vec<String> = (0..1_025).map(|n| format!("\"k{n}\":0")).collect();
    let keys = format!("[{{{}}}]", keys.join(","));
    for (text, fault, path) in [
        (r#"{"data":{"metadata":{"a":9007199254740993}}}"#, Fault::Integer, Some("data.metadata.a")),
        (r#"[0,{},{"data":[1,[2,-9007199254740993]]}]"#, Fault::Integer, Some("[2].data[1][1]")),
        (r#"{"a":{"b":1},"c":{"d":1e999}}"#, Fault::Number, Some("c.d")),
        (r#"{"x":1,"a":{"b":1,"b":2}}"#, Fault::Twice, Some("a.b")),
        (r#"{"a\"}{":{"\u0062":1,"b":2}}"#, Fault::Twice, Some("a\"}{.b")),
        (&nested, Fault::Depth, Some("a.b7")),
        (&keys, Fault::Keys, Some("[0].k1024")),
        ("9007199254740993", Fault::Integer, None),
        (r#"{"a":01}"#, Fault::Syntax, None),
        (r#"{"a":1} {}"#, Fault::Syntax, None),
        ("", Fault::Syntax, None),
    ] {
        let mut bytes = text.as_bytes().to_vec();
        let invalid = check(&mut bytes, usize::MAX).unwrap_err();
        assert_eq!((invalid.fault, invalid.path(&bytes).as_deref()), (fault, path), "{text:.60}");
    }
    let long = format!("{{\"{}\":1e999}}", "ö".repeat(100_000));
    let path = check(&mut long.clone().into_bytes(), usize::MAX).unwrap_err().path(long.as_bytes()).unwrap();
    assert!(path.len() < 300, "{} bytes", path.len());
}

#[test]
fn a_string_ends_at_its_quote_wherever_that_stands() {
    for before in 0..20 {
        for after in 0..20 {
            for (between, taken) in
                [("", true), (r"\n", true), (r#"\""#, true), ("é\u{7f}", true), ("\u{1f}", false), ("\0", false)]
            {
                let text = format!("[\"{}{between}{}\",\"\"]", "x".repeat(before), "ÿ ".repeat(after));
                let outcome = check(&mut text.clone().into_bytes(), usize::MAX);
                assert_eq!(outcome.is_ok(), taken, "{text:?}");
                if !taken {
                    assert_eq!(outcome.unwrap_err().at, before + 2, "{text:?}");
                }
                let open = &text[..text.len() - 5];
                assert!(check(&mut open.as_bytes().to_vec(), usize::MAX).is_err(), "{open:?}");
            }
        }
    }
}

#[test]
fn an_id_behind_more_than_a_reader_of_refusals_looks_at_is_not_found() {
    for (brackets, is_found) in [(2_000, true), (1_000_000, false)] {
        let text = format!(r#"{{"data":[{}[]],"id":"late","a":01}}"#, "[],".repeat(brackets));
        assert_eq!(id_of(text.as_bytes()).is_some(), is_found);
    }
    let long = format!(r#"{{"data":"{}","id":"late","a":01}}"#, "x".repeat(1 << 20));
    assert!(id_of(long.as_bytes()).is_some(), "a string is one step, however long");
}

#[test]
fn the_id_of_a_refused_message_is_found_where_it_can_be_read() {
    let deep = "[".repeat(1_000_000);
    for (text, id) in [
        (r#"{"type":"x","id":"c1","data":{"a":9007199254740993}}"#, Some(r#""c1""#)),
        (r#"{"data":{"id":7,"a":1,"a":2}, "id" : 12 }"#, Some("12")),
        (r#"{"data":{"a":1e999},"\u0069d":-3}"#, Some("-3")),
        (&format!(r#"{{"id":"c4","data":{deep}"#), Some(r#""c4""#)),
        (r#"{"id":"a","id":"b"}"#, None),
        (r#"{"id":{"id":1},"a":01}"#, None),
        (r#"{"id":9007199254740993}"#, None),
        (r#"{"id":1.5,"a":01}"#, None),
        (r#"{"data":{"id":"x"},"a":01}"#, None),
        (r#"{"id":"cut"#, None),
        ("nonsense", None),
        ("", None),
    ] {
        let found = id_of(text.as_bytes()).map(|(id, _)| String::from_utf8(id.into()).unwrap());
        assert_eq!(found.as_deref(), id, "{text:.60}");
    }
}
