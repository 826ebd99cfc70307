//! Patterns of channel names, and the rights that grants give on what they cover.
//!
//! A name is `kind:rest`, its segments split at `:`. In a pattern `*` is one segment and `**`, at the end, the rest.
//! `{session.user}` is the session's own user, as it stands in names: see [`crate::channel_name`].

use crate::channel_name::{is_channel_name, named, user_segment};

/// A pattern that was checked. It stays text: every session may hold a hundred of them, and their segments are as quickly
/// found as followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// Takes `conversation:*`, `file:**`, `user:{session.user}`, `news`.
    ///
    /// # Errors
    /// One line, where `**` stands before the end or the pattern is empty.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let is_wild = pattern.split(':').any(|part| matches!(part, "*" | "**" | "{session.user}"));
        if !is_wild
            && !is_channel_name(pattern)
            && let Some(channel) = named(pattern)
        {
            // A user's channel by an id that is no part of a name.
            return Ok(Self((*channel).into()));
        }
        let mut parts = pattern.split(':').peekable();
        while let Some(part) = parts.next() {
            match part {
                "**" if parts.peek().is_some() => {
                    return Err(format!("pattern {pattern:?}: ** may only stand at the end"));
                }
                "" => return Err(format!("pattern {pattern:?} has an empty segment")),
                _ => {}
            }
        }
        Ok(Self(pattern.into()))
    }

    /// As it is written.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Whether it covers `name` for a session of `user`.
    #[must_use]
    pub fn covers(&self, name: &str, user: &str) -> bool {
        // Most patterns that are asked are of another kind of channel, and several are asked for each message.
        if let (Some(first), Some(&begins)) = (self.0.as_bytes().first(), name.as_bytes().first())
            && *first != begins
            && !matches!(first, b'*' | b'{')
        {
            return false;
        }
        let mut rest = Some(name);
        for wanted in self.0.split(':') {
            let Some(text) = rest else { return false };
            match wanted {
                "**" => return !text.is_empty(),
                // A user's id may hold colons, so it takes as many segments as it has itself.
                "{session.user}" => {
                    let after = (!user.is_empty()).then(|| text.strip_prefix(&*user_segment(user))).flatten();
                    rest = match after.map(|after| (after, after.strip_prefix(':'))) {
                        Some((_, Some(more))) => Some(more),
                        Some(("", None)) => None,
                        _ => return false,
                    };
                }
                _ => {
                    let (part, more) = match text.split_once(':') {
                        Some((part, more)) => (part, Some(more)),
                        None => (text, None),
                    };
                    if part.is_empty() || (wanted != "*" && wanted != part) {
                        return false;
                    }
                    rest = more;
                }
            }
        }
        rest.is_none()
    }
}

/// What a session may do on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights(u8);

impl Rights {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// To become a member.
    pub const SUBSCRIBE: Self = Self(1);
    /// To send events.
    pub const PUBLISH: Self = Self(2);
    /// To see who is there.
    pub const PRESENCE: Self = Self(4);
    /// To read what was sent.
    pub const HISTORY: Self = Self(8);

    /// The right of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "subscribe" => Some(Self::SUBSCRIBE),
            "publish" => Some(Self::PUBLISH),
            "presence" => Some(Self::PRESENCE),
            "history" => Some(Self::HISTORY),
            _ => None,
        }
    }

    /// The name of a right, for Python; of several the first.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            _ if self.has(Self::SUBSCRIBE) => "subscribe",
            _ if self.has(Self::PUBLISH) => "publish",
            _ if self.has(Self::PRESENCE) => "presence",
            _ => "history",
        }
    }

    /// What it allows, for people: `Not allowed to {}`.
    #[must_use]
    pub const fn deed(self) -> &'static str {
        match self {
            _ if self.has(Self::SUBSCRIBE) => "subscribe",
            _ if self.has(Self::PUBLISH) => "publish",
            _ if self.has(Self::PRESENCE) => "see the presence",
            _ => "read the history",
        }
    }

    /// The names, together.
    ///
    /// # Errors
    /// One line with the name that is none.
    pub fn from_names<S: AsRef<str>>(names: &[S]) -> Result<Self, String> {
        names.iter().try_fold(Self::NONE, |all, name| {
            let name = name.as_ref();
            Self::named(name)
                .map(|one| all.and(one))
                .ok_or_else(|| format!("right {name:?} is none of subscribe, publish, presence, history"))
        })
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `wanted` are in it.
    #[must_use]
    pub const fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// Rights on the channels that a pattern covers.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Which channels.
    pub pattern: Pattern,
    /// What may be done there.
    pub rights: Rights,
}

/// The union of all grants that cover `channel`.
#[must_use]
pub fn rights_on(grants: &[Grant], channel: &str, user: &str) -> Rights {
    grants
        .iter()
        .filter(|grant| grant.pattern.covers(channel, user))
        .fold(Rights::NONE, |all, grant| all.and(grant.rights))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_what_they_say() {
        for (pattern, name, covers) in [
            ("conversation:*", "conversation:42", true),
            ("conversation:*", "conversation", false),
            ("conversation:*", "conversation:42:x", false),
            ("conversation:**", "conversation:42:x", true),
            ("conversation:**", "conversation", false),
            ("**", "anything:at:all", true),
            ("news", "news", true),
            ("news", "news:1", false),
            ("*:x", "a:x", true),
            ("user:{session.user}", "user:ann", true),
            ("user:{session.user}", "user:anna", false),
            ("user:{session.user}", "user:bob", false),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().covers(name, "ann"), covers, "{pattern} {name}");
        }
    }

    #[test]
    fn the_users_own_id_stands_in_names_as_its_segment() {
        for (pattern, name, user, covers) in [
            ("user:{session.user}", "user:.YXV0aDB8eA", "auth0|x", true),
            ("user:{session.user}", "user:.Wm_Dqw", "Zo\u{eb}", true),
            ("user:{session.user}", "user:.Wm_Dqw", ".Wm_Dqw", false),
            ("user:{session.user}", "user:.LldtX0Rxdw", ".Wm_Dqw", true),
            ("user:{session.user}", "user:me", "ann", false),
            ("user:{session.user}", "user:me", "me", true),
            ("user:{session.user}", "user:a:b", "a:b", true),
            ("user:{session.user}", "user:a", "*", false),
            ("user:{session.user}", "user:.Kg", "*", true),
            ("user:{session.user}", "user:", "", false),
            ("board:{session.user}:notes", "board:.YXV0aDB8eA:notes", "auth0|x", true),
            ("user:auth0|x", "user:.YXV0aDB8eA", "agent", true),
            ("user:arn:aws:iam::1:user/ann", "user:.YXJuOmF3czppYW06OjE6dXNlci9hbm4", "agent", true),
            ("user:*", "user:.YXV0aDB8eA", "agent", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().covers(name, user), covers, "{pattern} {name} {user}");
        }
    }

    #[test]
    fn a_double_star_in_the_middle_is_refused() {
        assert!(Pattern::new("a:**:b").is_err());
        assert!(Pattern::new("a::b").is_err());
    }
}
