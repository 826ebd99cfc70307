"""Refused tokens: each is counted by its reason, and some have a line in the log. The token itself is in neither.

The engine counts what it refuses by itself and tells of some; Python counts the rest. Called by `identities` and
`control`, on the loop's thread.
"""

import logging
from collections.abc import Mapping
from typing import Final

from realtime._engine import TokenCheck
from realtime.base.logs import ConnectionLines, facts
from realtime.base.metrics import Figures
from realtime.identity.auth import InvalidToken

log = logging.getLogger("realtime.identity")

SENTENCES: Final = dict(TokenCheck.reasons())
"""What is said of each reason to refuse a token, for people."""


class TokenRefusals:
    """Counts and logs the tokens that a server refuses.

    Args:
        figures: where Python's counts are kept.
        lines: how many lines about connections the log takes in a second.
    """

    def __init__(self, figures: Figures, lines: ConnectionLines) -> None:
        self._figures = figures
        self._lines = lines

    def refused(self, error: InvalidToken, **where: str) -> None:
        """Count and log a token that Python refused; `where` it was shown: `path`, and `peer` or `session`."""
        self._figures.token_refused(error.reason)
        self._log(error.reason, str(error), where)

    def told(self, reason: str, **where: str) -> None:
        """Log a token that the engine refused and counted."""
        self._log(reason, SENTENCES.get(reason, reason), where)

    def _log(self, reason: str, sentence: str, where: Mapping[str, str]) -> None:
        if self._lines.due():
            told = facts("token_refused", reason=reason, **{name: value for name, value in where.items() if value})
            log.info("refused token: %s", sentence, extra=told)
