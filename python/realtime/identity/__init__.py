"""Who somebody is: tokens, key sets, tickets, service keys and the `authenticate` hook, and what is revoked.

The engine checks tokens, those of sockets in its shards, by keys that are handed to it; what it cannot know (a ticket,
a key that was published a moment ago, a hook of the app's) and everything over HTTP is decided here, by `Identities`.

Called by `server`, `routing`, `api` and `cli`.
"""

from realtime.identity.identities import Identities, request_of
from realtime.identity.keys import VerifyKey
from realtime.identity.origins import origin_rule
from realtime.identity.refusals import TokenRefusals
from realtime.identity.tickets import Ticket
from realtime.identity.tokens import TokenRule, token_for, token_rule

__all__ = [
    "Identities",
    "Ticket",
    "TokenRefusals",
    "TokenRule",
    "VerifyKey",
    "origin_rule",
    "request_of",
    "token_for",
    "token_rule",
]
