//! The header of a token (RFC 7515 §4): which key to try, and nothing else that is believed.
//!
//! Three members are read. Keys and addresses among the others (`jku`, `x5u`, `jwk`) are passed over, but no member may
//! stand twice: see [`crate::unique`]. Called for each token, so what nearly every header holds costs no table.

use crate::unique::{Unique, twice};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// What of a header is read.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct JoseHeader {
    /// `alg`.
    pub algorithm: Option<String>,
    /// `kid`; null counts as absent.
    pub kid: Option<String>,
    /// Whether `crit` demands that extensions be understood (§4.1.11); none is.
    pub is_critical: bool,
}

impl<'de> Deserialize<'de> for JoseHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = JoseHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<JoseHeader, A::Error> {
        let mut header = JoseHeader::default();
        let mut seen = [false; 4];
        let mut others: Vec<String> = Vec::new();
        while let Some(name) = members.next_key::<String>()? {
            let Some(place) = ["alg", "kid", "typ", "crit"].iter().position(|known| *known == name) else {
                members.next_value::<Unique>()?;
                others.push(name);
                continue;
            };
            if std::mem::replace(&mut seen[place], true) {
                return Err(twice(&name));
            }
            match place {
                0 => header.algorithm = Some(members.next_value()?),
                1 => header.kid = members.next_value()?,
                2 => drop(members.next_value::<Unique>()?),
                _ => {
                    members.next_value::<IgnoredAny>()?;
                    header.is_critical = true;
                }
            }
        }
        others.sort_unstable();
        match others.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(twice(&pair[0])),
            None => Ok(header),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_members_are_read_and_none_may_stand_twice() {
        let read = |text: &str| serde_json::from_str::<JoseHeader>(text).map_err(|error| error.to_string());
        let header = read(r#"{"typ":"JWT","alg":"HS256","kid":null,"jku":["x"],"x5u":{"a":1}}"#).unwrap();
        assert_eq!(header, JoseHeader { algorithm: Some("HS256".into()), ..JoseHeader::default() });
        assert_eq!(read(r#"{"kid":"a"}"#).unwrap().kid.as_deref(), Some("a"));
        assert!(read(r#"{"alg":"HS256","crit":null}"#).unwrap().is_critical);
        for name in ["alg", "kid", "typ", "crit", "x"] {
            let error = read(&format!(r#"{{"{name}":"a","y":1,"{name}":"a"}}"#)).unwrap_err();
            assert!(error.contains(&format!("member {name:?} stands twice")), "{error}");
        }
        for text in ["[]", r#"{"alg":1}"#, r#"{"alg":null}"#, r#"{"kid":7}"#, r#"{"x":{"a":1,"a":1}}"#, "{}{}", "{"] {
            assert!(read(text).is_err(), "{text}");
        }
        let many: Vec<String> = (0..2_000).map(|number| format!("\"{}\":0", number % 1_999)).collect();
        assert!(read(&format!("{{{}}}", many.join(","))).is_err());
    }
}
