//! Names of channels, and the channel `user:{id}` that belongs to a user.
//!
//! A name matches `^[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}$`. User ids are any text, so an id stands in a name by its
//! [`user_segment`]: the id itself where that gives a name and the id does not begin with a dot, else a dot and its
//! unpadded base64url. No two ids have the same segment, and behind `user:.` stands nothing but such an encoded form.
//! That of a long id may pass 128 characters, and is a name all the same.
//!
//! Two doors read names. A client ([`named_by_client`]) may say its own channel in four ways, `user:me` among them, and
//! nobody else's but by the form that answers carry. Templates, apps and services ([`named`]) may say any user's by the
//! raw id; `user:me` is to them the channel of the user `me`, and a raw id that reads as the encoded form of another one
//! is that: [`user_channel`] knows no such doubt.

use crate::token::USER_CHARS_MAX;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use std::borrow::Cow;

/// Characters of a channel's name.
pub const NAME_CHARS_MAX: usize = 128;

/// Bytes of the base64url of the longest user id: four bytes a character.
const ENCODED_BYTES_MAX: usize = (4 * USER_CHARS_MAX * 4).div_ceil(3);

/// The first segment of the channels that belong to users.
const USER: &str = "user:";

/// What a client may say in place of its own id.
const ME: &str = "me";

/// How the names of channels begin that the server keeps for itself.
const OWN_CHANNELS: &str = "_realtime:";

/// Whether a text follows the grammar of names, as those of channels and of published events do.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let Some(&first) = bytes.first() else { return false };
    bytes.len() <= NAME_CHARS_MAX
        && (first.is_ascii_alphanumeric() || first == b'_')
        && bytes.iter().all(|&byte| is_name_byte(byte))
}

/// Whether a text is the name of a channel. Behind `user:.` stands the encoded form of an id and nothing else.
#[must_use]
pub fn is_channel_name(name: &str) -> bool {
    match name.strip_prefix(USER) {
        Some(segment) if segment.starts_with('.') => is_encoding(segment),
        _ => is_name(name),
    }
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'@' | b'-')
}

/// Whether a channel is the server's own: no grant and no hook gives a session a right on it.
#[must_use]
pub fn is_own_channel(name: &str) -> bool {
    name.starts_with(OWN_CHANNELS)
}

/// The text that stands for a user's id in names of channels.
#[must_use]
pub fn user_segment(user: &str) -> Cow<'_, str> {
    let is_plain =
        user.len() <= NAME_CHARS_MAX - USER.len() && !user.starts_with('.') && user.bytes().all(is_name_byte);
    if is_plain { Cow::Borrowed(user) } else { Cow::Owned(format!(".{}", BASE64_URL_SAFE_NO_PAD.encode(user))) }
}

/// The channel of a user.
#[must_use]
pub fn user_channel(user: &str) -> String {
    format!("{USER}{}", user_segment(user))
}

/// The channel that an app, a service or a template names; None where there is none of this name.
#[must_use]
pub fn named(name: &str) -> Option<Cow<'_, str>> {
    if is_channel_name(name) {
        return Some(Cow::Borrowed(name));
    }
    let user = name.strip_prefix(USER)?;
    (!user.is_empty() && user.chars().count() <= USER_CHARS_MAX).then(|| Cow::Owned(user_channel(user)))
}

/// The channel that a client of `user` names; None where there is none of this name. Its own channel is `user:me`, the
/// raw id, and the id's base64url behind a dot.
#[must_use]
pub fn named_by_client<'a>(name: &'a str, user: &str) -> Option<Cow<'a, str>> {
    if let Some(said) = name.strip_prefix(USER)
        && !user.is_empty()
        && (said == ME || said == user || is_encoded(said, user))
    {
        // An app's hook may let in an id of any length.
        return Some(user_channel(user)).filter(|channel| is_channel_name(channel)).map(Cow::Owned);
    }
    is_channel_name(name).then_some(Cow::Borrowed(name))
}

/// Whether a segment that begins with a dot is the encoded form of an id; else it can only be a raw one.
fn is_encoding(segment: &str) -> bool {
    let encoded = &segment[1..];
    if encoded.is_empty() || encoded.len() > ENCODED_BYTES_MAX {
        return false;
    }
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.is_some_and(|user| user_segment(&user) == segment)
}

fn is_encoded(said: &str, user: &str) -> bool {
    said.strip_prefix('.').is_some_and(|encoded| encoded == BASE64_URL_SAFE_NO_PAD.encode(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_names_follow_the_protocol() {
        for good in ["a", "_", "conversation:42", "a.b:c@d-e", &"x".repeat(128), "user:.Wm_Dqw"] {
            assert!(is_channel_name(good), "{good}");
        }
        for bad in [
            "user:.",
            "user:.abc",
            "user:.bWU",
            "",
            ":a",
            "-a",
            ".a",
            "a b",
            "a*",
            "ä",
            "a\n",
            "user:a|b",
            "user:Zoë",
            &"x".repeat(129),
        ] {
            assert!(!is_channel_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_user_has_one_channel_however_a_client_says_it() {
        let long = "x".repeat(124);
        for (user, channel) in [
            ("ann", "user:ann"),
            ("me", "user:me"),
            ("a:b", "user:a:b"),
            ("@ann:example.org", "user:@ann:example.org"),
            ("user@example.com", "user:user@example.com"),
            ("auth0|x", "user:.YXV0aDB8eA"),
            ("ann+test@example.com", "user:.YW5uK3Rlc3RAZXhhbXBsZS5jb20"),
            ("Zo\u{eb}", "user:.Wm_Dqw"),
            ("org/user", "user:.b3JnL3VzZXI"),
            (".abc", "user:.LmFiYw"),
            (".Wm_Dqw", "user:.LldtX0Rxdw"),
            (&long, &*format!("user:.{}", BASE64_URL_SAFE_NO_PAD.encode(&long))),
        ] {
            assert_eq!(user_channel(user), channel);
            assert!(is_channel_name(channel), "{channel}");
            let encoded = format!("user:.{}", BASE64_URL_SAFE_NO_PAD.encode(user));
            for said in [channel, "user:me", &format!("user:{user}"), &encoded] {
                assert_eq!(named_by_client(said, user).as_deref(), Some(channel), "{said} by {user}");
            }
            if user != "me" {
                assert_eq!(named_by_client("user:me", "me").as_deref(), Some("user:me"));
                assert_ne!(named_by_client(&format!("user:{user}"), "me").as_deref(), Some("user:me"));
            }
        }
    }

    #[test]
    fn the_longest_id_has_a_channel_too() {
        let user = "\u{1f600}".repeat(USER_CHARS_MAX);
        let channel = user_channel(&user);
        assert!(is_channel_name(&channel));
        assert!(!is_channel_name(&format!("{channel}A")), "one more character is over the limit");
        assert_eq!(named(&format!("user:{user}")).as_deref(), Some(&*channel));
        assert_eq!(named(&format!("user:{user}\u{1f600}")), None);
    }

    #[test]
    fn an_id_that_looks_like_the_encoded_form_of_another_one_is_not_taken_for_it() {
        let zoe = user_channel("Zo\u{eb}");
        assert_eq!(zoe, "user:.Wm_Dqw");
        assert_eq!(named_by_client(&zoe, ".Wm_Dqw").as_deref(), Some("user:.LldtX0Rxdw"));
        assert_eq!(named_by_client(&zoe, "eve").as_deref(), Some(&*zoe), "whether eve may is for grants to say");
    }

    #[test]
    fn a_client_names_others_by_names_alone_and_a_service_by_raw_ids_too() {
        assert_eq!(named_by_client("user:auth0|x", "eve"), None);
        assert_eq!(named("user:auth0|x").as_deref(), Some("user:.YXV0aDB8eA"));
        assert_eq!(named("user:.YXV0aDB8eA").as_deref(), Some("user:.YXV0aDB8eA"), "the encoded form is one already");
        assert_eq!(named("user:.abc").as_deref(), Some("user:.LmFiYw"), "which encodes no id, so it is one");
        assert_eq!(
            named("user:.bWU").as_deref(),
            Some("user:.LmJXVQ"),
            "`me` is never encoded, so it is no form of it"
        );
        assert_eq!(named("user:.").as_deref(), Some("user:.Lg"));
        assert_eq!(named("user:me").as_deref(), Some("user:me"));
        assert_eq!(named("user:"), Some(Cow::Borrowed("user:")), "a name, and nobody's channel");
        for none in ["", "a b", "users:a|b"] {
            assert_eq!(named(none), None, "{none}");
        }
        assert_eq!(
            named_by_client("user:me", ""),
            Some(Cow::Borrowed("user:me")),
            "without a user nothing is one's own"
        );
    }
}
