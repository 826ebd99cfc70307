//! Why somebody is not let in: one list for the log, the metric, `realtime token --explain` and both doors.
//!
//! A client hears `Unauthorized`, or that its token has expired; the reason is for the operator.

/// Makes the variants, their names and their sentences from the same rows, so that none can miss one.
macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $sentence:literal;)*) => {
        /// Why a token, or what stands in its place, is refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Refusal {
            $($(#[$doc])* $variant,)*
        }

        impl Refusal {
            /// Every reason, in the order of their places.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The reason in the log and in metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What is wrong and what to do, for people.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$variant => $sentence,)*
                }
            }
        }
    };
}

refusals! {
    /// The request shows no token.
    Missing = "missing", "the request shows no token; send one by ?token=, Authorization: Bearer or the subprotocol bearer.TOKEN";
    /// It shows two that differ, a token and a ticket, or more than one `Authorization`.
    Ambiguous = "ambiguous", "the request shows more than one token, ticket or Authorization header; send one";
    /// It is no token, or a member of it has the wrong form.
    Malformed = "malformed", "the token is malformed; run realtime token --explain TOKEN";
    /// No key here is for its algorithm and `kid`.
    UnknownKey = "unknown_key", "unknown key: none is for the algorithm and kid of the token; check auth.algorithms, auth.secrets and auth.public_keys";
    /// As `UnknownKey`, and Python may find the key in the key set.
    KeyNotFetched = "unknown_key", "unknown key: the key of the token is not in the key set yet; auth.jwks_url is asked at most once in 10 s";
    /// A key is for it, but did not sign it.
    Signature = "signature", "bad signature: no key of the server has signed the token; check that the signer uses a key of auth.secrets or auth.public_keys";
    /// `iss` is another issuer.
    Issuer = "issuer", "claim iss of the token is not auth.issuer";
    /// `aud` names other audiences.
    Audience = "audience", "claim aud of the token does not name auth.audience";
    /// `nbf`, or `iat`, lies ahead.
    NotYetValid = "not_yet_valid", "the token is not yet valid: claim nbf or iat lies ahead; check the clocks, auth.leeway_s and auth.clock_skew_s";
    /// `exp` has passed; all else is right.
    Expired = "expired", "the token has expired; fetch a new one";
    /// The user's tokens, or this one, were revoked.
    Revoked = "revoked", "the token was revoked; sign in again";
    /// A ticket that is unknown, was used or is too old.
    Ticket = "ticket", "the ticket is unknown, was used or is over 60 s old; request one by POST /api/tickets";
    /// The app's `authenticate` hook returned no identity.
    Hook = "hook", "the authenticate hook returned no identity";
}

/// Refusals of one shard that Python is told in a second, for the log; all are counted.
pub(crate) const TOLD_PER_S: u32 = 20;

impl Refusal {
    /// How many names there are: two reasons share one.
    pub(crate) const NAMES: usize = Self::ALL.len() - 1;

    /// The place of its name among [`Self::names`].
    pub(crate) fn place(self) -> Option<usize> {
        Self::names().position(|name| name == self.name())
    }

    /// Every name once.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().filter(|reason| **reason != Self::KeyNotFetched).map(|reason| reason.name())
    }
}
