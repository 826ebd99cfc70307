"""Errors that the author of an app meets. Each keeps its facts as fields and says them in one line.

`Refused` is the one that a handler raises on purpose; `PublishFailed` is the one that the engine's answer becomes, and
is a `Refused` too, so that a handler which lets it pass answers its command with the same code.
"""

from typing import Final

from realtime.base.codes import RETRYABLE


class Refused(Exception):  # noqa: N818 -- it reads as what happened: raise Refused("not_found", …)
    """A command is not carried out: the client gets an `error` event, the connection stays open, nothing is logged.

    Args:
        code: one of `codes.RETRYABLE`, or the app's own in the same form (`lower_case`).
        message: what the client is told; never put there what only the server should know.
        retryable: whether the same command may succeed later; None takes the code's default (False for own codes).
        path: the field at fault in the form `data.choice`.
        retry_after_ms: how long to wait before trying again.
    """

    def __init__(
        self,
        code: str,
        message: str,
        retryable: bool | None = None,
        path: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.retryable = RETRYABLE.get(code, False) if retryable is None else retryable
        self.path = path
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


_WHY_NOT_PUBLISHED: Final = {
    "unavailable": "the log cannot store now; try again later",
    "not_found": "the event that it amends is not there",
    "overloaded": "too much waits for the log or is held in memory; try again later",
    "rate_limited": "the user has stored too many bytes lately; try again later",
}
_PUBLISH_AGAIN_MS: Final = 1_000


class PublishFailed(Refused):
    """An event was not published.

    `code` is `unavailable` (the log cannot store now), `not_found` (it amends an event that is not there), `too_large`,
    `overloaded` (too much waits for the log, or too much is in memory) or `rate_limited` (its user has stored too much
    lately).
    """

    def __init__(self, code: str, channel: str, detail: str = "") -> None:
        why = detail or _WHY_NOT_PUBLISHED.get(code)
        retry_after_ms = _PUBLISH_AGAIN_MS if code in ("overloaded", "rate_limited") else None
        super().__init__(code, f"Publish failed: {why}" if why else "Publish failed", retry_after_ms=retry_after_ms)
        self.channel = channel
        self.detail = detail

    def __str__(self) -> str:
        return f"publish to {self.channel} failed: {self.code}{f': {self.detail}' if self.detail else ''}"


class NotRunning(RuntimeError):  # noqa: N818 -- the state, not a fault of ours
    """Something was asked of an app that is not served in this process now.

    Publish from a handler, or after its lifespan began; from another process, a forked child too, by
    `POST /api/events`.
    """

    def __init__(self, detail: str = "") -> None:
        super().__init__(
            detail
            or "the app is not served in this process; publish from a handler, or inside of its lifespan; from another "
            "process, such as a child of multiprocessing, publish by POST /api/events"
        )
