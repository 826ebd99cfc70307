//! Relay rules: commands that turn round in the hub without asking Python.
//!
//! A rule is templates: `{data.x}` is a member of the command's data, `{session.user}` and `{session.id}` are the
//! server's word. A template that is one placeholder and nothing else inserts the checked slice with its JSON type;
//! within a longer string it inserts the text of a string or a number. A [`ChannelTemplate`] gives names of channels alone.

use crate::channel_name::{named, user_segment};
use crate::compose;
use crate::json::{Kind, Scanner, Span, Value};
use crate::options::RelayOptions;
use std::borrow::Cow;

/// Bytes of one member of the data in a key.
const KEY_MEMBER_BYTES_MAX: usize = 256;

/// Which member of the command is missing or of another type: `data.x`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongMember(pub Box<str>);

/// What placeholders stand for in one command.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The members of its data.
    pub scanner: &'a Scanner,
    /// The message.
    pub bytes: &'a [u8],
    /// The session's user.
    pub user: &'a str,
    /// The session's id.
    pub session: &'a str,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(Box<str>),
    Data(Box<str>),
    User,
    Session,
}

/// A string with placeholders.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Box<[Part]>);

/// A template whose text is the name of a channel.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelTemplate(Template);

impl ChannelTemplate {
    /// Compiles `conversation:{data.conversationId}`.
    ///
    /// # Errors
    /// As [`Template::new`].
    pub fn new(source: &str) -> Result<Self, String> {
        Template::new(source).map(Self)
    }

    /// Whether the id of the session stands in it.
    #[must_use]
    pub fn names_session(&self) -> bool {
        self.0.names_session()
    }

    /// The channel of a command: always a name.
    ///
    /// # Errors
    /// [`WrongMember`]: a placeholder's member is missing or neither a text nor a number, or the text that comes of the
    /// members is no name; that is the first one's fault.
    pub fn name(&self, scope: &Scope<'_>) -> Result<String, WrongMember> {
        let user = user_segment(scope.user);
        let name = self.0.text(&Scope { user: &user, ..*scope })?;
        match named(&name) {
            Some(Cow::Owned(name)) => Ok(name),
            Some(Cow::Borrowed(_)) => Ok(name),
            None => Err(WrongMember(self.0.member_path().unwrap_or_else(|| "data".into()).into())),
        }
    }
}

impl Template {
    /// Compiles `conversation:{data.conversationId}`.
    ///
    /// # Errors
    /// One line, for a placeholder that is not known or not closed.
    pub fn new(source: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            let (name, after) =
                after.split_once('}').ok_or_else(|| format!("template {source:?}: {{ is not closed"))?;
            parts.push(match name.split_once('.') {
                Some(("data", member)) if !member.is_empty() => Part::Data(member.into()),
                Some(("session", "user")) => Part::User,
                Some(("session", "id")) => Part::Session,
                _ => {
                    return Err(format!(
                        "template {source:?}: {{{name}}} is none of {{data.x}}, {{session.user}}, {{session.id}}"
                    ));
                }
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Self(parts.into()))
    }

    /// The text.
    ///
    /// # Errors
    /// [`WrongMember`] where a placeholder's member is missing or neither a text nor a number.
    pub fn text(&self, scope: &Scope<'_>) -> Result<String, WrongMember> {
        self.text_of(scope, usize::MAX)
    }

    /// The text of a key, which is kept for as long as its event: members of at most [`KEY_MEMBER_BYTES_MAX`].
    ///
    /// # Errors
    /// As [`Self::text`], and for a longer member.
    pub fn key(&self, scope: &Scope<'_>) -> Result<String, WrongMember> {
        self.text_of(scope, KEY_MEMBER_BYTES_MAX)
    }

    fn text_of(&self, scope: &Scope<'_>, member_bytes_max: usize) -> Result<String, WrongMember> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::User => out.push_str(scope.user),
                Part::Session => out.push_str(scope.session),
                Part::Data(name) => match member_text(scope, name)? {
                    text if text.len() <= member_bytes_max => out.push_str(&text),
                    _ => return Err(wrong(name)),
                },
            }
        }
        Ok(out)
    }

    fn names_session(&self) -> bool {
        self.0.contains(&Part::Session)
    }

    /// The first placeholder of the command's data, as a path.
    fn member_path(&self) -> Option<String> {
        self.0.iter().find_map(|part| if let Part::Data(name) = part { Some(format!("data.{name}")) } else { None })
    }
}

fn wrong(name: &str) -> WrongMember {
    WrongMember(format!("data.{name}").into())
}

fn member<'a>(scope: &Scope<'a>, name: &str) -> Result<Value, WrongMember> {
    scope.scanner.member(scope.bytes, name).ok_or_else(|| wrong(name))
}

fn member_text<'a>(scope: &Scope<'a>, name: &str) -> Result<Cow<'a, str>, WrongMember> {
    let value = member(scope, name)?;
    match value.kind {
        Kind::String { .. } => value.text(scope.bytes).filter(|text| !text.is_empty()),
        Kind::Integer | Kind::Float => number_text(value.span.of(scope.bytes)).map(Cow::Owned),
        _ => None,
    }
    .ok_or_else(|| wrong(name))
}

/// A number as the decimal text that JavaScript makes of it: `43.0` and `4.3e1` are `43`, `-0` is `0`. None where
/// JavaScript would need an exponent. `handlers/messages.py` reads numbers by the same rule: the channel that a guard
/// looks at is the one that the handler publishes to.
fn number_text(json: &[u8]) -> Option<String> {
    let value: f64 = std::str::from_utf8(json).ok()?.parse().ok()?;
    if value == 0.0 {
        return Some("0".into());
    }
    if !(1e-6..1e21).contains(&value.abs()) {
        return None;
    }
    // Of two texts that are as short and as near, Rust writes the upper one, JavaScript and Python the even one; that is
    // what rounding to so many places gives.
    let shortest = value.to_string();
    let Some((_, places)) = shortest.split_once('.') else { return Some(shortest) };
    let even = format!("{value:.*}", places.len());
    Some(if even.parse() == Ok(value) { even } else { shortest })
}

/// A piece of the data's JSON.
#[derive(Debug, Clone)]
enum Piece {
    Json(Box<[u8]>),
    Text(Template),
    Whole(Part),
}

/// JSON with placeholders.
#[derive(Debug, Clone)]
pub struct DataTemplate(Box<[Piece]>);

impl DataTemplate {
    fn new(json: &serde_json::Value) -> Result<Self, String> {
        let mut pieces = vec![Piece::Json(Box::default())];
        compile(json, &mut pieces)?;
        Ok(Self(pieces.into()))
    }

    fn names_session(&self) -> bool {
        self.0.iter().any(|piece| match piece {
            Piece::Whole(part) => *part == Part::Session,
            Piece::Text(template) => template.names_session(),
            Piece::Json(_) => false,
        })
    }

    /// Appends the JSON.
    ///
    /// # Errors
    /// [`WrongMember`] where a placeholder's member is missing or, within a text, of another type.
    pub fn write(&self, scope: &Scope<'_>, out: &mut Vec<u8>) -> Result<(), WrongMember> {
        for piece in &self.0 {
            match piece {
                Piece::Json(json) => out.extend_from_slice(json),
                Piece::Text(template) => compose::string(out, &template.text(scope)?),
                Piece::Whole(Part::Data(name)) => {
                    let span: Span = member(scope, name)?.span;
                    out.extend_from_slice(span.of(scope.bytes));
                }
                Piece::Whole(Part::Session) => compose::string(out, scope.session),
                Piece::Whole(Part::User | Part::Text(_)) => compose::string(out, scope.user),
            }
        }
        Ok(())
    }
}

fn compile(json: &serde_json::Value, pieces: &mut Vec<Piece>) -> Result<(), String> {
    use serde_json::Value as Json;
    match json {
        Json::String(text) if text.contains('{') => {
            let template = Template::new(text)?;
            pieces.push(match &*template.0 {
                [part @ (Part::Data(_) | Part::User | Part::Session)] => Piece::Whole(part.clone()),
                _ => Piece::Text(template),
            });
        }
        Json::Object(members) => {
            for (index, (key, value)) in members.iter().enumerate() {
                literal(pieces, if index == 0 { b"{" } else { b"," });
                literal(pieces, &serde_json::to_vec(key).unwrap_or_default());
                literal(pieces, b":");
                compile(value, pieces)?;
            }
            literal(pieces, if members.is_empty() { b"{}" } else { b"}" });
        }
        Json::Array(items) => {
            literal(pieces, b"[");
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    literal(pieces, b",");
                }
                compile(item, pieces)?;
            }
            literal(pieces, b"]");
        }
        plain => literal(pieces, &serde_json::to_vec(plain).unwrap_or_default()),
    }
    Ok(())
}

fn literal(pieces: &mut Vec<Piece>, json: &[u8]) {
    if let Some(Piece::Json(last)) = pieces.last_mut() {
        *last = [&**last, json].concat().into();
    } else {
        pieces.push(Piece::Json(json.into()));
    }
}

/// A compiled rule.
#[derive(Debug)]
pub struct Relay {
    /// The channel's name.
    pub channel: ChannelTemplate,
    /// The event's type.
    pub event: Box<str>,
    /// The event's data.
    pub data: DataTemplate,
    /// The data when what it says has ended.
    pub undo: Option<DataTemplate>,
    /// Key of class `latest`.
    pub latest_by: Option<Template>,
    /// How long it lasts without another.
    pub ends_after_ms: Option<u64>,
    /// The rule whose start this one ends, by its place among the rules.
    pub ends: Option<u16>,
    /// Whether a template names the session's id: it is made for no other relay.
    pub names_session: bool,
}

impl Relay {
    /// Compiles the rules; `ends` becomes a place.
    ///
    /// # Errors
    /// One line that names the rule.
    pub fn compile_all(rules: &[RelayOptions]) -> Result<Vec<Self>, String> {
        rules
            .iter()
            .map(|rule| Self::compile(rule, rules).map_err(|error| format!("relay {:?}: {error}", rule.kind)))
            .collect()
    }

    fn compile(rule: &RelayOptions, all: &[RelayOptions]) -> Result<Self, String> {
        let data: serde_json::Value = serde_json::from_str(rule.data.get()).map_err(|e| e.to_string())?;
        let serde_json::Value::Object(members) = &data else {
            return Err("data is not an object".into());
        };
        let undo = rule.undo.as_ref().map(|changes| -> Result<DataTemplate, String> {
            let mut ended = members.clone();
            for (key, value) in changes {
                ended.insert(key.clone(), serde_json::from_str(value.get()).map_err(|e| e.to_string())?);
            }
            DataTemplate::new(&serde_json::Value::Object(ended))
        });
        let ends = rule.ends.as_ref().map(|kind| {
            let place = all.iter().position(|other| other.kind == *kind);
            place.map(|place| place as u16).ok_or_else(|| format!("ends={kind:?} is no relay"))
        });
        let (channel, data, undo) =
            (ChannelTemplate::new(&rule.channel)?, DataTemplate::new(&data)?, undo.transpose()?);
        let latest_by = rule.latest_by.as_deref().map(Template::new).transpose()?;
        let names_session = [Some(&channel.0), latest_by.as_ref()].into_iter().flatten().any(Template::names_session)
            || [Some(&data), undo.as_ref()].into_iter().flatten().any(DataTemplate::names_session);
        Ok(Self {
            channel,
            event: rule.event.as_str().into(),
            data,
            undo,
            latest_by,
            ends_after_ms: rule.ends_after_ms,
            ends: ends.transpose()?,
            names_session,
        })
    }

    /// Whether it lasts, so that its end has to be told.
    #[must_use]
    pub const fn lasts(&self) -> bool {
        self.undo.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_of(template: &str, message: &str) -> Result<String, WrongMember> {
        let mut bytes = message.as_bytes().to_vec();
        let mut scanner = Scanner::default();
        scanner.scan(&mut bytes, usize::MAX).unwrap();
        let scope = Scope { scanner: &scanner, bytes: &bytes, user: "ann", session: "s1" };
        let mut out = Vec::new();
        DataTemplate::new(&serde_json::from_str(template).unwrap()).unwrap().write(&scope, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn placeholders_keep_their_json_type() {
        let template = r#"{"x":"{data.x}","who":"{session.user}","note":"at {data.n} by {session.id}","on":true,"l":[1,"{data.x}"]}"#;
        let found = data_of(template, r#"{"type":"t","data":{"x":{"deep":[1]},"n":7}}"#).unwrap();
        let json: serde_json::Value = serde_json::from_str(&found).unwrap();
        let wanted = serde_json::json!({"x": {"deep": [1]}, "who": "ann", "note": "at 7 by s1", "on": true, "l": [1, {"deep": [1]}]});
        assert_eq!(json, wanted);
    }

    #[test]
    fn a_missing_member_is_named() {
        assert_eq!(data_of(r#"{"x":"{data.x}"}"#, r#"{"type":"t","data":{}}"#), Err(WrongMember("data.x".into())));
        assert_eq!(
            data_of(r#"{"x":"a{data.x}"}"#, r#"{"type":"t","data":{"x":[]}}"#),
            Err(WrongMember("data.x".into()))
        );
    }

    #[test]
    fn numbers_are_read_as_javascript_writes_them() {
        for (json, text) in [
            ("43", "43"),
            ("43.0", "43"),
            ("1e3", "1000"),
            ("-7", "-7"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("42.5", "42.5"),
            ("0.000001", "0.000001"),
            ("123456789012345678901.0", "123456789012345680000"),
            ("9007199254740991", "9007199254740991"),
            ("-249330714442686.62", "-249330714442686.62"),
            ("249330714442686.63", "249330714442686.62"),
            ("249330714442686.875", "249330714442686.88"),
        ] {
            let message = format!(r#"{{"type":"t","data":{{"n":{json}}}}}"#);
            assert_eq!(data_of(r#"{"c":"c:{data.n}"}"#, &message).unwrap(), format!(r#"{{"c":"c:{text}"}}"#));
        }
        for json in ["1e21", "-1e21", "1e-7"] {
            let message = format!(r#"{{"type":"t","data":{{"n":{json}}}}}"#);
            assert_eq!(data_of(r#"{"c":"c:{data.n}"}"#, &message), Err(WrongMember("data.n".into())));
        }
    }

    #[test]
    fn unknown_placeholders_are_refused_at_start() {
        assert!(Template::new("{env.secret}").is_err());
        assert!(Template::new("a{data.x").is_err());
    }
}
