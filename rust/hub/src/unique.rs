//! JSON objects in which no member stands twice, at any depth.
//!
//! Parsers differ in which of two equal members they take, so whoever signed the text may have meant the other one
//! (RFC 7519 §4, RFC 8725 §2.4): such a text is refused.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};
use std::fmt;

/// Reads the object that a text of JSON is.
///
/// # Errors
/// One line that says what is wrong.
pub(crate) fn object(json: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(json) {
        Ok(Unique(Value::Object(members))) => Ok(members),
        Ok(_) => Err("it is not a JSON object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A value in whose objects no member stands twice.
pub(crate) struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Builder).map(Self)
    }
}

struct Builder;

impl<'de> Visitor<'de> for Builder {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unique(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            match map.entry(name) {
                Entry::Occupied(first) => return Err(twice(first.key())),
                Entry::Vacant(place) => {
                    let Unique(value) = members.next_value()?;
                    place.insert(value);
                }
            }
        }
        Ok(Value::Object(map))
    }
}

/// The error of a member that stands twice.
pub(crate) fn twice<E: Error>(name: &str) -> E {
    let shown: String = name.chars().take(64).collect();
    E::custom(format_args!("member {shown:?} stands twice"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_the_library_reads_it() {
        let text = r#"{"a":[1,-2,1.5,1e3,null,true,"é\n"],"b":{"c":{}},"d":18446744073709551615}"#;
        assert_eq!(Value::Object(object(text.as_bytes()).unwrap()), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_member_that_stands_twice_is_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":1}"#, r#"{"x":[{"a":1,"b":2,"a":1}]}"#] {
            assert!(object(text.as_bytes()).unwrap_err().contains("member \"a\" stands twice"), "{text}");
        }
        let bom = "\u{feff}{}";
        for text in ["[]", "1", "", "{", "{} {}", r#"{"a":1e400}"#, r#"{"a":"\ud800"}"#, bom] {
            assert!(object(text.as_bytes()).is_err(), "{text}");
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(4_000), "]".repeat(4_000));
        assert!(object(deep.as_bytes()).is_err());
    }
}
